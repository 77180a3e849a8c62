//! Applies YAML manifests to a cluster, as `kubectl apply --server-side` does, without kubectl.

use std::path::Path;

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, ResourceExt};

/// Who owns the fields that are set here.
pub const MANAGER: &str = "larder-hack";

/// A client that uses this kubeconfig and nothing else.
///
/// # Errors
/// When the kubeconfig is not one.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}

/// The same, but one that tells a refusal when it comes instead of asking again for half a minute.
///
/// # Errors
/// When the kubeconfig is not one.
pub async fn client_that_asks_once(kubeconfig: &Path) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn config(kubeconfig: &Path) -> anyhow::Result<kube::Config> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    Ok(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

/// The objects in a YAML text of one or more documents.
///
/// # Errors
/// When it is not YAML, or a document is no Kubernetes object.
pub fn parse(text: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(text)?;
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .map(|document| serde_json::from_value(document).context("not a Kubernetes object"))
        .collect()
}

/// Applies every object of a text; those with no namespace of their own go to `namespace`.
///
/// # Errors
/// When the API server refuses one.
pub async fn apply(client: &Client, text: &str, namespace: &str) -> anyhow::Result<()> {
    for object in parse(text)? {
        let name = object.name_any();
        let api = api(client, &object, namespace).await?;
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(&object)).await.with_context(|| format!("apply {name}"))?;
    }
    Ok(())
}

/// What went wrong in a line: of an API server's refusal its message alone.
#[must_use]
pub fn cause(error: &anyhow::Error) -> String {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => format!("{error:#}"),
    }
}

/// Creates every object of a text that is not there; one that is stays as its owner made it.
///
/// # Errors
/// When the API server refuses one.
pub async fn create_missing(client: &Client, text: &str, namespace: &str) -> anyhow::Result<()> {
    for object in parse(text)? {
        let name = object.name_any();
        let api = api(client, &object, namespace).await?;
        match api
            .create(&PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }, &object)
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(err) => return Err(err).with_context(|| format!("create {name}")),
        }
    }
    Ok(())
}

/// Deletes every object of a text, the last first; what is not there is not an error.
///
/// # Errors
/// When the API server refuses.
pub async fn delete(client: &Client, text: &str, namespace: &str) -> anyhow::Result<()> {
    for object in parse(text)?.into_iter().rev() {
        if let Some(api) = served(client, &object, namespace).await? {
            delete_one(&api, &object.name_any()).await?;
        }
    }
    Ok(())
}

/// Deletes those objects of a text that `manager` has set fields of; one of the same name that others made stays.
///
/// # Errors
/// When the API server refuses.
pub async fn delete_own(client: &Client, text: &str, namespace: &str, manager: &str) -> anyhow::Result<()> {
    for object in parse(text)?.into_iter().rev() {
        let name = object.name_any();
        let Some(api) = served(client, &object, namespace).await? else { continue };
        let there = api.get_metadata_opt(&name).await.with_context(|| format!("read {name}"))?;
        if there.is_some_and(|there| is_managed_by(&there.metadata, manager)) {
            delete_one(&api, &name).await?;
        }
    }
    Ok(())
}

/// Whether `manager` has set fields of an object, which the API server notes by itself.
fn is_managed_by(metadata: &ObjectMeta, manager: &str) -> bool {
    metadata.managed_fields.iter().flatten().any(|entry| entry.manager.as_deref() == Some(manager))
}

async fn delete_one(api: &Api<DynamicObject>, name: &str) -> anyhow::Result<()> {
    match api.delete(name, &DeleteParams::foreground()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(err) => Err(err).with_context(|| format!("delete {name}")),
    }
}

/// The same; none when the API server knows no such kind, hence has no such object.
async fn served(
    client: &Client,
    object: &DynamicObject,
    namespace: &str,
) -> anyhow::Result<Option<Api<DynamicObject>>> {
    match api(client, object, namespace).await {
        Ok(api) => Ok(Some(api)),
        Err(err) => match err.downcast_ref::<kube::Error>() {
            Some(kube::Error::Discovery(_)) => Ok(None),
            Some(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            _ => Err(err),
        },
    }
}

/// Where the API server keeps objects of this kind.
async fn api(client: &Client, object: &DynamicObject, namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
    let types = object.types.as_ref().context("an object without a kind")?;
    let kind = GroupVersionKind::try_from(types)?;
    let (resource, capabilities) =
        pinned_kind(client, &kind).await.with_context(|| format!("find kind {} in the cluster", kind.kind))?;
    Ok(match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.metadata.namespace.as_deref().unwrap_or(namespace);
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

    use super::*;

    #[test]
    fn own_objects_are_told_by_their_managers() {
        let managed = |managers: &[&str]| {
            let entry = |name: &&str| ManagedFieldsEntry { manager: Some((*name).to_owned()), ..Default::default() };
            ObjectMeta { managed_fields: Some(managers.iter().map(entry).collect()), ..ObjectMeta::default() }
        };
        assert!(is_managed_by(&managed(&["larder-hack"]), MANAGER));
        assert!(is_managed_by(&managed(&["kube-controller-manager", "larder-hack"]), MANAGER));
        assert!(!is_managed_by(&managed(&["kubectl-client-side-apply", "larder-hack-2"]), MANAGER));
        assert!(!is_managed_by(&managed(&[]), MANAGER));
        assert!(!is_managed_by(&ObjectMeta::default(), MANAGER));
    }

    #[test]
    fn every_manifest_of_ours_parses() {
        let deploy = crate::workspace::root().join("hack/deploy");
        let mut seen = 0;
        for dir in [deploy.clone(), deploy.join("sample")] {
            for entry in std::fs::read_dir(dir).expect("read the folder").flatten() {
                if entry.path().extension().is_some_and(|ext| ext == "yaml") {
                    let text = std::fs::read_to_string(entry.path()).expect("read the manifest");
                    let objects = parse(&text).expect("parse the manifest");
                    assert!(objects.iter().all(|object| object.types.is_some() && object.metadata.name.is_some()));
                    seen += objects.len();
                }
            }
        }
        assert!(seen >= 8, "{seen}");
    }
}

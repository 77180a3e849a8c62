//! The cluster that the virtual nodes join: the embedded control plane, or one that is there. Either way the provider
//! gets the rights of `hack/deploy/rbac.yaml` and no others.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::config::Kubeconfig;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, Config};

use super::layout::{FIRST_GATEWAY, Layout, Settings};
use super::{guard, guest};
use crate::console::step;
use crate::control_plane::{self, ControlPlane};
use crate::kubeconfig::{self, Identity};
use crate::manifests;
use crate::pki::{PairFiles, write_private};
use crate::workspace;

/// The namespace of Larder's own objects.
const NAMESPACE: &str = "larder-system";
/// Applied in this order to every cluster.
const MANIFESTS: [&str; 4] = ["namespace.yaml", "crd.yaml", "rbac.yaml", "provider-token.yaml"];
/// What those define.
const DEFINITIONS: [&str; 2] = ["imagecaches.eci.alibabacloud.com", "selectors.eci.aliyun.com"];
/// How long the cluster gets to act on an object.
const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster that is ready for virtual nodes.
pub(super) struct Cluster {
    /// For the administrator.
    pub(super) client: Client,
    /// None when the control plane is not ours.
    pub(super) control_plane: Option<ControlPlane>,
    /// The kubelet API's certificate; an authority that the API server asks for signed it.
    pub(super) serving: Option<PairFiles>,
    /// Who signs the API server's certificate as a client of the kubelet API.
    pub(super) client_authority: Option<PathBuf>,
}

impl Cluster {
    /// Starts the control plane or reaches the one that is there, and puts in it what the provider needs.
    pub(super) async fn connect(layout: &Layout, settings: &Settings) -> anyhow::Result<Self> {
        let cluster = match &settings.external {
            None => step("start the control plane", start_embedded(layout, settings)).await?,
            Some(file) => step("reach the cluster", reach(layout, settings, file)).await?,
        };
        step("apply definitions and rights", async {
            cluster.apply_manifests().await?;
            cluster.write_provider_kubeconfig(layout).await
        })
        .await?;
        Ok(cluster)
    }

    async fn apply_manifests(&self) -> anyhow::Result<()> {
        for name in MANIFESTS {
            manifests::apply(&self.client, &read_manifest(name)?, NAMESPACE).await?;
        }
        if self.control_plane.is_some() {
            manifests::apply(&self.client, &read_manifest("kubelet-client.yaml")?, NAMESPACE).await?;
        }
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for name in DEFINITIONS {
            let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
            let why = || format!("the definition {name} is not established");
            tokio::time::timeout(DEADLINE, established).await.with_context(why)??;
        }
        // Without it no pod is admitted; in a new cluster a controller makes it a moment after the namespace.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        tokio::time::timeout(DEADLINE, made).await.context("the default service account is not made")??;
        Ok(())
    }

    /// The provider's own identity: a token of its service account.
    async fn write_provider_kubeconfig(&self, layout: &Layout) -> anyhow::Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let filled = await_condition(secrets, "larder-provider-token", |secret: Option<&Secret>| {
            secret.and_then(|secret| secret.data.as_ref()).is_some_and(|data| data.contains_key("token"))
        });
        let secret = tokio::time::timeout(DEADLINE, filled).await.context("the provider's token is not made")??;
        let token = secret.and_then(|secret| secret.data?.remove("token")).context("the token is gone")?;
        let admin = Kubeconfig::read_from(layout.kubeconfig()).context("read the kubeconfig")?;
        let cluster = admin.clusters.first().and_then(|named| named.cluster.clone()).context("no cluster in it")?;
        let server = cluster.server.context("the cluster has no server")?;
        let authority = match (cluster.certificate_authority_data, cluster.certificate_authority) {
            (Some(data), _) => String::from_utf8(base64::Engine::decode(&base64::prelude::BASE64_STANDARD, data)?)?,
            (None, Some(file)) => fs::read_to_string(file).context("read the cluster's authority")?,
            (None, None) => bail!("the kubeconfig names no certificate authority"),
        };
        let identity = Identity::Token(String::from_utf8(token.0).context("the token is not text")?);
        Ok(kubeconfig::write(&layout.provider_kubeconfig(), &server, &authority, &identity)?)
    }
}

/// One of our manifests.
pub(super) fn read_manifest(name: &str) -> anyhow::Result<String> {
    let path = workspace::root().join("hack/deploy").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The ports that pods and the API server reach on this machine. The kubelet API of the i-th virtual node listens i ports
/// above the first one's.
pub(super) const KUBELET_PORT: u16 = 10250;
pub(super) const WEBHOOK_PORT: u16 = 9443;

/// Every port that other machines are to be kept from, with this many virtual nodes.
fn guarded_ports(api: u16, nodes: u8) -> Vec<u16> {
    [api, WEBHOOK_PORT].into_iter().chain(KUBELET_PORT..KUBELET_PORT + u16::from(nodes)).collect()
}

async fn start_embedded(layout: &Layout, settings: &Settings) -> anyhow::Result<Cluster> {
    let config = control_plane::Config {
        bind_address: Ipv4Addr::UNSPECIFIED,
        advertise_address: Some(FIRST_GATEWAY),
        ..control_plane::Config::new(layout.state(), &layout.programs())
    };
    guard::raise(&guarded_ports(config.ports.api, settings.nodes))?;
    let control_plane = ControlPlane::prepare(config)?;
    control_plane.start().await?;
    let mut names = vec![settings.node_ip.to_string(), Ipv4Addr::LOCALHOST.to_string()];
    names.extend((0..64).map(|index| layout.agent(index).node));
    Ok(Cluster {
        client: manifests::client(&control_plane.kubeconfig()).await?,
        serving: Some(control_plane.kubelet_serving_pair("larder", &names)?),
        client_authority: Some(control_plane.authority().files().certificate.clone()),
        control_plane: Some(control_plane),
    })
}

async fn reach(layout: &Layout, settings: &Settings, file: &Path) -> anyhow::Result<Cluster> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    write_private(&layout.kubeconfig(), &text)?;
    let client = manifests::client(&layout.kubeconfig()).await?;
    let version = client.apiserver_version().await.context("reach the API server")?;
    crate::console::note(&format!(".. {} runs Kubernetes {}", file.display(), version.git_version));
    guest::check(layout, settings, &client).await?;
    // Where every API server publishes who signs its certificate as a client.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let published = maps.get("extension-apiserver-authentication").await.context("read who signs the API server")?;
    let authority = published.data.and_then(|mut data| data.remove("client-ca-file"));
    let client_authority = match authority {
        Some(pem) => {
            let path = layout.state().join("pki/external-client-ca.crt");
            write_private(&path, pem.as_bytes())?;
            Some(path)
        }
        None => None,
    };
    Ok(Cluster { client, control_plane: None, serving: None, client_authority })
}

/// The host and port of a kubeconfig's API server.
pub(super) async fn server_address(kubeconfig: &Path) -> anyhow::Result<String> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    let host = config.cluster_url.host().context("the API server has no host")?.to_owned();
    Ok(format!("{host}:{}", config.cluster_url.port_u16().unwrap_or(443)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_kubelet_port_is_guarded() {
        assert_eq!(super::guarded_ports(6443, 1), [6443, 9443, 10250]);
        assert_eq!(super::guarded_ports(6443, 3), [6443, 9443, 10250, 10251, 10252]);
        assert_eq!(super::guarded_ports(6443, u8::MAX).len(), 257);
    }
}

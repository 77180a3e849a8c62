//! Installs the definition of a resource of ours, and waits until the API server serves it.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::cluster::{ClusterError, DefinitionApi};

/// How long the API server may take to serve a definition that it has accepted, and to be reached at all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries while the API server is away.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no definition.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The API server refuses it.
    #[error("install the definition of {kind}")]
    Apply {
        /// The kind that it defines.
        kind: String,
        /// What is wrong.
        source: ClusterError,
    },
    /// It is there, but not served.
    #[error("the definition of {kind} is not established after {}: {why}", humantime::format_duration(PATIENCE))]
    NotEstablished {
        /// The kind that it defines.
        kind: String,
        /// What the API server says of it.
        why: String,
    },
}

/// Has the API server serve the resource as this version knows it.
///
/// # Errors
/// When the API server refuses, or does not get there in time.
pub async fn install(api: &dyn DefinitionApi, wanted: CustomResourceDefinition) -> Result<(), InstallError> {
    let kind = wanted.spec.names.kind.clone();
    let apply = async {
        loop {
            match api.apply_definition(&wanted).await {
                Err(error @ ClusterError::Unavailable { .. }) => {
                    tracing::warn!(kind, %error, "definition is not installed, trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    };
    let unavailable = || ClusterError::Unavailable {
        what: "apply definition".to_owned(),
        message: format!("no success within {}", humantime::format_duration(PATIENCE)),
    };
    let applied = tokio::time::timeout(PATIENCE, apply).await.unwrap_or_else(|_| Err(unavailable()));
    applied.map_err(|source| InstallError::Apply { kind: kind.clone(), source })?;
    let name = wanted.metadata.name.unwrap_or_default();
    let mut why = "it is not there".to_owned();
    let established = async {
        let mut definitions = api.watch_definition(&name);
        while let Some(change) = definitions.next().await {
            match change.only().as_ref().map(obstacle) {
                Some(None) => return,
                Some(Some(obstacle)) => why = obstacle,
                None => {}
            }
        }
    };
    if tokio::time::timeout(PATIENCE, established).await.is_err() {
        return Err(InstallError::NotEstablished { kind, why });
    }
    tracing::info!(name, "definition is installed");
    Ok(())
}

/// Why a definition is not served; nothing when it is.
fn obstacle(definition: &CustomResourceDefinition) -> Option<String> {
    let conditions = || definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is = |kind: &str, status: &str| conditions().find(|it| it.type_ == kind && it.status == status);
    if is("Established", "True").is_some() {
        return None;
    }
    let refused = is("NamesAccepted", "False").and_then(|condition| condition.message.clone());
    Some(refused.unwrap_or_else(|| "the API server has not taken it up yet".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::fake::FakeCluster;
    use crate::custom_resource::definition;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinitionCondition, CustomResourceDefinitionStatus,
    };

    fn with(kind: &str, status: &str, message: &str) -> CustomResourceDefinition {
        let condition = CustomResourceDefinitionCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            message: Some(message.to_owned()),
            ..CustomResourceDefinitionCondition::default()
        };
        let conditions = Some(vec![condition]);
        let status = CustomResourceDefinitionStatus { conditions, ..CustomResourceDefinitionStatus::default() };
        CustomResourceDefinition { status: Some(status), ..definition() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_until_the_definition_is_served() {
        let cluster = Arc::new(FakeCluster::default());
        let mut tasks = tokio::task::JoinSet::new();
        let api = cluster.clone();
        tasks.spawn(async move { install(&*api, definition()).await });
        cluster.wait("definition", |record| record.definition.is_some()).await;
        cluster.put_definition(with("NamesAccepted", "True", ""));
        assert!(tokio::time::timeout(Duration::from_secs(5), tasks.join_next()).await.is_err());
        cluster.put_definition(with("Established", "True", ""));
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_never_served_says_why() {
        let cluster = FakeCluster::default();
        cluster.put_definition(with("NamesAccepted", "False", "\"ic\" is already in use"));
        let error = install(&cluster, definition()).await.unwrap_err();
        assert!(error.to_string().ends_with("after 1m: \"ic\" is already in use"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_tried_again_and_not_for_ever() {
        let cluster = Arc::new(FakeCluster::default());
        cluster.put_definition(with("Established", "True", ""));
        cluster.go_offline();
        assert!(matches!(
            install(&*cluster, definition()).await,
            Err(InstallError::Apply { source: ClusterError::Unavailable { .. }, .. })
        ));
        let mut tasks = tokio::task::JoinSet::new();
        let api = cluster.clone();
        tasks.spawn(async move { install(&*api, definition()).await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        cluster.go_online();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}

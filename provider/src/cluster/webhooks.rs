//! The entries of our webhooks.

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;

use super::watching::{WatchStream, follow};
use super::{ClusterError, KubeCluster, within};

/// Who owns the fields that we apply.
const OWNER: &str = "larder-provider";

/// What the owner of the webhook does at the API server.
#[async_trait]
pub trait WebhookApi: Send + Sync + std::fmt::Debug {
    /// The entry of this name, whether it is there or not.
    fn watch_webhook(&self, name: &str) -> WatchStream<MutatingWebhookConfiguration>;

    /// Makes the entry, or makes it as given; our fields are taken back from whoever has changed them.
    async fn apply_webhook(&self, wanted: &MutatingWebhookConfiguration) -> Result<(), ClusterError>;

    /// The validating entry of this name, whether it is there or not.
    fn watch_validating_webhook(&self, name: &str) -> WatchStream<ValidatingWebhookConfiguration>;

    /// Makes a validating entry, or makes it as given.
    async fn apply_validating_webhook(&self, wanted: &ValidatingWebhookConfiguration) -> Result<(), ClusterError>;
}

impl KubeCluster {
    fn webhooks(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client())
    }

    fn validating_webhooks(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client())
    }
}

#[async_trait]
impl WebhookApi for KubeCluster {
    fn watch_webhook(&self, name: &str) -> WatchStream<MutatingWebhookConfiguration> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        follow(format!("webhook {name}"), self.webhooks(), config)
    }

    async fn apply_webhook(&self, wanted: &MutatingWebhookConfiguration) -> Result<(), ClusterError> {
        let name = wanted.metadata.name.as_deref().unwrap_or_default();
        let (api, params) = (self.webhooks(), PatchParams::apply(OWNER).force());
        within(|| format!("apply webhook {name}"), api.patch(name, &params, &Patch::Apply(wanted))).await.map(drop)
    }

    fn watch_validating_webhook(&self, name: &str) -> WatchStream<ValidatingWebhookConfiguration> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        follow(format!("webhook {name}"), self.validating_webhooks(), config)
    }

    async fn apply_validating_webhook(&self, wanted: &ValidatingWebhookConfiguration) -> Result<(), ClusterError> {
        let name = wanted.metadata.name.as_deref().unwrap_or_default();
        let (api, params) = (self.validating_webhooks(), PatchParams::apply(OWNER).force());
        within(|| format!("apply webhook {name}"), api.patch(name, &params, &Patch::Apply(wanted))).await.map(drop)
    }
}

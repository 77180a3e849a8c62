//! The entries of our webhooks.

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::Api;

use super::watching::{WatchStream, follow_one};
use super::{ClusterError, KubeCluster, apply};

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
        follow_one(format!("webhook {name}"), self.webhooks(), name)
    }

    async fn apply_webhook(&self, wanted: &MutatingWebhookConfiguration) -> Result<(), ClusterError> {
        apply("webhook", &self.webhooks(), wanted).await
    }

    fn watch_validating_webhook(&self, name: &str) -> WatchStream<ValidatingWebhookConfiguration> {
        follow_one(format!("webhook {name}"), self.validating_webhooks(), name)
    }

    async fn apply_validating_webhook(&self, wanted: &ValidatingWebhookConfiguration) -> Result<(), ClusterError> {
        apply("webhook", &self.validating_webhooks(), wanted).await
    }
}

//! The entry of the webhook in memory.

use async_trait::async_trait;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};

use super::{FakeCluster, late, list_then, stamp};
use crate::cluster::webhooks::WebhookApi;
use crate::cluster::{ClusterError, WatchStream, Watched};

impl FakeCluster {
    /// Writes, or takes away, the entry as somebody else would.
    pub fn put_webhook(&self, entry: Option<MutatingWebhookConfiguration>) {
        let mut record = self.lock();
        let change = match entry {
            Some(mut entry) => {
                stamp(&mut record, &mut entry);
                record.webhook = Some(entry.clone());
                Some(Watched::Applied(entry))
            }
            None => record.webhook.take().map(Watched::Deleted),
        };
        if let Some(change) = change {
            let _ = self.webhooks.send(change);
        }
        drop(record);
        self.touch();
    }
}

#[async_trait]
impl WebhookApi for FakeCluster {
    fn watch_webhook(&self, _name: &str) -> WatchStream<MutatingWebhookConfiguration> {
        let record = self.lock();
        late(record.webhook_delay, list_then(record.webhook.clone().into_iter().collect(), self.webhooks.subscribe()))
    }

    async fn apply_webhook(&self, wanted: &MutatingWebhookConfiguration) -> Result<(), ClusterError> {
        let mut record = self.online()?;
        if let Some(message) = record.webhook_refusal.take() {
            return Err(ClusterError::Refused { what: "apply webhook".to_owned(), code: 422, message });
        }
        let text = serde_json::to_string(wanted).expect("an entry can be written");
        if record.webhook_refused_with.as_ref().is_some_and(|refused| text.contains(refused)) {
            return Err(ClusterError::Refused {
                what: "apply webhook".to_owned(),
                code: 422,
                message: "no".to_owned(),
            });
        }
        record.webhook_applies += 1;
        drop(record);
        self.put_webhook(Some(wanted.clone()));
        Ok(())
    }

    fn watch_validating_webhook(&self, _name: &str) -> WatchStream<ValidatingWebhookConfiguration> {
        let record = self.lock();
        list_then(record.validating_webhook.clone().into_iter().collect(), self.validating_webhooks.subscribe())
    }

    async fn apply_validating_webhook(&self, wanted: &ValidatingWebhookConfiguration) -> Result<(), ClusterError> {
        let mut record = self.online()?;
        if let Some(code) = record.validating_webhook_refusal {
            return Err(ClusterError::Refused { what: "apply webhook".to_owned(), code, message: "no".to_owned() });
        }
        let mut wanted = wanted.clone();
        stamp(&mut record, &mut wanted);
        record.validating_webhook = Some(wanted.clone());
        let _ = self.validating_webhooks.send(Watched::Applied(wanted));
        drop(record);
        self.touch();
        Ok(())
    }
}

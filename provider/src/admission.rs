//! The webhooks: what they say, their certificates, their server, and their entries at the API server. One brings labelled
//! pods to the virtual nodes; it never refuses a pod, and pods that are not labelled never come to it. The other sees to it
//! that an ImageCache names only Secrets that its author may read.

pub mod certificates;
pub mod image_cache_review;
pub mod registration;
pub mod review;
pub mod webhook;

mod server;

pub use registration::Target;
pub use review::Placement;
pub use webhook::{Surroundings, Webhook, WebhookConfig, WebhookError};

//! The webhooks: what they say, their certificates, their server, and their entries at the API server. One brings labelled
//! pods to the virtual nodes; it never refuses a pod, and pods that are not selected never come to it. Where a Selector object
//! lets a pod go there only when no other node takes it, a task beside it waits for that. The other sees to it
//! that an ImageCache names only Secrets that its author may read.

pub mod certificates;
pub mod image_cache_review;
pub mod registration;
pub mod review;
pub mod selected;
pub mod selector_review;
pub mod webhook;

mod late;
mod selector_keeper;
mod server;

pub use registration::Target;
pub use review::Placement;
pub use selected::Selected;
pub use webhook::{Surroundings, Webhook, WebhookConfig, WebhookError};

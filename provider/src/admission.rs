//! The mutating webhook that brings labelled pods to the virtual nodes: what it says of a pod, its certificates, its server,
//! and its entry at the API server. It never refuses a pod, and pods that are not labelled never come to it.

pub mod certificates;
pub mod registration;
pub mod review;
pub mod webhook;

mod server;

pub use registration::Target;
pub use review::Placement;
pub use webhook::{Webhook, WebhookConfig, WebhookError};

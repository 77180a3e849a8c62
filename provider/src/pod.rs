//! Carries the pods of a virtual node to its agent, and their status back: one worker a pod UID.
//!
//! It never runs anything, and never removes a pod's API object before the agent has said that nothing of it runs.

pub mod acted_on;
pub mod cache_choice;
pub mod eci_annotations;
pub mod instance_size;
pub mod policy;
pub mod pull_credentials;
pub mod unhonoured;

mod agent_link;
mod agent_pods;
mod backoff;
mod content;
mod controller;
mod next_action;
mod objects;
mod out_of_memory;
mod resize;
mod service_env;
mod status;
mod worker;

pub use cache_choice::{Admitted, CacheChoice, CacheDecision, Notice, Refusal};
pub use controller::{PodController, PodDirectory, PodServices};

/// `status.reason` of a pod that the agent does not take, as ECI's users know it.
pub const PROVIDER_FAILED: &str = "ProviderFailed";

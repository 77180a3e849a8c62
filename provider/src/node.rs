//! A virtual node: its Node object and its lease, kept true for as long as the provider lives.
//!
//! It writes only what is its own (its labels, its taints, its conditions); what others write on the object lives on.

pub mod node_object;

mod agent_beat;
mod controller;
mod lease;
mod lease_object;
mod node_metadata;
mod node_options;

pub use controller::{NodeController, NodeServices};
pub use node_object::{Capacity, NodeIdentity, Taints};

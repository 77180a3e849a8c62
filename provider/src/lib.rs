//! The cluster side of Larder: registers virtual nodes, and carries pods to their agents and their status back.
//!
//! Arrows point down: [`app`] wires; [`pod`], [`node`], [`admission`], [`image_cache`] and [`kubelet_api`]
//! do the work; [`profile`] and [`selector`] say what is written on pods that are created; [`cluster`] alone talks to the API
//! server and [`agent`] alone to the agents.

pub mod admission;
pub mod agent;
pub mod app;
pub mod cluster;
pub mod config;
pub mod custom_resource;
mod first_request;
pub mod identity;
pub mod image_cache;
pub mod kubelet_api;
pub mod meters;
pub mod node;
#[cfg(test)]
mod observed;
pub mod parts;
pub mod pod;
pub mod pod_start;
pub mod profile;
pub mod quantity;
pub mod selector;
pub mod telemetry;

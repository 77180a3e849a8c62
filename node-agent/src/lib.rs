//! The host side of Larder: from an image reference to a running container, for the pods of one virtual node.
//!
//! Arrows point down: `app` wires; `grpc` carries calls in; `pod` owns every pod; `image`, `sandbox`, `runtime`,
//! `container_log` and `stats` do its work; `registry`, `snapshot` and `store` hold images; `erofs` knows the format of a file
//! system and nothing of ours; `host` makes every privileged system call.

#![cfg_attr(fuzzing, expect(dead_code, unused_imports, reason = "what is fuzzed is a part"))]

#[cfg(not(fuzzing))]
pub mod app;
pub mod chain;
#[cfg(not(fuzzing))]
pub mod config;
#[cfg(not(fuzzing))]
pub mod container_log;
pub mod digest;
pub mod erofs;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(not(fuzzing))]
pub mod grpc;
#[cfg(not(fuzzing))]
pub mod host;
#[cfg(not(fuzzing))]
pub mod image;
#[cfg(not(fuzzing))]
pub mod meters;
#[cfg(not(fuzzing))]
pub mod metrics_server;
#[cfg(not(fuzzing))]
pub mod node;
#[cfg(not(fuzzing))]
pub mod pod;
#[cfg(not(fuzzing))]
pub mod registry;
#[cfg(not(fuzzing))]
pub mod runtime;
#[cfg(not(fuzzing))]
pub mod sandbox;
pub mod sizes;
pub mod snapshot;
#[cfg(not(fuzzing))]
pub mod stats;
pub mod store;
#[cfg(not(fuzzing))]
pub mod telemetry;

// What reads bytes from outside, and what that stands on. The rest needs crates that take twenty minutes of a processor to
// build with the coverage that a fuzzer steers by.
#[cfg(fuzzing)]
pub mod host {
    //! What the snapshots ask of the kernel.
    pub mod mount;
    pub mod overlay;
    pub mod writeback;
}
#[cfg(fuzzing)]
pub mod image {
    //! What reads manifests.
    pub mod pull_plan;
}
#[cfg(fuzzing)]
pub mod registry {
    //! What reads references and `hosts.toml`.
    mod error;
    pub mod hosts;
    pub mod reference;

    pub use self::{error::RegistryError, reference::Reference};
}

//! The host side of Larder: from an image reference to a running container, for the pods of one virtual node.
//!
//! Arrows point down: `app` wires; `grpc` carries calls in; `pod` owns every pod; `image`, `sandbox`, `runtime`,
//! `container_log` and `stats` do its work; `registry`, `snapshot` and `store` hold images; `erofs` knows the format of a file
//! system and nothing of ours; `host` makes every privileged system call.

pub mod app;
pub mod chain;
pub mod config;
pub mod container_log;
pub mod digest;
pub mod erofs;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod grpc;
pub mod host;
pub mod image;
pub mod meters;
pub mod metrics_server;
pub mod node;
pub mod pod;
pub mod registry;
pub mod runtime;
pub mod sandbox;
pub mod sizes;
pub mod snapshot;
pub mod stats;
pub mod store;
pub mod telemetry;

//! What the agent and the per-container monitor have to agree on: the files of a container's run directory, the messages on
//! the monitor's socket, and the format of log lines.
//!
//! Both sides are built from one tree, but an upgraded agent meets monitors of the version before it: a field is only ever
//! added, with a default, and never changes its meaning.
//!
//! This library never starts a process and never waits for anything.

pub mod cri_log;
pub mod files;
pub mod wire;

pub use files::{
    CgroupDir, ContainerState, Exit, FileError, Launch, LogConfig, MonitorConfig, RuntimeCommand, StartError, Starter,
    UnixNanos,
};

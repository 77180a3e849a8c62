//! The host: every privileged system call of the agent is made in here, and nowhere else.
//!
//! Nothing in here decides anything: a function does one thing to the kernel and says what went wrong. It never names a
//! pod, an image or a registry.

pub mod cgroup;
pub mod disk_use;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod overlay;
pub mod process;
pub mod removal;
pub mod writeback;

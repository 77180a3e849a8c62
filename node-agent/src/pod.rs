//! The pods of this node: one task owns each, from the wish to the last trace of it.
//!
//! Decisions are in pure files (`lifecycle`, `restart`, `status`, `support`, `storage`, `events`): they turn what has happened into
//! what to do and what to say. `worker` carries the steps out, `caretaker` sees to it that a pod has one, `supervisor` owns
//! the caretakers, `publisher` hands statuses on, `ledger` keeps what a restarted agent needs to find everything again.

mod adoption;
mod caretaker;
mod container_spec;
pub mod downward;
pub mod environment;
pub mod events;
#[cfg(test)]
mod fakes;
pub mod figures;
pub mod files;
pub mod host;
mod last_words;
pub mod ledger;
pub mod lifecycle;
pub mod logs;
pub mod network_files;
pub mod objects;
mod provenance;
pub mod publisher;
pub mod quality;
pub mod quantity;
mod request;
pub mod restart;
pub mod status;
pub mod storage;
pub mod supervisor;
pub mod support;
mod survivors;
pub mod volume;
pub mod wish;
mod worker;

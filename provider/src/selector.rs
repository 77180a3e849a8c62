//! The `Selector` objects: which one acts on a pod, how the pod may then be scheduled, and what is written on it.
//!
//! `rule` reads one, `ranking` says which acts, `mark` what a pod remembers of it, `overwriting` how its effect is written,
//! `standing` which state of each holds while the newest cannot. All of it is pure; webhook, scheduler's helper and start of a
//! pod carry it out.

pub mod mark;
pub mod overwriting;
pub mod ranking;
pub mod rule;
pub mod standing;

pub use ranking::Rules;
pub use rule::{Name, Policy, Rule};
pub use standing::Standing;

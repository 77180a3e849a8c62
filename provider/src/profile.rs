//! The ConfigMap `kube-system/eci-profile`: selectors that bring pods to the virtual nodes, and what is written on those pods.
//!
//! `parse` reads it, `selection` says which selectors concern a pod, `effect` what they write on it, and `standing` which
//! profile holds when the newest one cannot be read. All of it is pure; the webhook carries it out.

pub mod effect;
pub mod labels;
pub mod parse;
pub mod selection;
pub mod standing;

pub use effect::Effect;
pub use parse::{Profile, Selector};
pub use standing::{Standing, Told};

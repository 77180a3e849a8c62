//! Image caches: which cache a pod starts from, and the task that keeps the hosts' caches as the ImageCache objects say.

pub mod annotations;
pub mod automatic;
pub mod catalog;
pub mod controller;
pub mod figures;
pub mod handle;
pub mod hosts;
pub mod installation;
pub mod jobs;
pub mod matching;
pub mod object_events;
pub mod placement;
pub mod plan;
pub mod quota;
pub mod reference;
pub mod request;
pub mod retention;
pub mod snapshot;
pub mod status;
pub mod verification;

mod follow;

pub use controller::{ImageCacheController, Surroundings};
pub use handle::{Chosen, ImageCaches, Note};
pub use jobs::SecretRule;
pub use matching::Refusal;

//! What the end-to-end tests share: a machine of their own, a cluster with virtual nodes on it, a registry that misbehaves
//! on demand, and a namespace for each test with the questions that tests ask.

pub mod cluster;
mod figures;
pub mod isolation;
pub mod registry_proxy;
pub mod scene;
pub mod unpacked;

mod mutual_tls;
mod own_image;

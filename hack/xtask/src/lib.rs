//! What it takes to build, start, measure and check Larder on one machine. Shared by the `xtask` commands and the
//! end-to-end tests; never part of a product binary.
//!
//! Nothing here is global: every folder, port, bridge and address range is a parameter, so that several clusters can
//! run on one machine at the same time.

pub mod bench;
pub mod check;
pub mod conditions;
pub mod console;
pub mod control_plane;
pub mod controlplane_program;
pub mod down;
mod erofs_utils;
pub mod footprint;
pub mod fuzz;
mod go_program;
pub mod images;
mod kept_store;
pub mod kubeconfig;
pub mod larder;
pub mod layers;
pub mod manifests;
mod mounts;
mod peer;
pub mod pki;
pub mod ports;
pub mod prerequisites;
pub mod process;
pub mod registry;
pub mod source;
pub mod test;
pub mod up;
pub mod workspace;

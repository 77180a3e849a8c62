//! Any bytes as what a registry has under a name, and as an image configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_node_agent::fuzzing::manifest(bytes));

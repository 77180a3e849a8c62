//! Any bytes as the tars of an image's layers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_node_agent::fuzzing::layer(bytes));

//! Any text as an image reference.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_node_agent::fuzzing::reference(bytes));

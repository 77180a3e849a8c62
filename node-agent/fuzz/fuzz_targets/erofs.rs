//! Any bytes as an EROFS image.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_node_agent::fuzzing::erofs(bytes));

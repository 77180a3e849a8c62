//! Any text as a registry's hosts.toml.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_node_agent::fuzzing::hosts_toml(bytes));

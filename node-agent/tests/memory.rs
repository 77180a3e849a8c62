//! What the allocator keeps, seen in a process that does nothing else.
#![cfg(target_env = "gnu")]
#![expect(clippy::tests_outside_test_module, reason = "the whole file is a test")]

use larder_node_agent::host::memory;

#[test]
fn freed_memory_goes_back() {
    memory::keep_small();
    // Small pieces come from the heap, and each is written to.
    let pieces: Vec<Vec<u8>> = (0..16_384).map(|_| vec![1; 4000]).collect();
    // Behind the others: while it is there, the heap does not shrink by itself.
    let last = vec![1u8; 4000];
    let full = memory::resident_bytes();
    drop(pieces);
    assert!(full - memory::resident_bytes() < 20 << 20, "it went back by itself, so this test shows nothing");
    memory::give_back();
    let left = memory::resident_bytes();
    assert!(full - left > 40 << 20, "{full} bytes while in use, {left} after");
    drop(last);
}

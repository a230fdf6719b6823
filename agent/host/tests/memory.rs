//! What a process holds after it needed much for a moment. Alone in its process: others' memory would be measured, too.
#![cfg(target_env = "gnu")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use headroom_host::memory;

/// Bytes of memory that this process holds and that no file is behind.
fn resident() -> u64 {
    let status = procfs::process::Process::myself().unwrap().status().unwrap();
    status.rssanon.unwrap() << 10
}

#[test]
fn free_memory_between_what_is_in_use_is_given_back() {
    memory::keep_little();
    let blocks: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 16 << 10]).collect();
    let all = resident();
    // Every 64th stays: the heap has no end that is free.
    let kept: Vec<Vec<u8>> = blocks.into_iter().step_by(64).collect();
    let with_holes = resident();
    memory::give_back();
    let given_back = resident();
    assert!(with_holes > all / 4 * 3, "the allocator kept {with_holes} of {all} by itself: nothing to show");
    assert!(given_back < all / 4, "{given_back} of {all} bytes are still held");
    assert_eq!(kept.len(), 64);
}

//! How this process asks for memory.

/// Makes the allocator give back what is free, for a process that now and then needs much for a moment (a BTF, a dump, an
/// evaluation) and then waits. glibc else keeps it, once per thread: a third of all that is resident with 50,000 destinations.
///
/// Before the first thread is started. Other C libraries than glibc do not need it.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        // The threads here hardly ever want memory at the same moment.
        (libc::M_ARENA_MAX, 1),
        // What is larger gets pages of its own. To set it also keeps glibc from raising it.
        (libc::M_MMAP_THRESHOLD, LARGE),
        (libc::M_TRIM_THRESHOLD, LARGE),
    ] {
        // SAFETY: it only sets numbers of the allocator.
        let known = unsafe { libc::mallopt(parameter, value) };
        if known == 0 {
            tracing::debug!(parameter, "the allocator does not know a parameter");
        }
    }
}

/// Gives back what is free in the middle of the heap, too, which the allocator by itself keeps: it only shortens the end.
///
/// After something that needed much for a moment. Other C libraries than glibc do not need it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own lock, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// So much is worth a system call.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 64 << 10;

//! What the allocator keeps of freed memory: little, so that an agent that has pulled an image is as small as before.
//!
//! glibc gives each thread an arena of its own, up to eight a core, and keeps what was freed in them; it also raises by
//! itself the size from which on an allocation is given back to the kernel at once. A pull with its many threads and
//! half-megabyte buffers would leave tens of megabytes behind.

/// Sets how the allocator works, for the whole process. To be called before threads are started.
pub fn keep_small() {
    // glibc's own names are not in musl, whose allocator has no arenas and keeps little.
    #[cfg(target_env = "gnu")]
    glibc::keep_small();
}

/// Gives freed memory back to the kernel. Takes about a millisecond, in which other threads may wait to allocate.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    glibc::give_back();
}

/// How much of this process lies in memory now; 0 when the kernel does not say.
pub fn resident_bytes() -> u64 {
    let statm = procfs::process::Process::myself().and_then(|own| own.statm());
    statm.map_or(0, |statm| statm.resident.saturating_mul(procfs::page_size()))
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator has no other interface")]
mod glibc {
    /// The async threads and the blocking ones rarely allocate at the same time.
    const ARENAS: libc::c_int = 2;
    /// Larger allocations have a mapping of their own, which goes when they are freed. To set it fixes it. The half megabytes
    /// that come from registries are below: a mapping for each would mean a fault for each of its pages.
    const MAPPED_FROM: libc::c_int = 1 << 20;
    /// So much of the end of an arena is kept when it is freed, for the next of those pieces. The end of a pull gives it back.
    const KEPT_AT_END: libc::c_int = 8 << 20;

    pub(super) fn keep_small() {
        for (parameter, value) in
            [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, MAPPED_FROM), (libc::M_TRIM_THRESHOLD, KEPT_AT_END)]
        {
            // SAFETY: takes two numbers; the allocator locks its own state. A value that it refuses changes nothing.
            let _ = unsafe { libc::mallopt(parameter, value) };
        }
    }

    pub(super) fn give_back() {
        // SAFETY: takes a number; the allocator locks its own state, and touches only memory that is free.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

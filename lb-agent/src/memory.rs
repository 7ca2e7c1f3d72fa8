// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps the agent small: what the C library's allocator holds back is given to the system.
//!
//! A list of a large cluster is decoded on one thread and kept by another; by default each gets an
//! arena of its own, and neither shrinks.
//! **Invariant:** only hints to the allocator; with another C library than glibc they do nothing.

/// Lets all threads share one arena; call it before the first of them starts.
pub fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the C library offers it in no other way")]
        // SAFETY: two integers are handed over, and no other thread is running yet.
        let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        if done == 0 {
            tracing::debug!("mallopt refuses M_ARENA_MAX");
        }
    }
}

/// Gives memory back that is free; takes milliseconds, so call it after large lists only.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the C library offers it in no other way")]
        // SAFETY: an integer is handed over; the function is thread-safe.
        let released = unsafe { libc::malloc_trim(0) };
        tracing::debug!(released = released != 0, "gave free memory back");
    }
}

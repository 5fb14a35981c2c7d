//! How much freed memory the process keeps, so that a transfer does not fault it in again and again.

/// Freed memory at the heap's end that is kept; more goes back to the system.
///
/// Chosen: what one fast transfer has under way. glibc would keep half a megabyte, and of each
/// megabyte that a daemon carries a fifth was faulted in anew: 6 % of its time.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: i32 = 4 << 20;
/// Pieces of this size and above have a mapping of their own, which goes back when it is freed.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: i32 = 1 << 20;

/// Tells the allocator to keep a few megabytes of freed memory; to be called once, at the start.
///
/// Other C libraries than glibc go on as they like.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nothing safe sets the allocator's limits")]
pub fn keep_some_heap() {
    use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};

    for (limit, bytes) in [
        (M_TRIM_THRESHOLD, KEPT_BYTES),
        (M_MMAP_THRESHOLD, MAPPED_BYTES),
    ] {
        // SAFETY: it sets a number in the allocator, under the allocator's own lock.
        let is_set = unsafe { mallopt(limit, bytes) };
        if is_set == 0 {
            tracing::debug!(limit, bytes, "the allocator keeps its own limit");
        }
    }
}

/// Does nothing: this C library has no such limits.
#[cfg(not(target_env = "gnu"))]
pub fn keep_some_heap() {}

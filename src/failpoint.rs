//! Places where a test can kill the process, to show what a crash there costs.
//!
//! `FAILPOINT_SOUK=name` aborts the process when `name` is hit; `name:n` at the n-th time. Release
//! builds contain none of it.

/// Dies here when the test asked for it.
#[cfg(debug_assertions)]
pub fn hit(name: &str) {
    debug::hit(name);
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn hit(_name: &str) {}

#[cfg(debug_assertions)]
mod debug {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var("FAILPOINT_SOUK").ok()?;
        Some(match text.split_once(':') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (text, 1),
        })
    });
    static SEEN: AtomicU64 = AtomicU64::new(0);

    pub(super) fn hit(name: &str) {
        if let Some((wanted, nth)) = &*WANTED
            && wanted == name
            && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *nth
        {
            std::process::abort();
        }
    }
}

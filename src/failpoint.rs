//! Places where a test can kill the process, to show what a crash there costs.
//!
//! `cli` arms one from `FAILPOINT_SOUK=name` (`name:n`: at the n-th time); hitting it aborts the
//! process. Release builds contain none of it.

/// Arms the failpoint that `text` names; only the first call counts.
pub fn arm(text: Option<String>) {
    #[cfg(debug_assertions)]
    debug::arm(text);
    #[cfg(not(debug_assertions))]
    drop(text);
}

/// Dies here when the test asked for it.
#[inline]
pub fn hit(name: &str) {
    #[cfg(debug_assertions)]
    debug::hit(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod debug {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    pub(super) fn arm(text: Option<String>) {
        let parsed = text.map(|text| match text.split_once(':') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (text, 1),
        });
        let _ = WANTED.set(parsed);
    }

    pub(super) fn hit(name: &str) {
        if let Some(Some((wanted, nth))) = WANTED.get()
            && wanted == name
            && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *nth
        {
            std::process::abort();
        }
    }
}

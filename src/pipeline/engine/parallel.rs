//! Work that is cut into pieces, on the threads that candle multiplies on.

use candle_core::utils::barrier_pool;
use parking_lot::Mutex;

/// Does each piece once, and returns when all are done.
pub(super) fn each<T: Send>(pieces: Vec<T>, work: impl Fn(&mut T) + Sync) {
    // Nobody waits for these locks: they say to the compiler what the pool sees to.
    let pieces: Vec<Mutex<T>> = pieces.into_iter().map(Mutex::new).collect();
    barrier_pool().execute_chunked(pieces.len(), |range| {
        for piece in pieces.get(range).unwrap_or_default() {
            work(&mut piece.lock());
        }
    });
}

//! What a sender sent, one row per position, so that it can be sent again.

use bytes::{Bytes, BytesMut};

use super::index;

/// Rows by position, from 0 without gaps. A row is a slice of the message it was sent in.
#[derive(Clone, Debug)]
pub struct Log {
    rows: Vec<Bytes>,
    row_bytes: usize,
}

impl Log {
    /// An empty log of rows of `row_bytes`.
    #[must_use]
    pub const fn new(row_bytes: usize) -> Self {
        Self {
            rows: Vec::new(),
            row_bytes,
        }
    }

    /// Bytes of a row.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Positions.
    #[must_use]
    pub fn length(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// Forgets what is at `pos` and behind it, and puts `rows` there. False, and nothing changed,
    /// when that would leave a gap or the bytes are no whole rows.
    pub fn put(&mut self, pos: u32, rows: &Bytes) -> bool {
        let at = index(pos);
        let whole = rows.len().checked_rem(self.row_bytes) == Some(0);
        if at > self.rows.len() || !whole {
            return false;
        }
        self.rows.truncate(at);
        let mut rest = rows.clone();
        while !rest.is_empty() {
            self.rows.push(rest.split_to(self.row_bytes));
        }
        true
    }

    /// Forgets what is at `pos` and behind it.
    pub fn truncate(&mut self, pos: u32) {
        self.rows.truncate(index(pos));
    }

    /// The rows of `pos..end` in one piece; fewer where fewer are here.
    #[must_use]
    pub fn read(&self, pos: u32, end: u32) -> Bytes {
        let end = index(end).min(self.rows.len());
        let some = self.rows.get(index(pos).min(end)..end).unwrap_or_default();
        match some {
            [one] => one.clone(),
            _ => {
                let mut all = BytesMut::with_capacity(some.len() * self.row_bytes);
                some.iter().for_each(|row| all.extend_from_slice(row));
                all.freeze()
            }
        }
    }
}

//! What buyers refused of a seller's receipts: asked for at a start, so that a restart forgives nothing.

use super::error::{Doing as _, LedgerError};
use super::reader::{Reader, WHAT};
use crate::types::{MicroUsd, PeerId, UnixMs};

/// Rows of the ledger, of all kinds, among which refusals are looked for at a start: read in a tenth of
/// a second.
const REFUSED_ROWS: i64 = 200_000;

impl Reader {
    /// What buyers did not accept of this seller's receipts, booked since `since_ms`: who, when, how
    /// much; oldest first. Looks at the newest rows only: it is asked for at every start.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn refused_since(
        &self,
        since_ms: UnixMs,
    ) -> Result<Vec<(PeerId, UnixMs, MicroUsd)>, LedgerError> {
        let found: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(
            "select o.peer, f.at_ms, d.cost - f.billed
             from attempt_final f
             join attempt_open o on o.seq = f.open_seq
             join attempt_delivered d on d.open_seq = f.open_seq
             where f.seq > (select coalesce(max(seq), 0) from attempt_final) - ?1
               and f.at_ms >= ?2 and o.role = 'sell' and d.cost > f.billed
             order by f.seq",
        )
        .bind(REFUSED_ROWS)
        .bind(i64::try_from(since_ms).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .doing(WHAT)?;
        let read = |(peer, at_ms, sum): (Vec<u8>, i64, i64)| {
            let at_ms = u64::try_from(at_ms).unwrap_or(0);
            Some((
                PeerId::from_bytes(&peer).ok()?,
                at_ms,
                MicroUsd::from_i64(sum),
            ))
        };
        Ok(found.into_iter().filter_map(read).collect())
    }
}

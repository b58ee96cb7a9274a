//! What the writer decides about a row before and after SQLite sees it: what is covered already, what
//! only the writer knows, and why a row was refused.

use super::{BatchWriter, Patch, Verdict, WHAT};
use crate::ledger::error::{Doing as _, LedgerError};
use crate::ledger::table::{Encoded, Table, Value};
use crate::types::{AttemptId, MicroUsd};

/// What becomes of one row before it is written.
pub(super) enum Plan {
    Write(Option<Patch>),
    Skip,
    Refuse(LedgerError),
}

impl BatchWriter {
    /// Decides what is already covered, and looks up what only the writer knows.
    pub(super) async fn plan(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        match row.table {
            Table::Voucher => self.plan_voucher(row).await,
            Table::Offer => self.plan_offer(row).await,
            Table::Delivered | Table::Final => self.plan_attempt(row).await,
            _ => Ok(Plan::Write(None)),
        }
    }

    /// Finds the open row that a delivered or final row belongs to.
    async fn plan_attempt(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        let Some(attempt) = attempt_of(row) else {
            return Err(sqlx::Error::Protocol(
                "an attempt's row is misshapen".into(),
            ));
        };
        let known = match self.attempts.get(&attempt) {
            Some(seq) => Some(*seq),
            None => self.find_open(&attempt).await?,
        };
        Ok(match known {
            Some(value) => Plan::Write(Some(Patch {
                column: OPEN_SEQ_COLUMN,
                value,
            })),
            None => Plan::Refuse(LedgerError::NotOpened(attempt)),
        })
    }

    async fn find_open(&mut self, attempt: &AttemptId) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar("select seq from attempt_open where attempt_id = ?1")
            .bind(attempt.as_bytes().as_slice())
            .fetch_optional(&mut self.conn)
            .await
    }

    /// A voucher at or below the highest one adds nothing: it is covered.
    async fn plan_voucher(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        let (Some(Value::Text(role)), Some(Value::Blob(channel)), Some(Value::Int(cumulative))) =
            (row.values.get(1), row.values.get(2), row.values.get(3))
        else {
            return Err(sqlx::Error::Protocol("a voucher row is misshapen".into()));
        };
        let mut key = channel.clone();
        key.extend_from_slice(role.as_bytes());
        let before = match self.heads.get(&key) {
            Some(head) => Some(*head),
            None => {
                sqlx::query_scalar(
                    "select cumulative from voucher where channel = ?1 and role = ?2
                     order by seq desc limit 1",
                )
                .bind(channel.as_slice())
                .bind(role.as_str())
                .fetch_optional(&mut self.conn)
                .await?
            }
        };
        // The first voucher of a channel is kept even at 0: it is a signature worth having.
        let covered = before.is_some_and(|before| *cumulative <= before);
        self.heads.put(key, before.unwrap_or(0).max(*cumulative));
        Ok(if covered {
            Plan::Skip
        } else {
            Plan::Write(Some(Patch {
                column: STEP_COLUMN,
                value: cumulative - before.unwrap_or(0),
            }))
        })
    }

    /// An offer is kept once.
    async fn plan_offer(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        let Some(Value::Blob(hash)) = row.values.get(1) else {
            return Err(sqlx::Error::Protocol("an offer row is misshapen".into()));
        };
        if self.offers.get(hash).is_some() {
            return Ok(Plan::Skip);
        }
        let known: Option<i64> = sqlx::query_scalar("select seq from offer where offer_hash = ?1")
            .bind(hash.as_slice())
            .fetch_optional(&mut self.conn)
            .await?;
        self.offers.put(hash.clone(), ());
        Ok(match known {
            Some(_) => Plan::Skip,
            None => Plan::Write(None),
        })
    }

    /// Says why a row broke a rule; `Ok` when the very same thing is already written.
    pub(super) async fn judge(
        &mut self,
        row: &Encoded,
        error: &sqlx::Error,
    ) -> Result<Verdict, LedgerError> {
        let invalid = LedgerError::Invalid(error.to_string());
        let Some(attempt) = attempt_of(row) else {
            return Ok(Err(invalid));
        };
        let Some(open) = self.find_open(&attempt).await.doing(WHAT)? else {
            return Ok(Err(invalid));
        };
        if row.table == Table::Open {
            return Ok(Err(LedgerError::AttemptExists(attempt)));
        }
        if row.table == Table::Delivered {
            let there: Option<(i64, Option<Vec<u8>>)> =
                sqlx::query_as("select cost, receipt from attempt_delivered where open_seq = ?1")
                    .bind(open)
                    .fetch_optional(&mut self.conn)
                    .await
                    .doing(WHAT)?;
            return Ok(match there {
                Some((cost, receipt)) if same_delivery(row, cost, receipt.as_deref()) => Ok(()),
                Some((cost, _)) => Err(LedgerError::AlreadyBooked {
                    attempt,
                    billed: MicroUsd::from_i64(cost),
                }),
                None => Err(invalid),
            });
        }
        let there: Option<(String, i64)> =
            sqlx::query_as("select outcome, billed from attempt_final where open_seq = ?1")
                .bind(open)
                .fetch_optional(&mut self.conn)
                .await
                .doing(WHAT)?;
        Ok(match there {
            Some((outcome, billed)) if same_booking(row, &outcome, billed) => Ok(()),
            Some((_, billed)) => Err(LedgerError::AlreadyBooked {
                attempt,
                billed: MicroUsd::from_i64(billed),
            }),
            None => Err(invalid),
        })
    }
}

/// Column of `step` in a voucher row.
const STEP_COLUMN: usize = 4;
/// Column of `open_seq` in a delivered or final row; callers give the attempt's id there.
const OPEN_SEQ_COLUMN: usize = 1;

/// The attempt that a row is about.
pub(super) fn attempt_of(row: &Encoded) -> Option<AttemptId> {
    match (row.table, row.values.get(1)) {
        (Table::Open | Table::Delivered | Table::Final, Some(Value::Blob(id))) => {
            AttemptId::from_slice(id)
        }
        _ => None,
    }
}

fn same_booking(row: &Encoded, outcome: &str, billed: i64) -> bool {
    row.values.get(2) == Some(&Value::Text(outcome.to_owned()))
        && row.values.get(4) == Some(&Value::Int(billed))
}

fn same_delivery(row: &Encoded, cost: i64, receipt: Option<&[u8]>) -> bool {
    let same_receipt = match row.values.get(11) {
        Some(Value::Blob(bytes)) => receipt == Some(bytes.as_slice()),
        _ => receipt.is_none(),
    };
    same_receipt && row.values.get(10) == Some(&Value::Int(cost))
}

//! Reading what the ledger knows of a chain: what a restarted outbox and watcher continue from.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::decode::{BadColumn, to_cursor, to_event, to_intent, to_outcome, to_sent};
use super::error::{Doing as _, LedgerError};
use super::onchain::{CursorRow, EventRow, IntentState, OutcomeRow, SentRow};
use super::reader::{Reader, WHAT, rows};
use super::table::{Table, Value, stored};
use crate::types::{ChannelId, EvmAddress, Hash32, IntentId, Stage};

impl Reader {
    /// Intents of a sender on a chain that have no last step, by nonce.
    ///
    /// # Errors
    /// When the database cannot be read or a row does not hold what it should.
    pub async fn open_intents(
        &self,
        chain_id: u64,
        sender: &EvmAddress,
    ) -> Result<Vec<IntentState>, LedgerError> {
        let mut tx = self.pool.begin().await.doing(WHAT)?;
        let sql = Table::TxIntent.select(
            "where chain_id = ?1 and sender = ?2
               and not exists (select 1 from tx_outcome o where o.intent = tx_intent.intent
                               and o.step in ('confirmed', 'displaced'))
             order by nonce",
        );
        let found = sqlx::query(AssertSqlSafe(sql))
            .bind(i64::try_from(chain_id).unwrap_or(i64::MAX))
            .bind(sender.as_bytes().as_slice())
            .fetch_all(&mut *tx)
            .await
            .doing(WHAT)?;
        let mut states = Vec::with_capacity(found.len());
        for row in &found {
            let row = stored(Table::TxIntent, row).doing(WHAT)?;
            let intent = self.typed(to_intent(&row.values))?;
            let sent = self.sent(&mut tx, &intent.intent).await?;
            let last = self.steps(&mut tx, &intent.intent).await?.pop();
            states.push(IntentState { intent, sent, last });
        }
        Ok(states)
    }

    /// What became of an intent, oldest first.
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn outcomes(&self, intent: &IntentId) -> Result<Vec<OutcomeRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        self.steps(&mut conn, intent).await
    }

    /// The newest cursor of a hub.
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn chain_cursor(
        &self,
        chain_id: u64,
        hub: &EvmAddress,
    ) -> Result<Option<CursorRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        let rest = "where hub = ?1 order by seq desc";
        let found = rows(
            &mut conn,
            Table::ChainCursor,
            rest,
            hub.as_bytes().as_slice(),
        )
        .await?;
        for row in &found {
            let cursor = self.typed(to_cursor(&row.values))?;
            if cursor.chain_id == chain_id {
                return Ok(Some(cursor));
            }
        }
        Ok(None)
    }

    /// A hub's events above `block` that were seen and not removed: each once, at its newest stage,
    /// in the order in which they were seen.
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn events_above(
        &self,
        chain_id: u64,
        hub: &EvmAddress,
        block: u64,
    ) -> Result<Vec<EventRow>, LedgerError> {
        let sql = Table::ChainEvent
            .select("where hub = ?1 and chain_id = ?2 and block_number > ?3 order by seq");
        let found = sqlx::query(AssertSqlSafe(sql))
            .bind(hub.as_bytes().as_slice())
            .bind(i64::try_from(chain_id).unwrap_or(i64::MAX))
            .bind(i64::try_from(block).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .doing(WHAT)?;
        let mut standing = Standing::default();
        for row in &found {
            let row = stored(Table::ChainEvent, row).doing(WHAT)?;
            standing.enter(self.typed(to_event(&row.values))?);
        }
        Ok(standing.into_rows())
    }

    /// All of a hub's events that stand, as [`Self::events_above`].
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn hub_events(
        &self,
        chain_id: u64,
        hub: &EvmAddress,
    ) -> Result<Vec<EventRow>, LedgerError> {
        // A hub has no events in block 0: it is deployed by a transaction.
        self.events_above(chain_id, hub, 0).await
    }

    /// The channels that have events of a hub here.
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn channels_of_hub(
        &self,
        chain_id: u64,
        hub: &EvmAddress,
    ) -> Result<Vec<ChannelId>, LedgerError> {
        let found: Vec<Vec<u8>> = sqlx::query_scalar(
            "select distinct channel from chain_event
             where hub = ?1 and chain_id = ?2 and channel is not null",
        )
        .bind(hub.as_bytes().as_slice())
        .bind(i64::try_from(chain_id).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .doing(WHAT)?;
        let ids = found.iter().filter_map(|id| ChannelId::from_slice(id));
        Ok(ids.collect())
    }

    /// The hubs that have events here, with their chains.
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn hubs(&self) -> Result<Vec<(u64, EvmAddress)>, LedgerError> {
        let found = sqlx::query("select distinct chain_id, hub from chain_event order by 1, 2")
            .fetch_all(&self.pool)
            .await
            .doing(WHAT)?;
        let mut hubs = Vec::with_capacity(found.len());
        for row in &found {
            let chain_id: i64 = row.try_get_unchecked(0).doing(WHAT)?;
            let hub: Vec<u8> = row.try_get_unchecked(1).doing(WHAT)?;
            if let Some(hub) = EvmAddress::from_slice(&hub) {
                hubs.push((u64::try_from(chain_id).unwrap_or(0), hub));
            }
        }
        Ok(hubs)
    }

    /// A channel's events that stand, seen or confirmed, oldest first.
    ///
    /// # Errors
    /// As [`Self::open_intents`].
    pub async fn channel_events(&self, channel: &ChannelId) -> Result<Vec<EventRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        let rest = "where channel = ?1 order by seq";
        let found = rows(
            &mut conn,
            Table::ChainEvent,
            rest,
            channel.as_bytes().as_slice(),
        )
        .await?;
        let mut standing = Standing::default();
        for row in &found {
            standing.enter(self.typed(to_event(&row.values))?);
        }
        Ok(standing.into_rows())
    }

    async fn sent(
        &self,
        conn: &mut SqliteConnection,
        intent: &IntentId,
    ) -> Result<Vec<SentRow>, LedgerError> {
        self.of_intent(conn, Table::TxSent, intent, to_sent).await
    }

    async fn steps(
        &self,
        conn: &mut SqliteConnection,
        intent: &IntentId,
    ) -> Result<Vec<OutcomeRow>, LedgerError> {
        self.of_intent(conn, Table::TxOutcome, intent, to_outcome)
            .await
    }

    async fn of_intent<T>(
        &self,
        conn: &mut SqliteConnection,
        table: Table,
        intent: &IntentId,
        read: fn(&[Value]) -> Result<T, BadColumn>,
    ) -> Result<Vec<T>, LedgerError> {
        let rest = "where intent = ?1 order by seq";
        let found = rows(conn, table, rest, intent.as_bytes().as_slice()).await?;
        found
            .iter()
            .map(|row| self.typed(read(&row.values)))
            .collect()
    }
}

/// Events that were seen and not removed, each at its newest stage.
#[derive(Default)]
struct Standing {
    rows: Vec<Option<EventRow>>,
    places: HashMap<(u64, EvmAddress, (u64, Hash32), u64), usize>,
}

impl Standing {
    fn enter(&mut self, row: EventRow) {
        let key = (row.chain_id, row.hub, row.block, row.log_index);
        match row.stage {
            Stage::Seen => {
                self.places.insert(key, self.rows.len());
                self.rows.push(Some(row));
            }
            Stage::Confirmed => {
                let place = self.places.get(&key).copied();
                if let Some(Some(one)) = place.and_then(|place| self.rows.get_mut(place)) {
                    one.stage = Stage::Confirmed;
                }
            }
            Stage::Removed => {
                let place = self.places.remove(&key);
                if let Some(one) = place.and_then(|place| self.rows.get_mut(place)) {
                    *one = None;
                }
            }
        }
    }

    fn into_rows(self) -> Vec<EventRow> {
        self.rows.into_iter().flatten().collect()
    }
}

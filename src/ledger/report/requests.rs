//! Requests one by one, newest first, with the names that other programs rely on.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::{Filter, direction_of};
use crate::ledger::error::{Doing as _, LedgerError};
use crate::ledger::reader::Reader;
use crate::ledger::rows::Role;
use crate::ledger::sums;
use crate::types::{AttemptId, ChannelId, PeerId, RequestId};

const WHAT: &str = "list the ledger's requests";

/// One attempt. `None` is "not reported" or "not yet", never 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// Admission, RFC 3339 in UTC.
    pub time: String,
    /// `spent` or `earned`.
    pub direction: &'static str,
    /// The client's request.
    pub request_id: String,
    /// Joins the two sides' ledgers.
    pub attempt_id: String,
    /// Number of the attempt within the request.
    pub attempt: u64,
    /// Label of the local client.
    pub client: String,
    /// Model named by the client.
    pub model_asked: String,
    /// Model of the offer.
    pub model: String,
    /// Model named in the answer.
    pub model_served: Option<String>,
    /// Full peer id of the seller; null when it is this node and its id was not given.
    pub seller: Option<String>,
    /// Full peer id of the buyer; null when it is this node and its id was not given.
    pub buyer: Option<String>,
    /// HTTP status; 499 client gone, 502 cut.
    pub status: Option<u64>,
    /// `accepted`, `failed`, `written_off`; null while open.
    pub outcome: Option<String>,
    /// Fresh input tokens as reported.
    pub input_tokens: Option<u64>,
    /// Input tokens read from a cache.
    pub cached_tokens: Option<u64>,
    /// Input tokens written to a cache.
    pub cache_write_tokens: Option<u64>,
    /// Output tokens, reasoning included.
    pub output_tokens: Option<u64>,
    /// Reasoning tokens.
    pub reasoning_tokens: Option<u64>,
    /// Own count of all input tokens.
    pub own_input_tokens: Option<u64>,
    /// Own count of the output tokens.
    pub own_output_tokens: Option<u64>,
    /// Price of a million fresh input tokens.
    pub price_input_micro_usd: u64,
    /// Price of a million cached input tokens.
    pub price_cached_micro_usd: u64,
    /// Price of a million cache write tokens.
    pub price_cache_write_micro_usd: u64,
    /// Price of a million output tokens.
    pub price_output_micro_usd: u64,
    /// Accepted cost; null until accepted.
    pub billed_micro_usd: Option<u64>,
    /// The own bound was paid, not the receipt.
    pub disputed: Option<bool>,
    /// Time to the first token.
    pub ttft_ms: Option<u64>,
    /// Admission to the last byte.
    pub total_ms: Option<u64>,
    /// Channel that pays; null when free.
    pub channel: Option<String>,
    /// The channel's cumulative voucher when the attempt was booked.
    pub voucher_micro_usd: Option<u64>,
    /// Whether settlements cover it, oldest cost first; null until accepted.
    pub settled: Option<bool>,
    /// Short code of a failure.
    pub error: Option<String>,
    /// Place of the open row; pages a listing.
    #[serde(skip)]
    pub(super) seq: i64,
}

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    NewestFirst,
    OldestFirst,
}

/// Attempts that `filter` selects, newest first, at most `limit`. `local` is this node's own peer id.
///
/// # Errors
/// When the database cannot be read.
pub async fn requests(
    reader: &Reader,
    filter: &Filter,
    local: Option<PeerId>,
    limit: u32,
) -> Result<Vec<RequestRecord>, LedgerError> {
    let mut pages = Pages::new(filter, local, Order::NewestFirst);
    let mut tx = reader.pool.begin().await.doing(WHAT)?;
    pages.next(&mut tx, limit).await.doing(WHAT)
}

/// Reads a listing page by page.
pub(super) struct Pages<'a> {
    filter: &'a Filter,
    local: Option<String>,
    order: Order,
    from: i64,
    cutoffs: HashMap<(Role, ChannelId), Cutoff>,
}

/// Up to which booking a channel's settlements reach.
#[derive(Clone, Copy)]
enum Cutoff {
    Nothing,
    All,
    Upto(i64),
}

impl<'a> Pages<'a> {
    /// Starts at the newest or oldest row.
    pub(super) fn new(filter: &'a Filter, local: Option<PeerId>, order: Order) -> Self {
        Self {
            filter,
            local: local.map(|peer| peer.to_base58()),
            order,
            from: match order {
                Order::NewestFirst => i64::MAX,
                Order::OldestFirst => 0,
            },
            cutoffs: HashMap::new(),
        }
    }

    /// Starts after the open row `seq`.
    pub(super) const fn start_after(&mut self, seq: i64) {
        self.from = seq;
    }

    /// The next `limit` records; empty at the end.
    pub(super) async fn next(
        &mut self,
        conn: &mut SqliteConnection,
        limit: u32,
    ) -> Result<Vec<RequestRecord>, sqlx::Error> {
        let rows = sqlx::query(AssertSqlSafe(select(self.order)))
            .bind(self.from)
            .bind(self.filter.role.map(Role::as_str))
            .bind(self.filter.model.as_ref().map(|m| m.as_str().to_owned()))
            .bind(self.filter.peer.map(|p| p.to_bytes()))
            .bind(self.filter.since_ms.map(to_i64))
            .bind(self.filter.until_ms.map(to_i64))
            .bind(limit)
            .fetch_all(&mut *conn)
            .await?;
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            let (mut record, channel, booked) = self.record(row)?;
            if let (Some(booked), Some((role, channel))) = (booked, channel) {
                let cutoff = self.cutoff(conn, role, channel).await?;
                record.settled = Some(match cutoff {
                    Cutoff::Nothing => record.billed_micro_usd == Some(0),
                    Cutoff::All => true,
                    Cutoff::Upto(seq) => booked <= seq || record.billed_micro_usd == Some(0),
                });
            }
            self.from = record.seq;
            records.push(record);
        }
        Ok(records)
    }

    async fn cutoff(
        &mut self,
        conn: &mut SqliteConnection,
        role: Role,
        channel: ChannelId,
    ) -> Result<Cutoff, sqlx::Error> {
        if let Some(known) = self.cutoffs.get(&(role, channel)) {
            return Ok(*known);
        }
        let settled: i64 = sqlx::query_scalar(
            "select coalesce(sum(amount), 0) from settlement where channel = ?1 and role = ?2",
        )
        .bind(channel.as_bytes().as_slice())
        .bind(role.as_str())
        .fetch_one(&mut *conn)
        .await?;
        let cutoff = if settled == 0 {
            Cutoff::Nothing
        } else if accepted(conn, role, &channel).await? <= settled {
            Cutoff::All
        } else {
            let upto: Option<i64> = sqlx::query_scalar(
                "select max(seq) from (
                   select f.seq, sum(f.billed) over (order by f.seq) as sum
                   from attempt_final f join attempt_open o on o.seq = f.open_seq
                   where f.outcome = 'accepted' and o.channel = ?1 and o.role = ?2)
                 where sum <= ?3",
            )
            .bind(channel.as_bytes().as_slice())
            .bind(role.as_str())
            .bind(settled)
            .fetch_one(&mut *conn)
            .await?;
            upto.map_or(Cutoff::Nothing, Cutoff::Upto)
        };
        self.cutoffs.insert((role, channel), cutoff);
        Ok(cutoff)
    }

    #[allow(
        clippy::type_complexity,
        reason = "a record and what is still to be looked up"
    )]
    fn record(
        &self,
        row: &SqliteRow,
    ) -> Result<(RequestRecord, Option<(Role, ChannelId)>, Option<i64>), sqlx::Error> {
        let mut c = Cursor { row, next: 0 };
        let seq = c.int()?;
        let at_ms = c.int()?;
        let attempt_id = c.id::<16>()?.map(|id| AttemptId(id).to_string());
        let request_id = c.id::<16>()?.map(|id| RequestId(id).to_string());
        let attempt = c.count()?;
        let role = sums::role_at(row, c.skip())?;
        let peer = c.peer()?;
        let (seller, buyer) = match role {
            Role::Buy => (peer, self.local.clone()),
            Role::Sell => (self.local.clone(), peer),
        };
        let (client, model_asked, model) = (c.text()?, c.text()?, c.text()?);
        let prices = [c.count()?, c.count()?, c.count()?, c.count()?];
        let [input, cached, cache_write, output] = prices.map(Option::unwrap_or_default);
        let channel = c.id::<32>()?.map(ChannelId);
        let channel = channel.filter(|id| *id != ChannelId::default());
        let booked = c.maybe_int()?;
        let outcome = c.text()?;
        let accepted = outcome.as_deref() == Some("accepted");
        let record = RequestRecord {
            time: Timestamp::from_millisecond(at_ms)
                .unwrap_or_default()
                .to_string(),
            direction: direction_of(role, client.as_deref()),
            request_id: request_id.unwrap_or_default(),
            attempt_id: attempt_id.unwrap_or_default(),
            attempt: attempt.unwrap_or_default(),
            client: client.unwrap_or_default(),
            model_asked: model_asked.unwrap_or_default(),
            model: model.unwrap_or_default(),
            seller,
            buyer,
            outcome,
            status: c.count()?,
            billed_micro_usd: c.count()?,
            model_served: c.text()?,
            input_tokens: c.count()?,
            cached_tokens: c.count()?,
            cache_write_tokens: c.count()?,
            output_tokens: c.count()?,
            reasoning_tokens: c.count()?,
            own_input_tokens: c.count()?,
            own_output_tokens: c.count()?,
            ttft_ms: c.count()?,
            total_ms: c.count()?,
            disputed: c.count()?.map(|flag| flag != 0),
            error: c.text()?,
            price_input_micro_usd: input,
            price_cached_micro_usd: cached,
            price_cache_write_micro_usd: cache_write,
            price_output_micro_usd: output,
            voucher_micro_usd: c.count()?,
            channel: channel.map(|id| id.to_string()),
            settled: accepted.then_some(true).filter(|_| channel.is_none()),
            seq,
        };
        let channel = channel.map(|id| (role, id));
        Ok((record, channel, booked.filter(|_| accepted)))
    }
}

async fn accepted(
    conn: &mut SqliteConnection,
    role: Role,
    channel: &ChannelId,
) -> Result<i64, sqlx::Error> {
    let mark = sums::last_checkpoint(conn).await?;
    let before = sums::balance_before(conn, role, channel).await?;
    let newer: i64 = sqlx::query_scalar(
        "select coalesce(sum(f.billed), 0)
         from attempt_final f join attempt_open o on o.seq = f.open_seq
         where f.seq > ?1 and f.outcome = 'accepted' and o.channel = ?2 and o.role = ?3",
    )
    .bind(mark.covers)
    .bind(channel.as_bytes().as_slice())
    .bind(role.as_str())
    .fetch_one(conn)
    .await?;
    Ok(before.accepted.saturating_add(newer))
}

fn select(order: Order) -> String {
    let (beyond, direction) = match order {
        Order::NewestFirst => ("<", "desc"),
        Order::OldestFirst => (">", "asc"),
    };
    format!(
        "select o.seq, o.at_ms, o.attempt_id, o.request_id, o.attempt, o.role, o.peer, o.client,
                o.model_asked, o.model, o.price_input, o.price_cache_read, o.price_cache_write,
                o.price_output, o.channel, f.seq, f.outcome, coalesce(f.status, d.status),
                f.billed, f.model_served,
                coalesce(f.usage_input, d.usage_input),
                coalesce(f.usage_cache_read, d.usage_cache_read),
                coalesce(f.usage_cache_write, d.usage_cache_write),
                coalesce(f.usage_output, d.usage_output),
                coalesce(f.usage_reasoning, d.usage_reasoning),
                coalesce(f.own_input, d.own_input), coalesce(f.own_output, d.own_output),
                f.ttft_ms, f.total_ms, f.disputed, f.error,
                (select v.cumulative from voucher v
                 where v.channel = o.channel and v.role = o.role
                   and v.seq <= coalesce(f.seq, {max})
                 order by v.seq desc limit 1)
         from attempt_open o
         left join attempt_final f on f.open_seq = o.seq
         left join attempt_delivered d on d.open_seq = o.seq
         where o.seq {beyond} ?1 and (?2 is null or o.role = ?2) and (?3 is null or o.model = ?3)
           and (?4 is null or o.peer = ?4) and (?5 is null or o.at_ms >= ?5)
           and (?6 is null or o.at_ms < ?6)
         order by o.seq {direction} limit ?7",
        max = i64::MAX
    )
}

/// Takes columns from left to right.
struct Cursor<'r> {
    row: &'r SqliteRow,
    next: usize,
}

impl Cursor<'_> {
    const fn skip(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }
    fn int(&mut self) -> Result<i64, sqlx::Error> {
        let at = self.skip();
        self.row.try_get_unchecked(at)
    }
    fn maybe_int(&mut self) -> Result<Option<i64>, sqlx::Error> {
        let at = self.skip();
        self.row.try_get_unchecked(at)
    }
    fn count(&mut self) -> Result<Option<u64>, sqlx::Error> {
        Ok(self.maybe_int()?.and_then(|n| u64::try_from(n).ok()))
    }
    fn text(&mut self) -> Result<Option<String>, sqlx::Error> {
        let at = self.skip();
        self.row.try_get_unchecked(at)
    }
    fn id<const N: usize>(&mut self) -> Result<Option<[u8; N]>, sqlx::Error> {
        let at = self.skip();
        let bytes: Option<&[u8]> = self.row.try_get_unchecked(at)?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()))
    }
    fn peer(&mut self) -> Result<Option<String>, sqlx::Error> {
        let at = self.skip();
        let bytes: Option<&[u8]> = self.row.try_get_unchecked(at)?;
        let peer = bytes.and_then(|bytes| PeerId::from_bytes(bytes).ok());
        Ok(peer.map(|peer| peer.to_base58()))
    }
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

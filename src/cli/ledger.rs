//! `node ledger`: reports, listings, exports, verification, and the two rows a user writes by hand.
//!
//! Reading needs no lock and works beside a running node. Writing goes through the running node
//! when [`Env::running`] is given, else opens the ledger itself, which its lock allows only when no
//! node runs. Printing is in `ledger_view`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use futures::future::BoxFuture;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use super::ledger_view as view;
use super::progress::Progress;
use super::{CliError, FailureKind};
use crate::ledger::audit::{AuditOptions, NoSignatureCheck, SignatureCheck, verify};
use crate::ledger::report::{self, ExportFormat, Filter, GroupBy};
use crate::ledger::{Ledger, LedgerWrite, Reader, Role, Settings, apply};
use crate::payment::onchain::MODE_ON_CREDIT;
use crate::types::{Clock, MicroUsd, ModelId, PeerId, SystemClock, UnixMs};
use crate::wallet::channels::settlements;
use crate::wallet::verify::Compared;

/// The ledger's file in the data directory.
pub const LEDGER_FILE: &str = "ledger.db";
/// Requests listed when `--limit` is not given: a screen or two.
const LIMIT: u32 = 50;

/// Arguments of `node ledger`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: Option<LedgerCommand>,
    /// What one line stands for
    #[arg(long, value_enum, default_value_t = By::Day, value_name = "WHAT")]
    by: By,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum LedgerCommand {
    /// List requests, newest first
    Requests {
        /// At most so many
        #[arg(long, default_value_t = LIMIT, value_name = "N")]
        limit: u32,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Show a request in full: receipts, vouchers, signatures checked
    Show {
        /// Request id or attempt id
        #[arg(value_name = "REQUEST")]
        id: String,
    },
    /// Recompute every balance, hash and signature, compare with the chain where one is configured;
    /// exits with 1 on any difference
    Verify,
    /// Write all requests to stdout
    Export {
        /// csv, jsonl or beancount
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Book a payment that a buyer made outside (credit mode; run at the seller)
    Settle {
        /// The buyer
        #[arg(long, value_name = "PEER")]
        peer: PeerId,
        /// How much, in USD
        #[arg(long, value_name = "USD")]
        amount: MicroUsd,
        /// A note for yourself
        #[arg(long, default_value = "")]
        note: String,
        /// Only show what would be booked
        #[arg(long)]
        dry_run: bool,
    },
    /// Set spending limits
    #[command(subcommand)]
    Budget(BudgetCommand),
}

#[derive(Clone, Debug, Subcommand)]
enum BudgetCommand {
    /// Set the limits; one that is not given is removed
    Set {
        /// Most a local day may cost, in USD
        #[arg(long, value_name = "USD", required_unless_present = "monthly")]
        daily: Option<MicroUsd>,
        /// Most a local month may cost, in USD
        #[arg(long, value_name = "USD")]
        monthly: Option<MicroUsd>,
        /// Only for this model
        #[arg(long, value_name = "M")]
        model: Option<String>,
        /// Only for this client, as the ledger names it
        #[arg(long, value_name = "C")]
        client: Option<String>,
    },
    /// Show the limits in force
    Show,
}

/// Which rows.
#[derive(Clone, Debug, Default, Args)]
struct FilterArgs {
    /// From this day or time on (2026-11-01 or RFC 3339)
    #[arg(long, value_name = "D", conflicts_with = "last")]
    since: Option<String>,
    /// Up to the end of this day, or this time
    #[arg(long, value_name = "D", conflicts_with = "last")]
    until: Option<String>,
    /// Only the last so much, e.g. 7d, 24h, 2w
    #[arg(long, value_name = "7d")]
    last: Option<String>,
    /// Only this model
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// Only this seller's
    #[arg(long, value_name = "P", conflicts_with = "buyer")]
    seller: Option<PeerId>,
    /// Only this buyer's
    #[arg(long, value_name = "P")]
    buyer: Option<PeerId>,
    /// Only what was bought or sold
    #[arg(long, value_enum, value_name = "buy|sell")]
    role: Option<Side>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Hour,
    Day,
    Month,
    Model,
    Seller,
    Buyer,
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    Buy,
    Sell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Jsonl,
    Beancount,
}

/// Hands a write to the running node's `/api`.
pub type WriteHook =
    Arc<dyn Fn(LedgerWrite) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// Compares the ledger with the chain.
pub type CompareHook = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<Compared>> + Send + Sync>;

/// What the command works with besides its arguments.
pub struct Env {
    /// Where `ledger.db` is.
    pub data_dir: PathBuf,
    /// One JSON value instead of text.
    pub json: bool,
    /// Whether long work may be told on the terminal.
    pub progress: bool,
    /// This node's peer id, for the side of a listing that is this node.
    pub local: Option<PeerId>,
    /// Checks signatures in `show` and `verify`.
    pub signatures: Arc<dyn SignatureCheck>,
    /// The running node, if there is one.
    pub running: Option<WriteHook>,
    /// Compares with the configured chain in `verify`, if there is one.
    pub compare: Option<CompareHook>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where days begin.
    pub zone: TimeZone,
}

impl Env {
    /// The machine's clock and time zone, no running node, no signatures checked.
    #[must_use]
    pub fn new(data_dir: &Path, json: bool) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            json,
            progress: false,
            local: None,
            signatures: Arc::new(NoSignatureCheck),
            running: None,
            compare: None,
            clock: Arc::new(SystemClock),
            zone: TimeZone::system(),
        }
    }
    fn path(&self) -> PathBuf {
        self.data_dir.join(LEDGER_FILE)
    }
}

/// Runs `node ledger` and prints to stdout.
///
/// # Errors
/// When the ledger cannot be read or written, an argument makes no sense, or `verify` finds a
/// difference.
pub async fn run(args: LedgerArgs, env: &Env) -> anyhow::Result<()> {
    let text = output(args, env).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

async fn output(args: LedgerArgs, env: &Env) -> anyhow::Result<String> {
    match args.command {
        None => summary(&args, env).await,
        Some(LedgerCommand::Requests { limit, filter }) => requests(&filter, limit, env).await,
        Some(LedgerCommand::Show { id }) => show(&id, env).await,
        Some(LedgerCommand::Verify) => check(env).await,
        Some(LedgerCommand::Export { format, filter }) => export(format, &filter, env).await,
        Some(LedgerCommand::Settle {
            peer,
            amount,
            dry_run: true,
            ..
        }) => would_settle(&peer, amount, env).await,
        Some(LedgerCommand::Settle {
            peer, amount, note, ..
        }) => {
            let write = LedgerWrite::Settle {
                peer,
                amount_micro_usd: amount,
                note,
            };
            book(write, env).await?;
            view::done(env.json, &format!("booked {amount} USD from {peer}"))
        }
        Some(LedgerCommand::Budget(BudgetCommand::Set {
            daily,
            monthly,
            model,
            client,
        })) => {
            let write = LedgerWrite::BudgetSet {
                client,
                model,
                daily_micro_usd: daily,
                monthly_micro_usd: monthly,
            };
            book(write, env).await?;
            view::done(env.json, "the limits are set")
        }
        Some(LedgerCommand::Budget(BudgetCommand::Show)) => {
            let reader = Reader::open(&env.path()).await?;
            view::budgets(&reader.budgets().await?, env.json)
        }
    }
}

async fn summary(args: &LedgerArgs, env: &Env) -> anyhow::Result<String> {
    let reader = Reader::open(&env.path()).await?;
    let filter = filter(&args.filter, env)?;
    let on_chain = settlements(&reader).await?;
    let by = group(args.by);
    let summary = report::summary_with(&reader, by, &filter, &env.zone, &on_chain).await?;
    if args.csv {
        let mut bytes = Vec::new();
        report::csv_summary(&summary, &mut bytes)?;
        return Ok(String::from_utf8(bytes)?);
    }
    view::summary(&summary, env.json)
}

async fn requests(args: &FilterArgs, limit: u32, env: &Env) -> anyhow::Result<String> {
    let reader = Reader::open(&env.path()).await?;
    let filter = filter(args, env)?;
    let records = report::requests(&reader, &filter, env.local, limit).await?;
    view::requests(&records, env.json)
}

async fn show(id: &str, env: &Env) -> anyhow::Result<String> {
    let bytes = hex::decode(id.trim_start_matches("0x")).ok();
    let Some(id) = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()) else {
        bail!("`{id}` is not a request id (32 hex digits); `node ledger requests` lists them");
    };
    let reader = Reader::open(&env.path()).await?;
    let shown = report::show(&reader, id, env.local, env.signatures.as_ref()).await?;
    if shown.is_empty() {
        bail!("no such request; `node ledger requests` lists them");
    }
    view::shown(&shown, env.json)
}

async fn check(env: &Env) -> anyhow::Result<String> {
    let reader = Reader::open(&env.path()).await?;
    let progress = Arc::new(Progress::new(env.progress, "verifying rows"));
    let told = Arc::clone(&progress);
    let options = AuditOptions {
        signatures: env.signatures.clone(),
        tell: Arc::new(move |done, all| told.at(done, all)),
        ..AuditOptions::default()
    };
    let report = verify(&reader, &options).await?;
    progress.name("comparing with the chain");
    let chain = match &env.compare {
        None => None,
        Some(compare) => Some(match progress.during(compare()).await {
            // A chain that does not answer is no difference; one that is wrong is no comparison.
            Err(error) if CliError::from_error(&error).kind == FailureKind::Network => {
                Err(CliError::from_error(&error).message)
            }
            other => Ok(other?),
        }),
    };
    drop((options, progress));
    let text = view::audit(&report, chain.as_ref(), env.json)?;
    let off_chain = match &chain {
        Some(Ok(compared)) => u64::try_from(compared.differences.len()).unwrap_or(u64::MAX),
        _ => 0,
    };
    let differences = report.difference_count.saturating_add(off_chain);
    if report.is_clean() && differences == 0 {
        return Ok(text);
    }
    // The list is data and goes to stdout; the failure makes the exit code.
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    bail!("the ledger has {differences} differences; keep a copy of the data directory");
}

async fn export(format: Format, args: &FilterArgs, env: &Env) -> anyhow::Result<String> {
    let reader = Reader::open(&env.path()).await?;
    let filter = filter(args, env)?;
    let format = match format {
        Format::Csv => ExportFormat::Csv,
        Format::Jsonl => ExportFormat::Jsonl,
        Format::Beancount => ExportFormat::Beancount,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout());
    // On a terminal the rows themselves are to be seen.
    let is_wanted = env.progress && !std::io::stdout().is_terminal();
    let progress = Progress::new(is_wanted, "writing requests");
    let tell = |written| progress.at(written, 0);
    report::export(
        &reader, &filter, env.local, format, &env.zone, &mut out, &tell,
    )
    .await?;
    Ok(String::new())
}

/// Writes through the running node, else into the file itself.
/// What a payment would pay off; nothing is booked.
async fn would_settle(peer: &PeerId, amount: MicroUsd, env: &Env) -> anyhow::Result<String> {
    let reader = Reader::open(&env.path()).await?;
    let channels = reader.load(Role::Sell).await?;
    let mut theirs = channels.iter().rev().filter(|one| one.row.peer == *peer);
    let channel = theirs.find(|one| one.row.mode == MODE_ON_CREDIT);
    let Some(channel) = channel else {
        let message = format!("there is no credit channel with {peer}");
        return Err(CliError::new(FailureKind::Failure, message).into());
    };
    let owed = channel.accepted_sum.saturating_sub(channel.settlements_sum);
    view::would_settle(env.json, peer, amount, owed)
}

async fn book(write: LedgerWrite, env: &Env) -> anyhow::Result<()> {
    if let Some(running) = &env.running {
        return running(write).await;
    }
    let path = env.path();
    let (ledger, writer) = Ledger::open(&path, env.clock.clone(), Settings::default()).await?;
    let cancel = CancellationToken::new();
    let now = env.clock.now_ms();
    let apply = async {
        let result = apply(&ledger, write, now).await;
        cancel.cancel();
        result
    };
    let (applied, written) = tokio::join!(apply, writer.run(cancel.clone()));
    written?;
    applied?;
    Ok(())
}

const fn group(by: By) -> GroupBy {
    match by {
        By::Hour => GroupBy::Hour,
        By::Day => GroupBy::Day,
        By::Month => GroupBy::Month,
        By::Model => GroupBy::Model,
        By::Seller => GroupBy::Seller,
        By::Buyer => GroupBy::Buyer,
        By::Client => GroupBy::Client,
    }
}

fn filter(args: &FilterArgs, env: &Env) -> anyhow::Result<Filter> {
    let zone = &env.zone;
    let now = env.clock.now_ms();
    let moment = |text: &Option<String>, end| -> anyhow::Result<Option<UnixMs>> {
        text.as_deref()
            .map(|t| parse_moment(t, zone, end))
            .transpose()
    };
    let side = match (args.seller, args.buyer) {
        (Some(_), _) => Some(Role::Buy),
        (None, Some(_)) => Some(Role::Sell),
        (None, None) => None,
    };
    let role = args.role.map(|side| match side {
        Side::Buy => Role::Buy,
        Side::Sell => Role::Sell,
    });
    if let (Some(side), Some(role)) = (side, role)
        && side != role
    {
        bail!("--seller is about what was bought, --buyer about what was sold; leave out --role");
    }
    let last = args.last.as_deref().map(parse_last).transpose()?;
    let since = moment(&args.since, false)?;
    Ok(Filter {
        role: role.or(side),
        since_ms: since.or(last.map(|last| now.saturating_sub(last))),
        until_ms: moment(&args.until, true)?,
        model: args.model.as_deref().map(ModelId::new),
        peer: args.seller.or(args.buyer),
    })
}

/// A day (its start, or its end) or a moment.
fn parse_moment(text: &str, zone: &TimeZone, end: bool) -> anyhow::Result<UnixMs> {
    let at = match text.parse::<Date>() {
        Ok(day) => {
            let day = if end { day.tomorrow()? } else { day };
            day.to_zoned(zone.clone())?.timestamp()
        }
        Err(_) => text
            .parse::<Timestamp>()
            .with_context(|| format!("`{text}` is no day or time; write it like 2026-11-01"))?,
    };
    Ok(UnixMs::try_from(at.as_millisecond()).unwrap_or(0))
}

/// `30m`, `24h`, `7d`, `2w`, in milliseconds.
fn parse_last(text: &str) -> anyhow::Result<u64> {
    let hint = || format!("`{text}` is no span of time; write it like 7d, 24h or 2w");
    let unit = text.chars().last().with_context(hint)?;
    let minutes: u64 = match unit {
        'm' => 1,
        'h' => 60,
        'd' => 24 * 60,
        'w' => 7 * 24 * 60,
        _ => bail!(hint()),
    };
    let number: u64 = text
        .strip_suffix(unit)
        .unwrap_or_default()
        .parse()
        .with_context(hint)?;
    Ok(number.saturating_mul(minutes).saturating_mul(60_000))
}

#[cfg(test)]
mod tests;

//! The wallet of a data directory on which no role runs: keys, ledger and chain, no network.
//!
//! The command line opens one for a command, holds the directory's lock meanwhile, and closes it.
//! What it sends goes through the same outbox and ledger as a running node's, so a process that
//! ends too early loses nothing: the next one goes on with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::base::load_keys;
use super::chain;
use crate::chain::watcher::Watcher;
use crate::chain::{ChainError, Retry};
use crate::config::Config;
use crate::data_dir::{DataDir, DirLock};
use crate::failure::{Failure, FailureKind};
use crate::ledger::{Ledger, Reader};
use crate::tasks::Tasks;
use crate::types::{Clock, SystemClock};
use crate::wallet::{self, Wallet, WalletError};

/// The last commit gets this long.
const DISK_DEADLINE: Duration = Duration::from_secs(10);

/// An open wallet.
pub struct Purse {
    /// Moves the money.
    pub wallet: Wallet,
    watcher: Watcher,
    disk: Tasks,
    _lock: DirLock,
}

impl Purse {
    /// Takes the directory, opens ledger and chain, checks the chain and reads what is new on it.
    ///
    /// # Errors
    /// When a node runs there, keys or chain are missing, or the chain does not answer or is wrong.
    pub async fn open(config: &Config, dir: &DataDir) -> anyhow::Result<Self> {
        need_chain(config)?;
        let lock = dir.lock("wallet")?;
        let keys = load_keys(config, dir)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let disk = Tasks::new();
        let settings = crate::ledger::Settings::default();
        let (ledger, writer) = Ledger::open(&dir.ledger_db(), Arc::clone(&clock), settings).await?;
        let stop = disk.cancelled();
        disk.spawn_critical("ledger", async move { Ok(writer.run(stop).await?) });
        let link = chain::open(&config.chain, &ledger, &clock, &keys.payment)?;
        let link = link.ok_or_else(no_chain)?;
        link.check().await.map_err(|error| chain::failure(&error))?;
        let watcher = link.watcher();
        let wallet = Wallet::new(wallet::Parts {
            link,
            key: keys.payment,
            reader: ledger.reader().clone(),
            clock,
            relayers: None,
            agreement: None,
            settings: chain::wallet_settings(config),
        });
        let mut purse = Self {
            wallet,
            watcher,
            disk,
            _lock: lock,
        };
        purse.catch_up().await?;
        Ok(purse)
    }

    /// Reads what happened in the hub up to the newest block.
    ///
    /// # Errors
    /// When the chain or the ledger cannot be asked.
    pub async fn catch_up(&mut self) -> anyhow::Result<()> {
        loop {
            self.watcher.poll().await.map_err(|e| chain::failure(&e))?;
            if self.watcher.is_caught_up() {
                return Ok(());
            }
        }
    }

    /// Drives what is on its way one step: looks at the chain, sends, stores what it saw. A chain
    /// that does not answer now is no error: the next step asks again.
    ///
    /// # Errors
    /// When the ledger fails or the chain contradicts what is final.
    pub async fn step(&mut self) -> anyhow::Result<()> {
        let link = self.wallet.link().clone();
        let passing = |result: Result<(), ChainError>| match result {
            Err(error) if error.retry() == Retry::Never => Err(chain::failure(&error)),
            _ => Ok(()),
        };
        passing(link.sender().poll().await.map(drop))?;
        passing(self.watcher.poll().await.map(drop))?;
        Ok(())
    }

    /// Ends it; everything is durable when this returns.
    ///
    /// # Errors
    /// When the ledger's last commit failed.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(self.disk.shutdown(DISK_DEADLINE).await?)
    }
}

/// Opens a wallet that only reads: beside a running node too, without its lock. It sends nothing,
/// because nothing it stores would be kept.
///
/// # Errors
/// When keys or chain are missing, or the chain does not answer or is wrong.
pub async fn reading(config: &Config, dir: &DataDir) -> anyhow::Result<Wallet> {
    need_chain(config)?;
    let keys = load_keys(config, dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let reader = Reader::open(Path::new(&dir.ledger_db())).await?;
    let journal = Arc::new(crate::chain::memory::MemoryJournal::default());
    let link = chain::open_with(&config.chain, journal, &clock, &keys.payment)?;
    let link = link.ok_or_else(no_chain)?;
    link.check().await.map_err(|error| chain::failure(&error))?;
    Ok(Wallet::new(wallet::Parts {
        link,
        key: keys.payment,
        reader,
        clock,
        relayers: None,
        agreement: None,
        settings: chain::wallet_settings(config),
    }))
}

/// Says what is missing where no chain is configured.
///
/// # Errors
/// When none is.
fn need_chain(config: &Config) -> Result<(), Failure> {
    if config.chain.is_set() {
        Ok(())
    } else {
        Err(no_chain())
    }
}

fn no_chain() -> Failure {
    let message = "no chain is configured, so there is no wallet: payment is unsecured credit";
    Failure::new(FailureKind::NotConfigured, message).hint(
        "set [chain] rpc, chain_id, hub and token; `node chain deploy` makes a chain of your own",
    )
}

/// A wallet's error as a command says it.
#[must_use]
pub fn failure(error: &WalletError) -> Failure {
    let text = error.to_string();
    match error {
        WalletError::Chain(error) => chain::failure(error),
        error if error.is_about_money() => Failure::new(FailureKind::Payment, text),
        error if error.is_passing() => Failure::new(FailureKind::Network, text).retryable(),
        WalletError::Bad(_) => Failure::new(FailureKind::Usage, text),
        _ => Failure::new(FailureKind::Failure, text),
    }
}

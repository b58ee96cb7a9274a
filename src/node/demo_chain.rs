//! A chain of the demo's own: anvil as a child process on a port that the system chose, with the
//! hub and a test token on it.
//!
//! Invariants: it listens on loopback alone; it is asked for its chain id, which nobody else has,
//! before anything is sent to it; it ends with the demo, also when that is killed: a shell holds it
//! and waits on a pipe whose other end only the demo has.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::deploy::{self, Wanted};
use crate::chain::rpc::chain_id_of;
use crate::config::{ChainSection, Config};
use crate::keys::{PaymentKey, to_checksum};
use crate::tasks::Tasks;
use crate::types::{EvmAddress, MicroUsd};

/// anvil starts within this on a loaded machine.
const READY_AFTER: Duration = Duration::from_secs(30);
/// One call on loopback.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the repository has it, once its tools are installed.
const IN_REPOSITORY: &str = "contracts/bin/anvil";
/// Ends the program when the pipe on stdin closes, for whatever reason.
const HOLDER: &str = "\"$0\" \"$@\" </dev/null & pid=$!; read -r _; kill $pid; wait $pid";
/// A hundred coins, in wei.
const GAS_MONEY: &str = "0x56bc75e2d63100000";

/// The running chain.
pub(super) struct DemoChain {
    url: String,
    chain_id: u64,
    client: reqwest::Client,
    _holder: Child,
    /// Closed with this value, which ends the chain.
    _pipe: ChildStdin,
}

impl DemoChain {
    /// Starts anvil from `PATH` or from the repository; none where it is not installed. A task of
    /// `tasks` reads what it prints, because a full pipe would stop it.
    ///
    /// # Errors
    /// When it is there and does not start.
    pub async fn start(tasks: &Tasks) -> anyhow::Result<Option<Self>> {
        for program in candidates() {
            if let Some(chain) = Self::start_from(&program, tasks).await? {
                return Ok(Some(chain));
            }
        }
        Ok(None)
    }

    async fn start_from(program: &Path, tasks: &Tasks) -> anyhow::Result<Option<Self>> {
        // Asked for its version first: a launcher may be there and what it launches not.
        let version = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !version.await.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let chain_id = 1_000_000_000 + u64::from(rand::random::<u32>());
        let mut holder = Command::new("sh")
            .args(["-c", HOLDER])
            .arg(program)
            .args(["--host", "127.0.0.1", "--port", "0", "--block-time", "1"])
            .args(["--chain-id", &chain_id.to_string()])
            // Ctrl-C is for the demo, which still settles while it drains.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("no shell to hold the demo's chain")?;
        let pipe = holder.stdin.take().context("no pipe to the demo's chain")?;
        let output = holder
            .stdout
            .take()
            .context("no output of the demo's chain")?;
        let mut output = BufReader::new(output).lines();
        let port = tokio::time::timeout(READY_AFTER, listening(&mut output));
        let port = port.await.context("anvil does not start")??;
        let stop = tasks.cancelled();
        tasks.spawn("demo-chain", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = async { while let Ok(Some(_)) = output.next_line().await {} } => {}
            }
        });
        let url = format!("http://127.0.0.1:{port}");
        let found = chain_id_of(&url, CALL_TIMEOUT).await?;
        anyhow::ensure!(
            found == chain_id,
            "at {url} is somebody else's chain {found}"
        );
        Ok(Some(Self {
            url,
            chain_id,
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(CALL_TIMEOUT)
                .build()?,
            _holder: holder,
            _pipe: pipe,
        }))
    }

    /// Deploys hub and token, gives `spenders` test tokens, and says what a config says of it.
    ///
    /// # Errors
    /// When the chain does not do what it should.
    pub async fn deploy(
        &self,
        spenders: Vec<(EvmAddress, MicroUsd)>,
    ) -> anyhow::Result<ChainSection> {
        let bank = PaymentKey::generate();
        self.give_gas(&bank.address()).await?;
        let chain = ChainSection {
            rpc: vec![self.url.clone()],
            confirmations: Some(0),
            poll: Duration::from_millis(500),
            // Its coin is worth nothing, so gas is never too dear.
            coin_price: MicroUsd(10_000),
            ..ChainSection::default()
        };
        let config = Config {
            chain,
            ..Config::default()
        };
        let wanted = Wanted {
            test_token: true,
            mint: spenders,
        };
        let deployed = deploy::deploy(&config, bank, &wanted, &|text| {
            tracing::info!("{text}");
        });
        let deployed = deployed.await?;
        Ok(ChainSection {
            chain_id: self.chain_id,
            hub: Some(deployed.hub),
            token: deployed.token,
            start_block: deployed.start_block,
            ..config.chain
        })
    }

    /// Gives an account what gas costs.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn give_gas(&self, account: &EvmAddress) -> anyhow::Result<()> {
        let params = json!([to_checksum(account), GAS_MONEY]);
        let call = json!({
            "jsonrpc": "2.0", "id": 1, "method": "anvil_setBalance", "params": params,
        });
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .body(call.to_string());
        let answer = request.send().await?.bytes().await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        anyhow::ensure!(answer.get("error").is_none(), "anvil refuses: {answer}");
        Ok(())
    }
}

/// Where anvil may be: in `PATH`, below the working directory, or above the program.
fn candidates() -> Vec<PathBuf> {
    let mut all = vec![
        PathBuf::from("anvil"),
        PathBuf::from(".").join(IN_REPOSITORY),
    ];
    if let Ok(program) = std::env::current_exe() {
        let above = program.ancestors().skip(1);
        all.extend(above.map(|dir| dir.join(IN_REPOSITORY)));
    }
    all
}

/// The port that anvil names on its output.
async fn listening(output: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<u16> {
    while let Some(line) = output.next_line().await? {
        if let Some(port) = line.strip_prefix("Listening on 127.0.0.1:") {
            return Ok(port.trim().parse()?);
        }
    }
    anyhow::bail!("anvil ended before it listened")
}

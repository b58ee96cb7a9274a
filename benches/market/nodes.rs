//! The processes of a benchmark run, and what the kernel says they used.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::{self, Kind};
use crate::upstream::MODEL;

/// The kernel counts process time in this unit (USER_HZ, 100 on every Linux that we know).
const TICKS_PER_SECOND: u64 = 100;

/// A child process with a ready line; killed when dropped, by its own id.
pub struct Child {
    process: Process,
    ready: String,
}

impl Child {
    /// Starts a command and waits for its ready line.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let mut ready = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        if !ready.starts_with("ready ") {
            process.kill().ok();
            panic!("{name} printed {ready:?} instead of a ready line");
        }
        // The pipe stays open as long as the process: it prints nothing more.
        process.stdout = Some(stdout.into_inner());
        Self { process, ready }
    }

    fn field(&self, name: &str) -> &str {
        let mut fields = self
            .ready
            .split_whitespace()
            .filter_map(|f| f.split_once('='));
        fields.find(|(k, _)| *k == name).map(|(_, v)| v).unwrap()
    }

    /// Returns the address of `url=`.
    pub fn http(&self) -> SocketAddr {
        self.field("url")
            .trim_start_matches("http://")
            .parse()
            .unwrap()
    }

    /// Returns the CPU time used so far, all threads, dead ones included.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let Ok(stat) = stat else {
            return Duration::ZERO;
        };
        // The name may hold spaces; the fields after its bracket do not.
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
    }

    /// Returns the resident memory now.
    pub fn rss_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let kib = status.unwrap_or_default().lines().find_map(|l| {
            l.strip_prefix("VmRSS:")?
                .trim()
                .trim_end_matches(" kB")
                .trim()
                .parse::<f64>()
                .ok()
        });
        kib.unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A market of one pair.
pub struct Market {
    /// The buyer's node.
    pub buyer: Child,
    /// The seller's node.
    pub seller: Child,
    _bootstrap: Child,
    _data: TempDir,
}

impl Market {
    /// Starts three nodes before an upstream, and waits until a request passes.
    pub async fn start(node: &Path, upstream: SocketAddr) -> Self {
        let data = TempDir::with_prefix("souk-bench-").unwrap();
        let role = |name: &str, args: &[&str]| {
            let dir = data.path().join(name);
            let run = |args: &[&str]| {
                let mut command = Command::new(node);
                command
                    .args(args)
                    .env("SOUK_DATA_DIR", &dir)
                    .env("SOUK_LOG", "warn");
                command
            };
            let keys = run(&["keygen"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(keys.unwrap().success(), "keygen failed for {name}");
            Child::start(
                name,
                run(args).args(["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]),
            )
        };
        let bootstrap = role("bootstrap", &["bootstrap"]);
        let known = bootstrap
            .field("listen")
            .split(',')
            .next()
            .unwrap()
            .to_owned();
        let url = format!("http://{upstream}/v1");
        let key = data.path().join("key");
        std::fs::write(&key, "local").unwrap();
        let mut sell = vec![
            "sell",
            "--upstream",
            &url,
            "--api",
            "openai-chat",
            "--model",
            MODEL,
        ];
        sell.extend([
            "--price-in",
            "0.10",
            "--price-out",
            "0.40",
            "--http-port",
            "0",
        ]);
        // Credit far above what a run can spend, so that no limit is measured.
        sell.extend(["--credit-limit", "1000", "--credit-total", "1000"]);
        sell.extend([
            "--api-key-file",
            key.to_str().unwrap(),
            "--bootstrap",
            &known,
        ]);
        let seller = role("seller", &sell);
        let buyer = role("buyer", &["buy", "--port", "0", "--bootstrap", &known]);
        let market = Self {
            buyer,
            seller,
            _bootstrap: bootstrap,
            _data: data,
        };
        market.wait().await;
        market
    }

    async fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let time = Duration::from_millis(50);
            let sample = load::drive(self.buyer.http(), Kind::Whole, 1, time).await;
            if !sample.total_us.is_empty() && sample.failures == 0 {
                return;
            }
            assert!(Instant::now() < end, "no request passes the market");
        }
    }

    /// Returns the CPU time of (buyer, seller) so far.
    pub fn cpu(&self) -> (Duration, Duration) {
        (self.buyer.cpu(), self.seller.cpu())
    }
}

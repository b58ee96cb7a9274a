//! R3: power cuts while a ledger is written: no acknowledged voucher is lost.
//!
//! The ledger lies on an ext4 image behind a loop device. At a random moment the writer is stopped
//! and the image is copied: the copy holds what the file system had handed to its disk, and nothing
//! that was only in the page cache. The copy is mounted (its journal replays), the ledger is opened
//! and verified, and its highest voucher is compared with what the writer had acknowledged. So this
//! shows that every acknowledgement waited for fsync. It does not show a disk that loses its own
//! cache or reorders writes within it. A file written without fsync stands for the method itself: if
//! it never lost anything, the cuts would show nothing, and that is a failure too.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use souk::ledger::audit::{AuditOptions, verify};
use souk::ledger::{ChannelRow, Ledger, Role, Row, Settings, VoucherRow};
use souk::types::{ChannelId, MicroUsd, PeerId, SystemClock};
use tokio_util::sync::CancellationToken;

use crate::sim::rng::Rng;

/// The image: room for the ledger's few megabytes and for ext4's journal.
const IMAGE_BYTES: &str = "48M";
/// A cut comes this long after the first acknowledgement, from and up to, ms.
const CUT_MS: (u64, u64) = (1, 400);
/// The writer acknowledges its first voucher within this.
const FIRST_DEADLINE: Duration = Duration::from_secs(20);
/// The file that is written without fsync.
const UNSYNCED: &str = "unsynced.txt";
const CHANNEL: ChannelId = ChannelId([1; 32]);

/// A directory with the images; everything is unmounted and removed at the end.
struct Bench {
    dir: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Bench {
    fn new() -> Result<Self, String> {
        // In memory where there is such a place: the disk below is not what is tested.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory
        } else {
            Path::new("/tmp")
        };
        let dir = tempfile::Builder::new()
            .prefix("souk-power-")
            .tempdir_in(root)
            .map_err(|error| error.to_string())?;
        let bench = Self {
            dir,
            mounted: Vec::new(),
        };
        let empty = bench.path("empty.img");
        run("truncate", &["-s", IMAGE_BYTES, &empty])?;
        run("mkfs.ext4", &["-q", "-F", &empty])?;
        Ok(bench)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn mount(&mut self, image: &str, name: &str) -> Result<PathBuf, String> {
        let place = self.dir.path().join(name);
        std::fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        // The journal's own commits come late, so that only fsync brings data to the disk.
        let to = place.to_string_lossy().into_owned();
        run("mount", &["-o", "loop,commit=300", image, &to]).map_err(|error| {
            format!("{error}; power cuts need root and loop devices, and this machine has none")
        })?;
        self.mounted.push(place.clone());
        Ok(place)
    }

    fn unmount_all(&mut self) {
        for place in self.mounted.drain(..).rev() {
            let _ = run("umount", &[&place.to_string_lossy()]);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.unmount_all();
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", args.join(" "), error.trim()))
}

/// What one cut left.
struct Cut {
    acknowledged: u64,
    found: u64,
    unsynced: u64,
}

/// Runs the experiment; gives its line of figures.
pub async fn experiment(cuts: u64, seed: u64) -> Result<String, String> {
    let mut rng = Rng::new(seed);
    let mut bench = Bench::new()?;
    let (mut acknowledged, mut behind, mut durable_unacknowledged) = (0, 0, 0);
    for number in 1..=cuts {
        let wait = Duration::from_millis(rng.between(CUT_MS.0, CUT_MS.1));
        let cut = one(&mut bench, wait).await;
        bench.unmount_all();
        let cut = cut.map_err(|what| format!("cut {number}: {what}"))?;
        if cut.found < cut.acknowledged {
            return Err(format!(
                "cut {number}: voucher {} was acknowledged, {} is left",
                cut.acknowledged, cut.found
            ));
        }
        acknowledged += cut.acknowledged;
        durable_unacknowledged += cut.found - cut.acknowledged;
        behind += u64::from(cut.unsynced < cut.acknowledged);
    }
    if behind == 0 {
        return Err("no cut lost what was not synced: this shows nothing".to_owned());
    }
    Ok(format!(
        "power: cuts={cuts} acknowledged={acknowledged} lost=0 \
         durable_but_unacknowledged={durable_unacknowledged} cuts_that_lost_unsynced_data={behind}"
    ))
}

async fn one(bench: &mut Bench, wait: Duration) -> Result<Cut, String> {
    let (image, copy) = (bench.path("disk.img"), bench.path("copy.img"));
    run("cp", &["--sparse=always", &bench.path("empty.img"), &image])?;
    let place = bench.mount(&image, "disk")?;
    let (mut writer, seen) = start_writer(&place)?;
    let end = tokio::time::Instant::now() + FIRST_DEADLINE;
    while seen.load(Ordering::SeqCst) == 0 {
        if tokio::time::Instant::now() > end {
            let _ = writer.kill();
            return Err("the writer acknowledged nothing".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(wait).await;
    let pid = writer.id().to_string();
    run("kill", &["-STOP", &pid])?;
    // What it had printed is acknowledged; the reader takes the rest of the pipe meanwhile.
    run("cp", &["--sparse=always", &image, &copy])?;
    let acknowledged = seen.load(Ordering::SeqCst);
    let _ = writer.kill();
    let _ = writer.wait();
    let place = bench.mount(&copy, "copy")?;
    let unsynced = std::fs::read_to_string(place.join(UNSYNCED)).unwrap_or_default();
    let last = unsynced
        .lines()
        .filter_map(|line| line.parse().ok())
        .next_back();
    Ok(Cut {
        acknowledged,
        found: highest(&place)?,
        unsynced: last.unwrap_or(0),
    })
}

/// Starts the writer; gives the highest voucher that it has acknowledged so far.
fn start_writer(place: &Path) -> Result<(Child, Arc<AtomicU64>), String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut writer = Command::new(here)
        .arg("write")
        .arg(place)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let output = writer.stdout.take().ok_or("no pipe")?;
    let seen = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&seen);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Ok(cumulative) = line.parse() {
                told.store(cumulative, Ordering::SeqCst);
            }
        }
    });
    Ok((writer, seen))
}

/// The highest voucher of the ledger in `place`, read by a process of its own: its end closes the
/// files, so that the image can be unmounted.
fn highest(place: &Path) -> Result<u64, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(here).arg("inspect").arg(place).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim()
        .parse()
        .map_err(|_| format!("{text:?} is no sum"))
}

/// Opens and verifies a ledger; gives its highest voucher.
pub async fn inspect(dir: &Path) -> Result<String, String> {
    let path = dir.join("ledger.db");
    let opened = Ledger::open(&path, Arc::new(SystemClock), Settings::default()).await;
    let (ledger, _writer) = opened.map_err(|error| error.to_string())?;
    let report = verify(&ledger, &AuditOptions::default()).await;
    let report = report.map_err(|error| error.to_string())?;
    if !report.differences.is_empty() {
        return Err(format!("{:?}", report.differences));
    }
    let states = ledger
        .load(Role::Buy)
        .await
        .map_err(|error| error.to_string())?;
    let voucher = states.first().and_then(|state| state.voucher.as_ref());
    Ok(voucher
        .map_or(0, |voucher| voucher.cumulative.0)
        .to_string())
}

/// The writer: one voucher after another, each named on stdout once it is durable.
pub async fn write(dir: &Path) -> Result<String, String> {
    let path = dir.join("ledger.db");
    let opened = Ledger::open(&path, Arc::new(SystemClock), Settings::default()).await;
    let (ledger, writer) = opened.map_err(|error| error.to_string())?;
    tokio::spawn(writer.run(CancellationToken::new()));
    let channel = ChannelRow {
        at_ms: 1,
        role: Role::Buy,
        channel: CHANNEL,
        peer: PeerId::random(),
        mode: "credit".to_owned(),
        descriptor: vec![1; 100],
        epoch: 0,
        deposit: MicroUsd(u64::MAX >> 1),
        open_signature: [1; 64],
    };
    let committed = ledger.commit(vec![Row::Channel(channel)]).await;
    committed.map_err(|error| error.to_string())?;
    let mut unsynced = std::fs::File::create(dir.join(UNSYNCED)).map_err(|e| e.to_string())?;
    for cumulative in 1.. {
        let voucher = VoucherRow {
            at_ms: cumulative,
            role: Role::Buy,
            channel: CHANNEL,
            cumulative: MicroUsd(cumulative),
            signature: [1; 65],
            attempt: None,
        };
        let persisted = ledger.persist_voucher(voucher).await;
        persisted.map_err(|error| error.to_string())?;
        println!("{cumulative}");
        writeln!(unsynced, "{cumulative}").map_err(|error| error.to_string())?;
    }
    Ok(String::new())
}

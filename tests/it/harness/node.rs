//! A real node as a child process: its own data directory, its ready line, its end.
//!
//! Everything goes through the command line that users have. A child is killed when its handle
//! is dropped, by the process id that was started here and no other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::ports;

/// A debug binary under a loaded machine starts within this.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// A drained node ends within this after SIGTERM, on a machine that stalls too.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Every node of the tests listens here: loopback, a port of its own.
const LISTEN: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Names the place where a debug build kills itself.
const FAILPOINT: &str = "FAILPOINT_SOUK";

/// Lines of stderr that a failure shows.
const STDERR_TAIL_LINES: usize = 40;

/// A data directory with keys; outlives the processes that use it.
#[derive(Clone)]
pub struct Home {
    dir: Arc<TempDir>,
    /// The peer id that its keys give.
    pub peer_id: String,
    /// The EVM address that its keys give, as people write it.
    pub evm_address: String,
}

impl Home {
    /// Makes a directory and its keys with `node keygen`.
    pub fn new() -> Self {
        let dir = Arc::new(TempDir::with_prefix("souk-it-").unwrap());
        let output = command(dir.path())
            .args(["keygen", "--json"])
            .output()
            .unwrap();
        let value = json_of("keygen", &output);
        Self {
            dir,
            peer_id: value["peer_id"]
                .as_str()
                .expect("keygen prints peer_id")
                .into(),
            evm_address: value["evm_address"]
                .as_str()
                .expect("keygen prints evm_address")
                .into(),
        }
    }

    /// A second directory with the same keys and books, as a user makes by copying; its node may run
    /// beside this one's.
    pub fn copied(&self) -> Self {
        let dir = TempDir::with_prefix("souk-it-").unwrap();
        for name in ["key.json", "ledger.db", "ledger.db-wal"] {
            let from = self.path().join(name);
            if from.exists() {
                std::fs::copy(from, dir.path().join(name)).unwrap();
            }
        }
        Self {
            dir: Arc::new(dir),
            ..self.clone()
        }
    }

    /// Returns the path of the data directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the config where every command on this directory finds it by itself.
    pub fn configure(&self, text: &str) {
        let dir = self.path().join(".config/souk");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), text).unwrap();
    }

    /// Runs a short command on this directory and returns what it did.
    pub fn run(&self, args: &[&str]) -> Output {
        command(self.path()).args(args).output().unwrap()
    }

    /// The same with more environment.
    pub fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        command(self.path())
            .args(args)
            .envs(env.iter().copied())
            .output()
            .unwrap()
    }

    /// Runs a short command and returns its JSON; panics with its messages when it fails.
    pub fn json(&self, args: &[&str]) -> Value {
        json_of(&args.join(" "), &self.run(args))
    }

    /// Runs `node ledger …` and returns its JSON.
    pub fn ledger(&self, args: &[&str]) -> Value {
        self.json(&[&["ledger"], args].concat())
    }
}

/// A running node.
pub struct Node {
    home: Home,
    args: Vec<String>,
    child: Option<Child>,
    ready: BTreeMap<String, String>,
    stderr: PathBuf,
    starts: u32,
    /// Where the next process is to die: `FAILPOINT_SOUK`.
    failpoint: Option<String>,
    /// More of its environment.
    env: Vec<(String, String)>,
    /// The network namespace that it lives in, if not ours.
    namespace: Option<String>,
}

impl Node {
    /// Starts `node ARGS` on a fresh home and waits until it is ready.
    pub fn start(args: &[&str]) -> Self {
        Self::start_at(Home::new(), args)
    }

    /// Starts `node ARGS` on a home and waits until it is ready.
    pub fn start_at(home: Home, args: &[&str]) -> Self {
        Self::start_with(home, args, &[])
    }

    /// The same with more environment.
    pub fn start_with(home: Home, args: &[&str], env: &[(&str, &str)]) -> Self {
        let args = [args, &["--listen", LISTEN]].concat();
        Self::start_anywhere(home, &args, env, None)
    }

    /// Starts one in a network namespace, with the `--listen` that `args` name; needs root. Its HTTP
    /// server is on that namespace's loopback.
    pub fn start_inside(namespace: &str, args: &[&str]) -> Self {
        Self::start_anywhere(Home::new(), args, &[], Some(namespace.to_owned()))
    }

    fn start_anywhere(
        home: Home,
        args: &[&str],
        env: &[(&str, &str)],
        namespace: Option<String>,
    ) -> Self {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let stderr = home.path().join("stderr.txt");
        let (child, ready) = (None, BTreeMap::new());
        let mut node = Self {
            home,
            args,
            child,
            ready,
            stderr,
            starts: 0,
            failpoint: None,
            namespace,
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        node.spawn();
        node
    }

    fn spawn(&mut self) {
        self.starts += 1;
        self.stderr = self.home.path().join(format!("stderr-{}.txt", self.starts));
        let mut command = match &self.namespace {
            None => command(self.home.path()),
            Some(namespace) => {
                // It becomes the node: the same process id.
                let mut command = dressed(Command::new("ip"), self.home.path());
                command.args(["netns", "exec", namespace]).arg(binary());
                command
            }
        };
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(failpoint) = &self.failpoint {
            command.env(FAILPOINT, failpoint);
        }
        let mut child = command
            .args(ports::filled(&self.args))
            .stdout(Stdio::piped())
            .stderr(File::create(&self.stderr).unwrap())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        self.child = Some(child);
        let (tell, told) = mpsc::sync_channel(1);
        // Reads on until the end, so that a node that prints more never blocks on a full pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                tell.try_send(line).ok();
            }
        });
        let line = match told.recv_timeout(READY_DEADLINE) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Disconnected) if self.failpoint.is_some() => {
                // It reached the failpoint before it was ready.
                return self.kill();
            }
            Err(why) => self.fail(&format!("is not ready ({why})")),
        };
        let Some(fields) = line.strip_prefix("ready ") else {
            self.fail(&format!("printed {line:?} instead of a ready line"));
        };
        self.ready = fields
            .split_whitespace()
            .filter_map(|f| f.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
    }

    fn fail(&self, what: &str) -> ! {
        panic!(
            "node {} {what}; stderr ends:\n{}",
            self.args.join(" "),
            self.stderr_tail()
        );
    }

    /// Whether it has written all of `words` to stderr since its start.
    pub fn has_logged(&self, words: &[&str]) -> bool {
        let text = self.stderr();
        words.iter().all(|word| text.contains(word))
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Returns the last lines that it wrote to stderr.
    pub fn stderr_tail(&self) -> String {
        let text = self.stderr();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(STDERR_TAIL_LINES)..].join("\n")
    }

    /// Returns a field of the ready line.
    pub fn ready(&self, field: &str) -> &str {
        match self.ready.get(field) {
            Some(value) => value,
            None => self.fail(&format!(
                "has no {field}= in its ready line {:?}",
                self.ready
            )),
        }
    }

    /// Returns the address of its HTTP server, from `url=` of the ready line.
    pub fn http(&self) -> SocketAddr {
        let url = self.ready("url");
        url.trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .unwrap()
    }

    /// Returns its libp2p address with `/p2p/…`.
    pub fn listen(&self) -> &str {
        self.ready("listen").split(',').next().unwrap()
    }

    /// Returns its full peer id.
    pub fn peer_id(&self) -> &str {
        &self.home.peer_id
    }

    /// Returns its home.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Returns its process id; panics when it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node was stopped").id()
    }

    /// Returns whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// Returns how it ended by itself; none while it runs or when a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let ended = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
        ended.and_then(|status| status.code())
    }

    /// Kills it without warning, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Sends SIGTERM and waits for the end; panics when it takes too long.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.pid().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let end = Instant::now() + STOP_DEADLINE;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().unwrap()) {
                self.child = None;
                return status;
            }
            if Instant::now() > end {
                self.fail(&format!("did not end {STOP_DEADLINE:?} after SIGTERM"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again on the same data directory with the same arguments.
    pub fn restart(&mut self) {
        self.kill();
        self.failpoint = None;
        self.spawn();
    }

    /// From the next start on it listens where it listens now, as a node with a fixed port does. The
    /// system gives nobody else these ports meanwhile ([`ports`]).
    pub fn keep_ports(&mut self) {
        let listen = self.ready.get("listen").and_then(|all| {
            let first = all.split(',').next()?;
            Some(first.rsplit_once("/p2p/")?.0.to_owned())
        });
        let port = self
            .ready
            .contains_key("url")
            .then(|| self.http().port().to_string());
        let mut wanted = vec![("--listen", listen)];
        wanted.extend([("--port", port.clone()), ("--http-port", port)]);
        for (flag, value) in wanted {
            let at = self.args.iter().position(|arg| arg == flag);
            if let (Some(at), Some(value)) = (at, value) {
                self.args[at + 1] = value;
            }
        }
    }

    /// Starts it again so that it dies at a failpoint (`name`, `name:n`).
    pub fn restart_to_die_at(&mut self, failpoint: &str) {
        self.kill();
        self.failpoint = Some(failpoint.to_owned());
        self.spawn();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let tail = self.stderr_tail();
        if thread::panicking() && !tail.is_empty() {
            eprintln!("--- stderr of node {}\n{tail}", self.args.join(" "));
        }
    }
}

/// The node's binary: the one that Cargo names to tests, or the one beside an example.
fn binary() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_node") {
        return path.into();
    }
    let here = std::env::current_exe().unwrap();
    let profile = here.ancestors().nth(2).expect("target/<profile>/examples");
    let path = profile.join("node");
    assert!(path.exists(), "build the node first: no {}", path.display());
    path
}

/// The node's binary on a data directory, blind to the environment's own settings.
fn command(dir: &Path) -> Command {
    dressed(Command::new(binary()), dir)
}

/// A command whose environment is that of a data directory and nobody's else.
fn dressed(mut command: Command, dir: &Path) -> Command {
    for (name, _) in std::env::vars() {
        if name.starts_with("SOUK_")
            || name == FAILPOINT
            || name.to_ascii_lowercase().ends_with("_proxy")
        {
            command.env_remove(name);
        }
    }
    command
        .env("SOUK_DATA_DIR", dir)
        .env("HOME", dir)
        .env("NO_COLOR", "1")
        // Local days and months end where UTC's do: see `clock`.
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    command.env("SOUK_LOG", "info");
    command
}

fn json_of(what: &str, output: &Output) -> Value {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "node {what}: {}\n{out}\n{err}",
        output.status
    );
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("node {what}: not JSON ({e}):\n{out}"))
}

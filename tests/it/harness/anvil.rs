//! A real EVM chain for a test: anvil from `contracts/node_modules`, on a port of its own.
//!
//! Each has a chain id of its own, which is asked for over the port before the test begins, so that
//! a test never talks to somebody else's chain.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// anvil starts within this on a loaded machine.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// A chain that dies with its handle.
pub struct Anvil {
    child: Child,
    /// Where it listens.
    pub port: u16,
    /// Its own.
    pub chain_id: u64,
}

impl Anvil {
    /// Starts one with a chain id that no other test has.
    pub fn start() -> Self {
        Self::start_as(1_000_000 + rand::random::<u64>() % 1_000_000_000)
    }

    /// Starts one with this chain id.
    pub fn start_as(chain_id: u64) -> Self {
        Self::start_at(super::ports::take(), chain_id)
    }

    /// Starts one with this chain id on a port that nobody has.
    pub fn start_at(port: u16, chain_id: u64) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts/node_modules/.bin/anvil");
        assert!(
            path.exists(),
            "{} is missing: run `npm ci` in contracts/ (or `make contracts`) once",
            path.display()
        );
        let mut child = Command::new(&path)
            .args([
                "--host",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--chain-id",
                &chain_id.to_string(),
            ])
            // The launcher and the program it starts are ended together.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(port) = line.strip_prefix("Listening on 127.0.0.1:") {
                    let _ = send.send(port.trim().parse::<u16>().unwrap());
                }
            }
        });
        let port = receive
            .recv_timeout(READY_DEADLINE)
            .expect("anvil says where it listens");
        let anvil = Self {
            child,
            port,
            chain_id,
        };
        let found = anvil.rpc("eth_chainId", json!([]));
        assert_eq!(
            found,
            json!(format!("{chain_id:#x}")),
            "another chain at port {port}"
        );
        anvil
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Calls a method, also anvil's own; fails on an error.
    pub fn rpc(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let text = post(self.port, &body.to_string());
        let mut answer: Value = serde_json::from_str(&text).expect(&text);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Makes blocks.
    pub fn mine(&self, blocks: u64) {
        self.rpc("anvil_mine", json!([format!("{blocks:#x}")]));
    }

    /// Gives an account wei.
    pub fn fund(&self, address: &str) {
        self.rpc("anvil_setBalance", json!([address, "0x56bc75e2d63100000"]));
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

/// One HTTP/1.1 request on a connection of its own.
fn post(port: u16, body: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(READY_DEADLINE)).unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

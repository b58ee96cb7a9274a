//! `node demo` pays on a chain of its own where anvil is installed, and takes it along when it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::http::{self, Request};
use crate::harness::market::Hold;
use crate::harness::node::{Home, Node};
use serde_json::json;

/// Ends of processes are seen within this.
const GONE_DEADLINE: Duration = Duration::from_secs(60);

/// Looks at the wallet that fill a pipe of 64 KiB: the chain prints some 60 bytes for each.
const LOOKS: usize = 2_000;

/// Processes that this one started, and theirs.
fn children(pid: u32) -> Vec<u32> {
    let output = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &pid.to_string()])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own: Vec<u32> = text
        .split_whitespace()
        .map(|p| p.parse().unwrap())
        .collect();
    let more: Vec<u32> = own.iter().flat_map(|pid| children(*pid)).collect();
    [own, more].concat()
}

fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie that init has not collected yet runs no more.
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_pays_on_its_own_chain_which_ends_with_it_however_it_ends() {
    let _hold = Hold::shared().await;
    for is_killed in [false, true] {
        let mut demo = Node::start_at(Home::new(), &["demo", "--port", "0"]);
        assert_eq!(demo.ready("mode"), "channel", "{}", demo.stderr_tail());
        let body = json!({
            "model": "demo/echo-small",
            "messages": [{"role": "user", "content": "Hello, market!"}],
        });
        let request = Request::post("/v1/chat/completions", &body);
        let answer = http::send(demo.http(), &request).await;
        assert_eq!(
            answer.status,
            200,
            "{}\n{}",
            answer.text(),
            demo.stderr_tail()
        );
        let chain = children(demo.pid());
        assert!(chain.len() >= 2, "a shell and anvil: {chain:?}");
        if is_killed {
            demo.kill();
        } else {
            assert_eq!(demo.terminate().code(), Some(0), "{}", demo.stderr_tail());
        }
        let end = tokio::time::Instant::now() + GONE_DEADLINE;
        while chain.iter().any(|pid| runs(*pid)) {
            assert!(
                tokio::time::Instant::now() < end,
                "{chain:?} outlive the demo"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn regression_the_chain_of_a_demo_stopped_once_its_output_filled_a_pipe() {
    let _hold = Hold::shared().await;
    let demo = Node::start_at(Home::new(), &["demo", "--port", "0"]);
    assert_eq!(demo.ready("mode"), "channel", "{}", demo.stderr_tail());
    for _ in 0..LOOKS {
        let answer = http::send(demo.http(), &Request::get("/api/wallet")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

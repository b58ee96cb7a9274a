//! `node doctor` names what is broken and what to do, on set-ups that are broken in one way each.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::market::UPSTREAM_KEY;
use crate::harness::node::{Home, Node};
use crate::harness::ports;
use crate::harness::upstream::{Script, Upstream};
use crate::wallet::World;

/// A home without anything that would be looked for elsewhere, and more config.
fn home(config: &str) -> Home {
    let home = Home::new();
    write(&home, config);
    home
}

/// The config of a node that asks nobody, and `more`.
fn write(home: &Home, more: &str) {
    let text = format!("{more}\n");
    std::fs::write(home.path().join("config.toml"), text).unwrap();
}

/// What the doctor says; `--config` names the home's own file.
fn doctor(home: &Home, more: &[&str], env: &[(&str, &str)]) -> (i32, Vec<Value>) {
    let file = home.path().join("config.toml");
    let mut args = vec!["doctor", "--json", "--config", file.to_str().unwrap()];
    args.extend(more);
    // An empty PATH: this machine's own programs are no part of a test.
    let mut all = vec![("PATH", "/nonexistent"), ("SOUK_BUY_PORT", "0")];
    all.extend(env);
    let output = home.run_with(&args, &all);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: Value = serde_json::from_str(&text).unwrap_or_else(|e| {
        panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr));
    });
    let failed = said["checks"].as_array().unwrap().iter();
    let failed = failed.filter(|check| check["verdict"] == "fail").count();
    let code = output.status.code().unwrap();
    assert_eq!(said["ok"], failed == 0, "{text}");
    assert_eq!(code, i32::from(failed > 0), "{text}");
    (code, said["checks"].as_array().unwrap().clone())
}

/// Exactly this check has this verdict, and says these words and this fix.
fn finds(checks: &[Value], name: &str, verdict: &str, words: &str, fix: &str) {
    let named: Vec<&Value> = checks.iter().filter(|c| c["check"] == name).collect();
    let is_it = |check: &&&Value| {
        let has = |key: &str, part: &str| check[key].as_str().is_some_and(|t| t.contains(part));
        check["verdict"] == verdict && has("message", words) && has("fix", fix)
    };
    assert!(named.iter().any(|check| is_it(&check)), "{checks:#?}");
    for check in checks {
        let is_bad = check["verdict"] == "fail" || check["verdict"] == "warn";
        assert_eq!(
            is_bad,
            check["fix"].is_string(),
            "each fault has a fix: {check}"
        );
        if check["verdict"] == "fail" && verdict == "fail" {
            assert_eq!(check["check"], name, "nothing else is broken: {checks:#?}");
        }
    }
}

fn verdict<'a>(checks: &'a [Value], name: &str) -> &'a str {
    let found = checks.iter().find(|check| check["check"] == name);
    found
        .and_then(|check| check["verdict"].as_str())
        .unwrap_or("none")
}

#[test]
fn a_key_that_others_can_read() {
    let home = home("");
    let key = home.path().join("key.json");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_, checks) = doctor(&home, &[], &[]);
    finds(&checks, "keys", "fail", "mode 0644", "chmod 600");
}

#[test]
fn no_key_at_all() {
    let home = home("");
    std::fs::remove_file(home.path().join("key.json")).unwrap();
    let (_, checks) = doctor(&home, &[], &[]);
    finds(&checks, "keys", "fail", "no keys", "node keygen --data-dir");
}

#[test]
fn a_port_that_is_taken_and_by_whom() {
    let home = home("");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    let (_, checks) = doctor(&home, &[], &[("SOUK_BUY_PORT", &port)]);
    let holder = format!("(pid {})", std::process::id());
    finds(&checks, "buyer's port", "fail", &holder, "--port");
    assert!(
        checks
            .iter()
            .any(|c| c["message"].as_str().unwrap().contains(&port))
    );
}

#[test]
fn a_configuration_with_a_mistake_and_still_the_rest() {
    let home = home("[buy]\nprot = 5005\n[sell]\nmarkup = \"much\"");
    let (_, checks) = doctor(&home, &[], &[]);
    finds(&checks, "config", "fail", "buy.prot", "correct it");
    let wrong = checks.iter().filter(|c| c["check"] == "config").count();
    assert_eq!(wrong, 2, "every mistake at once: {checks:#?}");
    assert_eq!(verdict(&checks, "keys"), "pass", "{checks:#?}");
}

#[test]
fn a_data_directory_that_cannot_be_made_or_written() {
    let home = home("");
    let file = home.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let inside = file.join("souk");
    let (_, checks) = doctor(&home, &["--data-dir", inside.to_str().unwrap()], &[]);
    assert_eq!(verdict(&checks, "data directory"), "fail", "{checks:#?}");
    let (_, checks) = doctor(&home, &["--data-dir", file.to_str().unwrap()], &[]);
    assert_eq!(verdict(&checks, "data directory"), "fail", "{checks:#?}");
    // Root may write everywhere, so this part says something only to others.
    let closed = home.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    let is_root = std::fs::write(closed.join("probe"), "").is_ok();
    let (_, checks) = doctor(&home, &["--data-dir", closed.to_str().unwrap()], &[]);
    let expected = if is_root { "pass" } else { "fail" };
    assert_eq!(verdict(&checks, "data directory"), expected, "{checks:#?}");
}

#[test]
fn a_disk_that_is_full() {
    let home = home("");
    let small = home.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let options = ["-t", "tmpfs", "-o", "size=2m,mode=0700", "souk-test"];
    let mounted = Command::new("mount").args(options).arg(&small).output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        // Only root mounts; the unit test beside the check covers the limits.
        return;
    }
    std::fs::copy(home.path().join("key.json"), small.join("key.json")).unwrap();
    let (_, checks) = doctor(&home, &["--data-dir", small.to_str().unwrap()], &[]);
    assert!(
        Command::new("umount")
            .arg(&small)
            .status()
            .unwrap()
            .success()
    );
    finds(&checks, "disk", "fail", "MiB free", "make room");
}

#[test]
fn nobody_to_start_from() {
    let home = home("[node]\nmdns = \"off\"");
    let (_, checks) = doctor(&home, &[], &[]);
    finds(
        &checks,
        "peers",
        "fail",
        "no peer to start from",
        "--bootstrap",
    );
}

#[test]
fn a_bootstrap_peer_that_is_away() {
    // A socket that nobody answers on, held so that nobody else gets the port.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let peer = Home::new().peer_id;
    let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{peer}");
    let home = home(&format!("[node]\nbootstrap = [\"{address}\"]"));
    let (_, checks) = doctor(&home, &[], &[]);
    finds(&checks, "peers", "fail", "none of 1 bootstrap", "firewall");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_the_key_or_is_down_and_one_that_is_well() {
    let upstream = Upstream::start(Script::default().key(UPSTREAM_KEY)).await;
    let sell = |key: &str, url: &str| {
        let home = home("");
        std::fs::write(home.path().join("upstream-key"), key).unwrap();
        let file = home.path().join("upstream-key");
        let config = format!(
            "[sell]\nupstream = \"{url}\"\napi = \"openai-chat\"\napi_key_file = \"{}\"\n\
             http_port = 0",
            file.display()
        );
        write(&home, &config);
        home
    };
    let wrong = sell("sk-wrong", &upstream.openai_url());
    let (_, checks) = doctor(&wrong, &[], &[]);
    finds(
        &checks,
        "upstream",
        "fail",
        "refuses the key",
        "--api-key-env",
    );
    let well = sell(UPSTREAM_KEY, &upstream.openai_url());
    let (_, checks) = doctor(&well, &[], &[]);
    assert_eq!(verdict(&checks, "upstream"), "pass", "{checks:#?}");
    let down = format!("http://127.0.0.1:{}/v1", ports::take());
    let (_, checks) = doctor(&sell("k", &down), &[], &[]);
    finds(
        &checks,
        "upstream",
        "fail",
        "does not answer",
        "check that the upstream runs",
    );
}

/// Answers every request with this date.
fn clock_at(date: String) -> String {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in socket.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked);
            let body = r#"{"data":[{"id":"m"}]}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-type: application/json\r\n\
                 connection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes());
        }
    });
    url
}

#[test]
fn a_clock_that_is_off() {
    let late = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(10);
    let date = late.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let config = format!(
        "[sell]\nupstream = \"{}\"\napi = \"openai-chat\"\nprice_in = 1\nprice_out = 1\n\
         http_port = 0",
        clock_at(date)
    );
    let home = home(&config);
    let (_, checks) = doctor(&home, &[], &[]);
    finds(&checks, "clock", "fail", "s apart", "timedatectl");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_is_down_another_one_or_without_the_hub() {
    let world = World::start().await;
    let config = world.config("");
    let of = |text: &str| doctor(&home(text), &[], &[]).1;
    let well = of(&config);
    assert_eq!(verdict(&well, "chain"), "pass", "{well:#?}");
    let line = |key: &str| {
        let found = config.lines().find(|line| line.starts_with(key)).unwrap();
        found.split_once(" = ").unwrap().1.to_owned()
    };
    let other = config.replace(&format!("chain_id = {}", line("chain_id")), "chain_id = 5");
    let checks = of(&other);
    finds(&checks, "chain", "fail", "serves chain", "node config show");
    let checks = of(&config.replace(&line("hub"), &line("token")));
    finds(&checks, "chain", "fail", "code hash", "node config show");
    let down = format!("rpc = [\"http://127.0.0.1:{}\"]", ports::take());
    let rpc = format!("rpc = {}", line("rpc"));
    let checks = of(&config.replace(&rpc, &down));
    finds(&checks, "chain", "fail", "RPC node", "[chain] rpc");
}

#[test]
fn a_program_that_hides_nodejs() {
    let home = home("");
    let (ours, theirs) = (home.path().join("bin"), home.path().join("usr-bin"));
    for folder in [&ours, &theirs] {
        std::fs::create_dir(folder).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_node"), ours.join("node")).unwrap();
    std::fs::write(theirs.join("node"), "#!/bin/sh\n").unwrap();
    let path = |first: &Path, second: &Path| format!("{}:{}", first.display(), second.display());
    let (_, checks) = doctor(&home, &[], &[("PATH", &path(&ours, &theirs))]);
    finds(&checks, "program name", "warn", "hides Node.js", "/souk");
    let (_, checks) = doctor(&home, &[], &[("PATH", &path(&theirs, &ours))]);
    assert_eq!(verdict(&checks, "program name"), "pass", "{checks:#?}");
}

#[test]
fn an_openclaw_that_asks_another_port_or_nobody() {
    let home = home("");
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let program = bin.join("openclaw");
    let says = |script: &str| {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = bin.display().to_string();
        doctor(&home, &[], &[("PATH", &path), ("SOUK_BUY_PORT", "5999")]).1
    };
    let checks = says("echo '{\"baseUrl\": \"http://127.0.0.1:5005/v1\"}'");
    finds(&checks, "openclaw", "fail", "5999", "node openclaw setup");
    let checks = says("echo '{\"baseUrl\": \"http://127.0.0.1:5999/v1\"}'");
    assert_eq!(verdict(&checks, "openclaw"), "pass", "{checks:#?}");
    let checks = says("echo 'Config path is valid but unset: models.providers.souk' >&2; exit 1");
    finds(
        &checks,
        "openclaw",
        "warn",
        "does not know",
        "node openclaw setup",
    );
}

#[test]
fn a_node_that_is_well_passes_and_a_running_one_too() {
    let bootstrap = Node::start(&["bootstrap"]);
    let config = format!("[node]\nbootstrap = [\"{}\"]", bootstrap.listen());
    let well = home(&config);
    let (code, checks) = doctor(&well, &[], &[]);
    assert_eq!(code, 0, "{checks:#?}");
    assert_eq!(verdict(&checks, "peers"), "pass", "{checks:#?}");
    let buyer = Node::start_at(
        well,
        &["buy", "--port", "0", "--bootstrap", bootstrap.listen()],
    );
    let deadline = std::time::Instant::now() + crate::harness::market::PATIENCE;
    loop {
        let (_, checks) = doctor(buyer.home(), &[], &[]);
        let is_well = verdict(&checks, "peers") == "pass";
        assert!(
            is_well || std::time::Instant::now() < deadline,
            "{checks:#?}"
        );
        if is_well {
            assert_eq!(verdict(&checks, "ports"), "pass", "{checks:#?}");
            break;
        }
    }
    let text = buyer
        .home()
        .run_with(&["doctor"], &[("PATH", "/nonexistent")]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("PASS  keys"), "{text}");
}

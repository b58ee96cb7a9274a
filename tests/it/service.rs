//! A role as a systemd service: the unit is what systemd takes, holds no secret, and the node tells
//! systemd when it is ready and when it ends.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::harness::node::{Home, Node};

fn unit(home: &Home, args: &[&str]) -> String {
    let output = home.run(&[&["service", "install", "--dry-run"], args].concat());
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{err}");
    String::from_utf8(output.stdout).unwrap()
}

/// Writes the unit and has systemd read it, where it is installed.
fn analyze(home: &Home, verb: &[&str], text: &str) -> Option<String> {
    // A program that exists here, so that only the unit is judged.
    let program = env!("CARGO_BIN_EXE_node");
    let text = text
        .lines()
        .map(|line| match line.strip_prefix("ExecStart=") {
            Some(rest) => format!("ExecStart={program} {}", rest.split_once(' ').unwrap().1),
            None => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n");
    let file = home.path().join("souk-test.service");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("systemd-analyze");
    let command = command.env("XDG_RUNTIME_DIR", home.path());
    let output = command.args(verb).arg(&file).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "systemd-analyze {verb:?}: {said}");
    Some(said)
}

#[test]
fn the_units_are_valid_fenced_and_hold_no_secret() {
    let home = Home::new();
    let key = home.path().join("upstream-key");
    std::fs::write(&key, "sk-very-secret").unwrap();
    let key = key.to_str().unwrap();
    let flags = [
        "sell",
        "--upstream",
        "openrouter",
        "--api-key-file",
        key,
        "--markup",
        "10%",
    ];
    let system = unit(&home, &flags);
    let user = unit(&home, &["--user", "buy", "--port", "5005"]);
    for text in [&system, &user] {
        assert!(text.contains("Type=notify\n") && text.contains("Restart=on-failure\n"));
        assert!(!text.contains("sk-very-secret"), "{text}");
    }
    assert!(
        system.contains(&format!("LoadCredential=upstream-key:{key}\n")),
        "{system}"
    );
    assert!(system.contains("DynamicUser=yes"), "{system}");
    assert!(user.contains("SOUK_DATA_DIR="), "{user}");
    if let Some(said) = analyze(&home, &["verify"], &system) {
        assert!(!said.contains("souk-test.service:"), "{said}");
    }
    if let Some(said) = analyze(&home, &["--user", "verify"], &user) {
        assert!(!said.contains("souk-test.service:"), "{said}");
    }
    let offline = ["security", "--offline=true", "--threshold=25"];
    if let Some(said) = analyze(&home, &offline, &system) {
        let score = said.lines().last().unwrap_or_default().to_owned();
        eprintln!("{score}");
        assert!(score.contains("OK"), "{said}");
    }
}

#[test]
fn a_service_that_could_not_start_is_not_installed() {
    let home = Home::new();
    let refuse = |args: &[&str], words: &str| {
        let output = home.run(&[&["service", "install", "--dry-run"], args].concat());
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && err.contains(words),
            "{args:?}: {err}"
        );
    };
    refuse(&["sell", "--upstream", "openrouter"], "--api-key-file");
    refuse(
        &["sell", "--upstream", "x", "--api-key-env", "KEY"],
        "--api-key-file",
    );
    refuse(&["buy", "--prot", "1"], "--prot");
    refuse(&["buy", "--max-price-in", "cheap"], "max_price_in");
    let none = home.run(&["service", "uninstall", "--user", "buy"]);
    assert_eq!(none.status.code(), Some(3));
}

#[test]
fn a_users_service_is_installed_and_removed_and_keys_stay() {
    let home = Home::new();
    let output = home.run(&["service", "install", "--user", "--no-start", "buy"]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{err}");
    let file = home.path().join(".config/systemd/user/souk-buy.service");
    let text = std::fs::read_to_string(&file).unwrap();
    let program = home.path().join(".local/bin/souk");
    assert!(
        text.contains(&format!("ExecStart={} buy\n", program.display())),
        "{text}"
    );
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(version.status.success());
    assert!(
        home.run(&["service", "uninstall", "--user", "buy"])
            .status
            .success()
    );
    assert!(!file.exists() && home.path().join("key.json").exists());
}

#[test]
fn systemd_hears_when_the_node_is_ready_and_when_it_ends() {
    let home = Home::new();
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    let hear = || {
        let mut text = [0; 4096];
        let read = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..read]).into_owned()
    };
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut node = Node::start_with(home.clone(), &["bootstrap"], &env);
    let ready = hear();
    assert!(
        ready.contains("READY=1") && ready.contains("STATUS=ready role="),
        "{ready}"
    );
    assert_eq!(node.terminate().code(), Some(0));
    assert!(hear().contains("STOPPING=1"));
}

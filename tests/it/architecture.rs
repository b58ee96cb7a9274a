//! The house keeps its shape: imports go downwards, and each foreign thing has its one place.
//!
//! Reads the sources, not the compiled crate, so a violation is named with its line. Code under
//! `#[cfg(test)]` at the end of a file is free. A new module must be given its layer here.

mod lexer;

use std::path::Path;

use lexer::{Source, crate_imports};

/// Modules by layer; each may import those above it in this list, and nothing below.
const LAYERS: [&[&str]; 12] = [
    // Names nothing, and every layer may die at one in a test.
    &["failpoint"],
    &["types"],
    &["tasks", "telemetry"],
    &["protocol", "llm_api", "keys"],
    &["ledger", "chain", "network"],
    &["discovery", "payment", "router", "wallet"],
    // The local HTTP front: knows dialects' error shapes, and nothing about money or peers.
    &["http"],
    &["buyer", "seller", "pipeline", "dashboard"],
    // Nothing below the composition root knows the configuration: each module has its Settings.
    &["config", "data_dir", "failure"],
    &["launch"],
    &["node"],
    &["cli"],
];

/// The imports within a layer that the design names. Buyer and seller never see each other.
const SIDEWAYS: [(&str, &str); 4] = [
    ("protocol", "keys"),
    ("buyer", "dashboard"),
    ("seller", "dashboard"),
    ("pipeline", "seller"),
];

/// Where a crate may be named: folders and files under `src`, without `.rs`.
const CRATE_HOMES: [(&str, &[&str]); 5] = [
    // A peer id is libp2p's type; main installs the one TLS provider.
    ("libp2p", &["network", "types/ids"]),
    ("sqlx", &["ledger"]),
    ("alloy", &["keys", "protocol/voucher", "chain"]),
    ("candle_core", &["pipeline/engine"]),
    (
        "axum",
        &[
            "http/control",
            "buyer/control",
            "seller/control",
            "dashboard",
        ],
    ),
];

/// Modules that only turn bytes into values: no socket is named there.
const SOCKETLESS: [&str; 7] = [
    "types",
    "protocol",
    "llm_api",
    "keys",
    "payment/channel",
    "pipeline/session",
    "router",
];

/// Names that mean a socket.
const SOCKETS: [&str; 9] = [
    "tokio::net",
    "std::net::Tcp",
    "std::net::Udp",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "reqwest::",
    "hyper::",
];

/// Where the process may be ended or its environment read. The build script is no part of it.
const PROCESS_HOMES: [&str; 5] = ["main", "cli", "config", "keys", "llm_api/vocabulary/build"];

/// Calls that belong to [`PROCESS_HOMES`].
const PROCESS_CALLS: [&str; 4] = ["process::exit", "env::var", "env::vars", "env::set_var"];

/// Lines of a file before its tests; longer ones are split.
const FILE_LINES_MAX: usize = 500;

/// Finds everything wrong in one file; `path` is relative to `src`, with `/` and without `.rs`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let source = Source::read(text);
    let module = path.trim_end_matches("/mod");
    let mut found = vec![];
    let mut report =
        |line: usize, what: String| found.push(format!("src/{path}.rs:{line}: {what}"));
    check_imports(module, path, &source, &mut report);
    for (name, homes) in CRATE_HOMES {
        if !within(module, homes) {
            for line in source.lines_naming_crate(name) {
                report(line, format!("{name} belongs to {}", homes.join(", ")));
            }
        }
    }
    if !within(module, &["ledger"]) {
        for line in source.lines_with_sql() {
            report(line, "SQL belongs to ledger".to_owned());
        }
    }
    if within(module, &SOCKETLESS) {
        for (line, name) in source.lines_with(&SOCKETS) {
            report(line, format!("{name}: no sockets here"));
        }
    }
    if !within(module, &PROCESS_HOMES) {
        for (line, name) in source.lines_with(&PROCESS_CALLS) {
            report(
                line,
                format!("{name} belongs to {}", PROCESS_HOMES.join(", ")),
            );
        }
    }
    if source.line_count() > FILE_LINES_MAX {
        let lines = source.line_count();
        report(
            1,
            format!("{lines} lines before its tests; {FILE_LINES_MAX} at most"),
        );
    }
    found
}

fn check_imports(module: &str, path: &str, source: &Source, report: &mut dyn FnMut(usize, String)) {
    let from = module.split('/').next().unwrap();
    if matches!(from, "lib" | "main") {
        return;
    }
    let Some(here) = layer(from) else {
        report(
            1,
            format!("module {from} has no layer in tests/it/architecture.rs"),
        );
        return;
    };
    for (line, to) in crate_imports(source, path) {
        // Items at the root of the crate are none; unknown names are reported by their own file.
        let Some(there) = layer(&to) else { continue };
        let sideways = there == here && to != from && !SIDEWAYS.contains(&(from, to.as_str()));
        if there > here || sideways {
            report(
                line,
                format!("{from} must not import {to}: imports go downwards"),
            );
        }
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module))
}

fn within(module: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| {
        module
            .strip_prefix(home)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Reads every source file under `folder`, files of tests aside.
fn walk(root: &Path, folder: &Path, visit: &mut dyn FnMut(&str, &str)) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(root, &path, visit);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).unwrap().with_extension("");
            let name = name.to_str().unwrap().replace('\\', "/");
            if !name.ends_with("tests") && !name.contains("/tests/") {
                visit(&name, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }
}

#[test]
fn the_sources_keep_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    walk(&root, &root, &mut |path, text| {
        found.extend(violations(path, text))
    });
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_source_file_says_what_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut silent = vec![];
    walk(&root, &root, &mut |path, text| {
        if !text.starts_with("//!") {
            silent.push(path.to_owned());
        }
    });
    assert!(silent.is_empty(), "no `//!` at the top of {silent:?}");
}

mod planted {
    use super::violations;

    fn finds(path: &str, text: &str, words: &str) {
        let found = violations(path, text);
        assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
    }

    #[test]
    fn an_upward_import_is_found() {
        finds(
            "network/mod",
            "use crate::buyer::Thing;",
            "network must not import buyer",
        );
        finds(
            "payment/payer",
            "use crate::{types::Clock, node::{self, Node}};",
            "import node",
        );
        finds(
            "seller/meter",
            "fn f() { crate::config::load() }",
            "seller must not import config",
        );
        finds(
            "types/ids",
            "pub use super::super::ledger::Row;",
            "types must not import ledger",
        );
    }

    #[test]
    fn roles_and_neighbours_do_not_import_each_other() {
        finds(
            "buyer/relay",
            "use crate::seller::x;",
            "buyer must not import seller",
        );
        finds(
            "network/runner",
            "use crate::ledger::Cache;",
            "network must not import ledger",
        );
        assert!(violations("protocol/offer", "use crate::keys::Identity;").is_empty());
        assert!(violations("buyer/relay", "use crate::buyer::x; use crate::types;").is_empty());
    }

    #[test]
    fn a_module_without_a_layer_is_found() {
        finds("utils", "", "no layer");
    }

    #[test]
    fn foreign_crates_outside_their_place_are_found() {
        finds("buyer/relay", "use libp2p::PeerId;", "libp2p belongs to");
        finds(
            "payment/payer",
            "fn f() { sqlx::query(q) }",
            "sqlx belongs to ledger",
        );
        finds(
            "seller/meter",
            "use ::alloy::primitives::U256;",
            "alloy belongs to",
        );
        finds(
            "protocol/receipt",
            "use alloy::primitives::U256;",
            "alloy belongs to",
        );
        finds("buyer/relay", "use axum::Router;", "axum belongs to");
        assert!(violations("network/x", "use libp2p::PeerId;").is_empty());
        assert!(violations("protocol/voucher", "use alloy::primitives::U256;").is_empty());
        assert!(violations("ledger/writer", "use sqlx::Row;").is_empty());
        assert!(violations("buyer/relay", "let my_axum = 1; // use axum::Router").is_empty());
    }

    #[test]
    fn sql_outside_the_ledger_is_found() {
        finds(
            "buyer/budget",
            "let q = \"select a\\n from b\";",
            "SQL belongs to ledger",
        );
        finds(
            "seller/x",
            "let q = r#\"INSERT INTO t VALUES (1)\"#;",
            "SQL belongs to ledger",
        );
        assert!(violations("ledger/writer", "let q = \"delete from t\";").is_empty());
        assert!(violations("cli/sell", "let t = \"select a model from the list\";").is_empty());
    }

    #[test]
    fn sockets_in_pure_layers_are_found() {
        finds(
            "llm_api/sse",
            "use tokio::net::TcpStream as S;",
            "no sockets",
        );
        finds(
            "payment/channel",
            "fn f(s: std::net::UdpSocket) {}",
            "no sockets",
        );
        assert!(violations("payment/payer", "use tokio::net::lookup_host;").is_empty());
    }

    #[test]
    fn ending_the_process_or_reading_its_environment_is_found() {
        finds(
            "node",
            "fn f() { std::process::exit(1) }",
            "process::exit belongs to",
        );
        finds(
            "seller/upstream/mod",
            "let k = std::env::var(\"K\");",
            "env::var belongs to",
        );
        assert!(violations("cli/keygen", "std::env::var(\"K\");").is_empty());
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        let long = "//! x\n".repeat(501);
        finds("types/x", &long, "501 lines");
        let short = format!(
            "//! x\n#[cfg(test)]\nmod tests {{\n{}}}",
            "use crate::cli;\n".repeat(600)
        );
        assert!(violations("types/x", &short).is_empty());
    }
}

//! What a user may write into the config, and what is said about mistakes.

use super::*;
use std::time::Duration;

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    load_all(text, &[], vec![])
}

fn load_all(text: &str, env: &[(&str, &str)], flags: Vec<Setting>) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    load(&Sources {
        file: Some(path),
        file_required: true,
        env: env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        flags,
    })
}

fn messages(result: Result<Loaded, ConfigError>) -> Vec<String> {
    result
        .unwrap_err()
        .0
        .iter()
        .map(|p| format!("{}: {}", p.path, p.message))
        .collect()
}

#[test]
fn the_example_file_is_every_key_at_its_default_with_one_comment_line_each() {
    let example = include_str!("../../config.example.toml");
    assert_eq!(
        toml::from_str::<Config>(example).unwrap(),
        Config::default()
    );
    let written = check::leaves(&example.parse().unwrap());
    let known = check::leaves(&to_table(&Config::default()));
    let paths = |list: &[(String, Value)]| {
        let mut paths: Vec<String> = list.iter().map(|(p, _)| p.clone()).collect();
        paths.sort();
        paths
    };
    assert_eq!(paths(&written), paths(&known));
    let lines: Vec<&str> = example.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(
                lines[index - 1].starts_with("# "),
                "no comment above `{line}`"
            );
            assert!(
                !lines[index - 2].starts_with('#'),
                "two comment lines above `{line}`"
            );
        }
        assert!(line.len() <= 100, "too long: {line}");
    }
}

#[test]
fn printed_config_reads_back_the_same() {
    let config = Config::default();
    assert_eq!(toml::from_str::<Config>(&config.to_toml()).unwrap(), config);
}

#[test]
fn all_problems_are_reported_at_once_with_path_and_nearest_name() {
    let found = messages(load_text(
        "[buy]\nprot = 1\nport = \"x\"\nbudget.daily = \"-3\"\n[buy.timeouts]\nidle = \"soon\"\n\
         [sel]\nfree = true\n[sell]\nmax_concurent = 1\n[[sell.models]]\nid = \"a\"\nprce_in = 1\n",
    ));
    let all = found.join("\n");
    assert_eq!(found.len(), 7, "{all}");
    assert!(
        all.contains("buy.prot: unknown key; did you mean buy.port?"),
        "{all}"
    );
    assert!(all.contains("buy.port: invalid type"), "{all}");
    assert!(all.contains("buy.budget.daily: `-3` is negative"), "{all}");
    assert!(
        all.contains("buy.timeouts.idle: `soon` is not a duration"),
        "{all}"
    );
    assert!(
        all.contains("sel: unknown key; did you mean sell?"),
        "{all}"
    );
    assert!(all.contains("did you mean sell.max_concurrent?"), "{all}");
    assert!(
        all.contains("sell.models[0].prce_in: unknown key; did you mean price_in?"),
        "{all}"
    );
}

#[test]
fn flags_beat_variables_and_variables_beat_the_file() {
    let text = "[buy]\nport = 1\nhost = \"localhost\"\nprefer = \"cheap\"\n";
    let env = [
        ("SOUK_BUY_PORT", "2"),
        ("SOUK_BUY_PREFER", "fast"),
        ("SOUK_LOG", "x"),
    ];
    let flags = vec![Setting::flag("buy.port", "--port", 3)];
    let loaded = load_all(text, &env, flags).unwrap();
    assert_eq!(loaded.config.buy.port, 3);
    assert_eq!(loaded.config.buy.prefer, Prefer::Fast);
    assert_eq!(loaded.config.buy.host, "localhost");
    assert_eq!(loaded.origins["buy.port"], Origin::Flag("--port"));
    assert_eq!(
        loaded.origins["buy.prefer"],
        Origin::Env("SOUK_BUY_PREFER".to_owned())
    );
    assert!(matches!(loaded.origins["buy.host"], Origin::File(_)));
    let by_path: BTreeMap<_, _> = loaded
        .entries()
        .into_iter()
        .map(|(path, _, origin)| (path, origin))
        .collect();
    assert_eq!(by_path["sell.http_port"], Origin::Default);
}

#[test]
fn variables_are_typed_by_the_key_they_set() {
    let env = [
        ("SOUK_DATA_DIR", "/x"),
        (
            "SOUK_NODE_BOOTSTRAP",
            "/ip4/1.2.3.4/tcp/1, /ip4/1.2.3.5/tcp/1",
        ),
        ("SOUK_NODE_UPNP", "off"),
        ("SOUK_SELL_MODELS", "a=b,c"),
        ("SOUK_BUY_TIMEOUTS_IDLE", "1m"),
    ];
    let config = load_all("", &env, vec![]).unwrap().config;
    assert_eq!(config.node.data_dir, Some(PathBuf::from("/x")));
    assert_eq!(config.node.bootstrap.len(), 2);
    assert!(!config.node.upnp);
    assert_eq!(config.sell.models[0].upstream_id.as_deref(), Some("b"));
    assert_eq!(config.sell.models[1].upstream_id, None);
    assert_eq!(config.buy.timeouts.idle, Duration::from_secs(60));
    let wrong = load_all(
        "",
        &[("SOUK_BUY_PORTT", "1"), ("SOUK_NODE_UPNP", "2")],
        vec![],
    );
    assert_eq!(wrong.unwrap_err().0.len(), 2);
}

#[test]
fn clients_have_names_and_tokens_elsewhere_and_nobody_is_told_a_secret() {
    let load = |entries: &str| load_text(&format!("[buy]\nclients = [{entries}]\n"));
    let config = load("\"alice=file:/a\", \"ci.bot=env:CI\"").unwrap().config;
    let client = NamedClient::parse(&config.buy.clients[1]).unwrap();
    assert_eq!(client.name, "ci.bot");
    assert_eq!(client.token, SecretRef::Env("CI".to_owned()));
    for wrong in ["alice=hunter2", "alice", "al ice=env:A", "=env:A"] {
        let problems = messages(load(&format!("\"{wrong}\"")));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(!problems[0].contains("hunter2"), "{problems:?}");
    }
    assert!(load("\"a=env:A\", \"a=env:B\"").is_err());
}

#[test]
fn money_and_percentages_read_as_numbers_or_text() {
    let text = "[sell]\nprice_in = 2.5\nprice_out = \"10\"\n[buy.budget]\ndaily = 5\n";
    let config = load_text(text).unwrap().config;
    assert_eq!(config.sell.price_in.unwrap().0, 2_500_000);
    assert_eq!(config.sell.price_out.unwrap().0, 10_000_000);
    assert_eq!(config.buy.budget.daily.unwrap().0, 5_000_000);
    for (text, points) in [("\"10%\"", 1_000), ("2.5", 250), ("\"0\"", 0)] {
        let config = load_text(&format!("[sell]\nmarkup = {text}\n"))
            .unwrap()
            .config;
        assert_eq!(config.sell.markup, Some(points));
    }
    assert!(load_text("[sell]\nmarkup = \"-1%\"\n").is_err());
    assert!(load_text("[sell]\nmarkup = \"ten\"\n").is_err());
}

#[test]
fn a_secret_in_the_config_is_refused_without_repeating_it() {
    let found = messages(load_text("[buy]\ntoken = \"hunter2\"\n")).join("\n");
    assert!(
        found.contains("env:NAME") && !found.contains("hunter2"),
        "{found}"
    );
    let config = load_text("[buy]\ntoken = \"env:TOKEN\"\n").unwrap().config;
    assert_eq!(config.buy.token, SecretRef::Env("TOKEN".to_owned()));
}

#[test]
fn a_secret_file_is_read_as_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "abc\n").unwrap();
    let read = SecretRef::File(path.clone()).read().unwrap().unwrap();
    assert_eq!(read.expose(), "abc");
    std::fs::write(&path, "\n").unwrap();
    assert!(matches!(
        SecretRef::File(path).read(),
        Err(SecretError::Content(_))
    ));
    let missing = SecretRef::Env("SOUK_TEST_NO_SUCH_VARIABLE".to_owned());
    assert!(matches!(missing.read(), Err(SecretError::NoVariable(_))));
}

#[test]
fn a_proxy_reachable_from_outside_needs_a_token() {
    let found = messages(load_text("[buy]\nhost = \"0.0.0.0\"\n")).join("\n");
    assert!(
        found.contains("buy.host") && found.contains("buy.token"),
        "{found}"
    );
    assert!(load_text("[buy]\nhost = \"0.0.0.0\"\ntoken = \"env:T\"\n").is_ok());
    assert!(load_text("[buy]\nhost = \"[::1]\"\n").is_ok());
}

#[test]
fn rules_are_checked_although_a_key_is_unknown() {
    let found = messages(load_text("[buy]\nprot = 1\nhost = \"0.0.0.0\"\n"));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn contradictions_are_named() {
    let text = "[sell]\nfree = true\nprice_in = 1\nupstream = \"olama\"\napi = \"soap\"\n\
                [payment]\nwindow_min = 1\n[buy]\nseller = \"bob\"\nmax_connections = 0\n\
                [buy.timeouts]\nopen = \"0s\"\n[node]\nlisten = [\"0.0.0.0\"]\nnetwork = \"\"\n";
    let found = messages(load_text(text));
    let all = found.join("\n");
    assert_eq!(found.len(), 10, "{all}");
    assert!(all.contains("did you mean ollama?"), "{all}");
}

#[test]
fn a_chain_is_whole_or_absent_and_its_addresses_are_checked() {
    let hub = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
    let token = "0xfb6916095ca1df60bb79ce92ce3ea74c37c5d359";
    let text = format!(
        "[chain]\nrpc = [\"https://rpc.example/key\"]\nchain_id = 8453\nhub = \"{hub}\"\n\
         token = \"{token}\"\nconfirmations = 12\n"
    );
    let chain = load_text(&text).unwrap().config.chain;
    assert!(chain.is_set());
    assert_eq!(chain.confirmations, Some(12));
    assert_eq!(crate::keys::to_checksum(&chain.hub_address().unwrap()), hub);
    assert!(
        chain.token_address().is_some(),
        "one case needs no checksum"
    );
    assert!(!Config::default().chain.is_set());
    assert!(
        !load_text("[chain]\nrpc = [\"http://x\"]\n")
            .unwrap()
            .config
            .chain
            .is_set()
    );

    let typo = hub.replace("5aAeb", "5aAec");
    let found = messages(load_text(&format!(
        "[chain]\nrpc = [\"secret-key\"]\nhub = \"{typo}\"\npoll = \"1ms\"\n"
    )));
    let all = found.join("\n");
    assert_eq!(found.len(), 5, "{all}");
    assert!(all.contains("EIP-55 checksum"), "{all}");
    assert!(all.contains("chain.chain_id: is missing"), "{all}");
    assert!(all.contains("chain.token: is missing"), "{all}");
    assert!(!all.contains("secret-key"), "{all}");
}

#[test]
fn payment_keys_fit_the_contract_and_each_other() {
    let found = messages(load_text(
        "[payment]\nchallenge_period = \"30m\"\nopen_fee = 1\ndeposit_max = \"0.1\"\n\
         deposit_share = \"\"\nlifetime = \"59m\"\nidle_close = \"0s\"\n",
    ));
    assert_eq!(found.len(), 6, "{found:?}");
    let env = [
        ("SOUK_CHAIN_RPC", "http://a,http://b"),
        ("SOUK_CHAIN_CONFIRMATIONS", "3"),
        ("SOUK_PAYMENT_CHALLENGE_PERIOD", "2h"),
    ];
    let config = load_all("", &env, vec![]).unwrap().config;
    assert_eq!(config.chain.rpc, ["http://a", "http://b"]);
    assert_eq!(config.chain.confirmations, Some(3));
    assert_eq!(config.payment.challenge_period, Duration::from_secs(7_200));
}

#[test]
fn a_named_file_must_exist_and_the_usual_one_need_not() {
    let mut sources = Sources {
        file: Some(PathBuf::from("/nonexistent/config.toml")),
        ..Sources::default()
    };
    assert_eq!(load(&sources).unwrap().config, Config::default());
    sources.file_required = true;
    assert!(
        load(&sources)
            .unwrap_err()
            .to_string()
            .contains("no such file")
    );
}

#[test]
fn broken_toml_is_shown_with_its_line() {
    let error = load_text("[buy\nport = 1").unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

proptest::proptest! {
    #[test]
    fn noise_never_panics(text in "\\PC{0,200}") {
        let mut checker = Checker::new(to_table(&Config::default()));
        checker.file(&text, &Origin::Default);
        drop(checker.finish());
    }
    #[test]
    fn strange_keys_never_panic(key in "[a-z.\\[\\]]{1,12}", value in "[a-z0-9\"\\[\\]{}]{0,8}") {
        let mut checker = Checker::new(to_table(&Config::default()));
        checker.file(&format!("[buy]\n{key} = {value}"), &Origin::Default);
        drop(checker.finish());
    }
}

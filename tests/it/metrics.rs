//! `/metrics` is what Prometheus reads: well formed, true, and bounded whatever strangers do.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::books;
use crate::harness::http::{self, Request};
use crate::harness::market::{Dialect, MODEL, Market, until};
use crate::harness::node::Node;
use crate::harness::upstream::{Fault, Script};

/// Names that Prometheus' own rules allow.
fn is_name(text: &str) -> bool {
    let head = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(head) && text.chars().all(|c| head(c) || c.is_ascii_digit())
}

/// One sample's labels, sorted.
type Labels = BTreeMap<String, String>;

/// One family of samples.
#[derive(Default)]
struct Family {
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<(String, Labels, f64)>,
}

/// What a scrape says. Reading it fails on whatever promtool would call wrong.
struct Scrape(BTreeMap<String, Family>);

impl Scrape {
    async fn of(node: &Node) -> Self {
        let answer = http::send(node.http(), &Request::get("/metrics")).await;
        assert_eq!(answer.status, 200);
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Self::read(&answer.text())
    }

    fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line is ended");
        let mut all: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# ") {
                let (word, rest) = rest.split_once(' ').expect("a word after #");
                let (name, value) = rest.split_once(' ').expect("a name and a text");
                assert!(is_name(name), "{line}");
                let family = all.entry(name.to_owned()).or_default();
                assert!(
                    family.samples.is_empty(),
                    "{name}: {word} after its samples"
                );
                let slot = match word {
                    "HELP" => &mut family.help,
                    "TYPE" => &mut family.kind,
                    _ => panic!("an unknown comment: {line}"),
                };
                assert!(slot.replace(value.to_owned()).is_none(), "twice: {line}");
                current = name.to_owned();
                continue;
            }
            let (name, labels, value) = sample(line);
            let family = all.get_mut(&current).expect("TYPE comes first");
            let kind = family.kind.as_deref().expect("TYPE comes first");
            let bare = match kind {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or(&name),
                _ => &name,
            };
            assert_eq!(bare, current, "samples of one family stand together");
            assert!(seen.insert((name.clone(), labels.clone())), "twice: {line}");
            family.samples.push((name, labels, value));
        }
        let this = Self(all);
        this.check();
        this
    }

    fn check(&self) {
        for (name, family) in &self.0 {
            assert!(family.help.is_some(), "{name} has no HELP");
            assert!(!family.samples.is_empty(), "{name} has no sample");
            match family.kind.as_deref() {
                Some("counter") => assert!(name.ends_with("_total"), "{name}"),
                Some("gauge") => assert!(!name.ends_with("_total"), "{name}"),
                Some("histogram") => family.check_buckets(name),
                other => panic!("{name}: type {other:?}"),
            }
        }
    }

    /// The sum of a family's samples that carry `labels`.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |found: &Labels| {
            let has = |(key, value): &(&str, &str)| found.get(*key).is_some_and(|v| v == value);
            labels.iter().all(has)
        };
        let samples = self.0.get(name).map(|family| family.samples.as_slice());
        let samples = samples.unwrap_or_default().iter();
        let of = samples.filter(|(full, found, _)| full == name && fits(found));
        of.map(|(_, _, value)| value).sum()
    }

    fn count(&self, histogram: &str) -> f64 {
        let family = &self.0[histogram];
        let counts = family.samples.iter();
        let of = counts.filter(|(name, ..)| name.ends_with("_count"));
        of.map(|(_, _, value)| value).sum()
    }

    fn sample_count(&self) -> usize {
        self.0.values().map(|family| family.samples.len()).sum()
    }
}

impl Family {
    /// Buckets grow, the last is +Inf and equals the count.
    fn check_buckets(&self, name: &str) {
        let (mut before, mut last) = ((f64::NEG_INFINITY, 0.0), None);
        for (full, labels, value) in &self.samples {
            if let Some(border) = labels.get("le") {
                let border = match border.as_str() {
                    "+Inf" => f64::INFINITY,
                    number => number.parse().unwrap(),
                };
                assert!(border > before.0 && *value >= before.1, "{name}: {border}");
                before = (border, *value);
                last = Some((border, *value));
            } else if full.ends_with("_count") {
                assert_eq!(last, Some((f64::INFINITY, *value)), "{name}");
            }
        }
        assert!(last.is_some(), "{name} has no buckets");
    }
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> (String, Labels, f64) {
    let (head, value) = line.rsplit_once(' ').expect("a value");
    let (name, rest) = head.split_once('{').unwrap_or((head, "}"));
    assert!(is_name(name), "{line}");
    let inside = rest.strip_suffix('}').expect("labels end");
    let mut labels = Labels::new();
    for pair in inside.split(',').filter(|pair| !pair.is_empty()) {
        let (key, quoted) = pair.split_once('=').expect("label=value");
        let value = quoted
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        assert!(is_name(key), "{line}");
        let value = value.expect("values are quoted").to_owned();
        assert!(labels.insert(key.to_owned(), value).is_none(), "{line}");
    }
    (name.to_owned(), labels, value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_roles_count_requests_tokens_money_time_and_failover() {
    let broken = Script::default().fault(Fault::Status(500));
    let market = Market::start(Dialect::Chat, vec![broken, Script::default()]).await;
    for stream in [true, false, true] {
        assert_eq!(market.ask("Count this.", stream).await.status, 200);
    }
    let unknown = serde_json::json!({"model": "nobody/sells-this", "messages": []});
    let request = Request::post("/v1/chat/completions", &unknown);
    assert_eq!(market.send(&request).await.status, 404);

    let rows = books::paid(market.buyer.home(), 3).await;
    let billed: u64 = rows
        .iter()
        .filter_map(|r| r["billed_micro_usd"].as_u64())
        .sum();
    let output: u64 = rows
        .iter()
        .filter_map(|r| r["output_tokens"].as_u64())
        .sum();
    assert!(billed > 0 && output > 0);
    let of = |count: u64| f64::from(u32::try_from(count).unwrap());

    // A request is over, a receipt counted and a put answered a moment after the row is there.
    until("the end of all requests", async || {
        let buyer = Scrape::of(&market.buyer).await;
        let seller = Scrape::of(&market.sellers[1].node).await;
        let served = seller.sum("souk_seller_answers_total", &[("outcome", "complete")]);
        let put = seller.sum("souk_dht_puts_total", &[("outcome", "taken")]);
        buyer.sum("souk_buyer_requests_in_flight", &[]) == 0.0 && served >= 3.0 && put >= 1.0
    })
    .await;
    let buyer = Scrape::of(&market.buyer).await;
    assert_eq!(buyer.sum("souk_buyer_requests_total", &[]), 4.0);
    let refused = buyer.sum("souk_buyer_refusals_total", &[("code", "model_not_found")]);
    assert_eq!(refused, 1.0);
    let answered = buyer.sum("souk_buyer_attempts_total", &[("outcome", "answered")]);
    assert_eq!(answered, 3.0);
    let failovers = buyer.sum("souk_buyer_failovers_total", &[]);
    assert!(failovers >= 1.0, "the first seller's upstream fails");
    // What was in doubt for a while, because its receipt was late, is not counted.
    let cost = buyer.sum("souk_buyer_cost_micro_usd_total", &[]);
    let is_late = market.buyer.has_logged(&["cost_usd=\"in doubt\""]);
    assert!(cost == of(billed) || is_late, "{cost} of {billed}");
    let tokens = buyer.sum("souk_buyer_tokens_total", &[("kind", "output")]);
    assert_eq!(tokens, of(output));
    assert!(buyer.count("souk_buyer_ttft_seconds") >= 2.0);
    assert_eq!(buyer.sum("souk_buyer_requests_in_flight", &[]), 0.0);
    assert!(buyer.sum("souk_peers", &[]) >= 2.0);
    assert_eq!(buyer.sum("souk_buyer_channels", &[]), 2.0);
    assert!(buyer.sum("souk_buyer_credit_usd", &[]) > 0.0);

    let seller = Scrape::of(&market.sellers[1].node).await;
    let served = seller.sum("souk_seller_answers_total", &[("outcome", "complete")]);
    assert_eq!(served, 3.0);
    assert_eq!(
        seller.sum("souk_seller_cost_micro_usd_total", &[]),
        of(billed)
    );
    assert!(seller.sum("souk_dht_puts_total", &[("outcome", "taken")]) >= 1.0);
    assert_eq!(seller.sum("souk_seller_slots", &[]), 256.0);
    let refusing = Scrape::of(&market.sellers[0].node).await;
    assert!(refusing.sum("souk_seller_answers_total", &[]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_name_makes_no_new_series() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    market.ask("Warm up.", false).await;
    let one = |name: String| {
        let body = serde_json::json!({"model": name, "messages": []});
        Request::post("/v1/chat/completions", &body).header("user-agent", &name)
    };
    // What the network and the first answer bring comes up meanwhile, and then nothing more does.
    let (mut last, mut round) = (0, 0);
    until("a round without new series", async || {
        round += 1;
        for n in 1..6 {
            market.send(&one(format!("nobody/sells-{round}-{n}"))).await;
        }
        let count = Scrape::of(&market.buyer).await.sample_count();
        std::mem::replace(&mut last, count) == count
    })
    .await;
    let text = http::send(market.buyer.http(), &Request::get("/metrics"))
        .await
        .text();
    assert!(!text.contains(MODEL) && !text.contains("12D3Koo"), "{text}");
}

#[test]
fn the_sample_grafana_board_asks_only_for_what_is_measured() {
    let names = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("souk_"))
            .map(|word| {
                let ends = ["_bucket", "_sum", "_count"];
                let bare = ends.iter().find_map(|end| word.strip_suffix(end));
                bare.unwrap_or(word).to_owned()
            })
            .collect()
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let mut measured = BTreeSet::new();
    for file in ["buyer", "seller", "network"] {
        measured.extend(names(&read(&format!("{file}/measures.rs"))));
    }
    let board = read("dashboard/assets/grafana.json");
    let value: serde_json::Value = serde_json::from_str(&board).unwrap();
    assert!(value["panels"].as_array().unwrap().len() >= 8);
    let unknown: Vec<_> = names(&board).difference(&measured).cloned().collect();
    assert!(unknown.is_empty(), "not measured: {unknown:?}");
}

#[test]
#[should_panic(expected = "samples of one family stand together")]
fn the_reader_of_these_tests_finds_a_sample_out_of_place() {
    Scrape::read("# HELP a_total x\n# TYPE a_total counter\nb_total 1\n");
}

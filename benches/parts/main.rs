//! What single parts cost, each alone: `make bench-parts`.
//!
//! Parsing, metering and splicing of one dialect's bytes; a ledger under 1, 16 and 128 writers,
//! then its load, report, open and audit; a stream between two nodes on loopback. Figures to
//! compare before and after a change on one machine; nothing here passes or fails.
//!
//! `cargo bench --bench parts -- [text|router|ledger|links]…`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::as_conversions
)]

mod router;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use souk::ledger::{
    ChannelRow, DeliveredRow, FinalRow, Ledger, LedgerError, OpenRow, Outcome, Reader, Role, Row,
    Settings as LedgerSettings, VoucherRow, audit, report,
};
use souk::llm_api::translate::{self, StreamTranslator};
use souk::llm_api::{
    AnswerMeter, Dialect, EventSplitter, RequestView, UsageTracker, rewrite_answer_model,
};
use souk::network::{self, Handle, Incoming, Protocol};
use souk::types::{
    AttemptId, ChannelId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId, Secret,
    SystemClock, Usage,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Requests of each ledger run, four rows each.
const LEDGER_REQUESTS: u64 = 4_000;
/// Streams opened one after another on each link.
const LINK_STREAMS: usize = 2_000;
/// When the booked requests happened.
const T0: u64 = 1_700_000_000_000;
/// What each booked request cost.
const BILLED: u64 = 5_000;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| !w.starts_with('-'))
        .collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if wanted("text") {
        text();
    }
    if wanted("router") {
        router::choices();
    }
    if wanted("ledger") {
        for writers in [1, 16, 128] {
            runtime.block_on(ledger(writers));
        }
    }
    if wanted("links") {
        for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"] {
            runtime.block_on(link(listen));
        }
    }
}

fn timed(what: &str, times: u32, mut work: impl FnMut()) {
    let began = Instant::now();
    for _ in 0..times {
        work();
    }
    println!("{what}: {:?}", began.elapsed() / times);
}

// ---- text -------------------------------------------------------------------------------------

fn text() {
    let body = request_of(80);
    timed(&format!("parse of {} bytes", body.len()), 2_000, || {
        black_box(RequestView::parse(black_box(&body), Dialect::Chat).unwrap());
    });
    translation(&body, &request_of(250));
    let event = "data: {\"id\":\"chatcmpl-123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" hello\"},\"finish_reason\":null}]}\n\n";
    let prose = "lorem ipsum dolor sit amet, \\n".repeat(40_000);
    for (name, body) in [
        ("events", event.repeat(5_000)),
        ("text", format!("{{\"content\":\"{prose}\"}}")),
    ] {
        timed(
            &format!("meter, {} bytes of {name}", body.len()),
            20,
            || {
                let mut meter = AnswerMeter::new();
                meter.push(black_box(body.as_bytes()));
                black_box(meter.text_bytes());
            },
        );
    }
    let burst = bytes::Bytes::from(event.repeat(36));
    timed("tracker, a burst of 36 events", 10_000, || {
        let mut tracker = UsageTracker::new(Dialect::Chat);
        tracker.push(black_box(&burst));
        black_box(&tracker);
    });
    timed("model splice, a burst of 36 events", 10_000, || {
        black_box(rewrite_answer_model(&burst, "other/model"));
    });
    timed("splitter, a burst of 36 events", 10_000, || {
        black_box(EventSplitter::new().push_run(burst.clone()).unwrap());
    });
}

/// Least CPU time of a measurement, so that the clock's ticks of 10 ms are fine enough.
const CPU_LEAST: Duration = Duration::from_millis(600);

/// CPU time of one `work`, which other programs on the machine do not change.
fn cpu_of(mut work: impl FnMut()) -> Duration {
    let (began, mut times) = (cpu(), 0);
    loop {
        for _ in 0..50 {
            work();
        }
        times += 50;
        let spent = cpu().saturating_sub(began);
        if spent >= CPU_LEAST {
            return spent / times;
        }
    }
}

const DIALECTS: [Dialect; 3] = [Dialect::Chat, Dialect::Messages, Dialect::Responses];

/// What another dialect costs beside passing the bytes: a request, and a stream of 500 events.
fn translation(small: &[u8], large: &[u8]) {
    for chat in [small, large] {
        let of_chat = RequestView::parse(chat, Dialect::Chat).unwrap();
        for from in DIALECTS {
            let made = translate::request(chat, &of_chat, from, 512, 0);
            let body = match from {
                Dialect::Chat => chat.to_vec(),
                Dialect::Messages | Dialect::Responses => made.unwrap().body.to_vec(),
            };
            let parse = || black_box(RequestView::parse(black_box(&body), from).unwrap());
            let passed = cpu_of(|| drop(parse()));
            let size = body.len() / 1024;
            println!("request of {size} KiB, {from} passed: {passed:?} CPU");
            let view = parse();
            for to in DIALECTS.into_iter().filter(|to| *to != from) {
                let cost = cpu_of(|| {
                    black_box(translate::request(&body, &view, to, 512, 0).unwrap());
                });
                println!("request of {size} KiB, {from} to {to}: {cost:?} CPU more");
            }
        }
    }
    for from in DIALECTS {
        let stream = bytes::Bytes::from(text_event(from).repeat(500));
        let passed = cpu_of(|| {
            let (mut splitter, mut out) = (EventSplitter::new(), Vec::new());
            for event in splitter.push(stream.clone()) {
                out.extend_from_slice(&event.unwrap());
            }
            black_box(out);
        });
        println!(
            "500 events, {from} passed: {passed:?} CPU, {:?} each",
            passed / 500
        );
        for to in DIALECTS.into_iter().filter(|to| *to != from) {
            let way = translate::WayBack {
                from,
                to,
                names: Arc::default(),
                thinking: true,
                include_usage: true,
                created_s: 1,
            };
            let cost = cpu_of(|| {
                let mut translator = StreamTranslator::new(way.clone());
                let mut out = Vec::new();
                translator.push_chunk(stream.clone(), &mut out).unwrap();
                translator.finish(&Usage::default(), MicroUsd(1), &mut out);
                black_box(out);
            });
            println!(
                "500 events, {from} to {to}: {cost:?} CPU, {:?} each",
                cost / 500
            );
        }
    }
}

/// One event with a word of text.
const fn text_event(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Chat => {
            "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" hello\"},\"finish_reason\":null}]}\n\n"
        }
        Dialect::Messages => {
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" hello\"}}\n\n"
        }
        Dialect::Responses => {
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":7,\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":\" hello\",\"logprobs\":[]}\n\n"
        }
    }
}

/// A chat like a coding agent's; 80 messages are 100 KiB.
fn request_of(messages: u32) -> Vec<u8> {
    let line = "fn main() { let s = \"quoted\"; }\n\tprintln!(\"{}\", s);\n".repeat(20);
    let message = |i: u32| {
        let role = if i.is_multiple_of(2) {
            "user"
        } else {
            "assistant"
        };
        serde_json::json!({"role": role, "content": line})
    };
    let tool = |i: u32| {
        serde_json::json!({"type": "function", "function": {
            "name": format!("tool{i}"), "description": "does a thing ".repeat(20),
            "parameters": {"type": "object", "required": ["path"], "properties": {
                "path": {"type": "string", "description": "where"}, "n": {"type": "integer"}}}}})
    };
    let messages: Vec<_> = (0..messages).map(message).collect();
    let tools: Vec<_> = (0..12).map(tool).collect();
    let body =
        serde_json::json!({"model": "m", "messages": messages, "tools": tools, "stream": true});
    serde_json::to_vec(&body).unwrap()
}

// ---- ledger -----------------------------------------------------------------------------------

async fn ledger(writers: u8) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let open = OpenLedger::at(&path).await;
    for n in 0..writers {
        open.ledger.commit(vec![channel(n)]).await.unwrap();
    }
    let each = LEDGER_REQUESTS / u64::from(writers);
    let (began, cpu_began) = (Instant::now(), cpu());
    let tasks: Vec<_> = (0..writers)
        .map(|n| tokio::spawn(book(open.ledger.clone(), n, each)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    open.close().await;
    let requests = each * u64::from(writers);
    let (wall, cpu) = (began.elapsed(), cpu().saturating_sub(cpu_began));
    println!(
        "ledger, {writers} writers: {:.0} requests/s, {} us CPU a row",
        requests as f64 / wall.as_secs_f64(),
        cpu.as_micros() / u128::from(requests * 4),
    );
    let reader = Reader::open(&path).await.unwrap();
    let began = Instant::now();
    let states = reader.load(Role::Buy).await.unwrap();
    println!("  load: {:?}", began.elapsed());
    let booked: u64 = states.iter().map(|state| state.accepted_sum.0).sum();
    assert_eq!(booked, requests * BILLED);
    let began = Instant::now();
    let (by, all) = (report::GroupBy::Model, report::Filter::default());
    report::summary(&reader, by, &all, &jiff::tz::TimeZone::UTC)
        .await
        .unwrap();
    println!("  report: {:?}", began.elapsed());
    let began = Instant::now();
    OpenLedger::at(&path).await.close().await;
    println!("  open: {:?}", began.elapsed());
    let began = Instant::now();
    let found = audit::verify(&reader, &audit::AuditOptions::default()).await;
    assert_eq!(found.unwrap().differences, []);
    println!("  verify: {:?}", began.elapsed());
}

/// Books requests one after another, in the steps of a buyer.
async fn book(ledger: Ledger, writer: u8, requests: u64) {
    for n in 0..requests {
        let id = u64::from(writer) * 1_000_000 + n;
        let [open, voucher, delivered, settled] = rows(id, writer, T0 + n, n * BILLED);
        ledger.submit(vec![open]).await.unwrap();
        ledger.commit(vec![voucher]).await.unwrap();
        ledger.submit(vec![delivered]).await.unwrap();
        ledger.submit(vec![settled]).await.unwrap();
    }
}

struct OpenLedger {
    ledger: Ledger,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), LedgerError>>,
}

impl OpenLedger {
    async fn at(path: &Path) -> Self {
        let (ledger, writer) = Ledger::open(path, Arc::new(SystemClock), LedgerSettings::default())
            .await
            .unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(writer.run(cancel.clone()));
        Self {
            ledger,
            cancel,
            task,
        }
    }

    async fn close(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// CPU time of this process, all threads; zero where `/proc` does not say.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn peer(n: u8) -> PeerId {
    // The identity multihash of a protobuf ed25519 public key, without computing a key.
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).unwrap()
}

fn channel(n: u8) -> Row {
    Row::Channel(ChannelRow {
        at_ms: T0,
        role: Role::Buy,
        channel: ChannelId([n; 32]),
        peer: peer(n),
        mode: "credit".to_owned(),
        descriptor: vec![n; 100],
        epoch: 0,
        deposit: MicroUsd::from_usd(1_000),
        open_signature: [n; 64],
    })
}

fn id(n: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..].copy_from_slice(&n.to_be_bytes());
    id
}

/// A whole bought request, in the order a node writes it.
fn rows(n: u64, writer: u8, at_ms: u64, before: u64) -> [Row; 4] {
    let attempt_id = AttemptId(id(n));
    let channel = ChannelId([writer; 32]);
    let usage = Usage {
        input: 1_000,
        cache_read: 200,
        cache_write: 0,
        output: 300,
        reasoning: 100,
    };
    let open = OpenRow {
        at_ms,
        attempt_id,
        request_id: RequestId(id(n + 1_000_000_000)),
        attempt: 1,
        role: Role::Buy,
        peer: peer(writer),
        client: "openclaw".to_owned(),
        model_asked: "GPT-4o".to_owned(),
        model: ModelId::new("openai/gpt-4o"),
        offer_hash: Hash32([writer; 32]),
        price: PriceTable {
            input: 2_500_000,
            cache_read: 250_000,
            cache_write: 3_000_000,
            output: 10_000_000,
        },
        channel,
        max_cost: MicroUsd(1_000_000),
        prefill: MicroUsd(500),
        voucher_before: MicroUsd(0),
        signed_head: vec![1; 300],
    };
    let voucher = VoucherRow {
        at_ms,
        role: Role::Buy,
        channel,
        cumulative: MicroUsd(before + BILLED),
        signature: [3; 65],
        attempt: Some(attempt_id),
    };
    let delivered = DeliveredRow {
        at_ms: at_ms + 10,
        attempt_id,
        status: 200,
        usage: Some(usage),
        own_input: Some(1_001),
        own_output: Some(299),
        cost: MicroUsd(BILLED),
        receipt: Some(vec![2; 200]),
    };
    let settled = FinalRow {
        at_ms: at_ms + 11,
        attempt_id,
        outcome: Outcome::Accepted,
        status: 200,
        billed: MicroUsd(BILLED),
        model_served: "gpt-4o-2024-11-20".to_owned(),
        usage: Some(usage),
        own_input: Some(1_001),
        own_output: Some(299),
        ttft_ms: Some(210),
        total_ms: 1_900,
        disputed: false,
        receipt: Some(vec![2; 200]),
        error: None,
    };
    [
        Row::Open(open),
        Row::Voucher(voucher),
        Row::Delivered(delivered),
        Row::Final(settled),
    ]
}

// ---- links ------------------------------------------------------------------------------------

/// Opens streams over a warm connection and sends a KiB to and fro on each.
async fn link(listen: &str) {
    let cancel = CancellationToken::new();
    let (seller, incoming) = node(17, listen, &cancel);
    tokio::spawn(echo(incoming));
    let (buyer, _incoming) = node(18, listen, &cancel);
    let peer = seller.local_peer();
    buyer.dial(&peer, seller.listeners().await).await.unwrap();
    let (mut opens, mut trips) = (Vec::new(), Vec::new());
    for _ in 0..LINK_STREAMS {
        let began = Instant::now();
        let mut stream = buyer.open(&peer, Protocol::Infer).await.unwrap();
        opens.push(began.elapsed());
        stream.write_all(&[7; 1_024]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back.len(), 1_024);
        trips.push(began.elapsed());
    }
    cancel.cancel();
    let (open, trip) = (percentiles(opens), percentiles(trips));
    println!("{listen}: open {open}, whole {trip}");
}

fn node(seed: u8, listen: &str, cancel: &CancellationToken) -> (Handle, Incoming) {
    let settings = network::Settings {
        network: "souk-bench".to_owned(),
        listen: vec![listen.to_owned()],
        ..network::Settings::new(Secret::new([seed; 32]))
    };
    let (handle, incoming, runner) = network::start(settings, Arc::new(SystemClock)).unwrap();
    tokio::spawn(runner.run(cancel.clone()));
    (handle, incoming)
}

async fn echo(mut incoming: Incoming) {
    while let Some((_, stream)) = incoming.infer.recv().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    format!("p50 {:?} p99 {:?}", at(50), at(99))
}

//! The processes: who computes, who sells, who buys, who is dead at the moment.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::books;
use crate::harness::http::{self, Exchange, Request};
use crate::harness::market::{start_buyer, wait_for_model};
use crate::harness::node::Node;
use crate::sim::rng::Rng;
use crate::tiny_model::TinyModel;

/// Different prompts.
pub const PROMPTS: usize = 4;
/// Tokens of an answer at most.
const TOKENS: usize = 96;
const NAME: &str = "tiny/layers";
const LAYERS: usize = 12;
/// Two of each third, and the last third in two pieces.
const RANGES: [Range<usize>; 8] = [0..4, 0..4, 4..8, 4..8, 8..12, 8..12, 8..10, 10..12];
/// Books agree within this once nobody asks any more.
const AGREED_DEADLINE: Duration = Duration::from_secs(180);
/// Everybody has heard of everybody within this.
const KNOWN_DEADLINE: Duration = Duration::from_secs(90);

/// A contributor, or the process that is to be it again.
enum Place {
    Alive(Box<Node>),
    Rising(JoinHandle<Box<Node>>),
    /// For a moment while it changes hands.
    Empty,
}

pub struct Scene {
    bootstrap: Node,
    places: Vec<Place>,
    head: Node,
    buyer: Node,
    prompt: usize,
    _files: tempfile::TempDir,
}

/// An answer that is being read.
pub struct Stream {
    exchange: Exchange,
    began: Instant,
    events: Vec<Instant>,
}

/// An answer that ended well.
pub struct Answer {
    pub text: String,
    /// When each piece came.
    pub events: Vec<Instant>,
    pub tokens: u64,
    pub took: Duration,
}

impl Scene {
    /// Starts everybody; a row has `hidden` numbers.
    pub async fn start(prompt: usize, hidden: usize) -> Self {
        let files = tempfile::tempdir().unwrap();
        let heads = (hidden / 32).max(2);
        let model = TinyModel {
            hidden,
            intermediate: hidden * 8 / 3 / 32 * 32,
            layers: LAYERS,
            heads,
            kv_heads: heads / 2,
            context: 4 * (prompt + TOKENS + 64),
            // Buyers distrust sellers of broken characters.
            is_legible: true,
            ..TinyModel::default()
        };
        model.write(files.path());
        let path = files.path().to_str().unwrap().to_owned();
        let bootstrap = Node::start(&["bootstrap"]);
        let positions = (8 * (prompt + TOKENS + 64)).to_string();
        let places = RANGES.map(|range| {
            let layers = format!("{}..{}", range.start, range.end);
            let mut args = vec!["contribute", "--model", &path, "--layers", &layers];
            args.extend([
                "--price-in",
                "0.1",
                "--price-out",
                "0.2",
                "--http-port",
                "0",
            ]);
            args.extend(["--credit-limit", "1000", "--positions", &positions]);
            args.extend(["--bootstrap", bootstrap.listen()]);
            let mut node = Node::start(&args);
            node.keep_ports();
            Place::Alive(Box::new(node))
        });
        let model = format!("{NAME}={path}");
        let mut args = vec!["sell", "--upstream", "pipeline", "--split"];
        args.extend(["--model", &model, "--price-in", "10", "--price-out", "40"]);
        args.extend(["--credit-limit", "1000", "--http-port", "0"]);
        args.extend(["--bootstrap", bootstrap.listen()]);
        let head = Node::start(&args);
        let buyer = start_buyer(bootstrap.listen(), &[]);
        wait_for_model(&buyer, NAME).await;
        let scene = Self {
            bootstrap,
            places: places.into(),
            head,
            buyer,
            prompt,
            _files: files,
        };
        scene.wait_for_stages().await;
        scene
    }

    /// The buyer, and so likely the head, knows of every stage.
    async fn wait_for_stages(&self) {
        let end = Instant::now() + KNOWN_DEADLINE;
        loop {
            let request = Request::get("/api/pipelines");
            let report = http::send(self.buyer.http(), &request).await.json();
            if report["pipelines"][0]["stages"] == RANGES.len() {
                return;
            }
            assert!(Instant::now() < end, "{report}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Asks; gives the answer from its first byte on.
    pub async fn ask(&self, prompt: usize) -> Result<Stream, String> {
        let words = format!("{prompt} sheep. ");
        let content: String = words.chars().cycle().take(self.prompt).collect();
        let body = json!({
            "model": NAME, "stream": true, "max_tokens": TOKENS, "temperature": 0,
            "messages": [{"role": "user", "content": content}],
            "stream_options": {"include_usage": true},
        });
        let request = Request::post("/v1/chat/completions", &body);
        let exchange = http::open(self.buyer.http(), &request).await;
        let mut exchange = exchange.map_err(|error| error.to_string())?;
        if exchange.status() != 200 {
            let mut text = vec![];
            while let Some(piece) = exchange.next().await {
                text.extend(piece.bytes);
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            return Err(format!("{text}\n{}", self.last_words()));
        }
        Ok(Stream {
            exchange,
            began: Instant::now(),
            events: vec![],
        })
    }

    /// Kills one of those who serve a session now, if the layers are all served without it.
    pub async fn kill_one_of_its(&mut self, rng: &mut Rng) -> Option<Instant> {
        let alive = self.places.iter().enumerate();
        let alive: Vec<(usize, &Box<Node>)> = alive
            .filter_map(|(at, place)| match place {
                Place::Alive(node) => Some((at, node)),
                _ => None,
            })
            .collect();
        let busy = alive.iter().map(async |(at, node)| {
            let status = http::send(node.http(), &Request::get("/api/status")).await;
            (status.json()["in_flight"].as_u64() > Some(0)).then_some(*at)
        });
        let busy = futures::future::join_all(busy).await;
        let can_go = |victim: &usize| {
            let rest = alive.iter().map(|(at, _)| *at).filter(|at| at != victim);
            covers(&rest.collect::<Vec<_>>())
        };
        let victims: Vec<usize> = busy.into_iter().flatten().filter(can_go).collect();
        let victim = *victims.get(rng.next() as usize % victims.len().max(1))?;
        let Place::Alive(mut node) = std::mem::replace(&mut self.places[victim], Place::Empty)
        else {
            return None;
        };
        let death = Instant::now();
        node.kill();
        let rising = tokio::task::spawn_blocking(move || {
            node.restart();
            node
        });
        self.places[victim] = Place::Rising(rising);
        Some(death)
    }

    /// Takes in who is up again; waits when otherwise nobody might die.
    pub async fn raise_the_dead(&mut self) {
        for place in &mut self.places {
            let Place::Rising(rising) = place else {
                continue;
            };
            *place = Place::Alive(rising.await.expect("it starts again"));
        }
    }

    /// All books agree, nothing is charged twice, and all verify; the sums.
    pub async fn settle(&mut self) -> Result<String, String> {
        self.raise_the_dead().await;
        let stages: Vec<_> = self
            .places
            .iter()
            .filter_map(|place| match place {
                Place::Alive(node) => Some(node.home()),
                _ => None,
            })
            .collect();
        let bought = [self.buyer.home(), self.head.home()];
        let sold: Vec<_> = [self.head.home()].into_iter().chain(stages).collect();
        let (rows, _) = books::agreed(&bought, &sold, AGREED_DEADLINE).await?;
        let twice = books::charged_twice(&rows);
        if !twice.is_empty() {
            return Err(format!("charged twice: {twice:?}"));
        }
        for home in bought.into_iter().chain(sold) {
            books::verify(home)?;
        }
        let sum = |is_head: bool| -> u64 {
            let rows = rows.values();
            let rows = rows.filter(|row| (row.seller == self.head.peer_id()) == is_head);
            rows.filter_map(|row| row.billed).sum()
        };
        Ok(format!(
            "orders={} buyer_paid={} stages_earned={} micro_usd, books agree",
            rows.len(),
            sum(true),
            sum(false)
        ))
    }

    /// What the head and the bootstrap node said last, for a breach.
    pub fn last_words(&self) -> String {
        let (head, buyer) = (self.head.stderr_tail(), self.buyer.stderr_tail());
        let first = self.bootstrap.stderr_tail();
        format!("the head:\n{head}\nthe buyer:\n{buyer}\nbootstrap:\n{first}")
    }
}

/// True when these places serve every layer, one after the other.
fn covers(places: &[usize]) -> bool {
    let mut at = 0;
    while at < LAYERS {
        let ranges = places.iter().map(|place| &RANGES[*place]);
        match ranges.filter(|r| r.start == at).map(|r| r.end).max() {
            Some(end) => at = end,
            None => return false,
        }
    }
    true
}

impl Stream {
    /// Time since its first byte.
    pub fn since(&self) -> Duration {
        self.began.elapsed()
    }
    /// Reads on; true at the end.
    pub async fn next(&mut self) -> bool {
        let is_over = self.exchange.next().await.is_none();
        self.events.push(Instant::now());
        is_over
    }
    /// Reads to the end.
    pub async fn finish(mut self) -> Result<Answer, String> {
        while !self.next().await {}
        let took = self.since();
        let response = self.exchange.finish().await;
        let data = response.data();
        if !response.complete || data.last().is_none_or(|last| last != "[DONE]") {
            return Err(format!("an answer broke off: {}", response.text()));
        }
        let (mut text, mut tokens) = (String::new(), 0);
        for event in data
            .iter()
            .filter_map(|d| serde_json::from_str::<Value>(d).ok())
        {
            text.push_str(
                event["choices"][0]["delta"]["content"]
                    .as_str()
                    .unwrap_or(""),
            );
            tokens = event["usage"]["completion_tokens"]
                .as_u64()
                .unwrap_or(tokens);
        }
        Ok(Answer {
            text,
            events: self.events,
            tokens,
            took,
        })
    }
}

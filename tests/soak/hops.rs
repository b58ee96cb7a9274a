//! What passing a row on costs: three sellers whose layers compute nothing, and a head that pays them,
//! over libp2p on loopback. A row's time through all of them, divided by the four hops from the head
//! back to it, is the overhead of a hop: rows to bytes and back, the worker's queue, metering,
//! vouchers, QUIC.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use souk::pipeline::chain::Settings;
use souk::pipeline::engine::{Engine, EngineError, ModelConfig, Slot, Span};
use souk::pipeline::layers::{Layers, StepKind};
use souk::pipeline::processor::Processor;
use souk::pipeline::worker::Worker;
use souk::protocol::offer::{StageTerms, Wires};
use souk::protocol::stage::WireFormat;
use souk::types::{Hash32, PriceTable};

use crate::harness::payer::Payer;
use crate::harness::stage::StageSeller;

const LAYERS: u16 = 3;
/// Hops of a row from the head back to it.
const HOPS: u32 = 4;
const POSITIONS: usize = 4_096;
/// Micro-USD per million block-tokens: every row is metered and some make vouchers due.
const PRICE: PriceTable = PriceTable {
    input: 100_000,
    cache_read: 0,
    cache_write: 0,
    output: 100_000,
};

/// Layers that give back what they get.
struct Idle {
    config: ModelConfig,
    layers: Range<usize>,
    lengths: BTreeMap<Slot, usize>,
    next: u64,
}

impl Engine for Idle {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }
    fn open(&mut self, _: usize) -> Result<Slot, EngineError> {
        self.next += 1;
        self.lengths.insert(Slot(self.next), 0);
        Ok(Slot(self.next))
    }
    fn forward(&mut self, spans: &[Span], rows: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        for span in spans {
            self.lengths.insert(span.slot, span.pos + span.rows);
        }
        Ok(rows)
    }
    fn positions_free(&self) -> usize {
        POSITIONS
    }
    fn length(&self, slot: Slot) -> Option<usize> {
        self.lengths.get(&slot).copied()
    }
    fn close(&mut self, slot: Slot) {
        self.lengths.remove(&slot);
    }
}

async fn seller(hidden: usize, layer: u16) -> StageSeller {
    let text = format!(
        r#"{{"model_type": "llama", "vocab_size": 8, "hidden_size": {hidden},
            "intermediate_size": 32, "num_hidden_layers": {LAYERS}, "num_attention_heads": 64,
            "num_key_value_heads": 8, "max_position_embeddings": {POSITIONS}}}"#
    );
    let engine = Idle {
        config: ModelConfig::from_json(text.as_bytes()).unwrap(),
        layers: usize::from(layer)..usize::from(layer) + 1,
        lengths: BTreeMap::new(),
        next: 0,
    };
    let processor = Processor::start(Some(1)).unwrap();
    let worker = Worker::start(processor, || Ok(engine)).await.unwrap();
    let terms = StageTerms {
        manifest: Hash32([7; 32]),
        first: layer,
        end: layer + 1,
        layers: LAYERS,
        free_positions: 4_096,
        rows_per_s: 1_000,
        wires: Wires(Wires::F16.0),
    };
    StageSeller::layers(worker, terms, PRICE).await
}

/// Runs the experiment; gives its line of figures.
pub async fn run(hidden: usize, rows: usize) -> Result<String, String> {
    let a = seller(hidden, 0).await;
    let b = seller(hidden, 1).await;
    let c = seller(hidden, 2).await;
    let settings = Settings {
        audit_one_in: 0,
        ..Settings::new(LAYERS, hidden, WireFormat::F16)
    };
    let payer = Payer::start(&[&a, &b, &c], settings).await;
    let mut times: Vec<Duration> = vec![];
    while times.len() < rows {
        let mut run = payer
            .remote
            .open(512)
            .await
            .map_err(|error| error.to_string())?;
        let row: Vec<f32> = (0..hidden).map(|at| at as f32 / hidden as f32).collect();
        for pos in 0..512 {
            let began = Instant::now();
            let back = run.step(pos, row.clone(), StepKind::Decode).await;
            let back = back.map_err(|error| error.to_string())?;
            times.push(began.elapsed() / HOPS);
            if back.len() != hidden {
                return Err(format!("{} numbers came back", back.len()));
            }
        }
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok(format!(
        "hops: bytes={} rows={} p50={:?} p90={:?} p99={:?}",
        2 * hidden,
        times.len(),
        at(50),
        at(90),
        at(99)
    ))
}

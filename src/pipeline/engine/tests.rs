//! Tiny random models, cut into ranges, and held against what transformers answers (`reference/`).

#![allow(clippy::as_conversions, reason = "small numbers of a test")]

pub(in crate::pipeline) mod models;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use serde_json::Value;

use super::*;
use models::{case, cases, directory, gguf};

const POSITIONS: usize = 512;

/// A model as ranges of layers, with one slot through all of them.
struct Whole {
    head: Head,
    stages: Vec<Stage>,
    slots: Vec<Slot>,
    pos: usize,
}

impl Whole {
    fn load(path: &Path, cuts: &[usize], precision: Precision) -> Self {
        let head = Head::load(path, precision).unwrap();
        let mut ends = cuts.to_vec();
        ends.push(head.config().layers);
        let mut begin = 0;
        let mut stages = vec![];
        for end in ends {
            stages.push(stage(path, begin..end, precision));
            begin = end;
        }
        let slots = stages
            .iter_mut()
            .map(|s| s.open(POSITIONS).unwrap())
            .collect();
        Self {
            head,
            stages,
            slots,
            pos: 0,
        }
    }
    /// Rows through all ranges.
    fn run(&mut self, tokens: &[u32]) -> Vec<f32> {
        let mut rows = self.head.embed(tokens).unwrap();
        for (stage, slot) in self.stages.iter_mut().zip(&self.slots) {
            let span = Span {
                slot: *slot,
                pos: self.pos,
                rows: tokens.len(),
            };
            rows = stage.forward(&[span], rows).unwrap();
        }
        self.pos += tokens.len();
        rows
    }
    fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let rows = self.run(tokens);
        self.head.logits(&rows).unwrap()
    }
    fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut chosen = vec![best(&self.logits(prompt))];
        while chosen.len() < count {
            let logits = self.logits(&[*chosen.last().unwrap()]);
            chosen.push(best(&logits));
        }
        chosen
    }
}

fn stage(path: &Path, layers: Range<usize>, precision: Precision) -> Stage {
    let load = Load {
        path: path.to_owned(),
        layers,
        precision,
        positions_max: 4 * POSITIONS,
    };
    Stage::load(&load, &mut |_| {}).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    let greedy = sampling::Settings {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        seed: 0,
    };
    Sampler::new(greedy).next(logits).unwrap()
}

#[test]
fn every_family_answers_as_transformers_do() {
    let (prompt, cases) = cases();
    for case in cases {
        let files = directory(&case);
        let mut model = Whole::load(files.path(), &[], Precision::F32);
        let logits = model.logits(&prompt);
        for (own, theirs) in logits.iter().zip(&case.logits) {
            assert!((own - theirs).abs() < 2e-4, "{}: {own} {theirs}", case.name);
        }
        model.pos = 0;
        let greedy = model.greedy(&prompt, case.greedy.len());
        assert_eq!(greedy, case.greedy, "{}", case.name);
    }
}

#[test]
fn gguf_files_answer_the_same() {
    let (prompt, cases) = cases();
    // The stretched angles of llama 3 are a tensor of their own there.
    for case in cases.iter().filter(|case| !case.name.contains("tied")) {
        let files = gguf(case, GgmlDType::F32);
        let mut model = Whole::load(&files.gguf(), &[2], Precision::F32);
        let greedy = model.greedy(&prompt, case.greedy.len());
        assert_eq!(greedy, case.greedy, "{}", case.name);
    }
}

#[test]
fn a_cut_model_gives_the_bits_of_the_whole_in_every_precision() {
    let (prompt, cases) = cases();
    for case in &cases {
        let files = directory(case);
        for precision in [Precision::F32, Precision::Q8] {
            let mut whole = Whole::load(files.path(), &[], precision);
            let mut cut = Whole::load(files.path(), &[2, 5], precision);
            assert_eq!(whole.run(&prompt), cut.run(&prompt), "{}", case.name);
            for token in [3, 200, 77] {
                assert_eq!(whole.run(&[token]), cut.run(&[token]), "{}", case.name);
            }
        }
    }
}

#[test]
fn quantised_files_stay_quantised_and_answer_alike() {
    let (prompt, case) = (cases().0, case("llama"));
    let files = gguf(&case, GgmlDType::Q8_0);
    let mut quantised = Whole::load(&files.gguf(), &[3], Precision::Q8);
    let exact = directory(&case);
    let mut same = Whole::load(exact.path(), &[], Precision::Q8);
    let (one, other) = (quantised.logits(&prompt), same.logits(&prompt));
    let worst = one
        .iter()
        .zip(&other)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    // The same weights in the same groups; only the order of rows in a head differs.
    assert!(worst < 0.05, "{worst}");
}

#[test]
fn chunks_of_a_prompt_give_the_answer_of_the_whole_prompt() {
    let (prompt, case) = (cases().0, case("qwen2"));
    let files = directory(&case);
    let mut model = Whole::load(files.path(), &[2, 4], Precision::F32);
    let (last, before) = prompt.split_last().unwrap();
    for chunk in before.chunks(5) {
        model.run(chunk);
    }
    let mut chosen = vec![best(&model.logits(&[*last]))];
    while chosen.len() < case.greedy.len() {
        let logits = model.logits(&[*chosen.last().unwrap()]);
        chosen.push(best(&logits));
    }
    assert_eq!(chosen, case.greedy);
}

#[test]
fn a_lost_range_comes_back_by_replay_and_not_from_zeros() {
    let (prompt, case) = (cases().0, case("llama"));
    let files = directory(&case);
    for is_control in [false, true] {
        let mut model = Whole::load(files.path(), &[2, 4], Precision::F32);
        // What the first range handed on, as its neighbour keeps it.
        let mut log = vec![];
        let mut tokens = prompt.clone();
        let mut chosen = vec![];
        while chosen.len() < case.greedy.len() {
            let mut rows = model.head.embed(&tokens).unwrap();
            for at in 0..3 {
                if at == 1 {
                    log.extend(rows.clone());
                    if chosen.len() == 9 {
                        model.stages[1] = stage(files.path(), 2..4, Precision::F32);
                        model.slots[1] = model.stages[1].open(POSITIONS).unwrap();
                        let mut old = log[..log.len() - rows.len()].to_vec();
                        if is_control {
                            old.fill(0.0);
                        }
                        let span = Span {
                            slot: model.slots[1],
                            pos: 0,
                            rows: model.pos,
                        };
                        model.stages[1].forward(&[span], old).unwrap();
                    }
                }
                let span = Span {
                    slot: model.slots[at],
                    pos: model.pos,
                    rows: tokens.len(),
                };
                let answer = model.stages[at].forward(&[span], rows.clone()).unwrap();
                if chosen.len() == 5 {
                    // The same step again: the same answer, and nothing remembered twice.
                    assert_eq!(model.stages[at].forward(&[span], rows).unwrap(), answer);
                    let length = model.stages[at].length(model.slots[at]);
                    assert_eq!(length, Some(model.pos + tokens.len()));
                }
                rows = answer;
            }
            model.pos += tokens.len();
            chosen.push(best(&model.head.logits(&rows).unwrap()));
            tokens = vec![*chosen.last().unwrap()];
        }
        assert_eq!(chosen == case.greedy, !is_control, "{chosen:?}");
    }
}

#[test]
fn slots_in_one_batch_do_not_hear_each_other() {
    let (prompt, case) = (cases().0, case("qwen3"));
    let files = directory(&case);
    let mut stage = stage(files.path(), 0..6, Precision::F32);
    let head = Head::load(files.path(), Precision::F32).unwrap();
    let mut slots = vec![];
    for (index, length) in [19, 3, 7].into_iter().enumerate() {
        let slot = stage.open(POSITIONS).unwrap();
        let tokens: Vec<u32> = prompt[..length]
            .iter()
            .map(|t| (t + index as u32) % 256)
            .collect();
        slots.push((slot, tokens));
    }
    let mut alone = vec![];
    for (slot, tokens) in &slots {
        let span = Span {
            slot: *slot,
            pos: 0,
            rows: tokens.len(),
        };
        alone.extend(stage.forward(&[span], head.embed(tokens).unwrap()).unwrap());
    }
    let spans: Vec<Span> = slots
        .iter()
        .map(|(slot, tokens)| Span {
            slot: *slot,
            pos: 0,
            rows: tokens.len(),
        })
        .collect();
    let all: Vec<u32> = slots
        .iter()
        .flat_map(|(_, tokens)| tokens.clone())
        .collect();
    let together = stage.forward(&spans, head.embed(&all).unwrap()).unwrap();
    let worst = alone
        .iter()
        .zip(&together)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let case = case("llama");
    let files = directory(&case);
    let mut stage = stage(files.path(), 0..2, Precision::Q8);
    let slot = stage.open(10).unwrap();
    let rows = |count: usize| vec![0.5; count * 64];
    let span = |pos, rows| Span { slot, pos, rows };
    stage.forward(&[span(0, 4)], rows(4)).unwrap();
    let gap = stage.forward(&[span(5, 1)], rows(1));
    assert!(matches!(gap, Err(EngineError::Gap { pos: 5, length: 4 })));
    let long = stage.forward(&[span(4, 7)], rows(7));
    assert!(matches!(
        long,
        Err(EngineError::TooLong {
            wanted: 11,
            most: 10
        })
    ));
    assert!(matches!(
        stage.forward(&[span(4, 1)], rows(2)),
        Err(EngineError::Shape(_))
    ));
    let twice = stage.forward(&[span(4, 1), span(4, 1)], rows(2));
    assert!(matches!(twice, Err(EngineError::Shape(_))));
    assert_eq!(stage.length(slot), Some(4));
    // Going back forgets.
    stage.forward(&[span(1, 1)], rows(1)).unwrap();
    assert_eq!(stage.length(slot), Some(2));
    assert!(matches!(
        stage.open(POSITIONS + 1),
        Err(EngineError::TooLong { .. })
    ));
    for _ in 0..3 {
        stage.open(POSITIONS).unwrap();
    }
    assert!(matches!(
        stage.open(POSITIONS),
        Err(EngineError::Full { .. })
    ));
    stage.close(slot);
    stage.open(POSITIONS).unwrap();
    let gone = stage.forward(&[span(0, 1)], rows(1));
    assert!(matches!(gone, Err(EngineError::NoSlot(_))));
}

#[test]
fn strange_files_end_in_an_error_that_names_them() {
    let case = case("llama");
    let says = |path: &Path| match Head::load(path, Precision::Q8) {
        Ok(_) => panic!("loaded"),
        Err(error) => error.to_string(),
    };
    let files = directory(&case);
    let config = files.path().join("config.json");
    let write = |change: &dyn Fn(&mut Value)| {
        let mut changed = case.config.clone();
        change(&mut changed);
        std::fs::write(&config, changed.to_string()).unwrap();
    };
    for (change, word) in [
        (("model_type", serde_json::json!("gemma3")), "gemma3"),
        (("num_attention_heads", serde_json::json!(0)), "heads"),
        (("num_key_value_heads", serde_json::json!(3)), "multiple"),
        (("hidden_size", serde_json::json!(72)), "[256, 72]"),
        (("hidden_act", serde_json::json!("gelu")), "gelu"),
        (
            ("rope_scaling", serde_json::json!({"type": "yarn"})),
            "yarn",
        ),
        (("vocab_size", serde_json::json!(-1)), "config.json"),
    ] {
        write(&|config| config[change.0] = change.1.clone());
        let error = says(files.path());
        assert!(error.contains(word), "{word}: {error}");
    }
    write(&|_| {});
    let shard = files.path().join("model-0.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    for damage in [
        whole[..4].to_vec(),
        whole[..200].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        [&[0xff; 8], &whole[8..]].concat(),
    ] {
        std::fs::write(&shard, damage).unwrap();
        let error = says(files.path());
        assert!(error.contains("model-0.safetensors"), "{error}");
    }
    std::fs::write(&config, b"{").unwrap();
    assert!(says(files.path()).contains("config.json"));
    let other = files.path().join("other.gguf");
    std::fs::write(&other, b"GGUFgarbage").unwrap();
    assert!(says(&other).contains("other.gguf"));
    assert!(says(&files.path().join("nothing")).contains("nothing"));
}

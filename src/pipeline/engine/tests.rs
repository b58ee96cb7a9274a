//! Tiny random models, made here, cut into ranges, and held against what transformers answers
//! (`reference/`).

#![allow(clippy::as_conversions, reason = "small numbers of a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use serde_json::Value;

use super::*;

const POSITIONS: usize = 512;

struct Case {
    name: String,
    config: Value,
    greedy: Vec<u32>,
    logits: Vec<f32>,
}

fn cases() -> (Vec<u32>, Vec<Case>) {
    let all: Value = serde_json::from_str(include_str!("reference/vectors.json")).unwrap();
    let tokens = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    let models = all["models"].as_object().unwrap();
    let cases = models.iter().map(|(name, one)| Case {
        name: name.clone(),
        config: one["config"].clone(),
        greedy: tokens(&one["greedy"]),
        logits: serde_json::from_value(one["logits"].clone()).unwrap(),
    });
    (tokens(&all["prompt"]), cases.collect())
}

fn case(name: &str) -> Case {
    cases()
        .1
        .into_iter()
        .find(|case| case.name == name)
        .unwrap()
}

/// The numbers that `reference.py` makes for a tensor of this name.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut seed = 0xCBF2_9CE4_8422_2325u64;
    for byte in name.bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
    let scale = if name.contains("embed") || name.contains("bias") {
        1.0
    } else {
        0.5
    };
    let number = |index: u64| {
        let mut z = seed.wrapping_add(index).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let part = (z >> 40) as f32 / 16_777_216.0 - 0.5;
        if name.contains("norm") {
            1.0 + part
        } else {
            part * scale
        }
    };
    (0..count as u64).map(number).collect()
}

/// Every tensor of a model: its name at the hub, its name in GGUF, its shape.
fn tensors(config: &Value) -> Vec<(String, String, Vec<usize>)> {
    let count = |key: &str| config[key].as_u64().map(|count| count as usize);
    let (hidden, wide) = (
        count("hidden_size").unwrap(),
        count("intermediate_size").unwrap(),
    );
    let (heads, kv) = (
        count("num_attention_heads").unwrap(),
        count("num_key_value_heads").unwrap(),
    );
    let dim = count("head_dim").unwrap_or(hidden / heads);
    let vocabulary = count("vocab_size").unwrap();
    let mut all = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            "token_embd.weight".to_owned(),
            vec![vocabulary, hidden],
        ),
        (
            "model.norm.weight".to_owned(),
            "output_norm.weight".to_owned(),
            vec![hidden],
        ),
    ];
    if config["tie_word_embeddings"] != true {
        all.push((
            "lm_head.weight".to_owned(),
            "output.weight".to_owned(),
            vec![vocabulary, hidden],
        ));
    }
    let kind = config["model_type"].as_str().unwrap();
    for layer in 0..count("num_hidden_layers").unwrap() {
        let mut add = |hub: &str, gguf: &str, shape: &[usize]| {
            all.push((
                format!("model.layers.{layer}.{hub}"),
                format!("blk.{layer}.{gguf}"),
                shape.to_vec(),
            ));
        };
        add("input_layernorm.weight", "attn_norm.weight", &[hidden]);
        add(
            "post_attention_layernorm.weight",
            "ffn_norm.weight",
            &[hidden],
        );
        add(
            "self_attn.q_proj.weight",
            "attn_q.weight",
            &[heads * dim, hidden],
        );
        add(
            "self_attn.k_proj.weight",
            "attn_k.weight",
            &[kv * dim, hidden],
        );
        add(
            "self_attn.v_proj.weight",
            "attn_v.weight",
            &[kv * dim, hidden],
        );
        add(
            "self_attn.o_proj.weight",
            "attn_output.weight",
            &[hidden, heads * dim],
        );
        add("mlp.gate_proj.weight", "ffn_gate.weight", &[wide, hidden]);
        add("mlp.up_proj.weight", "ffn_up.weight", &[wide, hidden]);
        add("mlp.down_proj.weight", "ffn_down.weight", &[hidden, wide]);
        if kind == "qwen2" {
            add("self_attn.q_proj.bias", "attn_q.bias", &[heads * dim]);
            add("self_attn.k_proj.bias", "attn_k.bias", &[kv * dim]);
            add("self_attn.v_proj.bias", "attn_v.bias", &[kv * dim]);
        }
        if kind == "qwen3" {
            add("self_attn.q_norm.weight", "attn_q_norm.weight", &[dim]);
            add("self_attn.k_norm.weight", "attn_k_norm.weight", &[dim]);
        }
    }
    all
}

/// A model in files, gone with the value.
struct Files(tempfile::TempDir);

impl Files {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn gguf(&self) -> PathBuf {
        self.0.path().join("model.gguf")
    }
}

/// The model in two shards, as the hub stores large ones.
fn directory(case: &Case) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let mut config = case.config.clone();
    config["architectures"] = serde_json::json!(["Any"]);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let mut shards: [BTreeMap<String, Tensor>; 2] = Default::default();
    let mut index = BTreeMap::new();
    for (at, (name, _, shape)) in tensors(&case.config).into_iter().enumerate() {
        let data = numbers(&name, shape.iter().product());
        let tensor = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
        index.insert(name.clone(), format!("model-{}.safetensors", at % 2));
        shards[at % 2].insert(name, tensor);
    }
    for (at, shard) in shards.into_iter().enumerate() {
        let path = dir.path().join(format!("model-{at}.safetensors"));
        candle_core::safetensors::save(&shard.into_iter().collect(), path).unwrap();
    }
    let index = serde_json::json!({ "weight_map": index });
    let path = dir.path().join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    Files(dir)
}

/// The same as GGUF, in the order of rows that its converters use.
fn gguf(case: &Case, dtype: GgmlDType) -> Files {
    use gguf_file::Value as V;
    let dir = tempfile::tempdir().unwrap();
    let arch = match case.config["model_type"].as_str().unwrap() {
        "mistral" => "llama",
        other => other,
    };
    let number = |key: &str| V::U32(case.config[key].as_u64().unwrap() as u32);
    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            V::String(arch.to_owned()),
        ),
        (format!("{arch}.block_count"), number("num_hidden_layers")),
        (
            format!("{arch}.context_length"),
            number("max_position_embeddings"),
        ),
        (format!("{arch}.embedding_length"), number("hidden_size")),
        (
            format!("{arch}.feed_forward_length"),
            number("intermediate_size"),
        ),
        (
            format!("{arch}.attention.head_count"),
            number("num_attention_heads"),
        ),
        (
            format!("{arch}.attention.head_count_kv"),
            number("num_key_value_heads"),
        ),
        (
            format!("{arch}.attention.layer_norm_rms_epsilon"),
            V::F32(case.config["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
        (
            format!("{arch}.rope.freq_base"),
            V::F32(case.config["rope_theta"].as_f64().unwrap() as f32),
        ),
    ];
    if case.config.get("head_dim").is_some() {
        metadata.push((format!("{arch}.attention.key_length"), number("head_dim")));
    }
    let mut stored = vec![];
    for (name, gguf_name, shape) in tensors(&case.config) {
        let data = numbers(&name, shape.iter().product());
        let mut tensor = Tensor::from_vec(data, shape.clone(), &Device::Cpu).unwrap();
        let heads = match gguf_name.split('.').nth(2) {
            Some("attn_q") => Some("num_attention_heads"),
            Some("attn_k") => Some("num_key_value_heads"),
            _ => None,
        };
        if let Some(heads) = heads.filter(|_| arch == "llama") {
            let heads = case.config[heads].as_u64().unwrap() as usize;
            let half = shape[0] / heads / 2;
            let halves = tensor.reshape((heads, 2, half, shape[1])).unwrap();
            let pairs = halves.transpose(1, 2).unwrap().contiguous().unwrap();
            tensor = pairs.reshape(shape.clone()).unwrap();
        }
        let dtype = if shape.len() == 2 {
            dtype
        } else {
            GgmlDType::F32
        };
        stored.push((gguf_name, QTensor::quantize(&tensor, dtype).unwrap()));
    }
    let metadata: Vec<(&str, &V)> = metadata.iter().map(|(key, v)| (key.as_str(), v)).collect();
    let stored: Vec<(&str, &QTensor)> = stored.iter().map(|(key, t)| (key.as_str(), t)).collect();
    let mut file = std::fs::File::create(dir.path().join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &stored).unwrap();
    Files(dir)
}

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

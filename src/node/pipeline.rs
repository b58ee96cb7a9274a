//! The pipeline as an upstream: loads the model that `--model [ID=]PATH` names, and serves it on
//! loopback to the seller's ordinary upstream code, behind a key that only this process knows.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::base::Base;
use super::remote;
use crate::config::{Config, SellModel};
use crate::failure::{Failure, FailureKind};
use crate::http::guard::{self, Guard};
use crate::http::server::{self, Server};
use crate::llm_api::Dialect;
use crate::pipeline::PipelineError;
use crate::pipeline::ends::Ends;
use crate::pipeline::engine::{Head, Load, ModelConfig, Precision, Stage};
use crate::pipeline::generate::Model;
use crate::pipeline::layers::Local;
use crate::pipeline::processor::Processor;
use crate::pipeline::routed::{Most, Rules};
use crate::pipeline::serve::Service;
use crate::pipeline::tokens::Tokens;
use crate::pipeline::worker::Worker;
use crate::seller::presets::{self, Source};
use crate::seller::upstream::UpstreamSettings;
use crate::types::{MicroUsd, Secret};

/// Bytes that all sessions' keys and values may take together.
const KV_BYTES_MAX: usize = 2 << 30;

/// True when the pipeline is the upstream.
#[must_use]
pub fn is_used(config: &Config) -> bool {
    let named = config.sell.upstream.as_deref();
    let source = named.map(|named| presets::resolve(named, None, None));
    matches!(source, Some(Ok(Source::Pipeline)))
}

/// A model's name on the network; for a pipeline's model that was given by its path alone, what the
/// path calls it.
pub(super) fn name_of(config: &Config, model: &SellModel) -> String {
    if model.upstream_id.is_some() || !is_used(config) {
        return model.id.clone();
    }
    called(Path::new(&model.id))
}

/// What a path calls a model.
pub(super) fn called(path: &Path) -> String {
    // A folder's name may have dots of its own (`Llama-3.1-8B`).
    let name = if path.extension().is_some_and(|end| end == "gguf") {
        path.file_stem()
    } else {
        path.file_name()
    };
    let name = name.unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Loads the model and serves it; where, and with which key.
pub(super) async fn serve(base: &Base) -> anyhow::Result<UpstreamSettings> {
    let [model] = base.config.sell.models.as_slice() else {
        let message = "a pipeline sells one model";
        let hint = "node sell --upstream pipeline --model [ID=]PATH, a folder with safetensors or a GGUF file";
        return Err(Failure::new(FailureKind::BadConfig, message)
            .hint(hint)
            .into());
    };
    let path = PathBuf::from(model.upstream_id.as_ref().unwrap_or(&model.id));
    let name = name_of(&base.config, model);
    let loaded = load(base, &path, model).await?;
    let service = Service::new(&name, loaded, Arc::clone(&base.clock), base.front.clone());
    let settings = server::Settings {
        port: 0,
        ..server::Settings::default()
    };
    let server = Server::bind(settings).await?;
    let port = server.local_addr().port();
    let key = Secret::new(hex::encode(rand::random::<[u8; 16]>()));
    let guard = Guard::new(&guard::Settings {
        host: "127.0.0.1".to_owned(),
        port,
        token: Some(key.clone()),
        ..guard::Settings::default()
    });
    let (tasks, stop) = (base.front.clone(), base.front.cancelled());
    base.front.spawn("pipeline", async move {
        server.run(guard, Arc::new(service), &tasks, stop).await;
    });
    Ok(UpstreamSettings {
        base_url: format!("http://127.0.0.1:{port}/v1"),
        dialect: Dialect::Chat,
        completions: false,
        key: Some(key),
    })
}

/// Why a model's files cannot be used.
pub(super) fn unreadable(error: &PipelineError) -> Failure {
    let hint = "a model is named as [ID=]PATH: a folder with safetensors and tokenizer.json, or a GGUF file";
    Failure::new(FailureKind::BadConfig, error.to_string()).hint(hint)
}

/// A model's two ends, and what computes them.
pub(super) struct WantEnds {
    pub tokens: Tokens,
    pub ends: Ends,
    pub processor: Processor,
}

/// Loads the ends of the model at `path`.
pub(super) async fn ends(path: &Path) -> Result<WantEnds, PipelineError> {
    let processor = Processor::start(None)?;
    let (own, for_tokens) = (path.to_owned(), path.to_owned());
    let load = move || Ok(Head::load(&own, Precision::default())?);
    let ends = Ends::start(processor.clone(), load).await?;
    let tokens = tokio::task::spawn_blocking(move || Tokens::load(&for_tokens));
    let tokens = tokens.await.map_err(|_| PipelineError::Stopped)??;
    Ok(WantEnds {
        tokens,
        ends,
        processor,
    })
}

/// The model: both ends here, the layers here or, with `[sell] split`, on other peers.
async fn load(base: &Base, path: &Path, sold: &SellModel) -> anyhow::Result<Model> {
    let here = ends(path).await.map_err(|error| unreadable(&error))?;
    if base.config.sell.split {
        let rules = Rules {
            most: sold_for(&base.config, sold),
            ..remote::rules(&base.config)?
        };
        let elsewhere = remote::layers(base, path, &here, rules).await;
        let layers = elsewhere.map_err(|error| unreadable(&error))?.layers;
        let positions_max = here.ends.config().context;
        return Ok(Model::new(here.tokens, here.ends, layers, positions_max));
    }
    let whole = whole(path, here).await;
    Ok(whole.map_err(|error| unreadable(&error))?)
}

/// What layers may cost: no more than the model is sold for, unless the config says otherwise.
fn sold_for(config: &Config, sold: &SellModel) -> Option<Most> {
    if config.head.at_a_loss {
        return None;
    }
    let sell = &config.sell;
    // What is sold free of charge pays for nothing.
    let micro = |own: Option<MicroUsd>, all: Option<MicroUsd>| own.or(all).map_or(0, |p| p.0);
    Some(Most {
        prefill: micro(sold.price_in, sell.price_in),
        decode: micro(sold.price_out, sell.price_out),
        why: "that is what the model is sold for; raise --price-in and --price-out, or set \
              [head] at_a_loss = true",
    })
}

/// All layers in this process.
async fn whole(path: &Path, here: WantEnds) -> Result<Model, PipelineError> {
    let WantEnds {
        tokens,
        ends,
        processor,
    } = here;
    let positions_max = positions_max(ends.config());
    let load = Load {
        path: path.to_owned(),
        layers: 0..ends.config().layers,
        precision: Precision::default(),
        positions_max,
    };
    let worker = Worker::start(processor, move || {
        let all = load.layers.len();
        let what = "loading and quantising";
        let stage = Stage::load(&load, &mut |layers| show_progress(what, layers, all));
        Ok(stage?)
    });
    let layers = Arc::new(Local::new(worker.await?)?);
    Ok(Model::new(tokens, ends, layers, positions_max))
}

/// Positions of all sessions together that memory is given for.
fn positions_max(config: &ModelConfig) -> usize {
    let bytes = config.layers * config.kv_bytes();
    KV_BYTES_MAX.checked_div(bytes).unwrap_or(0).max(1)
}

/// One line on a terminal, rewritten; going through a large model takes minutes.
pub(super) fn show_progress(what: &str, layers: usize, all: usize) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let end = if layers == all { "\n" } else { "" };
        let _ = write!(err, "\r{what}: layer {layers} of {all}{end}");
        let _ = err.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(upstream: &str, id: &str, upstream_id: Option<&str>) -> String {
        let mut config = Config::default();
        config.sell.upstream = Some(upstream.to_owned());
        let model = SellModel {
            id: id.to_owned(),
            upstream_id: upstream_id.map(str::to_owned),
            ..SellModel::default()
        };
        name_of(&config, &model)
    }

    #[test]
    fn a_path_alone_names_the_model_by_its_last_part() {
        assert_eq!(named("pipeline", "/m/Llama-3.1-8B", None), "Llama-3.1-8B");
        assert_eq!(
            named("pipeline", "m/Qwen3-4B-Q8_0.gguf", None),
            "Qwen3-4B-Q8_0"
        );
        assert_eq!(named("pipeline", "qwen/own", Some("/m/x.gguf")), "qwen/own");
        assert_eq!(named("ollama", "qwen/own", None), "qwen/own");
    }

    #[test]
    fn memory_bounds_positions() {
        let text = br#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 4096,
            "intermediate_size": 8, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 131072}"#;
        let config = ModelConfig::from_json(text).unwrap();
        // 32 layers × 2 × 8 × (128 numbers of 2 bytes and a scale of 4): 130 KiB a position.
        assert_eq!(positions_max(&config), 16_131);
    }
}

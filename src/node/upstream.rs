//! The upstream that a configuration names, with its key: for the seller, and for `node doctor`.

use super::base::Base;
use crate::config::{Config, SecretRef};
use crate::failure::{Failure, FailureKind};
use crate::seller::demo_upstream::{self, DemoSettings};
use crate::seller::presets::{self, Source};
use crate::seller::upstream::{Upstream, UpstreamSettings};
use crate::types::Secret;

/// The upstream by preset or URL, with its key; what answers in this process is started here.
pub(super) async fn open(base: &Base) -> anyhow::Result<Upstream> {
    if let Some(upstream) = over_http(&base.config)? {
        return Ok(upstream);
    }
    let dialect = match source(&base.config)? {
        Source::Pipeline => return client(super::pipeline::serve(base).await?),
        Source::Demo { dialect } | Source::Http { dialect, .. } => dialect,
    };
    let address = demo_upstream::start(DemoSettings::default(), &base.front).await?;
    client(UpstreamSettings {
        base_url: format!("http://{address}/v1"),
        dialect,
        completions: false,
        key: None,
    })
}

/// The configured upstream; none when it is inside the process.
pub(super) fn over_http(config: &Config) -> anyhow::Result<Option<Upstream>> {
    let Source::Http {
        base_url,
        dialect,
        key_env,
        completions,
    } = source(config)?
    else {
        return Ok(None);
    };
    let key = api_key(config, key_env)?;
    let settings = UpstreamSettings {
        base_url,
        dialect,
        completions,
        key,
    };
    client(settings).map(Some)
}

fn source(config: &Config) -> anyhow::Result<Source> {
    let sell = &config.sell;
    let named = sell.upstream.as_deref().ok_or_else(|| {
        Failure::new(FailureKind::BadConfig, "no upstream to sell from").hint(
            "node sell --upstream openrouter (or anthropic, openai, ollama, llamacpp, vllm, pipeline, demo, a URL)",
        )
    })?;
    let source = presets::resolve(named, sell.base_url.as_deref(), sell.api.as_deref());
    Ok(source.map_err(|e| Failure::new(FailureKind::BadConfig, e.to_string()))?)
}

fn client(settings: UpstreamSettings) -> anyhow::Result<Upstream> {
    Upstream::new(settings).map_err(|e| Failure::new(FailureKind::BadConfig, e.to_string()).into())
}

/// The upstream's key: by file, by variable, or by the preset's usual variable.
fn api_key(config: &Config, usual: Option<&str>) -> anyhow::Result<Option<Secret<String>>> {
    let sell = &config.sell;
    if let Some(path) = &sell.api_key_file {
        return Ok(SecretRef::File(path.clone()).read()?);
    }
    if let Some(name) = &sell.api_key_env {
        return Ok(SecretRef::Env(name.clone()).read()?);
    }
    let Some(name) = usual else { return Ok(None) };
    match SecretRef::Env(name.to_owned()).read() {
        // A preset behind another address (a proxy of one's own) may need no key.
        Err(_) if sell.base_url.is_some() => Ok(None),
        key => Ok(key?),
    }
}

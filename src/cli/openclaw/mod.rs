//! `node openclaw setup|show|remove|skill|plugin`: the network's models in OpenClaw, under the provider `souk`.
//!
//! `running buyer's /v1/models → patch → openclaw config patch --file`. The user's file is never
//! written here: OpenClaw validates and writes it, and where it is not in PATH the patch is printed.
//! [`patch`] is pure, [`program`] runs
//! OpenClaw, [`plugin`] writes a folder that OpenClaw links instead.

mod patch;
mod plugin;
mod program;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::api::Api;
use super::doctor::Check;
use super::output::{self, Output};
use super::progress::Progress;
use super::{CliError, FailureKind, GlobalArgs};
use crate::config::{Config, SecretRef};
use patch::{PROVIDER, Provider};
use program::OpenClaw;

/// Shrinking the provider step by step ends long before this.
const REMOVE_STEPS_MAX: usize = 32;

/// For `<workspace>/skills/souk/SKILL.md`.
const SKILL: &str = include_str!("SKILL.md");

/// Flags of `node openclaw`.
#[derive(Clone, Debug, Args)]
pub struct OpenClawArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Add the network's models and prices to OpenClaw's config
    Setup(SetupArgs),
    /// Show what setup would add, and what OpenClaw has now
    Show(SetupArgs),
    /// Print a skill that lets an agent do all of this by itself
    Skill,
    /// Write a plugin for OpenClaw that lists models and prices live, and shows what was spent
    Plugin {
        /// A new folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Take the models out of OpenClaw's config again
    Remove {
        /// Only print what would be run
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Clone, Debug, Args)]
struct SetupArgs {
    /// The API that OpenClaw speaks to the local proxy
    #[arg(long, value_enum, default_value_t)]
    api: ClientApi,
    /// Also make this model OpenClaw's usual one
    #[arg(long, value_name = "MODEL")]
    primary: Option<String>,
    /// Let OpenClaw check the change without writing it
    #[arg(long)]
    dry_run: bool,
}

/// What OpenClaw calls the dialects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ClientApi {
    /// Chat Completions; shows what was really paid
    #[default]
    OpenaiCompletions,
    /// Messages
    AnthropicMessages,
    /// Responses
    OpenaiResponses,
}

impl ClientApi {
    const fn as_str(self) -> &'static str {
        match self {
            Self::OpenaiCompletions => "openai-completions",
            Self::AnthropicMessages => "anthropic-messages",
            Self::OpenaiResponses => "openai-responses",
        }
    }
    /// Anthropic's clients add `/v1` themselves.
    fn base_url(self, url: &str) -> String {
        let url = url.trim_end_matches('/');
        match self {
            Self::AnthropicMessages => url.to_owned(),
            Self::OpenaiCompletions | Self::OpenaiResponses => format!("{url}/v1"),
        }
    }
}

/// Sets up, shows or removes.
///
/// # Errors
/// When no buyer runs, nothing is on sale, or OpenClaw refuses.
pub async fn run(global: &GlobalArgs, out: &Output, args: &OpenClawArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Setup(setup) => set_up(global, out, setup).await,
        What::Show(setup) => show(global, out, setup).await,
        What::Skill => {
            output::text(SKILL.trim_end());
            Ok(())
        }
        What::Plugin { folder } => {
            plugin::write(folder)?;
            wrote_plugin(out, folder);
            Ok(())
        }
        What::Remove { dry_run } => {
            let progress = waiting(global, out, "OpenClaw takes the models out:");
            let (is_removed, text) = progress.during(remove(*dry_run)).await?;
            drop(progress);
            done(out, is_removed, text);
            Ok(())
        }
    }
}

fn wrote_plugin(out: &Output, folder: &Path) {
    let folder = folder.display();
    if out.json {
        return output::json(&json!({ "folder": folder.to_string() }));
    }
    output::text(&format!(
        "written to {folder}; link it, and give OpenClaw the port's token (anything where it has none):\n  \
         openclaw plugins install --link --force --accept-capabilities {folder}\n  \
         export SOUK_TOKEN=local\n  \
         openclaw models list --provider {PROVIDER} --refresh"
    ));
}

/// The provider as the running buyer's market makes it.
async fn provider(global: &GlobalArgs, args: &SetupArgs) -> anyhow::Result<Provider> {
    let api = Api::find(global)?;
    if api.info().role == "sell" || api.info().role == "bootstrap" {
        let message = "the node that runs here does not buy";
        let hint = "start `node buy` (with its own --data-dir)";
        return Err(CliError::new(FailureKind::NotConfigured, message)
            .hint(hint)
            .into());
    }
    let list = api.get("/v1/models").await?;
    let models = list.get("data").and_then(Value::as_array);
    let models = models.cloned().unwrap_or_default();
    if models.is_empty() {
        let message = "no model is on sale, so there is nothing to set up";
        let hint = "`node status` shows the peers; try again when `node models` lists some";
        return Err(CliError::new(FailureKind::Network, message)
            .hint(hint)
            .into());
    }
    let config = global.load(Vec::new())?.config;
    Ok(Provider {
        base_url: args.api.base_url(&api.info().url),
        api: args.api.as_str(),
        key: key(&config)?,
        models,
    })
}

/// What OpenClaw sends as the key: anything, unless the port has a token. A token is never written
/// into OpenClaw's file; it reads it where this node does.
fn key(config: &Config) -> anyhow::Result<Value> {
    match &config.buy.token {
        SecretRef::Unset => Ok(json!("local")),
        SecretRef::Env(name) => Ok(json!({ "source": "env", "provider": "default", "id": name })),
        SecretRef::File(path) => {
            let message = format!(
                "the port's token lies in {}, which OpenClaw cannot be pointed to",
                path.display()
            );
            let hint = "use [buy] token = \"env:NAME\" and give OpenClaw the same variable";
            Err(CliError::new(FailureKind::BadConfig, message)
                .hint(hint)
                .into())
        }
    }
}

async fn set_up(global: &GlobalArgs, out: &Output, args: &SetupArgs) -> anyhow::Result<()> {
    let provider = provider(global, args).await?;
    let patch = provider.patch(args.primary.as_deref())?;
    let Some(openclaw) = OpenClaw::find() else {
        if out.json {
            output::json(&json!({ "applied": false, "patch": patch }));
            return Ok(());
        }
        output::message("openclaw is not in your PATH; save this as souk.json5 and run there:");
        output::message("  openclaw config patch --file souk.json5");
        output::text(&serde_json::to_string_pretty(&patch)?);
        return Ok(());
    };
    let models = provider.models.len();
    let progress = waiting(global, out, &format!("OpenClaw takes {models} models in:"));
    let path = patch::path();
    let work = openclaw.patch(&patch, &path, args.dry_run);
    let said = progress.during(work).await;
    drop(progress);
    let said = said?;
    if out.json {
        output::json(&json!({ "applied": !args.dry_run, "models": models, "patch": patch }));
        return Ok(());
    }
    output::message(&said);
    if args.dry_run {
        output::text(&format!(
            "{models} models would be added; nothing was written"
        ));
        return Ok(());
    }
    let first = provider.models.iter().find_map(|m| m.get("id")?.as_str());
    let first = args.primary.as_deref().or(first).unwrap_or_default();
    output::text(&format!(
        "{models} models added as provider `{PROVIDER}`; try\n  \
         openclaw models list --provider {PROVIDER}\n  \
         openclaw agent exec \"Say hello\" --model {PROVIDER}/{first}"
    ));
    Ok(())
}

async fn show(global: &GlobalArgs, out: &Output, args: &SetupArgs) -> anyhow::Result<()> {
    let patch = provider(global, args)
        .await?
        .patch(args.primary.as_deref())?;
    let has = match OpenClaw::find() {
        Some(openclaw) => openclaw.get(&patch::path()).await?,
        None => None,
    };
    if out.json {
        output::json(&json!({ "patch": patch, "openclaw": has }));
        return Ok(());
    }
    match &has {
        Some(value) => {
            let of = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("?");
            let models = value
                .get("models")
                .and_then(Value::as_array)
                .map_or(0, Vec::len);
            let (url, api) = (of("baseUrl"), of("api"));
            output::message(&format!("OpenClaw has {models} models of {url} ({api})"));
        }
        None => output::message("OpenClaw has no provider `souk`, or is not in your PATH"),
    }
    output::text(&serde_json::to_string_pretty(&patch)?);
    Ok(())
}

/// Takes the provider out. OpenClaw refuses a write that halves its file, so a long list of models
/// is shortened first.
async fn remove(dry_run: bool) -> anyhow::Result<(bool, &'static str)> {
    let Some(openclaw) = OpenClaw::find() else {
        let hint = "run where it is installed: openclaw config unset models.providers.souk";
        let message = "openclaw is not in your PATH";
        return Err(CliError::new(FailureKind::NotConfigured, message)
            .hint(hint)
            .into());
    };
    let Some(provider) = openclaw.get(&patch::path()).await? else {
        return Ok((false, "OpenClaw has no provider `souk`; nothing to remove"));
    };
    if dry_run {
        let text = "would run: openclaw config unset models.providers.souk";
        return Ok((false, text));
    }
    let mut models = provider
        .get("models")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut is_removed = openclaw.unset(&patch::path()).await.is_ok();
    for _ in 0..REMOVE_STEPS_MAX {
        if is_removed {
            break;
        }
        let Some(smaller) = patch::shorter(&models) else {
            break;
        };
        models = smaller;
        let patch = patch::only_models(&models);
        openclaw.patch(&patch, &patch::models_path(), false).await?;
        is_removed = models.len() <= 1 && openclaw.unset(&patch::path()).await.is_ok();
    }
    if !is_removed {
        // Its own words say why.
        openclaw.unset(&patch::path()).await?;
    }
    tidy(&openclaw).await?;
    Ok((true, "the provider `souk` is gone from OpenClaw's config"))
}

/// OpenClaw starts a whole program for each question, which takes seconds.
fn waiting(global: &GlobalArgs, out: &Output, what: &str) -> Progress {
    Progress::new(!out.json && !global.quiet, what)
}

/// What setup had to make around the provider goes too, if nothing else is in it.
async fn tidy(openclaw: &OpenClaw) -> anyhow::Result<()> {
    let models = openclaw.get("models").await?.unwrap_or_default();
    if models == json!({ "providers": {} }) || models == json!({}) {
        return openclaw.unset("models").await;
    }
    if models.get("providers") == Some(&json!({})) {
        openclaw.unset("models.providers").await?;
    }
    Ok(())
}

fn done(out: &Output, is_removed: bool, text: &str) {
    if out.json {
        output::json(&json!({ "removed": is_removed, "message": text }));
    } else {
        output::text(text);
    }
}

/// `node doctor`'s look at it.
pub(super) async fn check(config: &Config) -> Check {
    const NAME: &str = "openclaw";
    let Some(openclaw) = OpenClaw::find() else {
        return Check::skip(NAME, "not installed here");
    };
    let provider = match openclaw.get(&patch::path()).await {
        Ok(provider) => provider,
        Err(error) => {
            let what = format!("its config cannot be read: {error:#}");
            return Check::fail(NAME, what, "openclaw doctor");
        }
    };
    let Some(provider) = provider else {
        let what = "it does not know this market yet";
        return Check::warn(NAME, what, "node openclaw setup");
    };
    let url = provider.get("baseUrl").and_then(Value::as_str);
    let url = url.unwrap_or_default();
    let port = reqwest::Url::parse(url)
        .ok()
        .and_then(|url| url.port_or_known_default());
    if config.buy.port != 0 && port != Some(config.buy.port) {
        let what = format!("it asks {url}, and the buyer's port is {}", config.buy.port);
        return Check::fail(NAME, what, "node openclaw setup");
    }
    Check::pass(NAME, format!("asks {url}"))
}

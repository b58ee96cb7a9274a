//! What `--upstream` may be: a preset's name or a base URL, and what follows from it.
//!
//! Pure. A preset fills in the address, the dialect and the variable that holds the key; whatever
//! the user gives himself wins. A bare URL is taken as an OpenAI-compatible server without a key,
//! so no key ever travels to an address that was not meant for it by default. `node sell` calls
//! [`resolve`] and, for [`Source::Demo`], starts [`super::demo_upstream`].

use crate::llm_api::Dialect;

/// Names of the `--api` values, with their dialects.
const APIS: [(&str, Dialect); 3] = [
    ("openai-chat", Dialect::Chat),
    ("openai-responses", Dialect::Responses),
    ("anthropic", Dialect::Messages),
];

/// Where a preset's answers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresetKind {
    /// An HTTP endpoint at this base URL.
    Http(&'static str),
    /// Inside this process.
    Demo,
    /// A model whose layers this process runs, or has run.
    Pipeline,
}

/// An upstream known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// What the user writes.
    pub name: &'static str,
    /// Where its answers come from.
    pub kind: PresetKind,
    /// The variable that holds its key; `None` = it wants no key.
    pub key_env: Option<&'static str>,
    /// What it speaks unless `--api` says otherwise.
    pub dialect: Dialect,
    /// Has `/v1/completions` for its models, where it speaks chat.
    pub completions: bool,
}

/// All presets, in the order in which help and errors list them.
pub const PRESETS: [Preset; 8] = [
    Preset {
        name: "openrouter",
        kind: PresetKind::Http("https://openrouter.ai/api/v1"),
        key_env: Some("OPENROUTER_API_KEY"),
        dialect: Dialect::Chat,
        completions: true,
    },
    Preset {
        name: "anthropic",
        kind: PresetKind::Http("https://api.anthropic.com/v1"),
        key_env: Some("ANTHROPIC_API_KEY"),
        dialect: Dialect::Messages,
        completions: false,
    },
    Preset {
        name: "openai",
        kind: PresetKind::Http("https://api.openai.com/v1"),
        key_env: Some("OPENAI_API_KEY"),
        dialect: Dialect::Chat,
        completions: false,
    },
    Preset {
        name: "ollama",
        kind: PresetKind::Http("http://127.0.0.1:11434/v1"),
        key_env: None,
        dialect: Dialect::Chat,
        completions: true,
    },
    Preset {
        name: "llamacpp",
        kind: PresetKind::Http("http://127.0.0.1:8080/v1"),
        key_env: None,
        dialect: Dialect::Chat,
        completions: true,
    },
    Preset {
        name: "vllm",
        kind: PresetKind::Http("http://127.0.0.1:8000/v1"),
        key_env: None,
        dialect: Dialect::Chat,
        completions: true,
    },
    Preset {
        name: "pipeline",
        kind: PresetKind::Pipeline,
        key_env: None,
        dialect: Dialect::Chat,
        completions: false,
    },
    Preset {
        name: "demo",
        kind: PresetKind::Demo,
        key_env: None,
        dialect: Dialect::Chat,
        completions: false,
    },
];

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum PresetError {
    /// Neither a name nor a URL.
    #[error(
        "--upstream `{given}` is no URL (http:// or https://) and none of {}",
        preset_names()
    )]
    Unknown {
        /// What was given.
        given: String,
    },
    /// Not an http(s) URL.
    #[error("--base-url `{0}` is no http:// or https:// URL")]
    BaseUrl(String),
    /// A name or password inside a URL ends up in logs. The URL is not repeated for that reason.
    #[error(
        "the upstream's URL holds a user name or a password; give the key with --api-key-env or --api-key-file"
    )]
    SecretInUrl,
    /// Not a dialect.
    #[error("--api `{0}` is not one of openai-chat, openai-responses, anthropic")]
    Api(String),
    /// What answers inside this process has no address.
    #[error("--base-url has no effect on --upstream {0}; leave one of them out")]
    HasNoUrl(&'static str),
    /// Sellers translate; the model itself speaks one dialect.
    #[error("--upstream pipeline speaks openai-chat; leave --api out")]
    PipelineApi,
}

/// Where a seller's answers come from, everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An HTTP endpoint.
    Http {
        /// Its base URL.
        base_url: String,
        /// What it speaks.
        dialect: Dialect,
        /// The variable that holds its key by default; `None` = it wants no key.
        key_env: Option<&'static str>,
        /// Has `/v1/completions`.
        completions: bool,
    },
    /// A model that is served inside this process, in chat.
    Pipeline,
    /// The upstream inside this process.
    Demo {
        /// What it is asked to speak.
        dialect: Dialect,
    },
}

/// The preset of that name.
#[must_use]
pub fn preset(name: &str) -> Option<&'static Preset> {
    static TABLE: [Preset; PRESETS.len()] = PRESETS;
    TABLE.iter().find(|preset| preset.name == name)
}

/// The names, as errors list them.
#[must_use]
pub fn preset_names() -> String {
    PRESETS.map(|preset| preset.name).join(", ")
}

/// Works out where `--upstream`, `--base-url` and `--api` lead.
///
/// # Errors
/// When the upstream is neither a preset nor an http(s) URL, is not available in this version, or
/// one of the other two values cannot be used with it.
pub fn resolve(
    upstream: &str,
    base_url: Option<&str>,
    api: Option<&str>,
) -> Result<Source, PresetError> {
    let asked = api.map(dialect_of).transpose()?;
    let base_url = match base_url {
        Some(url) if !has_http_scheme(url) => return Err(PresetError::BaseUrl(url.to_owned())),
        Some(url) => Some(checked(url)?),
        None => None,
    };
    if let Some(preset) = preset(upstream) {
        let dialect = asked.unwrap_or(preset.dialect);
        return match preset.kind {
            PresetKind::Demo | PresetKind::Pipeline if base_url.is_some() => {
                Err(PresetError::HasNoUrl(preset.name))
            }
            PresetKind::Pipeline if dialect != Dialect::Chat => Err(PresetError::PipelineApi),
            PresetKind::Pipeline => Ok(Source::Pipeline),
            PresetKind::Demo => Ok(Source::Demo { dialect }),
            PresetKind::Http(known) => Ok(Source::Http {
                base_url: base_url.unwrap_or_else(|| known.to_owned()),
                dialect,
                key_env: preset.key_env,
                completions: preset.completions && dialect == Dialect::Chat,
            }),
        };
    }
    if !has_http_scheme(upstream) {
        let given = upstream.to_owned();
        return Err(PresetError::Unknown { given });
    }
    let own = checked(upstream)?;
    let dialect = asked.unwrap_or(Dialect::Chat);
    Ok(Source::Http {
        base_url: base_url.unwrap_or(own),
        dialect,
        key_env: None,
        completions: dialect == Dialect::Chat,
    })
}

/// The dialect of an `--api` value.
///
/// # Errors
/// When there is none of that name.
pub fn dialect_of(api: &str) -> Result<Dialect, PresetError> {
    APIS.iter()
        .find(|(name, _)| *name == api)
        .map(|(_, dialect)| *dialect)
        .ok_or_else(|| PresetError::Api(api.to_owned()))
}

fn has_http_scheme(text: &str) -> bool {
    let starts = |scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    starts("http://") || starts("https://")
}

/// The URL without a final slash.
fn checked(url: &str) -> Result<String, PresetError> {
    let parsed = reqwest::Url::parse(url).map_err(|_| PresetError::BaseUrl(url.to_owned()))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(PresetError::SecretInUrl);
    }
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(base_url: &str, dialect: Dialect, key_env: Option<&'static str>) -> Source {
        Source::Http {
            base_url: base_url.into(),
            dialect,
            key_env,
            // Of those below the ones that want no key.
            completions: key_env.is_none() && dialect == Dialect::Chat,
        }
    }

    #[test]
    fn presets_are_exactly_those_the_config_accepts() {
        let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
        assert_eq!(names, crate::config::UPSTREAM_PRESETS);
        assert_eq!(APIS.map(|(name, _)| name), crate::config::UPSTREAM_APIS);
        assert_eq!(preset("vllm").unwrap().name, "vllm");
        assert_eq!(preset("OpenRouter"), None);
    }

    #[test]
    fn a_preset_fills_in_what_the_user_left_out() {
        let key = Some("ANTHROPIC_API_KEY");
        assert_eq!(
            resolve("anthropic", None, None),
            Ok(http("https://api.anthropic.com/v1", Dialect::Messages, key))
        );
        assert_eq!(
            resolve("ollama", Some("http://box:11434/v1/"), None),
            Ok(http("http://box:11434/v1", Dialect::Chat, None))
        );
        assert_eq!(
            resolve("openai", None, Some("openai-responses")),
            Ok(http(
                "https://api.openai.com/v1",
                Dialect::Responses,
                Some("OPENAI_API_KEY")
            ))
        );
        assert_eq!(
            resolve("demo", None, Some("anthropic")),
            Ok(Source::Demo {
                dialect: Dialect::Messages
            })
        );
    }

    #[test]
    fn a_bare_url_is_a_chat_server_without_a_key() {
        assert_eq!(
            resolve("http://10.0.0.7:9000/v1/", None, None),
            Ok(http("http://10.0.0.7:9000/v1", Dialect::Chat, None))
        );
    }

    #[test]
    fn what_is_neither_a_preset_nor_a_url_is_told_the_presets() {
        for wrong in ["openruter", "ftp://x", "", "localhost:8000"] {
            let error = resolve(wrong, None, None).unwrap_err();
            assert!(matches!(error, PresetError::Unknown { .. }), "{error}");
            assert!(error.to_string().contains("openrouter, anthropic, openai"));
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        assert_eq!(resolve("pipeline", None, None), Ok(Source::Pipeline));
        let error = resolve("pipeline", Some("http://x"), None).unwrap_err();
        assert_eq!(error, PresetError::HasNoUrl("pipeline"));
        let error = resolve("pipeline", None, Some("anthropic")).unwrap_err();
        assert_eq!(error, PresetError::PipelineApi);
        assert!(resolve("vllm", Some("box:80"), None).is_err());
        assert!(resolve("vllm", Some("http://"), None).is_err());
        assert!(resolve("vllm", None, Some("grpc")).is_err());
        assert!(resolve("demo", Some("http://x"), None).is_err());
        let error = resolve("https://me:secret@x/v1", None, None).unwrap_err();
        assert_eq!(error, PresetError::SecretInUrl);
        assert!(!error.to_string().contains("secret@"));
    }
}

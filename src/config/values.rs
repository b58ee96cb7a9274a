//! How single values are written in the config: durations, money, percentages, optional text and
//! references to secrets. `""` always means "not set", so that the example file can show every key.
//!
//! Used by the sections through `#[serde(with = …)]`; every message says how to write the value.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::types::Secret;

/// Longest secret read from a file; a key or a token has a few hundred bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A scalar of any kind as text, so that `2.5`, `3` and `"2.5"` all read the same.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a string")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar(v.trim().to_owned()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// `"30s"`, `"1h 30m"`, `"10ms"` as a [`std::time::Duration`].
pub mod duration {
    use super::{Deserializer, Scalar, Serializer, de};
    use jiff::SignedDuration;
    use serde::Deserialize;
    use std::time::Duration;

    /// Reads a duration.
    ///
    /// # Errors
    /// When the text is no duration or is negative.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        parse(&text).map_err(de::Error::custom)
    }
    /// Writes a duration as it would be typed.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        let signed = SignedDuration::try_from(*value).unwrap_or(SignedDuration::MAX);
        serializer.serialize_str(&format!("{signed:#}"))
    }
    /// Parses the text form.
    ///
    /// # Errors
    /// When the text is no duration or is negative.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let wrong =
            || format!("`{text}` is not a duration; write it like \"30s\", \"5m\" or \"1h\"");
        if text == "0" {
            return Ok(Duration::ZERO);
        }
        let signed: SignedDuration = text.parse().map_err(|_| wrong())?;
        Duration::try_from(signed).map_err(|_| wrong())
    }
}

/// An amount in USD, required.
pub mod usd {
    use super::{Deserializer, Scalar, Serializer, de};
    use crate::types::MicroUsd;
    use serde::Deserialize;

    /// Reads an amount.
    ///
    /// # Errors
    /// When the text is no amount.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MicroUsd, D::Error> {
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
    /// Writes an amount without trailing zeros.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(value: &MicroUsd, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.to_json_number())
    }
}

/// An amount in USD, or `""`.
pub mod opt_usd {
    use super::{Deserializer, Scalar, Serializer, de};
    use crate::types::MicroUsd;
    use serde::Deserialize;

    /// Reads an amount or nothing.
    ///
    /// # Errors
    /// When the text is neither empty nor an amount.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MicroUsd>, D::Error> {
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(de::Error::custom)
    }
    /// Writes an amount, or `""`.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(
        value: &Option<MicroUsd>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.map_or_else(String::new, |v| v.to_json_number()))
    }
}

/// A percentage (`"10%"`) in hundredths of a percent, or `""`.
pub mod opt_percent {
    use super::{Deserializer, Scalar, Serializer, de};
    use rust_decimal::Decimal;
    use rust_decimal::prelude::ToPrimitive;
    use serde::Deserialize;

    /// The most that a markup may be: 100 times the list price is a typing error.
    const BASIS_POINTS_MAX: u32 = 1_000_000;

    /// Reads a percentage or nothing.
    ///
    /// # Errors
    /// When the text is neither empty nor a percentage from 0 to 10 000.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u32>, D::Error> {
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        parse(&text).map(Some).map_err(de::Error::custom)
    }
    /// Writes a percentage, or `""`.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(value: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
        let text = value.map_or_else(String::new, |points| {
            format!("{}%", Decimal::new(i64::from(points), 2).normalize())
        });
        serializer.serialize_str(&text)
    }
    fn parse(text: &str) -> Result<u32, String> {
        let wrong = || format!("`{text}` is not a percentage; write it like \"10%\"");
        let bare = text.strip_suffix('%').unwrap_or(text).trim();
        let number: Decimal = bare.parse().map_err(|_| wrong())?;
        let points = number.checked_mul(Decimal::ONE_HUNDRED).ok_or_else(wrong)?;
        if !points.fract().is_zero() {
            return Err(format!("`{text}` is finer than a hundredth of a percent"));
        }
        match points.to_u32() {
            Some(points) if points <= BASIS_POINTS_MAX => Ok(points),
            _ => Err(wrong()),
        }
    }
}

/// A whole number, or `""`.
pub mod opt_count {
    use super::{Deserializer, Scalar, Serializer, de};
    use serde::Deserialize;

    /// Reads a number or nothing.
    ///
    /// # Errors
    /// When the text is neither empty nor a whole number.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = || de::Error::custom(format!("`{text}` is not a whole number"));
        text.parse().map(Some).map_err(|_| wrong())
    }
    /// Writes a number, or `""`.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(count) => serializer.serialize_u64(*count),
            None => serializer.serialize_str(""),
        }
    }
}

/// Text or `""`.
pub mod opt_text {
    use super::{Deserializer, Serializer};
    use serde::Deserialize;

    /// Reads text; empty text is nothing.
    ///
    /// # Errors
    /// When the value is no string.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<String>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bare = text.trim();
        Ok((!bare.is_empty()).then(|| bare.to_owned()))
    }
    /// Writes text, or `""`.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(
        value: &Option<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.as_deref().unwrap_or_default())
    }
}

/// A path or `""`; a leading `~/` is the home directory.
pub mod opt_path {
    use super::{Deserializer, Serializer, expand_home};
    use serde::Deserialize;
    use std::path::PathBuf;

    /// Reads a path; empty text is nothing.
    ///
    /// # Errors
    /// When the value is no string.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok((!text.is_empty()).then(|| expand_home(&text)))
    }
    /// Writes a path, or `""`.
    ///
    /// # Errors
    /// Never in practice.
    pub fn serialize<S: Serializer>(
        value: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = value.as_ref().map(|p| p.display().to_string());
        serializer.serialize_str(&text.unwrap_or_default())
    }
}

/// Turns a leading `~/` into the home directory.
fn expand_home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), directories::BaseDirs::new()) {
        (Some(rest), Some(base)) => base.home_dir().join(rest),
        _ => PathBuf::from(text),
    }
}

/// On, off, or decided by the node from its surroundings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// The node decides.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Switch {
    /// `None` for [`Switch::Auto`].
    #[must_use]
    pub const fn forced(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::On => Some(true),
            Self::Off => Some(false),
        }
    }
}

/// Where a secret lies: never the secret itself, so a config can be shown and shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretRef {
    /// Not set (`""`).
    #[default]
    Unset,
    /// `"env:NAME"`.
    Env(String),
    /// `"file:PATH"`.
    File(PathBuf),
}

/// Why a referenced secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment variable is missing or empty.
    #[error("the environment variable {0} is not set; export it, or refer to a file")]
    NoVariable(String),
    /// The file cannot be read.
    #[error("cannot read the secret in {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds nothing, or far too much.
    #[error("{} holds no usable secret; put the bare text on one line", .0.display())]
    Content(PathBuf),
}

impl SecretRef {
    /// True when nothing is referred to.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        *self == Self::Unset
    }
    /// Reads the secret, or `None` when it is not set.
    ///
    /// # Errors
    /// When the variable or file is missing, empty or too large.
    pub fn read(&self) -> Result<Option<Secret<String>>, SecretError> {
        match self {
            Self::Unset => Ok(None),
            Self::Env(name) => std::env::var(name)
                .ok()
                .filter(|text| !text.is_empty())
                .map(|text| Some(Secret::new(text)))
                .ok_or_else(|| SecretError::NoVariable(name.clone())),
            Self::File(path) => read_secret_file(path).map(Some),
        }
    }
    /// Reads `env:NAME`, `file:PATH` or nothing.
    ///
    /// # Errors
    /// What to write instead; the text itself is not repeated, for it may be the secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match (text.strip_prefix("env:"), text.strip_prefix("file:")) {
            _ if text.is_empty() => Ok(Self::Unset),
            (Some(name), _) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(expand_home(path))),
            // The text is not repeated here: it may be the secret itself.
            _ => Err(
                "secrets are not written into the config; write \"env:NAME\" or \
                      \"file:PATH\""
                    .to_owned(),
            ),
        }
    }
}

fn read_secret_file(path: &std::path::Path) -> Result<Secret<String>, SecretError> {
    use std::io::Read as _;
    let failed = |source| SecretError::File {
        path: path.to_owned(),
        source,
    };
    let mut text = zeroize::Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(SECRET_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let bare = text.trim();
    if bare.is_empty() || bare.contains(['\n', '\r']) {
        return Err(SecretError::Content(path.to_owned()));
    }
    Ok(Secret::new(bare.to_owned()))
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset => serializer.serialize_str(""),
            Self::Env(name) => serializer.serialize_str(&format!("env:{name}")),
            Self::File(path) => serializer.serialize_str(&format!("file:{}", path.display())),
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

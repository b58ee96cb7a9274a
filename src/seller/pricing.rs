//! From flags and the upstream's price list to the models for sale. Pure: `node sell` calls it at
//! start and after each hourly refresh of the list.
//!
//! Which price a model gets: 0 when everything is free; else its own `--price-…` values, completed
//! by the general ones; else the upstream's list plus the markup (10 % when none is given).
//! Invariants: prices are integers and round up, so a markup never sells below the list; a model
//! whose price is not known is never sold; no price is above what the network believes.
//!
//! A model that cannot be sold is skipped with a reason, so that one entry of an upstream's list
//! never stops the rest; at start, [`Sale::strict`] turns a skipped `--model` into an error. Every
//! [`PricingError`] is a matter of settings (exit code 64).

use std::collections::HashSet;

use crate::llm_api::price_list::{UpstreamModel, default_cache_write};
use crate::protocol::offer::{Capabilities, PRICE_MAX};
use crate::types::{MicroUsd, ModelId, PriceTable};

use super::catalogue::ModelForSale;

/// Over the list price when no price flag is given, in hundredths of a percent.
pub const MARKUP_BP_DEFAULT: u32 = 1_000;
/// A whole, in hundredths of a percent.
const WHOLE_BP: u64 = 10_000;
/// Skipped models that a warning names.
const NAMED_IN_WARNING_MAX: usize = 5;
/// Names closer than this (Jaro-Winkler) are worth suggesting.
const NEAR_ENOUGH: f64 = 0.8;

/// Prices as a user gives them, micro-USD per million tokens; what is absent follows from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriceFlags {
    /// `--price-in`.
    pub input: Option<u64>,
    /// `--price-out`.
    pub output: Option<u64>,
    /// `--price-cached`; `None` = the input price.
    pub cached: Option<u64>,
    /// `--price-cache-write`; `None` = 1.25 × the input price.
    pub cache_write: Option<u64>,
}

/// One `--model ID[=UPSTREAM_ID]` or `[[sell.models]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelRule {
    /// The network's name of it.
    pub id: String,
    /// The upstream's name of it; `None` = the same.
    pub upstream_id: Option<String>,
    /// Its own prices.
    pub price: PriceFlags,
    /// Context length in tokens; 0 = the general one.
    pub context: u32,
    /// Longest answer in tokens; 0 = the general one.
    pub max_output: u32,
}

/// What the user wants for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceRules {
    /// Models to sell; empty = all that the upstream lists.
    pub models: Vec<ModelRule>,
    /// General prices.
    pub flags: PriceFlags,
    /// Over the upstream's list, in hundredths of a percent; `None` = 10 %.
    pub markup_bp: Option<u32>,
    /// Everything at price 0.
    pub free: bool,
    /// Context length in tokens; 0 = what the upstream lists.
    pub context: u32,
    /// Longest answer in tokens; 0 = what the upstream lists.
    pub max_output: u32,
}

/// Why a model is not sold.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum SkipReason {
    /// Listed without a fixed price per token.
    #[error("its upstream lists no fixed price for it; give --price-in and --price-out")]
    NoPrice,
    /// Charges by request too, which a price per token would lose.
    #[error("its upstream also charges per request; give --price-in and --price-out")]
    RequestFee,
    /// The upstream does not list it, and no price was given.
    #[error("its upstream does not list it; {}give --price-in and --price-out", suggestion(.0.as_deref()))]
    NotListed(Option<String>),
    /// A name the network cannot carry.
    #[error("its name cannot be used on the network; name it with --model ID=UPSTREAM_ID")]
    BadName,
    /// The name is taken by another model for sale.
    #[error("another model for sale has the same name")]
    Duplicate,
    /// Beyond what the network believes.
    #[error("its price is above 10 000 USD per million tokens")]
    TooDear,
}

fn suggestion(near: Option<&str>) -> String {
    near.map_or_else(String::new, |name| format!("did you mean {name}? Else "))
}

/// A model that is not sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub id: String,
    /// The user asked for it with `--model`.
    pub is_named: bool,
    /// Why.
    pub reason: SkipReason,
}

/// What is sold, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sale {
    /// The models for sale, at least one.
    pub models: Vec<ModelForSale>,
    /// The models left out, to warn about.
    pub skipped: Vec<Skipped>,
}

/// Why nothing can be sold this way.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum PricingError {
    /// Nothing to add a markup to.
    #[error(
        "the upstream has no price list; give --price-in and --price-out (USD per million tokens), or --free"
    )]
    NoPriceList,
    /// Nothing to sell.
    #[error("the upstream lists no models; name them with --model ID")]
    NoModelList,
    /// Input and output are priced together.
    #[error("{model} has no {missing}; give both --price-in and --price-out")]
    Incomplete {
        /// The model.
        model: String,
        /// The flag that is missing.
        missing: &'static str,
    },
    /// A model the user named cannot be sold, or none at all can.
    #[error("{model} cannot be sold: {reason}")]
    CannotSell {
        /// The model.
        model: String,
        /// Why.
        reason: SkipReason,
    },
}

impl Sale {
    /// For the start: a model that the user named must be sold. A refresh leaves this out, so that
    /// a model that the upstream dropped is withdrawn and the others get their new prices.
    ///
    /// # Errors
    /// When one of them was skipped.
    pub fn strict(self) -> Result<Self, PricingError> {
        match self.skipped.iter().find(|skipped| skipped.is_named) {
            None => Ok(self),
            Some(skipped) => Err(skipped.error()),
        }
    }

    /// One line about the models left out; `None` when there are none.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let count = self.skipped.len();
        let named: Vec<String> = self
            .skipped
            .iter()
            .take(NAMED_IN_WARNING_MAX)
            .map(|skipped| format!("{} ({})", skipped.id, skipped.reason))
            .collect();
        let more = match count.saturating_sub(NAMED_IN_WARNING_MAX) {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        let noun = if count == 1 { "model is" } else { "models are" };
        (count > 0).then(|| format!("{count} {noun} not sold: {}{more}", named.join(", ")))
    }
}

impl Skipped {
    fn error(&self) -> PricingError {
        PricingError::CannotSell {
            model: self.id.clone(),
            reason: self.reason.clone(),
        }
    }
}

impl PriceFlags {
    /// These, with `general` in place of what is absent.
    #[must_use]
    pub fn or(self, general: Self) -> Self {
        Self {
            input: self.input.or(general.input),
            output: self.output.or(general.output),
            cached: self.cached.or(general.cached),
            cache_write: self.cache_write.or(general.cache_write),
        }
    }

    /// The whole table, when input and output are given; else the flag that is missing, if any.
    fn table(self) -> Result<Option<PriceTable>, &'static str> {
        match (self.input, self.output) {
            (Some(input), Some(output)) => Ok(Some(PriceTable {
                input,
                output,
                cache_read: self.cached.unwrap_or(input),
                cache_write: self
                    .cache_write
                    .unwrap_or_else(|| default_cache_write(input)),
            })),
            (None, None) => Ok(None),
            (Some(_), None) => Err("--price-out"),
            (None, Some(_)) => Err("--price-in"),
        }
    }
}

/// A model that may be sold, with all that is known about it.
struct Candidate<'a> {
    id: &'a str,
    upstream_id: &'a str,
    rule: Option<&'a ModelRule>,
    listed: Option<&'a UpstreamModel>,
    /// Its price by flags.
    fixed: Option<PriceTable>,
    flags: PriceFlags,
}

/// Works out what is sold at which price. `listed` is the upstream's list, `None` when it has none.
///
/// # Errors
/// When nothing can be sold: no models are known, or no prices, or every model was skipped.
pub fn models_for_sale(
    rules: &PriceRules,
    listed: Option<&[UpstreamModel]>,
) -> Result<Sale, PricingError> {
    let listed = listed.unwrap_or_default();
    if rules.models.is_empty() && listed.is_empty() {
        return Err(PricingError::NoModelList);
    }
    let candidates = if rules.models.is_empty() {
        let all = listed
            .iter()
            .map(|model| candidate(rules, None, Some(model), &model.id));
        all.collect::<Result<Vec<_>, _>>()?
    } else {
        let named = rules.models.iter().map(|rule| {
            let wanted = rule.upstream_id.as_deref().unwrap_or(&rule.id);
            candidate(rules, Some(rule), find(listed, wanted), wanted)
        });
        named.collect::<Result<Vec<_>, _>>()?
    };
    let needs_list = !rules.free && candidates.iter().any(|c| c.fixed.is_none());
    if needs_list && listed.iter().all(|model| model.price.is_none()) {
        return Err(PricingError::NoPriceList);
    }
    let mut sale = Sale::default();
    let mut taken = HashSet::with_capacity(candidates.len());
    for candidate in &candidates {
        let sold = candidate.sell(rules, listed).and_then(|model| {
            let is_new = taken.insert(model.id.clone());
            is_new.then_some(model).ok_or(SkipReason::Duplicate)
        });
        match sold {
            Ok(model) => sale.models.push(model),
            Err(reason) => sale.skipped.push(Skipped {
                id: candidate.id.to_owned(),
                is_named: candidate.rule.is_some(),
                reason,
            }),
        }
    }
    match sale.skipped.first() {
        Some(first) if sale.models.is_empty() => Err(first.error()),
        _ => Ok(sale),
    }
}

fn candidate<'a>(
    rules: &PriceRules,
    rule: Option<&'a ModelRule>,
    listed: Option<&'a UpstreamModel>,
    wanted: &'a str,
) -> Result<Candidate<'a>, PricingError> {
    let id = rule.map_or(wanted, |rule| rule.id.as_str());
    let flags = rule.map_or(rules.flags, |rule| rule.price.or(rules.flags));
    let incomplete = |missing| PricingError::Incomplete {
        model: id.to_owned(),
        missing,
    };
    let fixed = if rules.free {
        Some(PriceTable::default())
    } else {
        flags.table().map_err(incomplete)?
    };
    Ok(Candidate {
        id,
        upstream_id: listed.map_or(wanted, |model| model.id.as_str()),
        rule,
        listed,
        fixed,
        flags,
    })
}

/// The upstream's entry of that name; of that canonical name, if only one entry has it.
fn find<'a>(listed: &'a [UpstreamModel], wanted: &str) -> Option<&'a UpstreamModel> {
    let exact = listed.iter().find(|model| model.id == wanted);
    exact.or_else(|| {
        let canonical = ModelId::new(wanted);
        let mut alike = listed.iter().filter(|m| ModelId::new(&m.id) == canonical);
        let first = alike.next();
        first.filter(|_| alike.next().is_none())
    })
}

impl Candidate<'_> {
    fn sell(
        &self,
        rules: &PriceRules,
        listed: &[UpstreamModel],
    ) -> Result<ModelForSale, SkipReason> {
        let price = match self.fixed {
            Some(price) => price,
            None => self.over_list(rules, listed)?,
        };
        let parts = [
            price.input,
            price.output,
            price.cache_read,
            price.cache_write,
        ];
        if parts.iter().any(|part| *part > PRICE_MAX) {
            return Err(SkipReason::TooDear);
        }
        let id = ModelId::new(self.id);
        if id.as_str().is_empty() || id.as_str().chars().any(char::is_control) {
            return Err(SkipReason::BadName);
        }
        let known = |own: Option<u32>, general: u32, list: Option<u32>| {
            let said = [own.unwrap_or(0), general, list.unwrap_or(0)];
            said.into_iter().find(|n| *n > 0).unwrap_or(0)
        };
        let listed = self.listed;
        Ok(ModelForSale {
            id,
            upstream_id: self.upstream_id.to_owned(),
            price,
            list: listed.and_then(|model| model.price),
            context: known(
                self.rule.map(|rule| rule.context),
                rules.context,
                listed.and_then(|model| model.context),
            ),
            max_output: known(
                self.rule.map(|rule| rule.max_output),
                rules.max_output,
                listed.and_then(|model| model.max_output),
            ),
            can: capabilities(self.upstream_id, listed),
            stage: None,
        })
    }

    /// The list price plus the markup; single cache prices may still be given by flag.
    fn over_list(
        &self,
        rules: &PriceRules,
        listed: &[UpstreamModel],
    ) -> Result<PriceTable, SkipReason> {
        let Some(model) = self.listed else {
            return Err(SkipReason::NotListed(near(listed, self.upstream_id)));
        };
        if model.has_request_fee {
            return Err(SkipReason::RequestFee);
        }
        let list = model.price.ok_or(SkipReason::NoPrice)?;
        let markup = rules.markup_bp.unwrap_or(MARKUP_BP_DEFAULT);
        let factor = WHOLE_BP.saturating_add(u64::from(markup));
        let marked_up = |part: u64| MicroUsd(part).mul_div_ceil(factor, WHOLE_BP).0;
        Ok(PriceTable {
            input: marked_up(list.input),
            output: marked_up(list.output),
            cache_read: self.flags.cached.unwrap_or(marked_up(list.cache_read)),
            cache_write: self
                .flags
                .cache_write
                .unwrap_or(marked_up(list.cache_write)),
        })
    }
}

/// What the list says of a model. Tools and structured output are taken for granted where it says
/// nothing, because nearly every model has them; images are asked for.
fn capabilities(id: &str, listed: Option<&UpstreamModel>) -> Capabilities {
    let embeds = listed.map_or_else(|| id.contains("embed"), |model| model.embeddings);
    if embeds {
        return Capabilities::EMBEDDINGS;
    }
    let bit = |said: Option<bool>, bit: Capabilities, unsaid: Capabilities| match said {
        Some(true) => bit,
        Some(false) => Capabilities::default(),
        None => unsaid,
    };
    let of = |get: fn(&UpstreamModel) -> Option<bool>| listed.and_then(get);
    let (tools, json) = (Capabilities::TOOLS, Capabilities::JSON);
    let completions = Capabilities::COMPLETIONS;
    let (vision, unsaid) = (Capabilities::VISION, Capabilities::VISION_UNSAID);
    Capabilities::of_parameters(listed.map_or(&[], |m| m.supported_parameters.as_slice()))
        .union(bit(of(|m| m.tools), tools, tools))
        .union(bit(of(|m| m.json), json, json))
        .union(bit(of(|m| m.vision), vision, unsaid))
        .union(bit(of(|m| m.completions), completions, completions))
}

/// The listed name most like `wanted`, with or without its vendor, if any is much like it.
fn near(listed: &[UpstreamModel], wanted: &str) -> Option<String> {
    let likeness = |id: &str| {
        let bare = id.rsplit('/').next().unwrap_or(id);
        strsim::jaro_winkler(id, wanted).max(strsim::jaro_winkler(bare, wanted))
    };
    listed
        .iter()
        .map(|model| (likeness(&model.id), &model.id))
        .filter(|(likeness, _)| *likeness > NEAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, id)| id.clone())
}

#[cfg(test)]
#[path = "pricing_tests.rs"]
mod tests;

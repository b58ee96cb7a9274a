//! Models that the buyer has the ends of, `[buy] pipelines`: tokenizer, embedding and head run here,
//! so nobody else sees the text, and the layers are bought from stages at their prices.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::base::Base;
use super::pipeline::{self, WantEnds};
use super::remote::{self, View};
use crate::buyer::own::{Answer, Card, Order, OwnModel};
use crate::failure::{Failure, FailureKind};
use crate::pipeline::Patron;
use crate::pipeline::patron::Named;
use crate::pipeline::routed::{Most, Rules};
use crate::pipeline::serve::Service;
use crate::types::{ModelId, PriceTable};

/// Where the most that a buyer pays for layers comes from.
const WHY: &str = "raise [buy] max_price_in and max_price_out, or wait for cheaper stages";

/// One of them.
struct Own {
    model: ModelId,
    service: Service,
    context: u32,
    has_tools: bool,
    view: View,
}

/// Loads the ends of every model that the config names.
///
/// # Errors
/// When one cannot be read, or two have one name.
pub(super) async fn open(base: &Base) -> anyhow::Result<Vec<Arc<dyn OwnModel>>> {
    let mut all: Vec<Arc<dyn OwnModel>> = Vec::new();
    for entry in &base.config.buy.pipelines {
        let (model, path) = read(entry);
        if all.iter().any(|own| own.card().model == model) {
            let message = format!("two of [buy] pipelines are called `{model}`");
            let hint = "name them apart: --pipeline ID=PATH";
            return Err(Failure::new(FailureKind::BadConfig, message)
                .hint(hint)
                .into());
        }
        all.push(Arc::new(load(base, model, &path).await?));
    }
    Ok(all)
}

/// `[ID=]PATH`; without an id, what the path calls it.
fn read(entry: &str) -> (ModelId, PathBuf) {
    match entry.split_once('=') {
        Some((id, path)) => (ModelId::new(id), PathBuf::from(path)),
        None => (
            ModelId::new(&pipeline::called(Path::new(entry))),
            PathBuf::from(entry),
        ),
    }
}

async fn load(base: &Base, model: ModelId, path: &Path) -> anyhow::Result<Own> {
    let buy = &base.config.buy;
    let most = (buy.max_price_in.is_some() || buy.max_price_out.is_some()).then(|| Most {
        prefill: buy.max_price_in.map_or(u64::MAX, |price| price.0),
        decode: buy.max_price_out.map_or(u64::MAX, |price| price.0),
        why: WHY,
    });
    let rules = Rules {
        never: super::buy::peers("buy.deny", &buy.deny)?,
        most,
        ..remote::rules(&base.config)?
    };
    let ends = pipeline::ends(path).await;
    let ends = ends.map_err(|error| pipeline::unreadable(&error))?;
    let elsewhere = remote::layers(base, path, &ends, rules).await;
    let elsewhere = elsewhere.map_err(|error| pipeline::unreadable(&error))?;
    let WantEnds { tokens, ends, .. } = ends;
    let has_tools = tokens.tool_style().is_some();
    let context = ends.config().context;
    let answering = crate::pipeline::generate::Model::new(tokens, ends, elsewhere.layers, context);
    let clock = Arc::clone(&base.clock);
    let service = Service::new(model.as_str(), answering, clock, base.front.clone());
    Ok(Own {
        model,
        service,
        context: u32::try_from(context).unwrap_or(u32::MAX),
        has_tools,
        view: elsewhere.view,
    })
}

impl OwnModel for Own {
    fn card(&self) -> Card {
        let way = self.view.way();
        let (input, output) = way.prices.unwrap_or_default();
        Card {
            model: self.model.clone(),
            price: PriceTable {
                input,
                cache_read: input,
                cache_write: input,
                output,
            },
            is_whole: way.prices.is_some(),
            stages: way.stages,
            context: self.context,
            has_tools: self.has_tools,
        }
    }

    fn chat(&self, order: Order) -> BoxFuture<'static, Answer> {
        let named = Named {
            request: order.request,
            client: order.client,
            model: self.model.to_string(),
        };
        let patron = Patron::new(named, order.max_cost);
        let (service, body) = (self.service.clone(), order.body);
        async move {
            let response = service.answer(body, patron.clone()).await;
            Answer {
                response,
                cost: Arc::new(move || patron.cost()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_a_model_or_its_path_does() {
        let of = |entry| {
            let (model, path) = read(entry);
            (model.to_string(), path.display().to_string())
        };
        assert_eq!(
            of("tiny/own=/m/x.gguf"),
            ("tiny/own".into(), "/m/x.gguf".into())
        );
        assert_eq!(
            of("/m/Llama-3.1-8B"),
            ("llama-3.1-8b".into(), "/m/Llama-3.1-8B".into())
        );
        assert_eq!(of("m/q.gguf"), ("q".into(), "m/q.gguf".into()));
    }
}

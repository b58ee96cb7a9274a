//! Tests of the pricing rules.

use super::*;
use proptest::prelude::*;

fn price(input: u64, output: u64) -> PriceTable {
    PriceTable {
        input,
        output,
        cache_read: input / 10,
        cache_write: default_cache_write(input),
    }
}

fn listed(id: &str, price: Option<PriceTable>) -> UpstreamModel {
    UpstreamModel {
        id: id.into(),
        price,
        context: Some(8_000),
        max_output: Some(1_000),
        ..UpstreamModel::default()
    }
}

fn flags(input: u64, output: u64) -> PriceFlags {
    PriceFlags {
        input: Some(input),
        output: Some(output),
        ..PriceFlags::default()
    }
}

fn named(id: &str) -> ModelRule {
    ModelRule {
        id: id.into(),
        ..ModelRule::default()
    }
}

fn sell(rules: &PriceRules, list: &[UpstreamModel]) -> Sale {
    models_for_sale(rules, Some(list)).unwrap()
}

#[test]
fn without_a_price_flag_the_list_plus_ten_percent_is_asked() {
    let sale = sell(
        &PriceRules::default(),
        &[listed("A", Some(price(1_000_001, 10)))],
    );
    let model = &sale.models[0];
    assert_eq!(model.price.input, 1_100_002, "rounded up");
    assert_eq!(model.price.output, 11);
    assert_eq!(model.price.cache_read, 110_000);
    assert_eq!(model.price.cache_write, 1_375_003);
    assert_eq!((model.id.as_str(), model.upstream_id.as_str()), ("a", "A"));
    assert_eq!((model.context, model.max_output), (8_000, 1_000));
    assert_eq!(sale.warning(), None);
}

#[test]
fn price_flags_beat_the_list_and_fill_in_the_cache_prices() {
    let rules = PriceRules {
        flags: flags(1_000_001, 7),
        ..PriceRules::default()
    };
    let list = [listed("a", Some(price(5, 5))), listed("b", None)];
    for model in sell(&rules, &list).models {
        assert_eq!(
            model.price,
            PriceTable {
                input: 1_000_001,
                output: 7,
                cache_read: 1_000_001,
                cache_write: 1_250_002
            }
        );
    }
}

#[test]
fn a_models_own_values_beat_the_general_ones() {
    let rules = PriceRules {
        models: vec![
            ModelRule {
                price: flags(1, 2),
                context: 5,
                ..named("a")
            },
            named("b"),
        ],
        markup_bp: Some(0),
        max_output: 9,
        ..PriceRules::default()
    };
    let list = [
        listed("a", Some(price(70, 80))),
        listed("b", Some(price(30, 40))),
    ];
    let models = sell(&rules, &list).models;
    assert_eq!((models[0].price.input, models[0].price.output), (1, 2));
    assert_eq!((models[0].context, models[0].max_output), (5, 9));
    assert_eq!(models[1].price, price(30, 40));
    assert_eq!((models[1].context, models[1].max_output), (8_000, 9));
}

#[test]
fn an_upstream_without_prices_names_the_flags() {
    for list in [None, Some(vec![]), Some(vec![listed("a", None)])] {
        let rules = PriceRules {
            models: vec![named("a")],
            ..PriceRules::default()
        };
        let error = models_for_sale(&rules, list.as_deref()).unwrap_err();
        assert_eq!(error, PricingError::NoPriceList);
        let text = error.to_string();
        assert!(
            ["--price-in", "--price-out", "--free"]
                .iter()
                .all(|f| text.contains(f))
        );
    }
    let error = models_for_sale(&PriceRules::default(), None).unwrap_err();
    assert_eq!(error, PricingError::NoModelList);
}

#[test]
fn one_of_two_prices_is_not_enough() {
    let rules = PriceRules {
        flags: PriceFlags {
            input: Some(1),
            ..PriceFlags::default()
        },
        ..PriceRules::default()
    };
    let error = models_for_sale(&rules, Some(&[listed("a", None)])).unwrap_err();
    assert!(error.to_string().contains("no --price-out"), "{error}");
}

#[test]
fn models_without_a_token_price_are_skipped_with_a_warning() {
    let fee = UpstreamModel {
        has_request_fee: true,
        ..listed("fee", Some(price(1, 1)))
    };
    let dear = listed("dear", Some(price(PRICE_MAX, 1)));
    let list = [
        listed("auto", None),
        listed("ok", Some(price(1, 1))),
        fee,
        dear,
        listed("OK", Some(price(2, 2))),
    ];
    let sale = sell(&PriceRules::default(), &list);
    assert_eq!(sale.models.len(), 1);
    let reasons: Vec<_> = sale.skipped.iter().map(|s| s.reason.clone()).collect();
    assert_eq!(
        reasons,
        [
            SkipReason::NoPrice,
            SkipReason::RequestFee,
            SkipReason::TooDear,
            SkipReason::Duplicate
        ]
    );
    let warning = sale.warning().unwrap();
    assert!(
        warning.starts_with("4 models are not sold: auto ("),
        "{warning}"
    );
    assert!(sale.strict().is_ok(), "nobody asked for them by name");
}

#[test]
fn a_named_model_need_not_be_listed_when_its_price_is_given() {
    let rules = PriceRules {
        models: vec![ModelRule {
            upstream_id: Some("Hidden/X".into()),
            price: flags(3, 4),
            ..named("My/X")
        }],
        ..PriceRules::default()
    };
    for list in [None, Some([listed("a", None)].as_slice())] {
        let model = models_for_sale(&rules, list).unwrap().models.remove(0);
        assert_eq!(model.id.as_str(), "my/x");
        assert_eq!(model.upstream_id, "Hidden/X");
        assert_eq!((model.context, model.max_output), (0, 0));
    }
}

#[test]
fn a_mistyped_model_is_told_the_nearest_name() {
    let list = [
        listed("openai/gpt-4o-mini", Some(price(1, 1))),
        listed("b", Some(price(1, 1))),
    ];
    let alone = PriceRules {
        models: vec![named("gpt-4o-mimi")],
        ..PriceRules::default()
    };
    let error = models_for_sale(&alone, Some(&list)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("did you mean openai/gpt-4o-mini?"),
        "{error}"
    );
    let both = PriceRules {
        models: vec![named("b"), named("zzz")],
        ..PriceRules::default()
    };
    let sale = sell(&both, &list);
    assert_eq!(sale.models.len(), 1, "a refresh goes on");
    let error = sale.strict().unwrap_err();
    assert!(
        error.to_string().starts_with("zzz cannot be sold"),
        "{error}"
    );
}

#[test]
fn a_name_in_other_letters_finds_the_upstreams_own() {
    let list = [listed("Meta/Llama-8B", Some(price(1, 1)))];
    let rules = PriceRules {
        models: vec![named("meta/llama-8b")],
        ..PriceRules::default()
    };
    assert_eq!(sell(&rules, &list).models[0].upstream_id, "Meta/Llama-8B");
    let twins = [list[0].clone(), listed("meta/LLAMA-8b", Some(price(1, 1)))];
    let error = models_for_sale(&rules, Some(&twins)).unwrap_err();
    assert!(matches!(error, PricingError::CannotSell { .. }), "{error}");
}

#[test]
fn free_needs_no_price_list() {
    let rules = PriceRules {
        free: true,
        ..PriceRules::default()
    };
    let sale = sell(&rules, &[listed("a", None), listed("b", Some(price(9, 9)))]);
    assert_eq!(sale.models.len(), 2);
    assert!(sale.models.iter().all(|model| model.price.is_free()));
}

#[test]
fn a_cache_price_may_be_given_over_a_list() {
    let rules = PriceRules {
        flags: PriceFlags {
            cached: Some(7),
            ..PriceFlags::default()
        },
        ..PriceRules::default()
    };
    let model = sell(&rules, &[listed("a", Some(price(100, 100)))])
        .models
        .remove(0);
    assert_eq!((model.price.cache_read, model.price.input), (7, 110));
}

proptest! {
    #[test]
    fn a_markup_rounds_up_and_never_by_more_than_one(
        input in 0u64..1_000_000_000, output in 0u64..1_000_000_000, bp in 0u32..10_000,
    ) {
        let rules = PriceRules { markup_bp: Some(bp), ..PriceRules::default() };
        let list = price(input, output);
        let got = sell(&rules, &[listed("a", Some(list))]).models[0].price;
        for (list, got) in [
            (list.input, got.input), (list.output, got.output),
            (list.cache_read, got.cache_read), (list.cache_write, got.cache_write),
        ] {
            let exact = u128::from(list) * u128::from(10_000 + bp);
            let got = u128::from(got) * 10_000;
            prop_assert!(got >= exact && got < exact + 10_000);
        }
    }

    #[test]
    fn whatever_is_sold_the_network_accepts(
        prices in proptest::collection::vec(proptest::option::of((any::<u64>(), any::<u64>())), 0..8),
        ids in proptest::collection::vec(".{0,12}", 8),
        bp in proptest::option::of(any::<u32>()),
        free in any::<bool>(),
        with_flags in any::<bool>(),
        n in any::<u64>(),
    ) {
        let list: Vec<_> = prices.iter().zip(&ids)
            .map(|(p, id)| listed(id, p.map(|(i, o)| price(i, o)))).collect();
        let rules = PriceRules {
            flags: if with_flags { flags(n, n) } else { PriceFlags::default() },
            markup_bp: bp, free, ..PriceRules::default()
        };
        if let Ok(sale) = models_for_sale(&rules, Some(&list)) {
            prop_assert!(!sale.models.is_empty());
            prop_assert_eq!(sale.models.len() + sale.skipped.len(), list.len());
            let mut seen = HashSet::new();
            for model in &sale.models {
                prop_assert!(seen.insert(model.id.clone()));
                prop_assert!(model.price.input_max().max(model.price.output) <= PRICE_MAX);
                prop_assert!(list.iter().any(|l| l.id == model.upstream_id));
            }
        }
    }
}

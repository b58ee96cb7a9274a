//! Seeded storms over the machines, and the flaws that they must find.

use super::*;

#[test]
fn without_faults_every_stage_computes_every_row_once() {
    for (seed, shape) in (0..60).flat_map(|seed| [(seed, Shape::Push), (seed, Shape::Star)]) {
        let mut market = Market::new(seed, shape, CALM, Flaw::None);
        let (results, asked) = generate(seed, |pos, rows, kind| market.ask(pos, rows, kind));
        assert_eq!((results, asked), alone(seed));
        market.settle();
        assert_eq!(market.chain.epoch(), 1);
        for node in market.nodes.values() {
            assert_eq!(node.engine.computed, asked);
        }
    }
}

#[test]
fn whatever_is_lost_the_answer_is_that_of_one_machine_and_every_bill_is_exact() {
    let (mut kills, mut resent) = (0, 0);
    for seed in 0..1_500 {
        let shape = if seed % 4 == 0 {
            Shape::Star
        } else {
            Shape::Push
        };
        let (k, r) = live(seed, shape, STORM, Flaw::None);
        kills += k;
        resent += r;
    }
    assert!(
        kills > 3_000 && resent > 3_000,
        "{kills} kills, {resent} repeats"
    );
}

#[test]
fn a_lone_loss_costs_survivors_nothing_and_the_new_stage_one_replay() {
    for seed in 0..200 {
        let mut market = Market::new(seed, Shape::Push, CALM, Flaw::None);
        let mut calls = 0;
        let victim = HopId(seed % 3);
        let (results, asked) = generate(seed, |pos, rows, kind| {
            calls += 1;
            if calls == 10 {
                market.settle();
                let mut effects = vec![];
                market
                    .chain
                    .lose(victim, Loss::Away("killed"), &mut effects);
                market.act(effects);
            }
            market.ask(pos, rows, kind)
        });
        assert_eq!(results, alone(seed).0);
        market.settle();
        let (paid, billed) = market.paid[0];
        assert_eq!(
            paid, billed,
            "what was computed before the loss is paid, once"
        );
        for (id, node) in &market.nodes {
            if id.0 < 3 {
                assert_eq!(
                    node.engine.computed, asked,
                    "a survivor computes nothing twice"
                );
            } else {
                // It computes what still counts when it comes, and then what is asked.
                assert!(node.engine.computed <= asked);
            }
        }
    }
}

#[test]
fn what_was_made_of_a_condemned_stages_rows_is_computed_again() {
    for seed in 0..100 {
        let mut market = Market::new(seed, Shape::Push, CALM, Flaw::None);
        let mut calls = 0;
        // Its rows are wrong from the start; it is found out after the prompt.
        let poisoned = market.nodes.get_mut(&HopId(1)).unwrap();
        poisoned.engine = Engine::new(100, 104);
        let mut first = None;
        generate(seed, |pos, rows, kind| {
            calls += 1;
            if calls > 1 {
                return Bytes::from_static(&[0; ROW]);
            }
            market.ask(pos, rows.clone(), kind);
            market.settle();
            let mut effects = vec![];
            market.chain.condemn(HopId(1), "poison", &mut effects);
            market.act(effects);
            market.settle();
            // The last row once more, as the next step would be.
            let last = rows.slice(rows.len() - ROW..);
            let end = u32::try_from(rows.len() / ROW).unwrap();
            first = Some(market.ask(end - 1, last, kind));
            first.clone().unwrap()
        });
        assert_eq!(first, Some(alone(seed).0[0].clone()));
        market.settle();
    }
}

/// True when some seed shows the flaw.
fn is_found(flaw: Flaw) -> bool {
    (0..80).any(|seed| {
        let run = move || live(seed, Shape::Push, STORM, flaw);
        std::panic::catch_unwind(run).is_err()
    })
}

#[test]
fn planted_flaws_are_found() {
    assert!(is_found(Flaw::NoEpochCheck), "no epoch check");
    assert!(is_found(Flaw::BillsAgain), "bills what it sends again");
    assert!(is_found(Flaw::ForgetsNothing), "keeps what was taken back");
}

#[test]
fn who_says_that_the_next_is_lost_is_believed_the_second_time() {
    for seed in 0..50 {
        let mut market = Market::new(seed, Shape::Push, CALM, Flaw::None);
        let mut calls = 0;
        let (results, _) = generate(seed, |pos, rows, kind| {
            calls += 1;
            if calls == 5 || calls == 8 {
                market.settle();
                let epoch = market.chain.epoch();
                let error = StageError::NextLost;
                let lost = StageMessage::Error { epoch, error };
                let mut effects = vec![];
                let chain = &mut market.chain;
                chain.heard(HopId(1), lost, Bytes::new(), &mut effects);
                let is_out =
                    |effect: &ChainEffect| matches!(effect, ChainEffect::Dismiss(HopId(2), ..));
                assert_eq!(effects.iter().any(is_out), calls == 8);
                assert!(
                    market.chain.epoch() > epoch,
                    "another way, or the same anew"
                );
                market.act(effects);
            }
            market.ask(pos, rows, kind)
        });
        assert_eq!(results, alone(seed).0);
        assert!(market.nodes.contains_key(&HopId(1)));
    }
}

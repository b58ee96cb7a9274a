//! Stages lie, die, fall silent and are far away, and the answer is that of peace.

use super::engines::{How, bent};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_alters_rows_is_found_unpaid_and_not_asked_again() {
    let model = Model::new("llama").await;
    let town = Town::new(model.files.path(), &THIRDS).await;
    let liar = town.settle_with(
        2,
        4,
        bent(model.files.path(), 2, 4, How::Lies(|_| true)).await,
    );
    // Two of each: whoever is audited, two others can be asked about the middle and one of the ends.
    for (first, end) in THIRDS.into_iter().chain(THIRDS) {
        town.settle(first, end);
    }
    let settings = Settings {
        audit_one_in: 1,
        ..model.settings(WireFormat::F16, Shape::Push)
    };
    let remote = town.remote(settings);
    let mut sessions = 0;
    while Vec::from_iter(remote.trust().distrusted()).is_empty() {
        sessions += 1;
        assert!(sessions < 50, "it was never found");
        model.answer(&remote, 20, 12, |_| {}).await;
    }
    assert_eq!(Vec::from_iter(remote.trust().distrusted()), [liar]);
    let is_forfeit = |bill: &&Bill| bill.is_forfeit;
    assert_eq!(town.bills.lock().values().filter(is_forfeit).count(), 1);
    let whole = Local::new(worker(model.files.path(), 0..6).await).unwrap();
    let alone = model.answer(&whole, 20, 12, |_| {}).await;
    let settings = Settings {
        wire: WireFormat::F32,
        ..settings
    };
    // Those left compute what one machine does, audits or not, and nobody else is found at fault.
    let rest = Remote {
        settings,
        ..remote.clone()
    };
    for _ in 0..3 {
        assert!(model.answer(&rest, 20, 12, |_| {}).await == alone);
    }
    assert_eq!(Vec::from_iter(rest.trust().distrusted()), [liar]);
}

/// Answers under fire: kills, the recoveries' times, and whether all was as in peace.
async fn under_fire(answers: usize, silent: bool, patience: Duration) -> (usize, Vec<Duration>) {
    const TOKENS: usize = 24;
    let model = Model::new("llama").await;
    // Halves of the last third: replacement by two shorter stages.
    let ranges = [(0, 2), (2, 4), (4, 6), (4, 5), (5, 6)];
    let mut town = Town::new(model.files.path(), &ranges).await;
    Arc::get_mut(&mut town).unwrap().silent = silent;
    for (first, end) in THIRDS {
        town.settle(first, end);
    }
    let settings = Settings {
        patience,
        ..model.settings(WireFormat::F32, Shape::Push)
    };
    let remote = town.remote(settings);
    let peace = model.answer(&remote, 40, TOKENS, |_| {}).await;
    let (mut kills, mut recoveries) = (0, vec![]);
    let mut dice = 7u64;
    for _ in 0..answers {
        let (mut struck, mut since) = (false, Instant::now());
        let mut times = vec![];
        let war = model.answer(&remote, 40, TOKENS, |step| {
            if std::mem::take(&mut struck) {
                times.push(since.elapsed());
            }
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(step as u64 | 1);
            if !(dice >> 33).is_multiple_of(4) {
                return;
            }
            // Before this step's rows leave, or while they are on their way.
            let later = Duration::from_micros((dice >> 40) % 3_000);
            let at = usize::try_from((dice >> 50) % 3).unwrap();
            let streets = Arc::clone(&town);
            (struck, since) = (true, Instant::now());
            kills += 1;
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                match streets.kill(at) {
                    Some((4, 6)) if at == 0 => {
                        streets.settle(4, 5);
                        streets.settle(5, 6);
                    }
                    Some((first, end)) => drop(streets.settle(first, end)),
                    None => {}
                }
            });
        });
        assert!(war.await == peace, "an answer under fire differs");
        recoveries.extend(times);
    }
    for bill in town.bills.lock().values() {
        let stated = (bill.stated.input, bill.stated.output);
        let owed = (
            bill.owed.prefill * bill.layers,
            bill.owed.decode * bill.layers,
        );
        assert!(owed.0 <= stated.0 && owed.1 <= stated.1, "{bill:?}");
    }
    recoveries.sort();
    (kills, recoveries)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_stages_change_no_answer() {
    let (kills, _) = under_fire(6, false, PATIENCE).await;
    assert!(kills > 15, "{kills}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_falls_silent_is_found_by_pings() {
    let (kills, _) = under_fire(1, true, Duration::from_millis(600)).await;
    assert!(kills > 2, "{kills}");
}

#[tokio::test]
async fn a_head_that_did_not_run_takes_no_stage_for_dead() {
    const PATIENCE: Duration = Duration::from_millis(300);
    let model = Model::new("llama").await;
    let town = Town::new(model.files.path(), &[]).await;
    for (first, end) in THIRDS {
        // So slow that one is asked at any time.
        let slow = How::Slow(PATIENCE / 2);
        let worker = bent(model.files.path(), first, end, slow).await;
        town.settle_with(first, end, worker);
    }
    let settings = Settings {
        patience: PATIENCE,
        ..model.settings(WireFormat::F32, Shape::Push)
    };
    let remote = town.remote(settings);
    model
        .answer(&remote, 10, 3, |_| {
            tokio::spawn(async {
                tokio::time::sleep(PATIENCE / 4).await;
                // Head and stages live on this thread: nobody says anything meanwhile.
                std::thread::sleep(PATIENCE * 4);
            });
        })
        .await;
    assert_eq!(town.bills().await.len(), 3, "nobody was replaced");
}

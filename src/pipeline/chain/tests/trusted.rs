//! Stages that are checked before they serve, audited while they do, measured, and replaced by those
//! who were made ready.

use super::engines::{How, bent};
use super::*;
use crate::pipeline::trust::Part;
use crate::pipeline::trust::odds::{Pattern, audits_needed, per_audit};

async fn town(model: &Model) -> Arc<Town> {
    Town::new(model.files.path(), &THIRDS).await
}

/// A head that checks, and audits after one step in so many.
async fn head(model: &Model, town: &Arc<Town>, audit_one_in: u32) -> Remote {
    let settings = Settings {
        audit_one_in,
        spares: false,
        ..model.settings(WireFormat::F32, Shape::Push)
    };
    town.checking(settings, model.checks().await)
}

async fn alone(model: &Model) -> Vec<Vec<f32>> {
    let whole = Local::new(worker(model.files.path(), 0..6).await).unwrap();
    model.answer(&whole, 40, 12, |_| {}).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_fails_its_check_never_serves_and_is_not_paid() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    let liar = town.settle_with(
        2,
        4,
        bent(model.files.path(), 2, 4, How::Lies(|_| true)).await,
    );
    for (first, end) in THIRDS {
        town.settle(first, end);
    }
    let remote = head(&model, &town, 0).await;
    assert!(model.answer(&remote, 40, 12, |_| {}).await == alone(&model).await);
    assert_eq!(Vec::from_iter(remote.trust().distrusted()), [liar]);
    let bills = town.bills().await;
    // Four were checked by 8 rows each, three of them served: 40 rows and 11 more.
    let forfeit: Vec<_> = bills.iter().filter(|bill| bill.is_forfeit).collect();
    assert!(matches!(forfeit[..], [bill] if bill.stated.input == 16));
    let mut owed: Vec<_> = bills.iter().filter(|bill| !bill.is_forfeit).collect();
    owed.sort_by_key(|bill| bill.owed.total());
    let owed: Vec<_> = owed
        .iter()
        .map(|bill| (bill.owed.prefill, bill.owed.decode))
        .collect();
    assert_eq!(owed, [(8, 0), (8, 0), (8, 0), (40, 11), (40, 11), (40, 11)]);
    // The next session pays for no check.
    assert!(model.answer(&remote, 40, 12, |_| {}).await == alone(&model).await);
    assert_eq!(town.bills().await.len(), bills.len() + 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_begin_together_pay_for_one_check() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    for (first, end) in THIRDS {
        town.settle(first, end);
    }
    let mut remote = head(&model, &town, 0).await;
    // Rounding on the way is nobody's lie.
    remote.settings.wire = WireFormat::F16;
    let opened = futures::future::join_all([(); 4].map(|()| remote.open(16))).await;
    assert!(opened.iter().all(Result::is_ok));
    // Three checks and four sessions of three stages.
    assert_eq!(town.bills.lock().len(), 3 + 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_wait_for_the_rows_that_stages_are_checked_by() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    for (first, end) in THIRDS {
        town.settle(first, end);
    }
    let mut checks = model.checks().await;
    let made = checks.vectors.borrow().clone();
    let (make, vectors) = tokio::sync::watch::channel(None);
    checks.vectors = vectors;
    let mut settings = model.settings(WireFormat::F32, Shape::Push);
    settings.search = Duration::from_millis(20);
    let refused = town.checking(settings, checks.clone()).open(16).await;
    assert!(matches!(refused, Err(PipelineError::Lost(why)) if why.contains("try again")));
    assert!(town.bills.lock().is_empty(), "nobody was asked");
    settings.search = PATIENCE;
    let remote = town.checking(settings, checks);
    let (opened, ()) = tokio::join!(remote.open(16), async {
        make.send_replace(made);
    });
    assert!(opened.is_ok());
}

/// It keeps to the truth while it is checked, and alters decode rows: those that no check has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lies_about_decode_rows_is_found_by_the_file_when_nobody_else_has_its_layers() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    let lies: fn(&Span) -> bool = |span| span.rows == 1 && span.pos % 4 == 1;
    let liar = town.settle_with(2, 4, bent(model.files.path(), 2, 4, How::Lies(lies)).await);
    town.settle(0, 2);
    town.settle(4, 6);
    let mut remote = head(&model, &town, 1).await;
    // Longer than a loaded machine needs to open a session; so long the step lasts in which it is found.
    remote.settings.search = Duration::from_secs(8);
    // Of a session of 40 rows and up to 11 decoded ones 3 are altered; one stage of three is drawn.
    let each = per_audit(3.0 / 51.0, 51, Pattern::Scattered) / 3.0;
    let most = u64::from(audits_needed(each, 1.0 - 1e-9));
    while remote.trust().distrusted().is_empty() {
        assert!(
            remote.trust().audits() <= most,
            "not found by {most} audits"
        );
        // Found in the middle of an answer there is nobody left for its layers.
        let mut run = remote.open(64).await.unwrap();
        let rows = model.ends.embed(vec![7; 40]).await.unwrap();
        let mut last = run.step(0, rows, StepKind::Prefill).await;
        for pos in 40..52 {
            if last.is_err() || !remote.trust().distrusted().is_empty() {
                break;
            }
            let rows = model.ends.embed(vec![9]).await.unwrap();
            last = run.step(pos, rows, StepKind::Decode).await;
        }
    }
    assert_eq!(Vec::from_iter(remote.trust().distrusted()), [liar]);
    // The audits were judged right of everybody else, too.
    town.settle(2, 4);
    for _ in 0..3 {
        assert!(model.answer(&remote, 40, 12, |_| {}).await == alone(&model).await);
    }
    assert_eq!(Vec::from_iter(remote.trust().distrusted()), [liar]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_other_rows_than_it_sent_is_found_by_that_alone() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    let two_faced = town.settle(2, 4);
    town.two_faced.lock().insert(two_faced);
    for (first, end) in THIRDS {
        town.settle(first, end);
    }
    // Without the model's file, and with nobody who agrees with anybody.
    let settings = Settings {
        audit_one_in: 1,
        spares: false,
        ..model.settings(WireFormat::F32, Shape::Push)
    };
    let remote = town.remote(settings);
    let peace = alone(&model).await;
    let mut answers = 0;
    while remote.trust().distrusted().is_empty() {
        answers += 1;
        assert!(answers < 50, "never found");
        assert!(model.answer(&remote, 40, 12, |_| {}).await == peace);
    }
    assert_eq!(Vec::from_iter(remote.trust().distrusted()), [two_faced]);
    let bills = town.bills().await;
    assert_eq!(bills.iter().filter(|bill| bill.is_forfeit).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_best_is_made_ready_while_nothing_is_lost() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    for (first, end) in THIRDS {
        town.settle(first, end);
    }
    let spares = THIRDS.map(|(first, end)| Part {
        peer: town.settle(first, end),
        first,
        end,
    });
    let mut remote = head(&model, &town, 0).await;
    remote.settings.spares = true;
    let run = remote.open(16).await.unwrap();
    let is_ready = |part: &Part| remote.trust().is_checked(part, Instant::now());
    let limit = Instant::now() + PATIENCE;
    while !spares.iter().all(is_ready) {
        assert!(Instant::now() < limit, "no spares");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*town.warmed.lock(), spares.map(|part| part.peer));
    drop(run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_comes_back_is_asked_again_when_nobody_else_has_its_layers() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    town.settle(0, 2);
    let middle = town.settle(2, 4);
    town.settle(4, 6);
    let mut remote = head(&model, &town, 0).await;
    remote.settings.pardon = Duration::from_millis(50);
    remote.settings.patience = Duration::from_secs(6);
    let answer = model.answer(&remote, 40, 12, |step| {
        if step == 6 {
            let mut nodes = town.nodes.lock();
            let at = nodes.iter().position(|node| node.peer == middle).unwrap();
            nodes.remove(at).life.cancel();
            drop(nodes);
            let worker = town.workers[&(2, 4)].clone();
            town.settle_as(middle, 2, 4, worker);
        }
    });
    assert!(answer.await == alone(&model).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_comes_back_and_fails_again_ends_the_session() {
    let model = Model::new("llama").await;
    let town = town(&model).await;
    town.settle(0, 2);
    town.settle_with(2, 4, bent(model.files.path(), 2, 4, How::Fails).await);
    town.settle(4, 6);
    let remote = town.remote(Settings {
        pardon: Duration::from_millis(5),
        patience: Duration::from_secs(3),
        // Longer than a loaded machine needs to open a session.
        search: Duration::from_secs(8),
        ..model.settings(WireFormat::F32, Shape::Push)
    });
    let mut run = remote.open(16).await.unwrap();
    let rows = model.ends.embed(vec![7; 8]).await.unwrap();
    let failed = run.step(0, rows, StepKind::Prefill).await;
    assert!(matches!(failed, Err(PipelineError::Lost(_))), "{failed:?}");
    // It was given more than one chance.
    assert!(town.bills.lock().len() > 3);
}

/// What each of three stages was measured to take for a row, µs, where the second takes so much longer.
async fn measured(model: &Model, longer: Duration) -> [u64; 3] {
    let town = town(model).await;
    let slow = bent(model.files.path(), 2, 4, How::Slow(longer)).await;
    let parts = [
        (town.settle(0, 2), 0, 2),
        (town.settle_with(2, 4, slow), 2, 4),
        (town.settle(4, 6), 4, 6),
    ];
    let remote = head(model, &town, 0).await;
    model.answer(&remote, 40, 12, |_| {}).await;
    parts.map(|(peer, first, end)| {
        let part = Part { peer, first, end };
        remote.trust().row_us(&part, Instant::now()).unwrap()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_stage_is_measured_as_slow_and_the_others_are_not_blamed() {
    let model = Model::new("llama").await;
    let mut seen = vec![];
    // The longer it takes, the less it matters how loaded the machine is.
    for longer_ms in [50, 200, 800, 3_200] {
        let us = measured(&model, Duration::from_millis(longer_ms)).await;
        seen.push(us);
        // Word of the stage before it may come a little late.
        let is_slow = us[1] >= longer_ms * 1_000 * 3 / 4;
        if is_slow && us[0] < us[1] / 2 && us[2] < us[1] / 2 {
            return;
        }
    }
    panic!("it is not measured as slow, or the others are blamed: {seen:?}");
}

//! Losses in a row, over real sellers: the answer is that of peace, and whoever lived through it is
//! paid for every row once.

use crate::harness::payer::Payer;
use crate::harness::stage::StageSeller;
use crate::pipeline::{LAYERS, answer, paid_once, scene, seller, settings};
use souk::ledger::Role;

/// Waits until these were paid for every row once, by both books, after so many losses.
async fn all_paid_once(payer: &Payer, survivors: &[&StageSeller], losses: u64) {
    for survivor in survivors {
        let ledger = &survivor.ledger;
        let sold = async || Payer::booked(ledger, Role::Sell).await.unwrap_or_default();
        paid_once(payer, survivor.handle.local_peer(), losses, async || {
            sold().await.into_iter().map(|(_, sum)| sum).collect()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_lost_twice_is_taken_a_third_time() {
    let scene = scene().await;
    let a = seller(&scene.files, 0, 2).await;
    let mut first = Some(seller(&scene.files, 2, 4).await);
    let mut second = Some(seller(&scene.files, 2, 4).await);
    let third = seller(&scene.files, 2, 4).await;
    let c = seller(&scene.files, 4, LAYERS).await;
    let all = [
        &a,
        first.as_ref().unwrap(),
        second.as_ref().unwrap(),
        &third,
        &c,
    ];
    let payer = Payer::start(&all, settings(scene.hidden)).await;
    let split = answer(&payer.remote, &scene.ends, async |step| match step {
        5 => first = None,
        // One step later, when the second has hardly caught up.
        6 => second = None,
        _ => {}
    })
    .await;
    assert!(split == scene.alone, "the answer changed by two losses");
    all_paid_once(&payer, &[&a, &c], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stages_are_lost_at_once() {
    let scene = scene().await;
    let mut a = Some(seller(&scene.files, 0, 2).await);
    let mut b = Some(seller(&scene.files, 2, 4).await);
    let c = seller(&scene.files, 4, LAYERS).await;
    let spares = [
        seller(&scene.files, 0, 2).await,
        seller(&scene.files, 2, 4).await,
    ];
    let all = [
        a.as_ref().unwrap(),
        b.as_ref().unwrap(),
        &c,
        &spares[0],
        &spares[1],
    ];
    let payer = Payer::start(&all, settings(scene.hidden)).await;
    let split = answer(&payer.remote, &scene.ends, async |step| {
        if step == 6 {
            (a, b) = (None, None);
        }
    })
    .await;
    assert!(split == scene.alone, "the answer changed by two losses");
    all_paid_once(&payer, &[&c], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shorter_stages_take_the_place_of_one() {
    let scene = scene().await;
    let a = seller(&scene.files, 0, 2).await;
    let mut b = Some(seller(&scene.files, 2, 4).await);
    let c = seller(&scene.files, 4, LAYERS).await;
    let halves = [
        seller(&scene.files, 2, 3).await,
        seller(&scene.files, 3, 4).await,
    ];
    let all = [&a, b.as_ref().unwrap(), &c, &halves[0], &halves[1]];
    let payer = Payer::start(&all, settings(scene.hidden)).await;
    let split = answer(&payer.remote, &scene.ends, async |step| {
        if step == 6 {
            b = None;
        }
    })
    .await;
    assert!(split == scene.alone, "the answer changed by a loss");
    all_paid_once(&payer, &[&a, &c], 1).await;
    for half in &halves {
        let sold = Payer::booked(&half.ledger, Role::Sell).await.unwrap();
        assert!(sold.iter().all(|(_, sum)| sum.0 > 0) && sold.len() == 1);
    }
}

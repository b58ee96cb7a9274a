//! `node channel`: a channel whose seller is gone, and every cent of it back.

use souk::chain::digest::TokenDomain;
use souk::chain::hub::{Authorization, OpenAuth, calls, token_domain};
use souk::protocol::voucher::ChannelDescriptor;
use souk::types::{ChannelId, EvmAddress, Hash32, MicroUsd};

use super::{World, address, keys, states, stderr, sum};
use crate::harness::node::Home;

/// An hour, the shortest that the contract takes.
const CHALLENGE_S: u32 = 3_600;
/// What the seller took for opening.
const FEE: MicroUsd = MicroUsd(10_000);
/// Far away on the chain's clock.
const LATE_S: u64 = 4_102_444_800;

/// Opens a channel of `home` with a seller that does not exist; somebody else pays the gas.
pub(super) async fn open(world: &World, home: &Home, deposit: MicroUsd, salt: u8) -> ChannelId {
    let (chain, keys) = (&world.chain, keys(home));
    let descriptor = ChannelDescriptor {
        buyer: keys.payment.address(),
        seller: EvmAddress([0x51; 20]),
        operator: EvmAddress::default(),
        token: chain.token,
        voucher_signer: keys.voucher.address(),
        challenge_period_s: CHALLENGE_S,
        salt: Hash32([salt; 32]),
    };
    let asked = token_domain(chain.world.chain.as_ref(), chain.token).await;
    let (name, version, _) = asked.unwrap();
    let token = TokenDomain {
        name,
        version,
        chain_id: chain.hub.chain_id,
        token: chain.token,
    };
    let pay = Authorization {
        from: keys.payment.address(),
        amount: deposit,
        valid_after_s: 0,
        valid_before_s: LATE_S,
        nonce: Hash32([salt; 32]),
    };
    let by_owner = keys.payment.sign_hash(&token.receive(&pay, chain.hub.hub));
    let auth = OpenAuth {
        descriptor: descriptor.clone(),
        deposit,
        open_fee: FEE,
        expiry_s: LATE_S,
        valid_before_s: LATE_S,
    };
    let by_buyer = keys.payment.sign_hash(&chain.hub.open(&auth));
    let data = calls::multicall(vec![
        calls::deposit_with_authorization(chain.token, &pay, &by_owner),
        calls::open(&auth, &by_buyer),
    ]);
    let sender = chain.world.sender();
    let receipt = chain.world.send(&sender, Some(chain.hub.hub), data).await;
    assert!(receipt.succeeded);
    chain.hub.channel_id(&descriptor)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_channel_is_closed_and_reclaimed_by_its_owner() {
    let world = World::start().await;
    let home = world.rich(20, true).await;
    let (first, second) = (
        open(&world, &home, MicroUsd::from_usd(2), 1).await,
        open(&world, &home, MicroUsd::from_usd(3), 2).await,
    );
    // A fresh ledger learns both from the chain's logs.
    let list = home.json(&["channel", "list", "--json"]);
    let ids: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["channel"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.contains(&format!("0x{first}").as_str()));
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .all(|c| c["state"] == "open" && c["role"] == "buy")
    );
    let balance = home.json(&["wallet", "balance", "--json"]);
    let reserved = MicroUsd::from_usd(5).saturating_sub(MicroUsd(2 * FEE.0));
    assert_eq!(sum(&balance, "reserved_micro_usd"), reserved);

    let early = home.run(&["channel", "reclaim", "--all"]);
    assert_eq!(early.status.code(), Some(2), "{}", stderr(&early));
    let dry = home.json(&["channel", "close", "--all", "--dry-run", "--json"]);
    assert_eq!(dry["plan"]["steps"].as_array().unwrap().len(), 2, "{dry}");
    let id = format!("0x{second}");
    let sent = home.json(&["channel", "close", &id, "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let again = home.run(&["channel", "close", &id]);
    assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
    assert!(stderr(&again).contains("is closing"), "{}", stderr(&again));
    let sent = home.json(&["channel", "close", "--all", "--json"]);
    assert_eq!(states(&sent), ["confirmed"], "the other one");

    world.pass(u64::from(CHALLENGE_S) + 60);
    let sent = home.json(&["channel", "reclaim", "--all", "--json"]);
    assert_eq!(states(&sent), ["confirmed", "confirmed"]);
    assert_eq!(world.vault(address(&home)).await, reserved);
    let list = home.json(&["channel", "list", "--json"]);
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .all(|c| c["state"] == "closed"),
        "{list}"
    );
    let checked = home.json(&["ledger", "verify", "--json"]);
    assert_eq!(checked["chain"]["channels"], 2, "{checked}");
    assert_eq!(
        checked["chain"]["differences"].as_array().unwrap().len(),
        0,
        "{checked}"
    );
}

//! `/souk/relay-tx/1`: a buyer without a wei moves its money through a seller; a hostile one moves
//! nobody's.

use std::time::Duration;

use serde_json::Value;
use souk::chain::hub::{WithdrawAuth, calls};
use souk::network::Protocol;
use souk::network::framed::{FrameReader, FrameWriter};
use souk::protocol::FrameKind;
use souk::protocol::relay::{Ask, CallKind, Quote, RelayMessage};
use souk::types::{EvmAddress, MicroUsd, PeerId};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::channels::open;
use super::{World, address, keys, states, stderr, sum};
use crate::harness::http;
use crate::harness::market::{Dialect, Seller};
use crate::harness::node::{Home, Node};
use crate::harness::peer::Peer;
use crate::harness::upstream::{Script, Upstream};

/// What nodes and chain do is there by then, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(100);
/// Free, so that nobody opens channels beside the test.
const FREE: (&str, &str) = ("0", "0");
/// USD per million tokens: a usual answer costs about a cent.
const PAID: (&str, &str) = ("20", "80");

struct Relayed {
    world: World,
    bootstrap: Node,
    seller: Node,
    seller_home: Home,
    _upstream: Upstream,
}

impl Relayed {
    async fn start() -> Self {
        Self::start_at(FREE).await
    }

    async fn start_at(prices: (&str, &str)) -> Self {
        let world = World::start().await;
        let bootstrap = Node::start(&["bootstrap"]);
        let upstream = Upstream::start(Script::default().key(crate::harness::market::UPSTREAM_KEY));
        let upstream = upstream.await;
        let seller_home = world.rich(0, true).await;
        let seller = Seller::node_at(
            seller_home.clone(),
            bootstrap.listen(),
            &upstream,
            prices,
            &[],
        );
        Self {
            world,
            bootstrap,
            seller,
            seller_home,
            _upstream: upstream,
        }
    }

    async fn buyer(&self, home: Home) -> Node {
        let bootstrap = self.bootstrap.listen();
        let buyer = Node::start_at(home, &["buy", "--port", "0", "--bootstrap", bootstrap]);
        crate::harness::market::wait_for_sellers(&buyer, 1).await;
        buyer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_without_a_wei_deposits_reclaims_and_withdraws_through_a_seller() {
    let market = Relayed::start().await;
    let world = &market.world;
    let home = world.rich(20, false).await;
    let me = address(&home);
    // Its seller is gone for good; the one that relays is another.
    open(world, &home, MicroUsd::from_usd(2), 3).await;
    let buyer = market.buyer(home.clone()).await;

    let dry = home.json(&["wallet", "deposit", "5", "--dry-run", "--json"]);
    assert_eq!(dry["plan"]["way"], "relay", "{dry}");
    assert_eq!(buyer.ready("mode"), "channel");
    assert_eq!(world.vault(me).await, MicroUsd::ZERO);
    let sent = home.json(&["wallet", "deposit", "5", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let fee = sum(&sent["plan"], "fee_micro_usd");
    assert!(fee > MicroUsd::ZERO && fee <= MicroUsd(50_000), "{fee}");
    let seller = address(&market.seller_home);
    assert_eq!(
        world.vault(seller).await,
        fee,
        "the relayer is paid in the same transaction"
    );
    assert_eq!(
        world.vault(me).await,
        MicroUsd::from_usd(5).saturating_sub(fee)
    );

    listed(&home).await;
    let sent = home.json(&["channel", "close", "--all", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let fees = fee.saturating_add(sum(&sent["plan"], "fee_micro_usd"));
    world.pass(3_700);
    let sent = home.json(&["channel", "reclaim", "--all", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let fees = fees.saturating_add(sum(&sent["plan"], "fee_micro_usd"));
    let sent = home.json(&["wallet", "withdraw", "--all", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let fees = fees.saturating_add(sum(&sent["plan"], "fee_micro_usd"));

    assert_eq!(world.vault(me).await, MicroUsd::ZERO);
    let open_fee = MicroUsd(10_000);
    let all = MicroUsd::from_usd(20)
        .saturating_sub(fees)
        .saturating_sub(open_fee);
    assert_eq!(
        world.tokens(me).await,
        all,
        "everything but the fees is back"
    );
    assert_eq!(world.vault(seller).await, fees);
    assert_eq!(
        world.wei(&home.evm_address),
        "0x0",
        "the buyer never had a wei"
    );
    for home in [&home, &market.seller_home] {
        let checked = home.json(&["ledger", "verify", "--json"]);
        assert_eq!(checked["difference_count"], 0, "{checked}");
        assert_eq!(
            checked["chain"]["differences"].as_array().unwrap().len(),
            0,
            "{checked}"
        );
    }
    println!("four relayed transactions for {fees} USD, buyer's wei 0");
    drop(buyer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_used_ends_with_its_seller_at_once_and_for_nothing() {
    let market = Relayed::start_at(PAID).await;
    let world = &market.world;
    let home = world.rich(20, false).await;
    let me = address(&home);
    let buyer = market.buyer(home.clone()).await;
    let request = Dialect::Chat.request("Say something.", false);
    // What the wallet holds is read a moment after the start; before that nothing is signed.
    let end = Instant::now() + DEADLINE;
    loop {
        let answer = http::send(buyer.http(), &request).await;
        if answer.status == 200 {
            break;
        }
        let said = buyer.stderr_tail();
        assert!(Instant::now() < end, "{}\n{said}", answer.text());
        tokio::time::sleep(PAUSE).await;
    }
    let list = listed(&home).await;
    assert_eq!(list[0]["state"], "open", "{list}");

    let dry = home.json(&["channel", "close", "--all", "--dry-run", "--json"]);
    assert_eq!(dry["plan"]["way"], "agreed", "{dry}");
    let alone = home.json(&[
        "channel",
        "close",
        "--all",
        "--alone",
        "--dry-run",
        "--json",
    ]);
    assert_eq!(alone["plan"]["way"], "relay", "{alone}");
    // The deposit came from the wallet and the vault is empty: the relayer's fee comes along.
    assert_eq!(alone["plan"]["steps"][0]["purpose"], "deposit", "{alone}");
    assert_eq!(
        alone["plan"]["steps"][1]["purpose"], "request_close",
        "{alone}"
    );
    let sent = home.json(&["channel", "close", "--all", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let list = home.json(&["channel", "list", "--json"]);
    assert_eq!(list[0]["state"], "closed", "{list}");

    // What is not billed and not the opening's fee is the owner's again, vault and wallet together.
    let settled = world.vault(address(&market.seller_home)).await;
    let (vault, tokens) = (world.vault(me).await, world.tokens(me).await);
    let left = vault.saturating_add(tokens).saturating_add(settled);
    assert_eq!(left, MicroUsd::from_usd(20));
    assert_eq!(world.wei(&home.evm_address), "0x0");
    // The ledger hears of a block a moment later than others see it.
    let end = Instant::now() + DEADLINE;
    loop {
        let report = home.json(&["ledger", "--by", "seller", "--json"]);
        if report["rows"][0]["settled_micro_usd"] == settled.0 {
            break;
        }
        assert!(Instant::now() < end, "not {settled}: {report}");
        tokio::time::sleep(PAUSE).await;
    }
    for home in [&home, &market.seller_home] {
        let checked = home.json(&["ledger", "verify", "--json"]);
        assert_eq!(checked["difference_count"], 0, "{checked}");
        assert_eq!(
            checked["chain"]["differences"].as_array().unwrap().len(),
            0,
            "{checked}"
        );
    }
}

/// What the wallet lists of channels, once its node has heard of one.
async fn listed(home: &Home) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let list = home.json(&["channel", "list", "--json"]);
        if list.as_array().is_some_and(|all| !all.is_empty()) {
            return list;
        }
        assert!(Instant::now() < end, "no channel is listed");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayer_dearer_than_the_limit_is_refused() {
    let market = Relayed::start().await;
    let home = market.world.rich(20, false).await;
    super::configure(
        &home,
        &market
            .world
            .config("[payment]\nrelay_fee_max = \"0.0004\"\n"),
    );
    let _buyer = market.buyer(home.clone()).await;
    let dear = home.run(&["wallet", "deposit", "5"]);
    assert_eq!(dear.status.code(), Some(5), "{}", stderr(&dear));
    assert!(stderr(&dear).contains("relay_fee_max"), "{}", stderr(&dear));
    assert_eq!(market.world.vault(address(&home)).await, MicroUsd::ZERO);
}

/// A relay stream in the test's own hands.
struct Talk {
    reader: FrameReader<ReadHalf<souk::network::Stream>>,
    writer: FrameWriter<WriteHalf<souk::network::Stream>>,
}

impl Talk {
    async fn open(peer: &Peer, seller: &PeerId) -> Self {
        let stream = peer.handle.open(seller, Protocol::Relay).await.unwrap();
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
        }
    }
    async fn say(&mut self, message: &RelayMessage) {
        let bytes = message.to_bytes();
        self.writer.send(FrameKind::Relay, &bytes).await.unwrap();
    }
    async fn hear(&mut self) -> RelayMessage {
        let frame = tokio::time::timeout(DEADLINE, self.reader.read()).await;
        let frame = frame.expect("an answer").unwrap().expect("a frame");
        RelayMessage::from_bytes(&frame.payload).unwrap()
    }
    async fn quote(&mut self, ask: &Ask) -> Quote {
        self.say(&RelayMessage::Ask(ask.clone())).await;
        match self.hear().await {
            RelayMessage::Quote(quote) => quote,
            other => panic!("{other:?} instead of a quote"),
        }
    }
    async fn refusal(&mut self) -> String {
        match self.hear().await {
            RelayMessage::Refused { reason } => reason,
            other => panic!("{other:?} instead of a refusal"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_refused_and_cost_the_relayer_nothing() {
    let market = Relayed::start().await;
    let world = &market.world;
    let victim = world.rich(20, true).await;
    victim.json(&["wallet", "deposit", "5", "--json"]);
    // The relayer itself has money in its vault, too.
    world.mint(&market.seller_home, MicroUsd::from_usd(3)).await;
    let before_wei = world.wei(&market.seller_home.evm_address);
    let peer = Peer::start();
    let seller = peer.dial(market.seller.listen()).await;
    let ask = Ask {
        chain_id: world.chain.hub.chain_id,
        hub: world.chain.hub.hub,
        token: world.chain.token,
        kinds: vec![CallKind::Withdraw],
    };
    for wrong in [
        Ask {
            chain_id: 1,
            ..ask.clone()
        },
        Ask {
            hub: EvmAddress([1; 20]),
            ..ask.clone()
        },
        Ask {
            token: EvmAddress([1; 20]),
            ..ask.clone()
        },
    ] {
        let mut talk = Talk::open(&peer, &seller).await;
        talk.say(&RelayMessage::Ask(wrong)).await;
        assert!(talk.refusal().await.contains("another"));
    }
    let owner = keys(&victim).payment;
    let thief = EvmAddress([0x66; 20]);
    // The victim's money to the thief, signed by the thief's own key.
    let auth = |relayer, fee, account| WithdrawAuth {
        account,
        token: world.chain.token,
        to: thief,
        amount: MicroUsd::from_usd(1),
        relayer,
        fee,
        nonce: 9,
        valid_before_s: 4_102_444_800,
    };
    let pay = |auth: WithdrawAuth| {
        let signature = peer
            .keys
            .payment
            .sign_hash(&world.chain.hub.withdraw(&auth));
        calls::withdraw_by_sig(&auth, &signature)
    };
    let (me, empty) = (owner.address(), peer.keys.payment.address());
    let relayer = address(&market.seller_home);
    type Bundle<'a> = Box<dyn Fn(Quote) -> Vec<Vec<u8>> + 'a>;
    let tricks: Vec<(&str, Bundle<'_>)> = vec![
        (
            "forged signature",
            Box::new(|q| vec![pay(auth(q.relayer, q.fee, me))]),
        ),
        (
            "empty vault",
            Box::new(|q| vec![pay(auth(q.relayer, q.fee, empty))]),
        ),
        (
            "relayer's own vault",
            Box::new(|q| {
                vec![
                    calls::withdraw(world.chain.token, thief, MicroUsd(1)),
                    pay(auth(q.relayer, q.fee, empty)),
                ]
            }),
        ),
        (
            "relayer's allowance",
            Box::new(|q| {
                vec![
                    calls::deposit(world.chain.token, thief, MicroUsd(1)),
                    pay(auth(q.relayer, q.fee, empty)),
                ]
            }),
        ),
        (
            "no fee",
            Box::new(|q| vec![pay(auth(q.relayer, MicroUsd::ZERO, me))]),
        ),
        (
            "fee for another",
            Box::new(|q| vec![pay(auth(thief, q.fee, me))]),
        ),
        (
            "fee for anybody",
            Box::new(|q| vec![pay(auth(EvmAddress::default(), q.fee, me))]),
        ),
        (
            "nested",
            Box::new(|q| vec![calls::multicall(vec![pay(auth(q.relayer, q.fee, me))])]),
        ),
        ("noise", Box::new(|_| vec![vec![7; 900]])),
        ("nothing", Box::new(|_| vec![])),
    ];
    for (name, bundle) in &tricks {
        let mut talk = Talk::open(&peer, &seller).await;
        let quote = talk.quote(&ask).await;
        assert_eq!(quote.relayer, relayer);
        talk.say(&RelayMessage::Send(bundle(quote))).await;
        let reason = talk.refusal().await;
        println!("{name}: {reason}");
    }
    // Twenty streams an hour for one peer: the rest is refused before the chain is asked.
    let mut refused = false;
    for _ in 0..10 {
        let mut talk = Talk::open(&peer, &seller).await;
        talk.say(&RelayMessage::Ask(ask.clone())).await;
        refused |= matches!(talk.hear().await, RelayMessage::Refused { reason } if reason.contains("too many"));
    }
    assert!(refused, "a flood is stopped");
    assert_eq!(world.transactions(&market.seller_home.evm_address), "0x0");
    assert_eq!(world.wei(&market.seller_home.evm_address), before_wei);
    assert_eq!(world.vault(me).await, MicroUsd::from_usd(5));
    assert_eq!(world.tokens(thief).await, MicroUsd::ZERO);
}

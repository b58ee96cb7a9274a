//! A scripted seller: answers well and bills as a test tells it. The rules of the wire it keeps, or
//! no buyer would come as far as its bills.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use serde_json::json;
use souk::keys::NodeKeys;
use souk::llm_api::TokenCounter;
use souk::network::Stream;
use souk::protocol::infer::{Progress, ResponseHead};
use souk::protocol::offer::{Capabilities, Modes, Offer, SignedOffer};
use souk::protocol::receipt::{Ending, Receipt};
use souk::protocol::session::{Open, SyncSeller};
use souk::protocol::terms::ChainTerms;
use souk::protocol::voucher::HubChannel;
use souk::protocol::{
    ChannelDescriptor, EvmSignature, FrameKind, Need, SessionMessage, SignedHead, SignedReceipt,
    SignedTerms, Terms,
};
use souk::types::{AttemptId, ChannelId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, Usage};

use super::market::MODEL;
use super::peer::{Infer, Peer, Session, fresh_keys, now_ms};

/// What it asks for opening a channel on a chain.
pub const OPEN_FEE: MicroUsd = MicroUsd(10_000);

/// What the seller offers.
pub const PRICE: PriceTable = PriceTable {
    input: 2_000_000,
    cache_read: 200_000,
    cache_write: 2_500_000,
    output: 8_000_000,
};

/// How it bills.
#[derive(Clone)]
pub struct Bill {
    /// What the answer says that it used.
    pub usage: fn(Usage) -> Usage,
    /// What the receipt says that this costs.
    pub cost: fn(&Usage) -> MicroUsd,
    /// The stream breaks off after this many words, and the whole is billed.
    pub cut_after: Option<usize>,
    /// Before the answer it demands a voucher of this sum.
    pub demand: Option<MicroUsd>,
    /// It sends the receipt of the first request with every one.
    pub repeat_first: bool,
}

impl Bill {
    /// As an honest seller bills.
    pub fn honest() -> Self {
        Self {
            usage: |usage| usage,
            cost: |usage| PRICE.cost(usage),
            cut_after: None,
            demand: None,
            repeat_first: false,
        }
    }
}

/// What it got.
#[derive(Clone, Debug, Default)]
pub struct Loot {
    /// The highest voucher.
    pub voucher: u64,
    /// What was accepted, per attempt.
    pub accepted: BTreeMap<AttemptId, u64>,
    /// What it really delivered was worth, per attempt.
    pub fair: BTreeMap<AttemptId, u64>,
    /// The channels that were opened with it, the newest last.
    pub channels: Vec<ChannelId>,
    /// What it has of each.
    pub of: HashMap<ChannelId, Taken>,
    /// Sessions whose handshake came to its end.
    pub sessions: u32,
    /// Orders that came before any session did.
    pub unpaid_orders: u32,
    /// Vouchers of earlier channels that it showed as if they were of the present one.
    pub shown_again: u32,
}

/// What it has of one channel.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// As the buyer opened it on a chain.
    pub channel: Option<HubChannel>,
    /// The highest voucher.
    pub voucher: Option<(MicroUsd, EvmSignature)>,
    /// What was delivered on it was worth this much.
    pub fair: MicroUsd,
}

impl Loot {
    /// The highest voucher of a channel that is not `present`.
    fn of_another(&self, present: &ChannelId) -> Option<(ChannelId, (MicroUsd, EvmSignature))> {
        let others = self.of.iter().filter(|(id, _)| *id != present);
        let vouchers = others.filter_map(|(id, taken)| Some((*id, taken.voucher?)));
        vouchers.max_by_key(|(_, (sum, _))| *sum)
    }
}

/// A seller that cheats.
pub struct Cheat {
    pub peer: Arc<Peer>,
    pub loot: Arc<Mutex<Loot>>,
    bill: Arc<Mutex<Bill>>,
}

/// What one of its tasks needs.
#[derive(Clone)]
struct Counter {
    peer: Arc<Peer>,
    loot: Arc<Mutex<Loot>>,
    bill: Arc<Mutex<Bill>>,
    text: String,
    first: Arc<Mutex<Option<Vec<u8>>>>,
    unasked: bool,
    chain: Option<ChainTerms>,
}

impl Cheat {
    /// Starts one that answers with `text`; with `unasked` it sends receipts for requests that
    /// nobody made.
    pub fn start(text: &str, unasked: bool) -> Self {
        Self::start_as(fresh_keys(), text, unasked, None)
    }

    /// Starts one that takes channels on a chain. Where a buyer opens another one, it shows the
    /// vouchers of the one before as if they were of the new one.
    pub fn start_on_chain(text: &str, chain: ChainTerms) -> Self {
        Self::start_as(fresh_keys(), text, false, Some(chain))
    }

    /// Starts one that is somebody.
    pub fn start_as(keys: NodeKeys, text: &str, unasked: bool, chain: Option<ChainTerms>) -> Self {
        let mut peer = Peer::start_as(keys);
        let mut incoming = peer.incoming.take().expect("a fresh peer");
        let peer = Arc::new(peer);
        let offer = Offer {
            not_after: now_ms() + 3_000_000,
            price: PRICE,
            context: 128_000,
            max_output: 16_000,
            caps: Capabilities::DIALECT_CHAT,
            modes: if chain.is_some() {
                Modes::CHANNEL
            } else {
                Modes::CREDIT
            },
            ..Offer::new("souk-1", peer.id(), ModelId::new(MODEL), now_ms())
        };
        let identity = peer.keys.identity.clone();
        let signed = SignedOffer::sign(offer, |message| identity.sign(message)).unwrap();
        peer.handle.set_local_offers(vec![signed.bytes]);
        let cheat = Self {
            peer: Arc::clone(&peer),
            loot: Arc::default(),
            bill: Arc::new(Mutex::new(Bill::honest())),
        };
        let counter = Counter {
            peer,
            loot: Arc::clone(&cheat.loot),
            bill: Arc::clone(&cheat.bill),
            text: text.to_owned(),
            first: Arc::default(),
            unasked,
            chain,
        };
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some((buyer, stream)) = incoming.session.recv() => {
                        tokio::spawn(counter.clone().session(buyer, stream));
                    }
                    Some((_, stream)) = incoming.infer.recv() => {
                        tokio::spawn(counter.clone().serve(stream));
                    }
                    else => return,
                }
            }
        });
        cheat
    }

    pub fn bill(&self, bill: Bill) {
        *self.bill.lock().unwrap() = bill;
    }

    pub fn loot(&self) -> Loot {
        self.loot.lock().unwrap().clone()
    }
}

impl Counter {
    async fn session(self, _buyer: PeerId, stream: Stream) {
        let mut session = Session::new(stream);
        let identity = &self.peer.keys.identity;
        let terms = Terms {
            seller: self.peer.id(),
            payment_address: self.peer.keys.payment.address(),
            credit_limit: MicroUsd(5_000_000),
            open_fee: self.chain.map_or(MicroUsd::ZERO, |_| OPEN_FEE),
            reasoning_cap: 0,
            data_policy: String::new(),
            supported_parameters: Vec::new(),
            chain: self.chain,
        };
        let terms = SignedTerms::sign(terms, identity).bytes.to_vec();
        while let Ok(message) = session.hear_for_long().await {
            match message {
                SessionMessage::Hello(_) => {
                    session.say(&self.peer.hello()).await;
                    session.say(&SessionMessage::Terms(terms.clone())).await;
                }
                SessionMessage::Open(open) => {
                    let channel = self.opened(open);
                    let deposit = MicroUsd(5_000_000);
                    session
                        .say(&SessionMessage::OpenAck { channel, deposit })
                        .await;
                }
                SessionMessage::SyncBuyer(theirs) => {
                    let sync = SyncSeller {
                        channel: theirs.channel,
                        deposit: MicroUsd(5_000_000),
                        settled: MicroUsd::ZERO,
                        voucher: None,
                        accepted: MicroUsd::ZERO,
                        open: Vec::new(),
                        unknown: Vec::new(),
                    };
                    session.say(&SessionMessage::SyncSeller(sync)).await;
                    self.loot.lock().unwrap().sessions += 1;
                    self.bill_strangers(&mut session).await;
                    self.show_again(&mut session, &theirs.channel).await;
                }
                SessionMessage::Voucher {
                    channel,
                    cumulative,
                    signature,
                } => {
                    let mut loot = self.loot.lock().unwrap();
                    loot.voucher = loot.voucher.max(cumulative.0);
                    let taken = loot.of.entry(channel).or_default();
                    if taken.voucher.is_none_or(|(sum, _)| sum < cumulative) {
                        taken.voucher = Some((cumulative, signature));
                    }
                }
                SessionMessage::Accept(accept) => {
                    let mut loot = self.loot.lock().unwrap();
                    let items = accept.items.iter().map(|(a, cost)| (*a, cost.0));
                    loot.accepted.extend(items);
                }
                _ => {}
            }
        }
    }

    fn opened(&self, open: Open) -> ChannelId {
        let descriptor = ChannelDescriptor::from_bytes(&open.descriptor).unwrap();
        let (Some(chain), Some(opening)) = (self.chain, open.opening) else {
            return descriptor.credit_id();
        };
        let channel = HubChannel {
            domain: chain.domain,
            descriptor,
            consumed: opening.open_fee,
            opening,
        };
        let id = channel.id();
        let mut loot = self.loot.lock().unwrap();
        if !loot.channels.contains(&id) {
            loot.channels.push(id);
        }
        loot.of.entry(id).or_default().channel = Some(channel);
        id
    }

    /// SYNC with the voucher of an earlier channel, first as what it is, then as one of this channel.
    async fn show_again(&self, session: &mut Session, present: &ChannelId) {
        let earlier = self.loot.lock().unwrap().of_another(present);
        let Some((earlier, voucher)) = earlier.filter(|_| self.chain.is_some()) else {
            return;
        };
        for channel in [*present, earlier] {
            let sync = SyncSeller {
                channel,
                deposit: MicroUsd(5_000_000),
                settled: MicroUsd::ZERO,
                voucher: Some(voucher),
                accepted: voucher.0,
                open: Vec::new(),
                unknown: Vec::new(),
            };
            session.say(&SessionMessage::SyncSeller(sync)).await;
            self.loot.lock().unwrap().shown_again += 1;
        }
    }

    /// Receipts for requests that nobody made.
    async fn bill_strangers(&self, session: &mut Session) {
        for n in 0..if self.unasked { 40 } else { 0 } {
            let attempt = AttemptId([n; 16]);
            let usage = Usage {
                output: 50_000,
                ..Usage::default()
            };
            let signed = self.receipt(attempt, usage, PRICE.cost(&usage), None);
            session.say(&SessionMessage::Receipt(signed)).await;
        }
    }

    fn receipt(
        &self,
        attempt: AttemptId,
        usage: Usage,
        cost: MicroUsd,
        head: Option<&SignedHead>,
    ) -> Vec<u8> {
        let buyer = head.map_or(self.peer.id(), |signed| signed.head.buyer);
        let receipt = Receipt {
            request_id: head
                .map(|signed| signed.head.request_id)
                .unwrap_or_default(),
            attempt_id: attempt,
            order_hash: head.map(|signed| signed.hash).unwrap_or_default(),
            seller: self.peer.id(),
            buyer,
            status: 200,
            ending: Ending::Complete,
            usage,
            usage_from_upstream: true,
            own_output: usage.output,
            cost,
            response_hash: Hash32::default(),
            response_len: 0,
            at_ms: now_ms(),
        };
        SignedReceipt::sign(receipt, &self.peer.keys.identity)
            .bytes
            .to_vec()
    }

    async fn serve(self, stream: Stream) {
        let mut infer = Infer::new(stream);
        let (mut head, mut body) = (None, Vec::new());
        while let Some(frame) = infer.frame().await {
            match frame.kind {
                FrameKind::ReqHead => head = SignedHead::decode(&frame.payload).ok(),
                FrameKind::Body => body.extend_from_slice(&frame.payload),
                _ => break,
            }
        }
        let Some(head) = head else { return };
        let bill = self.bill.lock().unwrap().clone();
        let attempt = head.attempt_id();
        let words: Vec<&str> = self.text.split_inclusive(' ').collect();
        let sent = bill
            .cut_after
            .map_or(words.len(), |cut| cut.min(words.len()));
        let fair = self.fair(&body, &words[..sent].concat(), bill.cut_after.is_some());
        let whole = self.fair(&body, &self.text, false);
        let usage = (bill.usage)(whole);
        let cost = (bill.cost)(&usage);
        {
            let worth = PRICE.cost(&fair);
            let mut loot = self.loot.lock().unwrap();
            loot.fair.insert(attempt, worth.0);
            loot.unpaid_orders += u32::from(loot.sessions == 0);
            let taken = loot.of.entry(head.head.channel).or_default();
            taken.fair = taken.fair.saturating_add(worth);
        }
        let called = Progress {
            upstream_called: true,
        };
        infer.writer.put(FrameKind::Nop, &called.encode());
        if let Some(cumulative) = bill.demand {
            infer
                .writer
                .put(FrameKind::Need, &Need { cumulative }.encode());
        }
        let response = ResponseHead {
            status: 200,
            headers: vec![("content-type".to_owned(), "text/event-stream".to_owned())],
            model_served: "m".to_owned(),
            whole: None,
        };
        infer.writer.put(FrameKind::RespHead, &response.encode());
        for word in &words[..sent] {
            infer.writer.put(FrameKind::Body, event(word).as_bytes());
        }
        if bill.cut_after.is_none() {
            infer
                .writer
                .put(FrameKind::Body, last_events(&usage).as_bytes());
        }
        infer.writer.put(FrameKind::End, &[]);
        let mut bytes = self.receipt(attempt, usage, cost, Some(&head));
        if bill.repeat_first {
            bytes = self.first.lock().unwrap().get_or_insert(bytes).clone();
        }
        infer.writer.put(FrameKind::Usage, &bytes);
        let _ = infer.writer.close().await;
    }

    /// What was really used.
    fn fair(&self, body: &[u8], text: &str, cut: bool) -> Usage {
        let counter = TokenCounter::new();
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        let prompt = body["messages"][0]["content"].as_str().unwrap_or_default();
        // The template around one message is seven tokens.
        let input = counter.count_text(MODEL, prompt).tokens + 7;
        Usage {
            input: if cut { 0 } else { input },
            output: counter.count_text(MODEL, text).tokens,
            ..Usage::default()
        }
    }
}

fn event(word: &str) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

fn last_events(usage: &Usage) -> String {
    let stop = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let prompt = usage.input + usage.cache_read + usage.cache_write;
    let used = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read,
            "cache_creation_tokens": usage.cache_write}}});
    format!("data: {stop}\n\ndata: {used}\n\ndata: [DONE]\n\n")
}

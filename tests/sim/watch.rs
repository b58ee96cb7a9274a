//! Both nodes' eyes on the chain: the production watcher's machine, its events durable before they
//! count.

use souk::chain::hub::HubLog;
use souk::chain::journal::{EventRecord, Record, Stage};
use souk::chain::watcher::{Ask, ChainEvent, Tracker};
use souk::types::ChannelId;

use super::Plant;
use super::chain::HUB;
use super::wire::Side;
use super::world::World;
use super::{buyer, seller};

/// Logs are read in ranges of this many blocks.
const RANGE: u64 = 50;

fn log_of(event: &ChainEvent) -> &HubLog {
    let (ChainEvent::Seen(log) | ChainEvent::Confirmed(log) | ChainEvent::Removed { log, .. }) =
        event;
    log
}

/// The channel that an event is about.
pub fn channel_of(event: &ChainEvent) -> Option<ChannelId> {
    log_of(event).event.channel()
}

fn name(event: &ChainEvent) -> String {
    let stage = match event {
        ChainEvent::Seen(_) => "seen",
        ChainEvent::Confirmed(_) => "final",
        ChainEvent::Removed { .. } => "gone",
    };
    let log = log_of(event);
    format!("{stage} {} {}", log.event.as_str(), log.event.amount())
}

fn record_of(event: &ChainEvent, at_ms: u64) -> Record {
    let stage = match event {
        ChainEvent::Seen(_) => Stage::Seen,
        ChainEvent::Confirmed(_) => Stage::Confirmed,
        ChainEvent::Removed { .. } => Stage::Removed,
    };
    Record::Event(EventRecord {
        at_ms,
        chain_id: HUB.chain_id,
        hub: HUB.hub,
        stage,
        log: log_of(event).clone(),
    })
}

impl World {
    /// False while nobody reaches the RPC node.
    pub fn rpc_answers(&self) -> bool {
        let down = self.plan.chain.as_ref().and_then(|plan| plan.down);
        down.is_none_or(|(from, to)| !(from..to).contains(&self.now))
    }

    /// A poll of the watcher.
    pub fn watch(&mut self, side: Side) {
        let busy = match side {
            Side::Buyer => self.buyer.watch_busy,
            Side::Seller => self.seller.watch_busy,
        };
        if busy || !self.rpc_answers() {
            return;
        }
        let Some(chain) = &self.chain else {
            return;
        };
        let (tracker, disk) = match side {
            Side::Buyer => (&mut self.buyer.tracker, &self.buyer.disk),
            Side::Seller => (&mut self.seller.tracker, &self.seller.disk),
        };
        let start = chain.block(0).expect("a first block");
        let tracker = tracker.get_or_insert_with(|| Tracker::new(start, disk.seen(), RANGE));
        tracker.begin(chain.head(), chain.final_block());
        loop {
            match tracker.ask() {
                Ask::Nothing => break,
                Ask::Header(number) => tracker
                    .header(chain.block(number))
                    .expect("no reorg reaches a final block"),
                Ask::Logs { from, to } => {
                    let last = chain.block(to).expect("a block below the head");
                    tracker.logs(last, chain.logs(from, to));
                }
            }
        }
        let mut events = tracker.take_events();
        if self.plant == Some(Plant::TrustsFreshBlocks) {
            let more: Vec<_> = events
                .iter()
                .filter_map(|event| match event {
                    ChainEvent::Seen(log) => Some(ChainEvent::Confirmed(log.clone())),
                    _ => None,
                })
                .collect();
            events.extend(more);
        }
        if !events.is_empty() {
            self.store_events(side, events);
        }
    }

    fn store_events(&mut self, side: Side, events: Vec<ChainEvent>) {
        self.say(|| {
            let names = events.iter().map(name);
            format!("{side:?} reads {}", names.collect::<Vec<_>>().join(", "))
        });
        let disk = match side {
            Side::Buyer => &mut self.buyer.disk,
            Side::Seller => &mut self.seller.disk,
        };
        let mut last = 0;
        for event in &events {
            last = disk.record(record_of(event, self.now));
        }
        match side {
            Side::Buyer => {
                self.buyer.watch_busy = true;
                self.buyer.then.push((last, buyer::Then::Seen(events)));
            }
            Side::Seller => {
                self.seller.watch_busy = true;
                let then = seller::Then::Seen(events);
                self.seller.then.push((last, None, then));
            }
        }
        self.schedule_write(side);
    }
}

//! Which node is asked first: pure bookkeeping over nodes by their number.
//!
//! The order is: the node used last while it is good, other good nodes as configured, then those
//! set aside (a node that is resting is still better than none), never one on another chain until
//! its rest is over.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::types::{Clock, UnixMs};

/// How often heads are compared.
const COMPARE_EVERY_MS: u64 = 15_000;
/// How long a node on another chain is left alone: somebody has to change something first.
const OTHER_CHAIN_REST_MS: u64 = 600_000;

/// What is learned about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It answered.
    Answered,
    /// It did not, or not as it should.
    Failed,
    /// It serves our chain.
    Checked,
    /// It serves another.
    OtherChain,
    /// Its head.
    Head(u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_checked: bool,
    is_other_chain: bool,
    rest_until_ms: UnixMs,
    head: Option<u64>,
}

struct States {
    nodes: Vec<State>,
    current: usize,
    compared_ms: Option<UnixMs>,
}

/// The states of all nodes.
pub(super) struct Pool {
    states: Mutex<States>,
    lag_blocks_max: u64,
    rest_ms: u64,
    clock: Arc<dyn Clock>,
}

impl Pool {
    pub(super) fn new(
        nodes: usize,
        lag_blocks_max: u64,
        rest_ms: u64,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let states = States {
            nodes: vec![State::default(); nodes],
            current: 0,
            compared_ms: None,
        };
        Self {
            states: Mutex::new(states),
            lag_blocks_max,
            rest_ms,
            clock,
        }
    }

    /// True once every [`COMPARE_EVERY_MS`].
    pub(super) fn compare_is_due(&self) -> bool {
        let now = self.clock.now_ms();
        let mut states = self.states.lock();
        let is_due = states
            .compared_ms
            .is_none_or(|at| now.saturating_sub(at) >= COMPARE_EVERY_MS);
        if is_due {
            states.compared_ms = Some(now);
        }
        is_due
    }

    /// True when the node's chain was compared and is ours.
    pub(super) fn is_checked(&self, index: usize) -> bool {
        self.states
            .lock()
            .nodes
            .get(index)
            .is_some_and(|node| node.is_checked)
    }

    pub(super) fn report(&self, index: usize, report: Report) {
        let now = self.clock.now_ms();
        let mut states = self.states.lock();
        if report == Report::Answered {
            states.current = index;
        }
        let Some(node) = states.nodes.get_mut(index) else {
            return;
        };
        match report {
            Report::Answered => node.rest_until_ms = 0,
            // After a failure it may be another node behind the same name.
            Report::Failed => {
                node.is_checked = false;
                node.rest_until_ms = now.saturating_add(self.rest_ms);
            }
            Report::Checked => {
                node.is_checked = true;
                node.is_other_chain = false;
            }
            Report::OtherChain => {
                node.is_checked = false;
                node.is_other_chain = true;
                node.rest_until_ms = now.saturating_add(OTHER_CHAIN_REST_MS);
            }
            Report::Head(head) => node.head = Some(head),
        }
    }

    /// The nodes to ask, first to last.
    pub(super) fn order(&self) -> Vec<usize> {
        let now = self.clock.now_ms();
        let states = self.states.lock();
        let best = best_head(&states.nodes);
        let mut order: Vec<(u8, usize)> = vec![];
        for (index, node) in states.nodes.iter().enumerate() {
            let is_resting = node.rest_until_ms > now;
            if node.is_other_chain && is_resting && states.nodes.len() > 1 {
                continue;
            }
            let is_behind = node
                .head
                .is_some_and(|head| head.saturating_add(self.lag_blocks_max) < best);
            let rank = match (is_resting, is_behind, index == states.current) {
                (false, false, true) => 0,
                (false, false, false) => 1,
                (false, true, _) => 2,
                (true, _, _) => 3,
            };
            order.push((rank, index));
        }
        order.sort_unstable();
        order.into_iter().map(|(_, index)| index).collect()
    }
}

/// The head to compare with. With three nodes or more one that claims a height nobody else sees
/// does not put the others aside: the second highest counts.
fn best_head(nodes: &[State]) -> u64 {
    let mut heads: Vec<u64> = nodes.iter().filter_map(|node| node.head).collect();
    heads.sort_unstable();
    let rank = if heads.len() >= 3 { 2 } else { 1 };
    let place = heads.len().checked_sub(rank);
    place
        .and_then(|place| heads.get(place))
        .copied()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ManualClock;

    fn pool(nodes: usize) -> (Pool, ManualClock) {
        let clock = ManualClock::new(1_000_000);
        (Pool::new(nodes, 5, 30_000, Arc::new(clock.clone())), clock)
    }

    #[test]
    fn a_node_that_answers_is_kept_and_one_that_fails_rests() {
        let (pool, clock) = pool(3);
        assert_eq!(pool.order(), [0, 1, 2]);
        pool.report(0, Report::Failed);
        pool.report(1, Report::Answered);
        assert_eq!(pool.order(), [1, 2, 0]);
        clock.advance(30_001);
        assert_eq!(pool.order(), [1, 0, 2], "it stays with the one that works");
    }

    #[test]
    fn a_node_far_behind_is_set_aside_and_a_boaster_changes_nothing() {
        let (pool, _) = pool(3);
        for (index, head) in [(0, 90), (1, 100), (2, 99)] {
            pool.report(index, Report::Head(head));
        }
        assert_eq!(pool.order(), [1, 2, 0]);
        pool.report(0, Report::Head(1_000_000));
        assert_eq!(pool.order(), [0, 1, 2], "nobody confirms its height");
    }

    #[test]
    fn a_node_of_another_chain_is_not_asked_again_soon() {
        let (pool, clock) = pool(2);
        pool.report(0, Report::OtherChain);
        assert_eq!(pool.order(), [1]);
        clock.advance(OTHER_CHAIN_REST_MS + 1);
        assert_eq!(pool.order(), [0, 1]);
    }
}

//! What must hold on the chain: at every block, and at the end, when all channels are closed.

use souk::payment::onchain::Level;
use souk::types::{ChannelId, MicroUsd};

use super::check::Breach;
use super::wire::Side;
use super::world::World;

impl World {
    /// Rules of every block: no money appears or vanishes, and no channel pays more than its buyer
    /// ever signed.
    pub fn check_chain(&self) -> Result<(), Breach> {
        let Some((plan, chain)) = self.plan.chain.as_ref().zip(self.chain.as_ref()) else {
            return Ok(());
        };
        let (total, start) = (
            chain.state.total(),
            plan.buyer_vault.saturating_add(plan.buyer_wallet),
        );
        if total != start {
            let text = format!("{total} of {start} are there");
            return Err(Breach::new("conservation", text));
        }
        for (id, stored) in &chain.state.channels {
            let signed = self.signed.get(id).copied().unwrap_or_default();
            if stored.settled > signed.max(stored.fee) {
                let text = format!("{} paid of {signed} signed for {id}", stored.settled);
                return Err(Breach::new("unsigned", text));
            }
        }
        Ok(())
    }

    /// I7 when bytes leave: for what no final block shows a seller delivers a little and no more.
    pub fn check_confirmed(&mut self, id: &ChannelId, delivered: MicroUsd) {
        let Some((plan, chain)) = self.plan.chain.as_ref().zip(self.chain.as_ref()) else {
            return;
        };
        let base = self
            .seller
            .pair(id)
            .map(|pair| pair.state.machine().book().base());
        let base = base.unwrap_or_default();
        let on_trust = plan.rules.unconfirmed_max.max(plan.rules.unsafe_max);
        let sure = chain.final_deposit(id).max(base);
        if delivered > sure.saturating_add(on_trust) {
            let text = format!("delivered {delivered} for a final deposit of {sure}");
            self.seller.breach = Some(Breach::new("I7", text));
        }
    }

    /// What is brought to the chain on the way is earned by then: prepayment is the buyer's.
    pub fn check_claim(&mut self, id: &ChannelId, sum: MicroUsd) {
        // An unanswered receipt counts in full; what the buyer accepts of it is seen later.
        let book = self.seller.pair(id).map(|pair| pair.state.machine().book());
        let delivered = book.map_or(MicroUsd::ZERO, |book| book.total());
        if sum > delivered {
            let text = format!("{sum} is claimed, {delivered} delivered on {id}");
            self.seller.breach = Some(Breach::new("prepayment claimed", text));
        }
    }

    /// I6 when a transaction leaves: its intent is durable.
    pub fn check_broadcast(&mut self, nonce: u64) {
        if !self.seller.disk.knows_intent(nonce) {
            let text = format!("nonce {nonce} is broadcast, its intent is not durable");
            self.seller.breach = Some(Breach::new("I6", text));
        }
    }

    /// True while the channel that the buyer names can open no more and may still be seen open: its
    /// seller refuses it, and the buyer signs no other for ten minutes.
    pub fn waits_for_void(&self) -> bool {
        let named = self.buyer.state.named();
        let is_unseen = self
            .buyer
            .state
            .view()
            .is_some_and(|view| view.opened == Level::No);
        named.is_some_and(|(_, channel)| {
            is_unseen && self.now / 1_000 >= channel.opening.valid_before_s
        })
    }

    /// What the buyer may still spend: on the channel that stands, or on a new one.
    pub fn money_left(&self) -> MicroUsd {
        let machine = self.buyer.state.machine();
        let left = machine.deposit().saturating_sub(machine.book().total());
        if self.chain.is_none() {
            return left;
        }
        match self.buyer.state.standing(self.now) {
            None => self.affordable().unwrap_or_default(),
            // What an earlier fault left behind may hold this buyer up until it is void for good.
            Some((_, channel)) => {
                let view = self.buyer.state.view().unwrap_or_default();
                let is_safe = view.deposit_final > MicroUsd::ZERO
                    && channel.opening.open_fee > MicroUsd::ZERO;
                if is_safe { left } else { MicroUsd::ZERO }
            }
        }
    }

    /// The end of a story on a chain: nothing is left in any channel, and each paid what was owed, but
    /// for what was at risk when a node was gone.
    pub fn check_closed(&mut self) -> Result<(), Breach> {
        let Some(chain) = &self.chain else {
            return Ok(());
        };
        let channels: Vec<_> = chain
            .state
            .channels
            .iter()
            .map(|(id, s)| (*id, *s))
            .collect();
        self.figures.reorgs = chain.reorgs;
        let mut settled = MicroUsd::ZERO;
        for (id, stored) in channels {
            // A buyer that never comes back leaves its rest to a seller that knows nothing more.
            let is_nobodys = self.lost && self.gone == Some(Side::Buyer);
            if !stored.closed && !is_nobodys {
                let held = stored.deposit.saturating_sub(stored.settled);
                let text = format!("{held} are left in {id}");
                return Err(Breach::new("money left", text));
            }
            settled = settled.saturating_add(stored.settled);
            self.figures.channels += 1;
            self.figures.settled += stored.settled.0;
            if !self.lost {
                self.check_paid(&id, stored.settled, stored.fee)?;
            }
        }
        let earned = self.chain.as_ref().map(|chain| chain.state.seller_vault);
        if earned != Some(settled) {
            let text = format!("{settled} were settled, the seller has {earned:?}");
            return Err(Breach::new("conservation", text));
        }
        Ok(())
    }

    /// What a closed channel paid, against what both ledgers say was owed on it.
    fn check_paid(
        &mut self,
        id: &ChannelId,
        settled: MicroUsd,
        fee: MicroUsd,
    ) -> Result<(), Breach> {
        let counted = self.buyer.disk.counted_on(id);
        let due = fee.saturating_add(self.buyer.disk.billed_on(id));
        let due = due.saturating_add(counted);
        let over = settled.saturating_sub(due);
        let most = self.exposed.get(id).copied().unwrap_or_default();
        if over > most && self.gone != Some(Side::Buyer) {
            let text = format!("{settled} paid, {due} owed, {most} at risk on {id}");
            return Err(Breach::new("overpaid", text));
        }
        let due = fee.saturating_add(self.seller.disk.billed_on(id));
        let short = due.saturating_sub(settled);
        let most = souk::payment::WindowSettings::default().pair_cap(due);
        if short > most && self.gone != Some(Side::Seller) {
            let text = format!("{settled} paid, {due} earned on {id}");
            return Err(Breach::new("underpaid", text));
        }
        self.figures.over += over.0;
        self.figures.short += short.0;
        Ok(())
    }
}

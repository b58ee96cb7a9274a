//! What goes wrong: nodes die, streams break, writes fail or are done in part.

use super::check::Breach;
use super::wire::{Conn, Side};
use super::world::{Event, World};

impl World {
    /// Kills a node: memory, queued rows and streams are gone.
    pub fn crash(&mut self, side: Side) {
        self.say(|| format!("{side:?} dies"));
        self.figures.crashes += 1;
        let disk = match side {
            Side::Buyer => &mut self.buyer.disk,
            Side::Seller => &mut self.seller.disk,
        };
        disk.lose_queue();
        let loses = self.plan.chain.as_ref().and_then(|plan| plan.loses);
        if loses == Some(side) && !self.lost {
            self.lost = true;
            disk.lose_all();
            self.say(|| format!("{side:?} loses its ledger"));
        }
        match side {
            Side::Buyer => self.buyer.up = false,
            Side::Seller => self.seller.up = false,
        }
        for conn in self.wires.all() {
            self.cut(conn);
        }
        let pause = self.rng.between(20, 4_000);
        self.at(self.now + pause, Event::Start { side });
    }

    /// Cuts a stream; each side notices it in its own time.
    pub fn cut(&mut self, conn: Conn) {
        if !self.wires.cut(conn) {
            return;
        }
        for side in [Side::Buyer, Side::Seller] {
            let slow = self.rng.chance(200);
            let after = self.rng.between(0, if slow { 12_000 } else { 100 });
            if let Some(life) = self.life(side) {
                self.at(self.now + after, Event::Broken { side, life, conn });
            }
        }
    }

    pub fn maybe_fail(&mut self) {
        if !self.faults {
            return;
        }
        if self.rng.chance(self.plan.crash) {
            let side = if self.rng.chance(500) {
                Side::Buyer
            } else {
                Side::Seller
            };
            if self.life(side).is_some() {
                self.crash(side);
            }
        }
        if self.rng.chance(self.plan.cut) {
            let all = self.wires.all();
            if !all.is_empty() {
                let index = self.rng.between(0, all.len() as u64 - 1);
                self.figures.cuts += 1;
                self.say(|| "a stream is cut".to_owned());
                self.cut(all[index as usize]);
            }
        }
    }

    /// From here on nothing fails any more. The session is made anew once: a message that the wild
    /// wire dropped has no other cause to be said again.
    pub fn end_faults(&mut self) {
        self.say(|| "faults end".to_owned());
        self.faults = false;
        for conn in self.wires.all() {
            if matches!(conn, Conn::Session(_)) {
                self.cut(conn);
            }
        }
    }

    /// The time until the next group commit.
    pub fn schedule_write(&mut self, side: Side) {
        let life = self.life(side).unwrap_or(0);
        let slow = self.faults && self.rng.chance(30);
        let after = self.rng.between(1, if slow { 500 } else { 12 });
        self.at(self.now + after, Event::Write { side, life });
    }

    /// A group commit: everything queued, at times only its first part, at times a failure.
    pub fn write(&mut self, side: Side) -> Result<(), Breach> {
        let fails = self.faults && self.rng.chance(self.plan.write_fails);
        let partly = self.faults && self.rng.chance(100);
        let draw = self.rng.next();
        let disk = match side {
            Side::Buyer => &mut self.buyer.disk,
            Side::Seller => &mut self.seller.disk,
        };
        let waiting = disk.waiting();
        if fails && waiting > 0 {
            // Rows before the failure may be there; the node stops either way.
            disk.write(draw as usize % (waiting + 1))?;
            self.say(|| format!("a write of the {side:?}'s fails"));
            self.crash(side);
            return Ok(());
        }
        disk.write(if partly { waiting.div_ceil(2) } else { waiting })?;
        if disk.waiting() > 0 {
            self.schedule_write(side);
        }
        match side {
            Side::Buyer => self.buyer_durable(),
            Side::Seller => self.seller_durable(),
        }
    }
}

//! Whether other programs need this machine: then no new sessions are taken.
//!
//! Layers are computed at the lowest priority, but two programs that both use every core slow each
//! other down many times over, and a slow stage holds up whole pipelines. [`Gauge`] is the rule, pure;
//! [`now`] reads the kernel's counters.

use std::time::Duration;

/// How often the counters are read.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many looks in a row above the threshold pause, and as many below it end the pause: a compiler's
/// short burst does neither.
const LOOKS: u32 = 5;
/// The whole machine, in hundredths of a per cent.
const ALL_BP: u64 = 10_000;

/// Time that the processors have spent since the start, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticks {
    /// All of it.
    pub all: u64,
    /// With nothing to do.
    pub idle: u64,
    /// For this process.
    pub own: u64,
}

/// Decides from one look to the next.
#[derive(Clone, Debug)]
pub(super) struct Gauge {
    /// The threshold, hundredths of a per cent of the machine.
    max_bp: u32,
    last: Option<Ticks>,
    /// Looks in a row that spoke against what is now.
    against: u32,
    is_paused: bool,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// What others use of the machine, hundredths of a per cent.
    pub others_bp: u32,
    /// No new sessions now.
    pub is_paused: bool,
}

impl Gauge {
    pub const fn new(max_bp: u32) -> Self {
        Self {
            max_bp,
            last: None,
            against: 0,
            is_paused: false,
        }
    }

    /// Takes a look; the first only sets the beginning.
    pub fn see(&mut self, now: Ticks) -> Reading {
        let others_bp = self.last.replace(now).map_or(0, |last| others(last, now));
        let is_above = others_bp > self.max_bp;
        if is_above == self.is_paused {
            self.against = 0;
        } else {
            self.against = self.against.saturating_add(1);
        }
        if self.against >= LOOKS {
            self.is_paused = is_above;
            self.against = 0;
        }
        Reading {
            others_bp,
            is_paused: self.is_paused,
        }
    }
}

/// What other programs used between two looks, hundredths of a per cent of the machine.
fn others(last: Ticks, now: Ticks) -> u32 {
    let since = |of: fn(&Ticks) -> u64| of(&now).saturating_sub(of(&last));
    let all = since(|t| t.all);
    let others = all
        .saturating_sub(since(|t| t.idle))
        .saturating_sub(since(|t| t.own));
    let share = others.saturating_mul(ALL_BP).checked_div(all).unwrap_or(0);
    u32::try_from(share.min(ALL_BP)).unwrap_or(u32::MAX)
}

/// The counters as they are; `None` where the system has none such.
pub(super) fn now() -> Option<Ticks> {
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    let process = std::fs::read_to_string("/proc/self/stat").ok()?;
    read(&machine, &process)
}

/// The first line of `/proc/stat` is `cpu user nice system idle iowait irq softirq steal …`; of
/// `/proc/self/stat` fields 14 and 15 are this process's times, counted behind its name in brackets.
fn read(machine: &str, process: &str) -> Option<Ticks> {
    let line = machine.lines().next()?.strip_prefix("cpu ")?;
    // Guests' times, behind these eight, are counted among the users' already.
    let times: Option<Vec<u64>> = line
        .split_whitespace()
        .take(8)
        .map(|t| t.parse().ok())
        .collect();
    let times = times?;
    let (_, behind) = process.rsplit_once(')')?;
    let own: Option<Vec<u64>> = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|t| t.parse().ok())
        .collect();
    Some(Ticks {
        all: times.iter().sum(),
        idle: times.get(3)?.saturating_add(*times.get(4)?),
        own: own?.iter().sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks one second apart on two processors; each says what others and this process used.
    fn looks(gauge: &mut Gauge, all: &[(u64, u64)]) -> Vec<bool> {
        let mut ticks = gauge.last.unwrap_or(Ticks {
            all: 1_000,
            idle: 500,
            own: 20,
        });
        gauge.last = Some(ticks);
        let look = |(others, own): &(u64, u64)| {
            ticks.all += 200;
            ticks.idle += 200 - others - own;
            ticks.own += own;
            gauge.see(ticks).is_paused
        };
        all.iter().map(look).collect()
    }

    #[test]
    fn others_pause_it_after_some_seconds_and_their_end_ends_it() {
        let mut gauge = Gauge::new(7_500);
        let busy = (160, 20);
        assert_eq!(
            looks(&mut gauge, &[busy; 5]),
            [false, false, false, false, true]
        );
        assert!(looks(&mut gauge, &[busy; 3]).iter().all(|paused| *paused));
        let calm = (150, 20);
        assert_eq!(
            looks(&mut gauge, &[calm; 5]),
            [true, true, true, true, false]
        );
    }

    #[test]
    fn a_burst_and_its_own_work_do_not_pause_it() {
        let mut gauge = Gauge::new(7_500);
        let (burst, calm) = ((200, 0), (10, 0));
        let all = [burst, burst, burst, burst, calm].repeat(4);
        assert!(looks(&mut gauge, &all).iter().all(|paused| !paused));
        assert!(looks(&mut gauge, &[(0, 200); 20]).iter().all(|p| !p));
        // Nor does one calm second end a pause.
        looks(&mut gauge, &[burst; 5]);
        let all = [calm, calm, burst, calm, calm, calm, calm];
        assert!(looks(&mut gauge, &all).iter().all(|paused| *paused));
    }

    #[test]
    fn the_first_look_and_counters_that_stand_still_say_nothing() {
        let mut gauge = Gauge::new(1);
        let ticks = Ticks {
            all: 10,
            idle: 0,
            own: 0,
        };
        for _ in 0..20 {
            let reading = gauge.see(ticks);
            assert_eq!((reading.others_bp, reading.is_paused), (0, false));
        }
    }

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        let machine = "cpu  100 20 30 800 40 5 5 0 7 7\ncpu0 50 10 15 400 20 2 3 0 0 0\n";
        let process = "42 (no de) 7) R 1 42 42 0 -1 4194304 90 0 0 0 60 15 0 0 30 10 8 0 5 1 1";
        let ticks = Ticks {
            all: 1_000,
            idle: 840,
            own: 75,
        };
        assert_eq!(read(machine, process), Some(ticks));
        assert_eq!(read("cpu0 1 2 3 4 5 6 7 8", process), None);
        assert_eq!(read(machine, "42 (x) R 1 2"), read(machine, "42 (x) R"));
        if cfg!(target_os = "linux") {
            assert!(now().is_some_and(|ticks| ticks.all > ticks.idle));
        }
    }
}

//! Test support: whether work grows as its input does, told without a clock on the wall, which a
//! busy machine would falsify.

/// Repetitions of which the least counts: an interrupted one costs caches.
const TRIES: usize = 3;
/// More than this for four times the input is not linear; quadratic work shows 16.
pub(super) const LINEAR_MAX: u64 = 9;

/// How many times as much processor time `work` takes for four times as much.
pub(super) fn growth(work: impl Fn(usize)) -> u64 {
    let least = |size| {
        let tries = (0..TRIES).map(|_| {
            let before = on_processor_ns();
            work(size);
            on_processor_ns() - before
        });
        tries.min().unwrap()
    };
    let (one, four) = (least(1), least(4));
    four / one.max(1)
}

/// Time that this thread has run for, in nanoseconds.
fn on_processor_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

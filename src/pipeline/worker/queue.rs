//! Which rows are computed next: decode first, prefill in the rest, a batch of bounded size. Pure.
//!
//! A prompt of a thousand rows would hold everybody else's next token up for seconds, so it is
//! taken in pieces. The oldest goes first among its kind, and prefill always gets a share.

use std::collections::VecDeque;

use crate::pipeline::engine::{Slot, Span};
use crate::pipeline::layers::StepKind;

/// Rows of a batch: from here on a CPU gains nothing by more, and the next token waits for all.
pub(super) const BATCH_ROWS_MAX: usize = 32;
/// Rows of a batch that decode leaves to prefill that waits.
const PREFILL_ROWS_MIN: usize = 8;

/// Rows of one slot that wait, with who waits for them.
pub(super) struct Job<R> {
    pub(super) slot: Slot,
    pub(super) pos: usize,
    /// What is still to compute, `hidden` numbers a row.
    pub(super) rows: Vec<f32>,
    pub(super) kind: StepKind,
    /// What is computed already.
    pub(super) done: Vec<f32>,
    pub(super) reply: R,
}

/// Jobs in the order in which they came.
pub(super) struct Queue<R> {
    jobs: VecDeque<Job<R>>,
    hidden: usize,
}

impl<R> Queue<R> {
    pub(super) const fn new(hidden: usize) -> Self {
        let jobs = VecDeque::new();
        Self { jobs, hidden }
    }
    pub(super) fn push(&mut self, job: Job<R>) {
        self.jobs.push_back(job);
    }
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
    /// Keeps the jobs that somebody still waits for.
    pub(super) fn retain(&mut self, keep: impl Fn(&Job<R>) -> bool) {
        self.jobs.retain(keep);
    }

    /// Takes the jobs of the next batch out, each with its span. What does not fit comes back by
    /// [`Self::put_back`].
    pub(super) fn next(&mut self) -> Vec<(Job<R>, Span)> {
        let waiting: usize = self
            .jobs
            .iter()
            .filter(|job| job.kind != StepKind::Decode)
            .map(|job| self.rows_of(job))
            .sum();
        let decode_rows = BATCH_ROWS_MAX - waiting.min(PREFILL_ROWS_MIN);
        let mut batch: Vec<(Job<R>, Span)> = vec![];
        let mut left = decode_rows;
        for is_decode in [true, false] {
            let mut kept = VecDeque::with_capacity(self.jobs.len());
            for job in self.jobs.drain(..) {
                let rows = job.rows.len().checked_div(self.hidden).unwrap_or(0);
                let rows = rows.min(left);
                let fits = (job.kind == StepKind::Decode) == is_decode && rows > 0;
                // A slot's second job follows its first.
                if !fits || batch.iter().any(|(other, _)| other.slot == job.slot) {
                    kept.push_back(job);
                    continue;
                }
                left -= rows;
                let (slot, pos) = (job.slot, job.pos);
                batch.push((job, Span { slot, pos, rows }));
            }
            self.jobs = kept;
            left += BATCH_ROWS_MAX - decode_rows;
        }
        batch
    }

    /// Notes a part that is computed. Gives the job back when all of it is; else the rest goes on
    /// in the next batch, in its old place before those who came later.
    pub(super) fn advance(&mut self, mut job: Job<R>, span: Span, out: &[f32]) -> Option<Job<R>> {
        job.done.extend_from_slice(out);
        job.rows
            .drain(..(span.rows * self.hidden).min(job.rows.len()));
        job.pos += span.rows;
        if job.rows.is_empty() {
            return Some(job);
        }
        self.jobs.push_front(job);
        None
    }

    fn rows_of(&self, job: &Job<R>) -> usize {
        job.rows.len().checked_div(self.hidden).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(slot: u64, rows: usize, kind: StepKind) -> Job<u64> {
        Job {
            slot: Slot(slot),
            pos: 5,
            rows: vec![1.0; rows * 2],
            kind,
            done: vec![],
            reply: slot,
        }
    }

    fn taken(queue: &mut Queue<u64>) -> Vec<(u64, usize)> {
        let batch = queue.next();
        let taken = batch.iter().map(|(job, span)| (job.reply, span.rows));
        let taken = taken.collect();
        for (job, span) in batch.into_iter().rev() {
            let out = vec![0.0; span.rows * 2];
            queue.advance(job, span, &out);
        }
        taken
    }

    #[test]
    fn decode_goes_first_and_prefill_fills_up() {
        let mut queue = Queue::new(2);
        queue.push(job(1, 100, StepKind::Prefill));
        queue.push(job(2, 1, StepKind::Decode));
        queue.push(job(3, 1, StepKind::Decode));
        assert_eq!(taken(&mut queue), [(2, 1), (3, 1), (1, 30)]);
        assert_eq!(taken(&mut queue), [(1, 32)]);
        assert_eq!(taken(&mut queue), [(1, 32)]);
        assert_eq!(taken(&mut queue), [(1, 6)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn neither_kind_starves() {
        let mut queue = Queue::new(2);
        queue.push(job(100, 20, StepKind::Prefill));
        for slot in 0..40 {
            queue.push(job(slot, 1, StepKind::Decode));
        }
        let first = taken(&mut queue);
        assert_eq!(first.len(), 25);
        assert_eq!(first[24], (100, 8));
        // The oldest of those left over come next.
        assert_eq!(taken(&mut queue)[0], (24, 1));
    }

    #[test]
    fn a_slots_second_job_waits_for_its_first() {
        let mut queue = Queue::new(2);
        queue.push(job(1, 40, StepKind::Prefill));
        queue.push(job(1, 1, StepKind::Prefill));
        assert_eq!(taken(&mut queue), [(1, 32)]);
        assert_eq!(taken(&mut queue), [(1, 8)]);
        assert_eq!(taken(&mut queue), [(1, 1)]);
    }

    #[test]
    fn positions_and_results_go_on_where_a_part_ended() {
        let mut queue = Queue::new(2);
        queue.push(job(1, 33, StepKind::Prefill));
        let (first, span) = queue.next().pop().unwrap();
        assert_eq!((span.pos, span.rows), (5, 32));
        assert!(queue.advance(first, span, &[7.0; 64]).is_none());
        let (second, span) = queue.next().pop().unwrap();
        assert_eq!((span.pos, span.rows), (37, 1));
        let all = queue.advance(second, span, &[8.0; 2]).unwrap();
        assert_eq!((all.done.len(), all.done[63], all.done[64]), (66, 7.0, 8.0));
    }
}

//! Named background tasks: every one is tracked, told to stop, waited for, and never lost silently.
//!
//! The only place that calls `tokio::spawn`. Invariants: a panic is logged under the task's name
//! and ends only that task; a critical task that ends before the shutdown stops the node; after
//! [`Tasks::shutdown`] nothing runs any more. Made by `node`, handed down to servers.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// After the deadline the remaining tasks are dropped at their next await; one that blocks its
/// thread longer than this is left behind.
const ABORT_GRACE: Duration = Duration::from_millis(500);

/// Why the tasks did not end well.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// A task that the node cannot live without ended early.
    #[error("{name} stopped")]
    Critical {
        /// The task.
        name: &'static str,
        /// Why.
        #[source]
        error: anyhow::Error,
    },
    /// Tasks were dropped because they did not end in time.
    #[error("still running after {deadline:?}, dropped: {names}")]
    Late {
        /// The time they had.
        deadline: Duration,
        /// Which, with their number.
        names: String,
    },
}

/// A handle to all background tasks of one node; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tracker: TaskTracker,
    /// Cancelled: please end.
    stop: CancellationToken,
    /// Cancelled: dropped wherever they are.
    abort: CancellationToken,
    running: Mutex<BTreeMap<&'static str, usize>>,
    failure: Mutex<Option<(&'static str, anyhow::Error)>>,
}

/// Counts a task under its name for as long as it lives.
struct Registered {
    inner: Arc<Inner>,
    name: &'static str,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut running = self.inner.running.lock();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// Runs short CPU work: in place, or on the blocking pool when it is `long` (above ~100 µs).
///
/// A worker thread that is lost to a panic gives the default.
pub async fn off_thread_if<T, F>(long: bool, work: F) -> T
where
    T: Default + Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if !long {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

impl Tasks {
    /// Starts with no task.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` in the background until it ends or the shutdown deadline passes.
    ///
    /// It is not stopped by itself: it watches [`Tasks::cancelled`] if it would run for ever.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let registered = self.register(name);
        let abort = self.inner.abort.clone();
        self.start(async move {
            let _registered = registered;
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                result = AssertUnwindSafe(future).catch_unwind() => {
                    if result.is_err() {
                        tracing::error!(task = name, "a task panicked");
                    }
                }
            }
        });
    }

    /// Runs a task that the node cannot live without: its end, for whatever reason, before the
    /// shutdown cancels everything, and [`Tasks::shutdown`] then returns the reason.
    pub fn spawn_critical<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.spawn(name, async move {
            let error = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Err(error)) => error,
                Ok(Ok(())) if inner.stop.is_cancelled() => return,
                Ok(Ok(())) => anyhow::anyhow!("it ended although nobody asked it to"),
                Err(_panic) => anyhow::anyhow!("it panicked"),
            };
            tracing::error!(task = name, error = %format!("{error:#}"), "a critical task stopped");
            inner.failure.lock().get_or_insert((name, error));
            inner.stop.cancel();
        });
    }

    /// A token that is cancelled when the node stops. Cancelling it stops nothing else.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.inner.stop.child_token()
    }

    /// Asks everything to stop, without waiting.
    pub fn cancel(&self) {
        self.inner.stop.cancel();
    }

    /// How many tasks run under which name.
    #[must_use]
    pub fn running(&self) -> Vec<(&'static str, usize)> {
        let running = self.inner.running.lock();
        running
            .iter()
            .map(|(name, count)| (*name, *count))
            .collect()
    }

    /// Cancels the token, waits for every task up to `deadline`, then drops the rest.
    ///
    /// # Errors
    /// When a critical task had failed (first), or tasks had to be dropped.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), TasksError> {
        self.inner.stop.cancel();
        self.inner.tracker.close();
        let in_time = tokio::time::timeout(deadline, self.inner.tracker.wait())
            .await
            .is_ok();
        let late = self.running();
        if !in_time {
            self.inner.abort.cancel();
            let grace = tokio::time::timeout(ABORT_GRACE, self.inner.tracker.wait());
            drop(grace.await);
        }
        if let Some((name, error)) = self.inner.failure.lock().take() {
            return Err(TasksError::Critical { name, error });
        }
        if in_time {
            return Ok(());
        }
        let names: Vec<String> = late
            .iter()
            .map(|(name, n)| format!("{name} ×{n}"))
            .collect();
        Err(TasksError::Late {
            deadline,
            names: names.join(", "),
        })
    }

    fn register(&self, name: &'static str) -> Registered {
        *self.inner.running.lock().entry(name).or_insert(0) += 1;
        Registered {
            inner: Arc::clone(&self.inner),
            name,
        }
    }

    fn start(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.inner.tracker.spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Whatever ends has ended by then, on a loaded machine too.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn shutdown_waits_for_every_task() {
        let tasks = Tasks::new();
        let done = Arc::new(AtomicBool::new(false));
        let (stop, flag) = (tasks.cancelled(), Arc::clone(&done));
        tasks.spawn("worker", async move {
            stop.cancelled().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            flag.store(true, Ordering::SeqCst);
        });
        assert_eq!(tasks.running(), [("worker", 1)]);
        tasks.shutdown(LONG).await.unwrap();
        assert!(done.load(Ordering::SeqCst));
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn tasks_that_ignore_the_deadline_are_named_and_dropped() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        let error = tasks.shutdown(Duration::from_millis(10)).await.unwrap_err();
        assert!(error.to_string().contains("deaf ×1"), "{error}");
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_critical_task_that_ends_stops_the_node() {
        for failure in [Ok(()), Err(anyhow::anyhow!("disk full"))] {
            let tasks = Tasks::new();
            let stop = tasks.cancelled();
            tasks.spawn_critical("ledger", async move { failure });
            stop.cancelled().await;
            let error = tasks.shutdown(LONG).await.unwrap_err();
            assert!(matches!(error, TasksError::Critical { name: "ledger", .. }));
        }
    }

    #[tokio::test]
    async fn a_critical_task_may_end_after_the_shutdown_began() {
        let tasks = Tasks::new();
        let stop = tasks.cancelled();
        tasks.spawn_critical("ledger", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.shutdown(LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_own_task_unless_it_is_critical() {
        let tasks = Tasks::new();
        tasks.spawn("clumsy", async { panic!("on purpose") });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!tasks.cancelled().is_cancelled());
        tasks.spawn_critical("vital", async { panic!("on purpose") });
        tasks.cancelled().cancelled().await;
        let error = tasks.shutdown(LONG).await.unwrap_err();
        assert!(error.to_string().contains("vital"), "{error}");
    }

    #[tokio::test]
    async fn cancelling_a_handed_out_token_stops_nothing_else() {
        let tasks = Tasks::new();
        tasks.cancelled().cancel();
        assert!(!tasks.cancelled().is_cancelled());
    }
}

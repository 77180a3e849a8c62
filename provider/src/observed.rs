//! What a fake keeps and a test looks at: a record that can be waited for, and calls that can be made to panic.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// A record that says in short what it holds, for the test that waits in vain.
pub trait Summary {
    /// In one line.
    fn summary(&self) -> String;
}

/// A record under observation.
#[derive(Debug, Default)]
pub struct Observed<R> {
    record: Mutex<R>,
    touched: watch::Sender<u64>,
    broken: Mutex<Broken>,
}

#[derive(Debug, Default)]
struct Broken {
    calls: BTreeSet<&'static str>,
    panics: usize,
}

impl<R: Summary> Observed<R> {
    /// Observes a record.
    pub fn new(record: R) -> Self {
        Self { record: record.into(), touched: watch::Sender::default(), broken: Mutex::default() }
    }

    /// The record, for the fake itself, which touches it when it has changed something.
    pub fn lock(&self) -> MutexGuard<'_, R> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait.
    pub fn touch(&self) {
        self.touched.send_modify(|count| *count += 1);
    }

    /// Reads the record.
    pub fn see<T>(&self, read: impl FnOnce(&R) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the record.
    pub fn set(&self, change: impl FnOnce(&mut R)) {
        change(&mut self.lock());
        self.touch();
    }

    /// Waits until the record is as wanted.
    ///
    /// # Panics
    /// When it is not within 10 minutes of the runtime's clock, which is paused in most tests.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&R) -> bool) {
        let mut touched = self.touched.subscribe();
        let reached = async {
            while !self.see(&wanted) {
                touched.changed().await.expect("the sender is part of self");
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(600), reached).await;
        assert!(in_time.is_ok(), "never seen: {what}; {}", self.see(R::summary));
    }

    /// Makes a call panic from now on, as a bug beneath it would.
    pub fn break_call(&self, call: &'static str) {
        self.broken().calls.insert(call);
    }

    /// Makes all calls work again.
    pub fn mend_calls(&self) {
        self.broken().calls.clear();
    }

    /// How often a broken call was made.
    pub fn panics(&self) -> usize {
        self.broken().panics
    }

    /// To be called by the fake in each call that can be broken, while it holds no lock.
    ///
    /// # Panics
    /// When the call is broken.
    pub fn panic_if_broken(&self, call: &'static str) {
        let is_broken = {
            let mut broken = self.broken();
            let is_broken = broken.calls.contains(call);
            broken.panics += usize::from(is_broken);
            is_broken
        };
        self.touch();
        assert!(!is_broken, "{call} is broken");
    }

    fn broken(&self) -> MutexGuard<'_, Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

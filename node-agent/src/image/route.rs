//! Which of a repository's sources a blob is asked of next, and what is to be done when what came is wrong.
//!
//! A source that fails is passed over until each has had its turn; then all are asked again after a wait, from where the
//! last one broke off. When what several gave together is wrong, nobody knows who lied: from then on whoever begins goes
//! on alone, so that a liar is found and passed over for good.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use crate::registry::{RegistryError, retry};

/// The sources of one blob and how they have fared.
#[derive(Debug)]
pub(super) struct Route {
    /// In the order of trial.
    sources: Vec<Source>,
    first_bytes: FirstBytes,
    /// Whoever begins goes on alone.
    alone: bool,
    /// Rounds in which each source failed, since the last progress.
    failures: u32,
}

#[derive(Debug)]
struct Source {
    id: usize,
    state: State,
    /// Some of what was received since the beginning came from it.
    gave: bool,
    /// The last of its errors.
    error: Option<RegistryError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Has failed in this round in a way that may pass.
    Tired,
    /// There is no good in asking it again.
    Out,
}

/// Where the first bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstBytes {
    /// One of the sources.
    Received,
    /// A file that an earlier transfer has left; nobody knows who gave it.
    Kept,
}

/// What is to be done when what was received is wrong, or no more comes from the one that must go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Take back everything and begin at the first byte.
    BeginAnew,
    /// There is nobody left to ask.
    GiveUp,
}

impl Route {
    /// No source has been asked yet.
    pub(super) fn new(sources: Vec<usize>) -> Self {
        let sources = sources.into_iter().map(|id| Source { id, state: State::Ready, gave: false, error: None });
        Self { sources: sources.collect(), first_bytes: FirstBytes::Received, alone: false, failures: 0 }
    }

    /// Notes where the first bytes come from.
    pub(super) fn begin_with(&mut self, first_bytes: FirstBytes) {
        self.first_bytes = first_bytes;
    }

    /// Who is to be asked; none when each has failed in this round.
    pub(super) fn next(&self) -> Option<usize> {
        let begun = self.alone && self.sources.iter().any(|source| source.gave);
        self.sources.iter().find(|source| source.state == State::Ready && (!begun || source.gave)).map(|one| one.id)
    }

    /// Bytes came from a source.
    pub(super) fn gave(&mut self, id: usize) {
        if let Some(source) = self.source(id) {
            source.gave = true;
        }
    }

    /// Enough has come since the last failure for the failures before it not to count.
    pub(super) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// A source did not answer as it should, or broke off.
    pub(super) fn failed(&mut self, id: usize, error: RegistryError) {
        let Some(source) = self.source(id) else { return };
        source.state = if error.is_transient() { State::Tired } else { State::Out };
        source.error = Some(error);
    }

    /// How long to wait until the sources are asked again, after each has failed; none to give up. `jitter` is from 0 to 1.
    pub(super) fn wait(&mut self, jitter: f64) -> Option<Duration> {
        let tired: Vec<_> = self.sources.iter().filter(|source| source.state == State::Tired).collect();
        if tired.is_empty() {
            return None;
        }
        let asked = RegistryError::soonest(tired.into_iter().filter_map(|source| source.error.as_ref()));
        self.failures = self.failures.saturating_add(1);
        let wait = retry::wait(self.failures, asked, jitter)?;
        self.wake();
        Some(wait)
    }

    /// What came is wrong as a whole; the last of it came from `id`.
    pub(super) fn wrong(&mut self, id: usize, error: RegistryError) -> Verdict {
        let givers = self.sources.iter().filter(|source| source.gave).count();
        let kept = self.first_bytes == FirstBytes::Kept;
        if let Some(source) = self.source(id) {
            source.error = Some(error);
            if !kept && givers <= 1 {
                source.state = State::Out;
            }
        }
        self.alone |= givers > 1;
        self.begin_anew()
    }

    /// What was kept is wrong or cannot be read, and nothing came from anybody.
    pub(super) fn kept_is_wrong(&mut self) -> Verdict {
        if self.first_bytes == FirstBytes::Kept { self.begin_anew() } else { Verdict::GiveUp }
    }

    /// Nobody goes on with what has come. Another may have the whole of it.
    pub(super) fn abandoned(&mut self) -> Verdict {
        let kept = self.first_bytes == FirstBytes::Kept;
        let mut again = false;
        for source in &mut self.sources {
            // One that has less than was kept (416) is asked from the first byte on; one that was to go on alone is not.
            if kept && source.error.as_ref().is_some_and(RegistryError::is_wrong_content) {
                (source.state, again) = (State::Ready, true);
            } else if self.alone && source.gave {
                (source.state, again) = (State::Out, true);
            }
        }
        if again { self.begin_anew() } else { Verdict::GiveUp }
    }

    /// The last error of each source, in the order of trial.
    pub(super) fn into_error(self, otherwise: impl FnOnce() -> RegistryError) -> RegistryError {
        let errors: Vec<_> = self.sources.into_iter().filter_map(|source| source.error).collect();
        if errors.is_empty() { otherwise() } else { RegistryError::from_tried(errors) }
    }

    fn begin_anew(&mut self) -> Verdict {
        self.first_bytes = FirstBytes::Received;
        self.failures = 0;
        for source in &mut self.sources {
            source.gave = false;
        }
        self.wake();
        if self.next().is_some() { Verdict::BeginAnew } else { Verdict::GiveUp }
    }

    fn wake(&mut self) {
        for source in self.sources.iter_mut().filter(|source| source.state == State::Tired) {
            source.state = State::Ready;
        }
    }

    fn source(&mut self, id: usize) -> Option<&mut Source> {
        self.sources.iter_mut().find(|source| source.id == id)
    }
}

#[cfg(test)]
mod tests;

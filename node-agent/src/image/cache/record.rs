//! `caches/<id>.json`, as it is written.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BuildCache, BuildEvent, CachePhase, CacheState, CachedImage, MAX_EVENTS};

/// A cache on disk. Fields are added, never changed in meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) phase: CachePhase,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) ask_again: bool,
    pub(super) request: Request,
    /// What serves. During a rebuild it is the old content.
    pub(super) images: Vec<ImageRecord>,
    #[serde(default)]
    pub(super) events: Vec<BuildEvent>,
    pub(super) started: Timestamp,
    pub(super) last_updated: Timestamp,
}

/// What the newest build was asked for. Logins are not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) images: Vec<String>,
    #[serde(default)]
    pub(super) plain_http: Vec<String>,
    #[serde(default)]
    pub(super) insecure: Vec<String>,
    #[serde(default)]
    pub(super) size_limit_bytes: u64,
    #[serde(default)]
    pub(super) refresh: String,
    /// Whether there were logins: such a build cannot go on by itself after a restart.
    #[serde(default)]
    pub(super) with_logins: bool,
}

/// One image of a cache on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) reference: String,
    pub(super) manifest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<String>,
    pub(super) size_bytes: u64,
}

impl From<&BuildCache> for Request {
    fn from(wish: &BuildCache) -> Self {
        Self {
            images: wish.images.clone(),
            plain_http: wish.access.plain_http.clone(),
            insecure: wish.access.insecure.clone(),
            size_limit_bytes: wish.size_limit_bytes,
            refresh: wish.refresh.clone(),
            with_logins: !wish.access.credentials.is_empty(),
        }
    }
}

impl Request {
    /// Whether another build would bring the same. A build that is resumed has no logins, and brings the same all the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Self { with_logins: other.with_logins, ..self.clone() } == *other
    }
}

impl From<&CachedImage> for ImageRecord {
    fn from(image: &CachedImage) -> Self {
        Self {
            reference: image.reference.clone(),
            manifest: image.manifest.to_string(),
            index: image.index.map(|index| index.to_string()),
            size_bytes: image.size_bytes,
        }
    }
}

impl ImageRecord {
    /// None when a digest in it is not one.
    pub(super) fn read(&self) -> Option<CachedImage> {
        let index = match &self.index {
            Some(index) => Some(index.parse().ok()?),
            None => None,
        };
        let (reference, size_bytes) = (self.reference.clone(), self.size_bytes);
        Some(CachedImage { reference, manifest: self.manifest.parse().ok()?, index, size_bytes })
    }
}

impl Record {
    /// A cache that is asked for for the first time.
    pub(super) fn new(wish: &BuildCache, now: Timestamp) -> Self {
        Self {
            id: wish.id.clone(),
            name: wish.name.clone(),
            generation: generation(0, now),
            phase: CachePhase::Creating,
            reason: String::new(),
            ask_again: false,
            request: wish.into(),
            images: Vec::new(),
            events: Vec::new(),
            started: now,
            last_updated: now,
        }
    }

    /// Begins a build. With content it is a rebuild.
    pub(super) fn begin(&mut self, wish: &BuildCache, now: Timestamp) {
        self.name.clone_from(&wish.name);
        self.request = wish.into();
        self.build();
        self.events.clear();
        self.started = now;
        self.touch(now);
    }

    /// Goes on with a build that an earlier life of this process had begun.
    pub(super) fn resume(&mut self, now: Timestamp) {
        self.build();
        self.touch(now);
    }

    fn build(&mut self) {
        self.phase = if self.images.is_empty() { CachePhase::Creating } else { CachePhase::Updating };
        self.reason.clear();
        self.ask_again = false;
    }

    /// Ends a build that has brought everything.
    pub(super) fn succeed(&mut self, images: &[CachedImage], now: Timestamp) {
        self.images = images.iter().map(ImageRecord::from).collect();
        self.phase = CachePhase::Ready;
        self.reason.clear();
        self.ask_again = false;
        self.touch(now);
    }

    /// Ends a build that has not.
    pub(super) fn fail(&mut self, reason: String, now: Timestamp) {
        self.phase = if self.images.is_empty() { CachePhase::Failed } else { CachePhase::UpdateFailed };
        self.reason = reason;
        self.ask_again = false;
        self.touch(now);
    }

    /// Ends a build, or what served, for a reason that lies with this host: whoever asked for it is to ask again.
    pub(super) fn break_off(&mut self, reason: String, now: Timestamp) {
        self.fail(reason, now);
        self.ask_again = true;
    }

    /// Adds a step; the oldest go.
    pub(super) fn add_event(&mut self, event: BuildEvent, now: Timestamp) {
        if self.events.len() >= MAX_EVENTS {
            self.events.drain(..=self.events.len() - MAX_EVENTS);
        }
        self.events.push(event);
        self.touch(now);
    }

    /// Notes a step of the build. What is counted from the last one, as the day that a failed cache is kept, begins anew.
    pub(super) fn touch(&mut self, now: Timestamp) {
        self.bump_generation(now);
        self.last_updated = now;
    }

    /// Has whoever watches look again, though the build has made no step.
    pub(super) fn bump_generation(&mut self, now: Timestamp) {
        self.generation = generation(self.generation, now);
    }

    /// Whether a build is under way.
    pub(super) fn is_building(&self) -> bool {
        matches!(self.phase, CachePhase::Creating | CachePhase::Updating)
    }

    /// What others see.
    pub(super) fn state(&self, progress_percent: u8) -> CacheState {
        CacheState {
            id: self.id.clone(),
            name: self.name.clone(),
            generation: self.generation,
            phase: self.phase,
            progress_percent: if self.phase == CachePhase::Ready { 100 } else { progress_percent },
            reason: self.reason.clone(),
            ask_again: self.ask_again,
            refresh: self.request.refresh.clone(),
            images: self.images.iter().filter_map(ImageRecord::read).collect(),
            events: self.events.clone(),
            started: self.started,
            last_updated: self.last_updated,
        }
    }
}

/// The next generation. By the clock, so that it grows over a restart although progress is not written to disk; by one, if
/// the clock has not moved on.
fn generation(last: u64, now: Timestamp) -> u64 {
    u64::try_from(now.as_microsecond()).unwrap_or_default().max(last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn wish() -> BuildCache {
        BuildCache {
            id: "imc-1".into(),
            name: "one".into(),
            images: vec!["nginx".into()],
            access: super::super::RegistryAccess::default(),
            size_limit_bytes: 7,
            refresh: "1".into(),
        }
    }

    #[test]
    fn goes_through_its_phases() {
        let mut record = Record::new(&wish(), at(1));
        assert_eq!((record.phase, record.is_building()), (CachePhase::Creating, true));
        record.fail("no".into(), at(2));
        assert_eq!((record.phase, record.reason.as_str()), (CachePhase::Failed, "no"));
        record.begin(&wish(), at(3));
        assert_eq!((record.phase, record.reason.as_str(), record.started), (CachePhase::Creating, "", at(3)));
        let image = CachedImage {
            reference: "nginx".into(),
            manifest: crate::digest::Digest::of(b"m"),
            index: Some(crate::digest::Digest::of(b"i")),
            size_bytes: 3,
        };
        record.succeed(std::slice::from_ref(&image), at(4));
        assert_eq!((record.phase, record.state(7).progress_percent), (CachePhase::Ready, 100));
        record.begin(&wish(), at(5));
        record.break_off("restart".into(), at(6));
        assert_eq!((record.phase, record.state(7).ask_again), (CachePhase::UpdateFailed, true));
        record.resume(at(6));
        assert_eq!((record.phase, record.reason.as_str(), record.ask_again), (CachePhase::Updating, "", false));
        record.break_off("restart".into(), at(6));
        record.fail("no".into(), at(6));
        assert!(!record.ask_again);
        assert_eq!((record.phase, record.state(7).images), (CachePhase::UpdateFailed, vec![image]));
    }

    #[test]
    fn a_new_generation_is_no_step() {
        let mut record = Record::new(&wish(), at(1));
        record.fail("no".into(), at(2));
        let before = record.generation;
        record.bump_generation(at(90_000));
        assert!(record.generation > before);
        assert_eq!(record.last_updated, at(2));
    }

    #[test]
    fn keeps_the_newest_events_and_always_grows() {
        let mut record = Record::new(&wish(), at(9));
        let mut last = record.generation;
        for n in 0..60 {
            let event = BuildEvent {
                name: n.to_string(),
                reason: String::new(),
                message: String::new(),
                warning: false,
                time: at(n),
            };
            // The clock goes backwards.
            record.add_event(event, at(9 - n));
            assert!(record.generation > last);
            last = record.generation;
        }
        assert_eq!((record.events.len(), record.events[0].name.as_str()), (50, "10"));
    }

    #[test]
    fn reads_back_what_it_writes_and_holds_no_login() {
        let mut wish = wish();
        let login = crate::registry::Login::RegistryToken("hush".into());
        wish.access.credentials = vec![crate::registry::Credential { registry: "r".into(), login }];
        let record = Record::new(&wish, at(1));
        let text = serde_json::to_string(&record).unwrap();
        assert!(record.request.with_logins && !text.contains("hush"));
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}

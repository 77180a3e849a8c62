//! The task that owns all caches: it puts wishes on record, runs builds, and shows what is.
//!
//! ```text
//! (nothing) --build--> Creating --all here--> Ready --build, other images--> Updating --all here--> Ready
//!                         |                     ^                                |
//!                         '--> Failed --build---'             UpdateFailed <-----'
//! ```
//! A cache is Ready only once its file is durable, and a file is written only once the layers that it names are. After a
//! restart a build that was under way goes on by itself, unless it had logins: those are not kept, so it has failed, and
//! says that it is to be asked for again. So does a cache whose content the host has lost.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    BuildCache, BuildEvent, CacheError, CacheList, CachePhase, CachedImage, NodeImage,
    build::{Build, Report},
    builds::{Builds, Ended},
    record::Record,
};
use crate::{
    chain::Chain,
    digest::Digest,
    image::{RegistryAccess, mounts::Pin, resolve::ResolvedImage, service::Engine},
    registry::Reference,
    store::{Store, StoreError, caches, pins::Holder},
};

/// Wishes and reports that may wait.
const QUEUE: usize = 64;

/// An image that a cache holds.
#[derive(Debug, Clone)]
pub(in crate::image) struct Held {
    pub(in crate::image) cached: CachedImage,
    pub(in crate::image) reference: Reference,
    pub(in crate::image) image: Arc<ResolvedImage>,
    pub(in crate::image) pin: Pin,
}

/// What each cache serves, by id.
#[derive(Debug, Clone, Default)]
pub(in crate::image) struct Serving(Arc<HashMap<String, Arc<Vec<Held>>>>);

impl Serving {
    /// The image that a cache has for a reference: the same name and tag, or the same repository and digest, whichever tag
    /// it was cached under.
    pub(in crate::image) fn find(&self, cache: &str, wanted: &Reference) -> Option<&Held> {
        let held = self.0.get(cache)?;
        let same_content = |held: &&Held| match wanted.digest() {
            Some(digest) => {
                let has = *digest == held.cached.manifest || Some(*digest) == held.cached.index;
                has && held.reference.name() == wanted.name()
            }
            None => false,
        };
        held.iter().find(|held| held.reference == *wanted).or_else(|| held.iter().find(same_content))
    }

    /// All images, each manifest once with all its names.
    pub(in crate::image) fn node_images(&self) -> Vec<NodeImage> {
        let mut by_manifest: BTreeMap<Digest, NodeImage> = BTreeMap::new();
        for held in self.0.values().flat_map(|held| held.iter()) {
            let size_bytes = held.cached.size_bytes;
            let image = by_manifest.entry(held.cached.manifest).or_insert(NodeImage { names: Vec::new(), size_bytes });
            let name = held.reference.name();
            let by_digest = format!("{name}@{}", held.cached.index.unwrap_or(held.cached.manifest));
            let by_tag = held.reference.tag().map(|tag| format!("{name}:{tag}"));
            image.names.extend([Some(by_digest), by_tag].into_iter().flatten());
        }
        let mut images: Vec<NodeImage> = by_manifest.into_values().collect();
        for image in &mut images {
            image.names.sort();
            image.names.dedup();
        }
        images
    }
}

enum Command {
    Build(BuildCache, oneshot::Sender<Result<(), CacheError>>),
    Delete(String, oneshot::Sender<Result<(), CacheError>>),
}

/// What others have of the task.
#[derive(Debug)]
pub(in crate::image) struct Keeper {
    commands: mpsc::Sender<Command>,
    list: watch::Receiver<CacheList>,
    serving: watch::Receiver<Serving>,
}

impl Keeper {
    /// Reads what there is and begins to keep it, until `stop`.
    pub(in crate::image) async fn open(
        engine: Arc<Engine>,
        store: Arc<Store>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        let (commands, wishes) = mpsc::channel(QUEUE);
        let (show_list, list) = watch::channel(CacheList::default());
        let (show_serving, serving) = watch::channel(Serving::default());
        let (report, reports) = mpsc::channel(QUEUE);
        let mut task = Task {
            engine,
            store: Arc::clone(&store),
            tasks: tasks.clone(),
            caches: BTreeMap::new(),
            builds: Builds::default(),
            report,
            show_list,
            show_serving,
        };
        let read = tasks.spawn_blocking(move || caches::list::<Record>(store.layout())).await;
        let records = read.map_err(|err| StoreError::Io {
            action: "read",
            path: "caches".into(),
            source: std::io::Error::other(err),
        })??;
        task.recover(records).await;
        tasks.spawn(task.run(wishes, reports, stop));
        Ok(Self { commands, list, serving })
    }

    pub(in crate::image) async fn build(&self, wish: BuildCache) -> Result<(), CacheError> {
        if wish.images.is_empty() {
            return Err(CacheError::NoImages(wish.id));
        }
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Build(wish, answer)).await.map_err(|_| CacheError::Closed)?;
        answered.await.map_err(|_| CacheError::Closed)?
    }

    pub(in crate::image) async fn delete(&self, id: &str) -> Result<(), CacheError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Delete(id.to_owned(), answer)).await.map_err(|_| CacheError::Closed)?;
        answered.await.map_err(|_| CacheError::Closed)?
    }

    pub(in crate::image) fn watch(&self) -> watch::Receiver<CacheList> {
        self.list.clone()
    }

    pub(in crate::image) fn serving(&self) -> Serving {
        self.serving.borrow().clone()
    }
}

/// One cache.
struct Cache {
    record: Record,
    serving: Option<Arc<Vec<Held>>>,
    progress_percent: u8,
    build: Option<(u64, AbortHandle)>,
}

struct Task {
    engine: Arc<Engine>,
    store: Arc<Store>,
    tasks: TaskTracker,
    caches: BTreeMap<String, Cache>,
    builds: Builds,
    report: mpsc::Sender<(String, u64, Report)>,
    show_list: watch::Sender<CacheList>,
    show_serving: watch::Sender<Serving>,
}

impl Task {
    async fn run(
        mut self,
        mut wishes: mpsc::Receiver<Command>,
        mut reports: mpsc::Receiver<(String, u64, Report)>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                // Each arm waits on a queue or a set, which keep what is not taken out.
                Some(wish) = wishes.recv() => self.carry_out(wish).await,
                Some((id, number, report)) = reports.recv() => self.note(&id, number, report),
                Some(ended) = self.builds.next() => {
                    // What a build has told before its end comes before it.
                    while let Ok((id, number, report)) = reports.try_recv() {
                        self.note(&id, number, report);
                    }
                    self.end(ended).await;
                }
                () = stop.cancelled() => break,
            }
        }
        // Dropping the set ends the builds; they go on or are asked for again after the restart.
        self.builds.shutdown().await;
    }

    /// What an earlier life of this process has left.
    async fn recover(&mut self, records: Vec<(String, Record)>) {
        for (id, mut record) in records {
            let was_building = record.is_building();
            let serving = match self.held(&record).await {
                Ok(held) => Some(Arc::new(held)).filter(|held| !held.is_empty()),
                Err(reason) => {
                    tracing::warn!(cache = id, reason, "image cache is no longer whole");
                    record.images.clear();
                    record.break_off(reason, Timestamp::now());
                    None
                }
            };
            let goes_on = was_building && !record.request.with_logins;
            if goes_on {
                record.resume(Timestamp::now());
            } else if was_building {
                interrupt(&mut record, Timestamp::now());
            }
            record.touch(Timestamp::now());
            let request = record.request.clone();
            let name = record.name.clone();
            self.caches.insert(id.clone(), Cache { record, serving, progress_percent: 0, build: None });
            if goes_on {
                let access = RegistryAccess {
                    credentials: Vec::new(),
                    plain_http: request.plain_http,
                    insecure: request.insecure,
                };
                let size_limit_bytes = request.size_limit_bytes;
                self.begin(BuildCache { id, name, images: request.images, access, size_limit_bytes });
            }
        }
        self.show();
        self.show_what_serves();
    }

    /// The content of a record, pinned and mounted.
    async fn held(&self, record: &Record) -> Result<Vec<Held>, String> {
        let mut all = Vec::with_capacity(record.images.len());
        for image in &record.images {
            let gone = || format!("image {:?} is no longer complete on this host", image.reference);
            let cached = image.read().ok_or_else(gone)?;
            let reference: Reference = image.reference.parse().map_err(|_| gone())?;
            let resolved = self.engine.resolver.in_store(cached.manifest).await;
            let mut resolved = resolved.map_err(|err| format!("{}: {}", gone(), Chain(&err)))?;
            resolved.top = cached.index.unwrap_or(cached.manifest);
            let pin = self.engine.mounts.pin(Holder::Cache, &resolved.image_layers()).await;
            let pin = pin.map_err(|err| format!("{}: {}", gone(), Chain(&err)))?;
            if !self.engine.fetcher.plan(&resolved.layers).await.missing.is_empty() {
                return Err(gone());
            }
            if let Err(err) = self.engine.mounts.mount(&pin).await {
                // It is tried again when a pod wants it.
                tracing::warn!(image = image.reference, error = %Chain(&err), "mount cached image");
            }
            all.push(Held { cached, reference, image: Arc::new(resolved), pin });
        }
        Ok(all)
    }

    async fn carry_out(&mut self, command: Command) {
        match command {
            Command::Build(wish, answer) => {
                // Who no longer waits for the answer sees it in the list.
                let _ = answer.send(self.build(wish).await);
            }
            Command::Delete(id, answer) => {
                let _ = answer.send(self.delete(&id).await);
            }
        }
    }

    async fn build(&mut self, wish: BuildCache) -> Result<(), CacheError> {
        if self.store.layout().cache(&wish.id).is_none() {
            return Err(CacheError::InvalidId(wish.id));
        }
        let now = Timestamp::now();
        let mut record = match self.caches.get(&wish.id) {
            Some(cache) => cache.record.clone(),
            None => Record::new(&wish, now),
        };
        let same = record.request.images == wish.images && record.request.size_limit_bytes == wish.size_limit_bytes;
        let is_under_way = self.caches.get(&wish.id).is_some_and(|cache| cache.build.is_some());
        if same && (is_under_way || record.phase == CachePhase::Ready) {
            return Ok(());
        }
        record.begin(&wish, now);
        self.write(&record).await?;
        let id = wish.id.clone();
        match self.caches.get_mut(&id) {
            Some(cache) => {
                cache.record = record;
                if let Some((_, build)) = cache.build.take() {
                    build.abort();
                }
            }
            None => {
                self.caches.insert(id, Cache { record, serving: None, progress_percent: 0, build: None });
            }
        }
        self.begin(wish);
        self.show();
        Ok(())
    }

    /// Begins the build of a cache that is on record.
    fn begin(&mut self, wish: BuildCache) {
        let number = self.builds.next_number();
        let id = wish.id.clone();
        // The build speaks of itself only; which build it is, is added here.
        let (reports, mut told) = mpsc::channel(QUEUE);
        let (all_reports, build_id) = (self.report.clone(), id.clone());
        let build = Build { engine: Arc::clone(&self.engine), wish, reports };
        let handle = self.builds.spawn(&id, number, async move {
            let forward = async {
                while let Some(report) = told.recv().await {
                    // The keeper is gone: so will be this build.
                    let _ = all_reports.send((build_id.clone(), number, report)).await;
                }
            };
            tokio::join!(build.run(), forward).0
        });
        if let Some(cache) = self.caches.get_mut(&id) {
            cache.progress_percent = 0;
            cache.build = Some((number, handle));
        }
    }

    async fn delete(&mut self, id: &str) -> Result<(), CacheError> {
        if !self.caches.contains_key(id) {
            return Ok(());
        }
        let (store, name) = (Arc::clone(&self.store), id.to_owned());
        let removed = self.tasks.spawn_blocking(move || caches::remove(store.layout(), &name)).await;
        removed.map_err(|_| CacheError::Closed)??;
        if let Some(Cache { build: Some((_, build)), .. }) = self.caches.remove(id) {
            build.abort();
        }
        self.show();
        self.show_what_serves();
        Ok(())
    }

    fn note(&mut self, id: &str, number: u64, report: Report) {
        let Some(cache) = self.caches.get_mut(id).filter(|cache| cache.is_built_by(number)) else { return };
        let now = Timestamp::now();
        match report {
            Report::Progress(percent) if percent <= cache.progress_percent => return,
            Report::Progress(percent) => {
                cache.progress_percent = percent;
                cache.record.touch(now);
            }
            Report::Event { name, reason, message, warning } => {
                let reason = reason.to_owned();
                cache.record.add_event(BuildEvent { name, reason, message, warning, time: now }, now);
            }
        }
        self.show();
    }

    async fn end(&mut self, Ended { id, number, result }: Ended) {
        let Some(cache) = self.caches.get(&id).filter(|cache| cache.is_built_by(number)) else { return };
        let (mut record, now) = (cache.record.clone(), Timestamp::now());
        let event = |reason: &str, message, warning| BuildEvent {
            name: cache.record.name.clone(),
            reason: reason.to_owned(),
            message,
            warning,
            time: now,
        };
        let held = match result {
            Ok(held) => {
                record.add_event(event("Ready", "All images are complete on this host.".to_owned(), false), now);
                let images: Vec<CachedImage> = held.iter().map(|held| held.cached.clone()).collect();
                record.succeed(&images, now);
                Some(Arc::new(held))
            }
            Err(err) => {
                record.add_event(event("Failed", err.to_string(), true), now);
                record.fail(err.to_string(), now);
                None
            }
        };
        // Ready is what is durable.
        let held = match self.write(&record).await {
            Ok(()) => held,
            Err(err) => {
                record.images.clone_from(&cache.record.images);
                record.fail(format!("put on record: {}", Chain(&err)), now);
                None
            }
        };
        if let Some(cache) = self.caches.get_mut(&id) {
            cache.record = record;
            cache.build = None;
            if held.is_some() {
                cache.serving = held;
            }
        }
        self.show_what_serves();
        self.show();
    }

    async fn write(&self, record: &Record) -> Result<(), StoreError> {
        let (store, record) = (Arc::clone(&self.store), record.clone());
        let written = self.tasks.spawn_blocking(move || caches::put(store.layout(), &record.id, &record)).await;
        written.unwrap_or_else(|err| {
            Err(StoreError::Io { action: "write", path: "caches".into(), source: std::io::Error::other(err) })
        })
    }

    fn show(&self) {
        let before = self.show_list.borrow().clone();
        let state = |(id, cache): (&String, &Cache)| {
            // What has not changed is shared with the list before.
            let same = before.get(id).filter(|state| state.generation == cache.record.generation);
            let state = same.cloned().unwrap_or_else(|| Arc::new(cache.record.state(cache.progress_percent)));
            (id.clone(), state)
        };
        self.show_list.send_replace(Arc::new(self.caches.iter().map(state).collect()));
    }

    fn show_what_serves(&self) {
        let serving = |(id, cache): (&String, &Cache)| Some((id.clone(), Arc::clone(cache.serving.as_ref()?)));
        self.show_serving.send_replace(Serving(Arc::new(self.caches.iter().filter_map(serving).collect())));
    }
}

/// A build that cannot go on by itself ends.
fn interrupt(record: &mut Record, now: Timestamp) {
    let message = "the build was interrupted by a restart of the node agent".to_owned();
    let name = record.name.clone();
    let reason = "Interrupted".to_owned();
    record.add_event(BuildEvent { name, reason, message: message.clone(), warning: true, time: now }, now);
    record.break_off(message, now);
}

impl Cache {
    fn is_built_by(&self, number: u64) -> bool {
        self.build.as_ref().is_some_and(|(current, _)| *current == number)
    }
}

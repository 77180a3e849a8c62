//! The task that owns all caches: it puts wishes on record, runs builds, holds what caches serve, and shows what is. What
//! becomes of a cache is decided in `caches`.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    BuildCache, CacheError, CacheList, CachedImage,
    build::{Build, Report},
    builds::{Builds, Ended},
    caches::Caches,
    record::Record,
    serving::{Held, Serving},
};
use crate::{
    chain::Chain,
    image::service::Engine,
    registry::Reference,
    store::{Store, StoreError, caches, pins::Holder},
};

/// Wishes and reports that may wait.
const QUEUE: usize = 64;

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
            caches: Caches::default(),
            serving: HashMap::new(),
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

struct Task {
    engine: Arc<Engine>,
    store: Arc<Store>,
    tasks: TaskTracker,
    caches: Caches,
    /// What each cache serves: that of its last build that succeeded.
    serving: HashMap<String, Arc<Vec<Held>>>,
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
        for (id, record) in records {
            let lost = match self.held(&record).await {
                Ok(held) if held.is_empty() => None,
                Ok(held) => {
                    self.serving.insert(id.clone(), Arc::new(held));
                    None
                }
                Err(reason) => {
                    tracing::warn!(cache = id, reason, "image cache is no longer whole");
                    Some(reason)
                }
            };
            if let Some(wish) = self.caches.take_up(id, record, lost, Timestamp::now()) {
                self.begin(wish);
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
            // Pods are adopted after this, so it is no time to wait for what they use.
            if let Err(err) = self.engine.mounts.mount_now(&pin).await {
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
        let Some(record) = self.caches.wished(&wish, Timestamp::now()) else { return Ok(()) };
        self.write(&record).await?;
        if let Some(given_up) = self.caches.put(record) {
            self.builds.abort(given_up);
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
        self.builds.spawn(&id, number, async move {
            let forward = async {
                while let Some(report) = told.recv().await {
                    // The keeper is gone: so will be this build.
                    let _ = all_reports.send((build_id.clone(), number, report)).await;
                }
            };
            tokio::join!(build.run(), forward).0
        });
        self.caches.begin(&id, number);
    }

    async fn delete(&mut self, id: &str) -> Result<(), CacheError> {
        if !self.caches.has(id) {
            return Ok(());
        }
        let (store, name) = (Arc::clone(&self.store), id.to_owned());
        let removed = self.tasks.spawn_blocking(move || caches::remove(store.layout(), &name)).await;
        removed.map_err(|_| CacheError::Closed)??;
        if let Some(given_up) = self.caches.remove(id) {
            self.builds.abort(given_up);
        }
        self.serving.remove(id);
        self.show();
        self.show_what_serves();
        Ok(())
    }

    fn note(&mut self, id: &str, number: u64, report: Report) {
        if self.caches.note(id, number, report, Timestamp::now()) {
            self.show();
        }
    }

    async fn end(&mut self, Ended { id, number, result }: Ended) {
        let now = Timestamp::now();
        let (held, came) = match result {
            Ok(held) => {
                let images: Vec<CachedImage> = held.iter().map(|held| held.cached.clone()).collect();
                (Some(held), Ok(images))
            }
            Err(err) => (None, Err(err.to_string())),
        };
        let Some(record) = self.caches.ended(&id, number, came, now) else { return };
        // Ready is what is durable.
        match self.write(&record).await {
            Ok(()) => {
                self.caches.put(record);
                if let Some(held) = held {
                    self.serving.insert(id, Arc::new(held));
                }
            }
            Err(err) => self.caches.not_recorded(record, &Chain(&err).to_string(), now),
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
        let list = self.caches.list(&self.show_list.borrow());
        self.show_list.send_replace(list);
    }

    fn show_what_serves(&self) {
        self.show_serving.send_replace(Serving(Arc::new(self.serving.clone())));
    }
}

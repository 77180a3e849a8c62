//! The steps of a pod, each on a task of its own that ends with an [`Outcome`].

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tracing::Instrument as _;

use super::{
    Worker,
    outcome::{Note, Outcome},
    start::{self, Start},
};
use crate::{
    chain::Chain,
    host::removal,
    image::{EnsureImage, EnsureImageError, ImageProgress, PresentImage, Waiter},
    pod::{
        container_spec,
        events::{self, Notice},
        host::Host,
        last_words::LastWords,
        lifecycle::{Event, Step},
        network_files,
    },
    runtime::{Container, ContainerId, ContainerState, RuntimeError, Signal},
    sandbox::SandboxSpec,
};

/// How long a container that does not come up keeps its permit to start.
const PERMIT_HELD_FOR: Duration = Duration::from_secs(10);
/// How much news of an image waits to be taken in.
const PROGRESS_LENGTH: usize = 16;
/// How often an event tells how far a pull is.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

impl Worker {
    pub(super) fn execute(&mut self, step: Step) {
        match step {
            Step::MakeSandbox => self.make_sandbox(),
            Step::SetUpVolumes => self.set_up_volumes(),
            Step::EnsureImage(image) => self.ensure_image(image),
            Step::StartContainer(index) => self.start_container(index),
            Step::Signal(index, signal) => self.signal(index, signal, events::killing),
            Step::Replace(index) => self.signal(index, Signal::Stop, events::replacing),
            Step::RemoveEnded(index) => self.remove_ended(index),
            Step::ReleaseSandbox => self.release_sandbox(),
            Step::ReleaseVolumes => self.release_volumes(),
            Step::RemoveContainers => self.remove_containers(),
            Step::Forget => self.forget(),
            // Taken care of where no task is needed.
            Step::AnnouncePullBackOff(_)
            | Step::AnnounceCrashLoop(_)
            | Step::AnnounceDeadline
            | Step::AnnounceEviction(_)
            | Step::CancelImages
            | Step::CancelStarts => {}
        }
    }

    fn make_sandbox(&mut self) {
        let names = network_files::names(&self.wish.pod, &self.host.settings.dns);
        let security = self.wish.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let sysctls = security.and_then(|security| security.sysctls.as_ref()).into_iter().flatten();
        let spec = SandboxSpec {
            uid: self.identity.uid.clone(),
            hostname: names.hostname,
            domainname: String::new(),
            sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        };
        let (host, since) = (Arc::clone(&self.host), Instant::now());
        let make = async move { Outcome::Sandbox(host.parts.sandboxes.ensure(spec).await, since) };
        self.tasks.spawn(make.in_current_span());
    }

    fn set_up_volumes(&mut self) {
        let (host, wish, since) = (Arc::clone(&self.host), Arc::clone(&self.wish), Instant::now());
        self.tasks.spawn_blocking(move || Outcome::Volumes(host.parts.files.set_up(&wish), since));
    }

    fn ensure_image(&mut self, image: usize) {
        let Some(wanted) = self.image_wishes.get(image) else { return };
        let wish = EnsureImage {
            reference: wanted.reference.clone(),
            policy: wanted.policy,
            access: self.wish.access.clone(),
            cache: self.wish.cache.clone(),
            waiter: Waiter::Pod { namespace: self.identity.namespace.clone(), name: self.identity.name.clone() },
        };
        let (host, notes) = (Arc::clone(&self.host), self.notes_sender.clone());
        let (cancelled, since) = (self.cancel_images.clone(), Instant::now());
        let ensure = async move {
            tokio::select! {
                // Dropping the wish gives it up; that is what its owner promises.
                result = ensure(&host, wish, image, &notes) => Outcome::Image(image, result, since),
                () = cancelled.cancelled() => Outcome::ImageCancelled(image),
            }
        };
        self.tasks.spawn(ensure.in_current_span());
    }

    fn start_container(&mut self, index: usize) {
        let place = self.machine.plan.containers[index].image;
        let (Some(sandbox), Some(files), Some(image)) = (&self.sandbox, &self.files, &self.images[place]) else {
            // The machine says Ready only for what is in the books.
            let failure = start::failure("CreateContainerError", "sandbox, volumes or image are missing".to_owned());
            let event = Outcome::StartFailed(index, failure);
            self.tasks.spawn(async move { event });
            return;
        };
        let start = Start {
            host: Arc::clone(&self.host),
            wish: Arc::clone(&self.wish),
            identity: self.identity.clone(),
            index,
            attempt: self.machine.nodes[index].next_attempt(),
            sandbox: sandbox.clone(),
            files: Arc::clone(files),
            image: image.clone(),
        };
        // A restart finds the image that the pod holds.
        if start.attempt > 0
            && !self.machine.plan.containers[index].pull_again
            && let Some(image) = self.image_wishes.get(place)
        {
            self.tell_event(Some(index), events::already_present(&image.reference));
        }
        let cancelled = self.cancel_starts.clone();
        self.tasks.spawn(start.run(cancelled).in_current_span());
    }

    /// Reports the container's next state after `last`.
    pub(super) fn watch(
        &mut self,
        index: usize,
        mut container: Container,
        last: ContainerState,
        permit: Option<(OwnedSemaphorePermit, Instant)>,
    ) {
        let words = self.wish.container(index);
        let words = words.map(|spec| LastWords::of(&self.host, &self.identity, spec, container.attempt));
        let watch = async move {
            let mut permit = permit;
            let changed = |state: &ContainerState| *state != last;
            let state = loop {
                tokio::select! {
                    // Waiting for a value loses nothing when it is dropped: the value stays.
                    state = container.state.wait_for(changed) => match state {
                        Ok(state) => break state.clone(),
                        // The runtime is gone, and the agent with it.
                        Err(_) => return Outcome::Nothing,
                    },
                    () = tokio::time::sleep(PERMIT_HELD_FOR), if permit.is_some() => permit = None,
                }
            };
            let state = match (state, words) {
                (ContainerState::Exited(exit), Some(words)) => ContainerState::Exited(words.add_to(exit).await),
                (state, _) => state,
            };
            Outcome::Changed(index, container, state, permit)
        };
        self.tasks.spawn(watch.in_current_span());
    }

    fn signal(&mut self, index: usize, signal: Signal, notice: fn(&str) -> Notice) {
        let Some(id) = self.machine.nodes[index].current.as_ref().map(|run| ContainerId(run.id.clone())) else {
            return;
        };
        if signal == Signal::Stop
            && let Some(container) = self.wish.container(index)
        {
            self.tell_event(Some(index), notice(&container.name));
        }
        let host = Arc::clone(&self.host);
        let send = async move { Outcome::Signalled(index, host.parts.runtime.signal(&id, signal).await) };
        self.tasks.spawn(send.in_current_span());
    }

    fn remove_ended(&mut self, index: usize) {
        let ended = self.containers.iter().filter(|(other, _)| *other == index).map(|(_, id)| id.clone());
        let current = self.machine.nodes[index].current.as_ref();
        let alive = current.filter(|run| run.exit.is_none()).map(|run| run.id.clone());
        let ended: Vec<ContainerId> = ended.filter(|id| Some(&id.0) != alive.as_ref()).collect();
        for id in ended {
            let host = Arc::clone(&self.host);
            let remove = async move {
                let result = host.parts.runtime.remove(&id).await;
                Outcome::Removed(id, result)
            };
            self.tasks.spawn(remove.in_current_span());
        }
        self.remove_old_log(index);
    }

    /// Two logs are kept of a container: the current run's and the one before.
    fn remove_old_log(&mut self, index: usize) {
        let node = &self.machine.nodes[index];
        let (Some(container), Some(old)) = (self.wish.container(index), node.next_attempt().checked_sub(3)) else {
            return;
        };
        let path = container_spec::log_path(&self.host.settings.log_root, &self.identity, &container.name, old);
        self.tasks.spawn_blocking(move || {
            // What cannot be removed now goes with the pod's folder.
            let _ = std::fs::remove_file(path);
            Outcome::Nothing
        });
    }

    fn remove_containers(&mut self) {
        let ids: Vec<ContainerId> = self.containers.iter().map(|(_, id)| id.clone()).collect();
        let host = Arc::clone(&self.host);
        let remove = async move {
            for id in ids {
                match host.parts.runtime.remove(&id).await {
                    Ok(()) | Err(RuntimeError::NotFound(_)) => {}
                    Err(error) => return failed(Event::ContainersRemoveFailed, &error),
                }
            }
            Outcome::Done(Event::ContainersRemoved, None)
        };
        self.tasks.spawn(remove.in_current_span());
    }

    fn release_sandbox(&mut self) {
        let (host, uid) = (Arc::clone(&self.host), self.identity.uid.clone());
        self.sandbox = None;
        let release = async move {
            match host.parts.sandboxes.remove(&uid).await {
                Ok(()) => Outcome::Done(Event::SandboxReleased, None),
                Err(error) => failed(Event::SandboxReleaseFailed, &error),
            }
        };
        self.tasks.spawn(release.in_current_span());
    }

    fn release_volumes(&mut self) {
        let (host, uid) = (Arc::clone(&self.host), self.identity.uid.clone());
        self.files = None;
        self.images.iter_mut().for_each(|image| *image = None);
        self.tasks.spawn_blocking(move || match host.parts.files.tear_down(&uid) {
            Ok(()) => Outcome::Done(Event::VolumesReleased, None),
            Err(error) => failed(Event::VolumesReleaseFailed, &error),
        });
    }

    fn forget(&mut self) {
        let host = Arc::clone(&self.host);
        let (uid, logs) =
            (self.identity.uid.clone(), container_spec::log_folder(&host.settings.log_root, &self.identity));
        self.tasks.spawn_blocking(move || {
            if let Err(error) = removal::remove_folder(&logs) {
                return failed(Event::ForgetFailed, &error);
            }
            // The record goes last: as long as it is there, a restarted agent takes up the removal.
            match host.parts.ledger.remove(&uid) {
                Ok(()) => Outcome::Done(Event::Forgotten, None),
                Err(error) => failed(Event::ForgetFailed, &error),
            }
        });
    }
}

fn failed(event: Event, error: &(dyn std::error::Error + 'static)) -> Outcome {
    Outcome::Done(event, Some(Chain(error).to_string()))
}

/// Ensures an image, telling the worker when the registry is asked.
async fn ensure(
    host: &Host,
    wish: EnsureImage,
    image: usize,
    notes: &mpsc::Sender<Note>,
) -> Result<(Box<PresentImage>, Option<ImageProgress>), EnsureImageError> {
    let (sender, mut progress) = mpsc::channel(PROGRESS_LENGTH);
    let (mut how, mut result) = (None, None);
    let mut told = Instant::now();
    let mut ensured = host.parts.images.ensure(wish, sender);
    loop {
        tokio::select! {
            biased;
            // A channel keeps what it holds, and the wish is only looked at, not dropped.
            Some(news) = progress.recv() => match news {
                // Whoever takes the notes ends before this task does; then nobody is interested.
                ImageProgress::Pulling => drop(notes.send(Note::Pulling(image)).await),
                ImageProgress::Layers(moved) => if told.elapsed() >= PROGRESS_EVERY {
                    told = Instant::now();
                    drop(notes.send(Note::PullProgress(image, moved)).await);
                },
                ImageProgress::Pulled { .. } | ImageProgress::AlreadyPresent => how = Some(news),
            },
            ended = &mut ensured, if result.is_none() => {
                result = Some(ended);
                // What was told before the end is taken in, what comes after it is not waited for.
                progress.close();
            }
            else => break,
        }
    }
    match result {
        Some(Ok(present)) => Ok((Box::new(present), how)),
        Some(Err(error)) => Err(error),
        None => Err(EnsureImageError::Pull { reference: String::new(), cause: "the wish was given up".to_owned() }),
    }
}

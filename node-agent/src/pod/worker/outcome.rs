//! What the steps of a pod come to, taken into the books and then to the machine.

use std::sync::Arc;

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::warn;

use super::{Worker, start::SkippedKeys};
use crate::{
    chain::Chain,
    image::{EnsureImageError, ImageProgress, Moved, PresentImage},
    meters::{ImageSource, StartStep},
    pod::{
        events,
        files::{FilesError, ReadyFiles},
        lifecycle::{Event, Failure, Run},
        network_files::{self, ResolvConf},
        status,
        storage::DiskUse,
    },
    runtime::{Container, ContainerExit, ContainerId, ContainerState, RuntimeError},
    sandbox::{Sandbox, SandboxError},
};

/// Something on the way of a step.
#[derive(Debug)]
pub(crate) enum Note {
    /// The registry is being asked for an image of the plan.
    Pulling(usize),
    /// How far a pull that takes long has come.
    PullProgress(usize, Moved),
}

/// The end of a step. Places are those of the plan.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing to take in.
    Nothing,
    /// A sandbox, or why there is none.
    Sandbox(Result<Sandbox, SandboxError>, Instant),
    /// Volumes, or why there are none.
    Volumes(Result<Arc<dyn ReadyFiles>, FilesError>, Instant),
    /// An image and how it came, or why it is not to be had.
    Image(usize, Result<(Box<PresentImage>, Option<ImageProgress>), EnsureImageError>, Instant),
    /// The wish for an image was taken back.
    ImageCancelled(usize),
    /// A start was taken back.
    StartCancelled(usize),
    /// Why a container could not be created.
    StartFailed(usize, Failure),
    /// The runtime is at work.
    Launched(Box<Launched>),
    /// A container has changed.
    Changed(usize, Container, ContainerState, Option<(OwnedSemaphorePermit, Instant)>),
    /// A container that had ended is removed, or not yet.
    Removed(ContainerId, Result<(), RuntimeError>),
    /// A signal was sent, or not.
    Signalled(usize, Result<(), RuntimeError>),
    /// It is time to measure what the pod takes of the disk.
    MeasureDue,
    /// What it takes, if that could be found out.
    Measured(Option<DiskUse>),
    /// A step that only succeeds or fails: the event, and why it failed.
    Done(Event, Option<String>),
}

/// A container that the runtime has taken on.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) index: usize,
    pub(crate) run: Run,
    pub(crate) image: PresentImage,
    pub(crate) container: Container,
    /// Held until the container is no longer starting.
    pub(crate) permit: OwnedSemaphorePermit,
    /// When the start was asked for, and when the permit came.
    pub(crate) asked: Instant,
    pub(crate) permitted: Instant,
    /// Keys of `envFrom` that are no names for variables, by source.
    pub(crate) skipped: SkippedKeys,
}

/// What was seen of a run before its end.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// It was still starting.
    Nothing,
    /// It was running.
    Running,
}

impl Worker {
    pub(super) fn take_note(&mut self, note: Note) {
        match note {
            Note::Pulling(image) => {
                if let Some((index, reference)) = self.first_user(image) {
                    self.tell_event(Some(index), events::pulling(&reference));
                }
                self.take_in(Event::ImagePulling(image));
            }
            Note::PullProgress(image, moved) => {
                if let Some((index, reference)) = self.first_user(image) {
                    self.tell_event(Some(index), events::pull_progress(&reference, moved));
                }
            }
        }
    }

    pub(super) fn take_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Sandbox(result, since) => self.take_sandbox(result, since),
            Outcome::Volumes(result, since) => self.take_volumes(result, since),
            Outcome::Image(image, Ok((present, how)), since) => self.take_image(image, *present, how, since),
            Outcome::Image(image, Err(error), _) => self.take_image_failure(image, &error),
            Outcome::ImageCancelled(image) => self.take_in(Event::ImageCancelled(image)),
            Outcome::StartCancelled(index) => self.take_in(Event::StartCancelled(index)),
            Outcome::StartFailed(index, failure) => {
                self.tell_event(Some(index), events::failed(&failure.message));
                self.take_in(Event::StartFailed(index, failure));
            }
            Outcome::Launched(launched) => self.take_launched(*launched),
            Outcome::Changed(index, container, state, permit) => self.take_change(index, container, state, permit),
            Outcome::Removed(id, result) => self.take_removal(&id, result),
            Outcome::Signalled(index, result) => {
                if let Err(error) = result {
                    warn!(pod_uid = self.identity.uid, index, error = %Chain(&error), "signal container");
                }
            }
            Outcome::MeasureDue => self.measure(),
            Outcome::Measured(used) => self.take_measure(used),
            Outcome::Done(event, failure) => {
                if let Some(failure) = failure {
                    warn!(pod_uid = self.identity.uid, ?event, error = failure, "step of pod failed");
                }
                self.take_in(event);
            }
        }
    }

    fn take_sandbox(&mut self, result: Result<Sandbox, SandboxError>, since: Instant) {
        match result {
            Ok(sandbox) => {
                self.timing.note(StartStep::Sandbox, since.elapsed());
                self.sandbox = Some(sandbox);
                self.take_in(Event::SandboxReady);
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                warn!(pod_uid = self.identity.uid, error = cause, "make sandbox");
                self.tell_event(None, events::sandbox_failed(&cause));
                self.take_in(Event::SandboxFailed);
            }
        }
    }

    fn take_volumes(&mut self, result: Result<Arc<dyn ReadyFiles>, FilesError>, since: Instant) {
        match result {
            Ok(files) => {
                self.timing.note(StartStep::Volumes, since.elapsed());
                // Told once a pod, not with each update.
                if self.files.is_none() && !self.resumed {
                    self.warn_of_missing_dns();
                    for volume in files.volumes() {
                        self.tell_event(None, events::mounted(&volume));
                    }
                }
                self.files = Some(files);
                self.take_in(Event::VolumesReady);
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                warn!(pod_uid = self.identity.uid, error = cause, "set up volumes");
                self.tell_event(None, events::mount_failed(&cause));
                self.take_in(Event::VolumesFailed);
            }
        }
    }

    fn warn_of_missing_dns(&self) {
        let resolver = network_files::resolver(&self.wish.pod, &self.host.settings.dns, &ResolvConf::default());
        if resolver.missing_cluster_dns {
            self.tell_event(None, events::missing_cluster_dns(&status::describe(&self.wish.pod)));
        }
    }

    fn take_image(&mut self, image: usize, present: PresentImage, how: Option<ImageProgress>, since: Instant) {
        self.timing.note(StartStep::Image, since.elapsed());
        let source = match how {
            Some(ImageProgress::AlreadyPresent) => ImageSource::Cache,
            Some(ImageProgress::Pulled { .. } | ImageProgress::Pulling | ImageProgress::Layers(_)) | None => {
                ImageSource::Registry
            }
        };
        self.host.parts.meters.image(source);
        let mut users = self.users_of(image).into_iter();
        if let Some((_, reference)) = self.first_user(image) {
            if let Some(ImageProgress::Pulled { took, took_with_waiting, size_bytes }) = how {
                let notice = events::pulled(&reference, took, took_with_waiting, size_bytes);
                self.tell_event(users.next(), notice);
            }
            // The others find it there.
            users.for_each(|index| self.tell_event(Some(index), events::already_present(&reference)));
        }
        self.images[image] = Some(present);
        self.take_in(Event::ImageReady(image));
    }

    fn take_image_failure(&mut self, image: usize, error: &EnsureImageError) {
        let (reason, message) = (error.reason(), image_message(error));
        self.host.parts.meters.image(ImageSource::Failed);
        warn!(pod_uid = self.identity.uid, image, reason, error = message, "ensure image");
        if let Some((index, reference)) = self.first_user(image) {
            self.tell_event(Some(index), events::image_failed(&reference, reason, &message));
            self.tell_event(Some(index), events::failed(reason));
        }
        self.take_in(Event::ImageFailed(image, Failure { reason: reason.to_owned(), message }));
    }

    fn take_launched(&mut self, launched: Launched) {
        let Launched { index, run, image, container, permit, asked, permitted, skipped } = launched;
        self.timing.note(StartStep::Queue, permitted.duration_since(asked));
        for (source, keys) in skipped {
            self.tell_event(None, events::skipped_keys(&source, &keys));
        }
        if run.attempt > 0 {
            self.host.parts.meters.restarts.inc();
        }
        self.containers.push((index, container.id.clone()));
        self.held[index] = Some(image);
        self.take_in(Event::Launched(index, run));
        // What the container is in now is told by the watch, as a change from here on.
        self.watch(index, container, ContainerState::Starting, Some((permit, permitted)));
    }

    fn take_change(
        &mut self,
        index: usize,
        container: Container,
        state: ContainerState,
        permit: Option<(OwnedSemaphorePermit, Instant)>,
    ) {
        let current = self.machine.nodes[index].current.as_ref();
        if current.is_none_or(|run| run.id != container.id.0) {
            return;
        }
        match state.clone() {
            ContainerState::Starting => {}
            ContainerState::Running { started_at, .. } => {
                if let Some((_, permitted)) = &permit {
                    self.timing.note(StartStep::Runtime, permitted.elapsed());
                    self.tell_event(Some(index), events::created(&container.name));
                    self.tell_event(Some(index), events::started(&container.name));
                }
                self.take_in(Event::Running(index, started_at));
                self.watch(index, container, state, None);
            }
            ContainerState::Exited(exit) => {
                let seen = if permit.is_some() { Seen::Nothing } else { Seen::Running };
                self.take_exit(index, &container, exit, seen);
            }
        }
    }

    fn take_exit(&mut self, index: usize, container: &Container, exit: ContainerExit, seen: Seen) {
        match seen {
            Seen::Running => {}
            // Its start is told with its end.
            Seen::Nothing => {
                self.tell_event(Some(index), events::created(&container.name));
                match exit.started_at {
                    Some(_) => self.tell_event(Some(index), events::started(&container.name)),
                    None => self.tell_event(Some(index), events::failed(&exit.message)),
                }
            }
        }
        self.held[index] = None;
        self.take_in(Event::Exited(index, exit));
    }

    fn take_removal(&mut self, id: &ContainerId, result: Result<(), RuntimeError>) {
        match result {
            Ok(()) => self.containers.retain(|(_, other)| other != id),
            // It stays in the books, and is removed with the pod at the latest.
            Err(error) => {
                warn!(pod_uid = self.identity.uid, container = id.0, error = %Chain(&error), "remove container")
            }
        }
    }

    /// The first container on an image of the plan, and the image's reference.
    fn first_user(&self, image: usize) -> Option<(usize, String)> {
        let index = self.users_of(image).into_iter().next()?;
        Some((index, self.image_wishes.get(image)?.reference.clone()))
    }
}

/// The message of a waiting container, without what its reason says already.
fn image_message(error: &EnsureImageError) -> String {
    match error {
        EnsureImageError::InvalidReference { .. } | EnsureImageError::Pull { .. } => error.to_string(),
        EnsureImageError::NeverPull { reference } => {
            format!("Container image \"{reference}\" is not present with pull policy of Never")
        }
        // The kubelet's words begin with a capital letter, and errors do not.
        EnsureImageError::NeverVerified { .. } => error.to_string().replacen("container", "Container", 1),
    }
}

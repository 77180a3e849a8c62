//! The steps that are due in a state, and when the next becomes due.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use super::{Cause, ContainerKind, Image, LEAST_GRACE, Machine, Part, Phase, Stage, Step, Then};
use crate::{pod::restart, runtime::Signal};

/// A kill that did not end a process is sent again after this time.
const KILL_AGAIN_AFTER: Duration = Duration::from_secs(10);

impl Machine {
    /// Begins what is due: the returned steps are marked as under way in the state.
    pub(super) fn advance(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        // A stage may end at once (nothing to stop, nothing to release), so go on until one stays.
        loop {
            let before = self.stage;
            match before {
                Stage::Active => self.advance_active(now, &mut steps),
                Stage::Stopping { kill_at, then } => self.advance_stopping(kill_at, then, now, &mut steps),
                Stage::Terminal(_) => self.release(now, &mut steps),
                Stage::Removing => self.advance_removing(now, &mut steps),
                Stage::Gone => {}
            }
            if self.stage == before {
                return steps;
            }
        }
    }

    /// When [`Event::Tick`](super::Event::Tick) is wanted next.
    pub fn wake_at(&self) -> Option<Timestamp> {
        let mut due: Vec<Timestamp> = Vec::new();
        match self.stage {
            Stage::Active => {
                due.extend([&self.sandbox, &self.volumes].into_iter().filter_map(Part::make_due));
                due.extend(self.plan.deadline);
                due.extend(self.nodes.iter().filter_map(|node| node_due(&node.phase).or(node.replaced)));
                due.extend(
                    (0..self.images.len())
                        .filter(|index| self.is_wanted(*index))
                        .filter_map(|index| image_due(&self.images[index])),
                );
            }
            Stage::Stopping { kill_at, .. } => due.push(kill_at),
            Stage::Terminal(_) | Stage::Removing => {
                let parts = [&self.sandbox, &self.volumes, &self.remains, &self.record];
                due.extend(parts.into_iter().filter_map(Part::release_due));
            }
            Stage::Gone => {}
        }
        due.into_iter().min()
    }

    fn advance_active(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
        if self.plan.deadline.is_some_and(|deadline| deadline <= now) {
            let kill_at = restart::later(now, self.plan.grace.max(LEAST_GRACE));
            steps.push(Step::AnnounceDeadline);
            steps.extend(self.stop(kill_at, Then::Keep(Cause::DeadlineExceeded)));
            return;
        }
        self.sandbox.make_when_due(now, Step::MakeSandbox, steps);
        self.volumes.make_when_due(now, Step::SetUpVolumes, steps);
        self.end_waits(now, steps);
        self.end_replaced(now, steps);
        self.ensure_images(now, steps);
        let volumes_usable = matches!(self.volumes, Part::Ready | Part::Updating { .. });
        if self.sandbox == Part::Ready && volumes_usable {
            self.start_containers(steps);
        }
        if self.is_finished() {
            self.stage = Stage::Terminal(Cause::Finished);
        }
    }

    /// Containers whose wait is over are due to start.
    fn end_waits(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
        for (index, (node, plan)) in self.nodes.iter_mut().zip(&self.plan.containers).enumerate() {
            match &mut node.phase {
                Phase::BackOff { retry, .. } if retry.at <= now => {
                    if plan.pull_again
                        && let Some(image @ Image::Here) = self.images.get_mut(plan.image)
                    {
                        *image = Image::Absent;
                    }
                    node.phase = Phase::Waiting;
                }
                Phase::BackOff { error_shows_until, .. } if error_shows_until.is_some_and(|until| until <= now) => {
                    *error_shows_until = None;
                    steps.push(Step::AnnounceCrashLoop(index));
                }
                Phase::StartFailed { retry, .. } if retry.at <= now => node.phase = Phase::Waiting,
                Phase::BackOff { .. }
                | Phase::StartFailed { .. }
                | Phase::Waiting
                | Phase::Starting
                | Phase::Launched
                | Phase::Running { .. }
                | Phase::Ended => {}
            }
        }
    }

    /// Containers whose image has changed are asked to end, and killed when they do not.
    fn end_replaced(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some(kill_at) = &mut node.replaced else { continue };
            match &mut node.phase {
                Phase::Running { stop_sent: sent @ false, .. } => {
                    *sent = true;
                    steps.push(Step::Replace(index));
                }
                Phase::Running { .. } | Phase::Launched | Phase::Starting => {}
                Phase::Waiting | Phase::StartFailed { .. } | Phase::BackOff { .. } | Phase::Ended => {
                    node.replaced = None;
                    continue;
                }
            }
            if *kill_at <= now {
                *kill_at = restart::later(now, KILL_AGAIN_AFTER);
                if node.phase != Phase::Starting {
                    steps.push(Step::Signal(index, Signal::Kill));
                }
            }
        }
    }

    /// Asks for the images of all containers that wait, those whose turn comes later included.
    fn ensure_images(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
        for index in 0..self.images.len() {
            if !self.is_wanted(index) {
                continue;
            }
            let after = match &mut self.images[index] {
                Image::Absent => None,
                Image::Failed { retry, .. } if retry.at <= now => Some(retry.delay),
                Image::Failed { error_shows_until, .. } => {
                    if error_shows_until.is_some_and(|until| until <= now) {
                        *error_shows_until = None;
                        steps.push(Step::AnnouncePullBackOff(index));
                    }
                    continue;
                }
                Image::Ensuring { .. } | Image::Here => continue,
            };
            self.images[index] = Image::Ensuring { pulling: false, after };
            steps.push(Step::EnsureImage(index));
        }
    }

    /// A container waits for the image.
    fn is_wanted(&self, image: usize) -> bool {
        let mut nodes = self.nodes.iter().zip(&self.plan.containers);
        nodes.any(|(node, plan)| plan.image == image && node.phase == Phase::Waiting)
    }

    fn start_containers(&mut self, steps: &mut Vec<Step>) {
        let first_init = self.of_kind(ContainerKind::Init).find(|index| !self.nodes[*index].succeeded());
        let turn: Vec<usize> = match first_init {
            Some(index) => vec![index],
            None => self.of_kind(ContainerKind::App).collect(),
        };
        for index in turn {
            let image = self.plan.containers[index].image;
            if self.nodes[index].phase == Phase::Waiting && self.images.get(image) == Some(&Image::Here) {
                self.nodes[index].phase = Phase::Starting;
                steps.push(Step::StartContainer(index));
            }
        }
    }

    /// All app containers have ended for good, or an init container has failed for good.
    fn is_finished(&self) -> bool {
        let ended = |index: &usize| self.nodes[*index].phase == Phase::Ended;
        let init_failed = self.of_kind(ContainerKind::Init).filter(ended).any(|index| !self.nodes[index].succeeded());
        init_failed || self.of_kind(ContainerKind::App).all(|index| ended(&index))
    }

    fn advance_stopping(&mut self, kill_at: Timestamp, then: Then, now: Timestamp, steps: &mut Vec<Step>) {
        let kill = kill_at <= now;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            match &mut node.phase {
                Phase::Running { .. } | Phase::Launched if kill => steps.push(Step::Signal(index, Signal::Kill)),
                Phase::Running { stop_sent: sent @ false, .. } => {
                    *sent = true;
                    steps.push(Step::Signal(index, Signal::Stop));
                }
                // Whoever has run and was to run again has ended; whoever never ran stays as it was.
                Phase::BackOff { .. } | Phase::StartFailed { .. } | Phase::Waiting => {
                    node.phase = if node.current.is_some() { Phase::Ended } else { Phase::Waiting };
                }
                Phase::Running { .. } | Phase::Launched | Phase::Starting | Phase::Ended => {}
            }
        }
        if kill {
            self.stage = Stage::Stopping { kill_at: restart::later(now, KILL_AGAIN_AFTER), then };
        }
        if self.is_quiet() {
            self.stage = match then {
                Then::Keep(cause) => Stage::Terminal(cause),
                Then::Remove => Stage::Removing,
            };
        }
    }

    /// No process is left, and nothing is under way that could make one.
    fn is_quiet(&self) -> bool {
        let mut parts = [&self.sandbox, &self.volumes].into_iter();
        let busy_part = parts.any(|part| matches!(part, Part::Making { .. } | Part::Updating { .. }));
        let busy_image = self.images.iter().any(|image| matches!(image, Image::Ensuring { .. }));
        let busy_node = self
            .nodes
            .iter()
            .any(|node| matches!(node.phase, Phase::Starting | Phase::Launched | Phase::Running { .. }));
        !(busy_part || busy_image || busy_node)
    }

    /// Gives everything back but record and logs.
    fn release(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
        self.remains.release_when_due(now, Step::RemoveContainers, steps);
        // Mounts of the containers hold the volumes, and their processes the network.
        if self.remains == Part::Released {
            self.sandbox.release_when_due(now, Step::ReleaseSandbox, steps);
            self.volumes.release_when_due(now, Step::ReleaseVolumes, steps);
        }
    }

    fn advance_removing(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
        self.release(now, steps);
        if self.sandbox == Part::Released && self.volumes == Part::Released {
            self.record.release_when_due(now, Step::Forget, steps);
        }
        if self.record == Part::Released {
            self.stage = Stage::Gone;
        }
    }
}

fn node_due(phase: &Phase) -> Option<Timestamp> {
    match phase {
        Phase::BackOff { retry, error_shows_until } => Some(error_shows_until.unwrap_or(retry.at)),
        Phase::StartFailed { retry, .. } => Some(retry.at),
        Phase::Waiting | Phase::Starting | Phase::Launched | Phase::Running { .. } | Phase::Ended => None,
    }
}

fn image_due(image: &Image) -> Option<Timestamp> {
    match image {
        Image::Failed { error_shows_until, retry, .. } => Some(error_shows_until.unwrap_or(retry.at)),
        Image::Absent | Image::Ensuring { .. } | Image::Here => None,
    }
}

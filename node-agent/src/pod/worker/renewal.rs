//! A newer wish for a pod that is at work already.

use std::sync::Arc;

use super::Worker;
use crate::{
    image::PullPolicy,
    pod::{
        ledger::LedgerError,
        lifecycle::{Event, Image},
        wish::{self, PodWish},
    },
};

impl Worker {
    /// Takes a newer wish on record. The same wish again changes nothing.
    ///
    /// The image cache stays the one that was chosen when the pod began, and so does how registries are spoken to. The
    /// provider may have read a newer wish off the pod, where its user writes what he likes: a cache that was never chosen
    /// for the pod would hand out images that nobody has asked the registry for on its behalf.
    pub(super) fn renew(&mut self, wish: PodWish) -> Result<(), LedgerError> {
        let wish = self.wish.renewed(wish);
        if wish == *self.wish {
            return Ok(());
        }
        self.host.parts.ledger.write_wish(&self.identity.uid, &wish)?;
        let plan = wish.plan(self.started_at);
        (self.machine.plan.deadline, self.machine.plan.grace) = (plan.deadline, plan.grace);
        self.wish = Arc::new(wish);
        for index in self.change_images() {
            self.take_in(Event::Replaced(index));
        }
        self.take_in(Event::Updated);
        Ok(())
    }

    /// Brings the plan's images in line with the wish, and says which containers have another one now.
    fn change_images(&mut self) -> Vec<usize> {
        let wish = Arc::clone(&self.wish);
        let mut changed = Vec::new();
        for (index, container) in wish.containers().enumerate().take(self.machine.plan.containers.len()) {
            let wanted = wish::image_of(container);
            let place = self.image_wishes.iter().position(|other| *other == wanted).unwrap_or_else(|| {
                self.image_wishes.push(wanted.clone());
                self.images.push(None);
                self.machine.images.push(Image::Absent);
                self.image_wishes.len() - 1
            });
            let plan = &mut self.machine.plan.containers[index];
            plan.pull_again = wanted.policy == PullPolicy::Always;
            if std::mem::replace(&mut plan.image, place) != place {
                changed.push(index);
            }
        }
        changed
    }
}

//! Pure: no I/O, no clock, no randomness.
//!
//! The events on an ImageCache object: what a status says that the one before it did not. So each thing is told once, also
//! over restarts of ours, and `kubectl describe` shows what became of the object.

use super::annotations::{NOT_HONOURED, UNUSABLE_SECRET};
use super::handle::{Note, note};
use super::request::INVALID_ANNOTATION;
use crate::custom_resource::{BuildEvent, ImageCacheStatus, Phase};

/// Steps of builds that are events of the object, too; each is told once, however many hosts make it.
const STEPS: [&str; 2] = ["Started", "Pulled"];
/// What is told of the object itself.
const NOTICES: [&str; 3] = [INVALID_ANNOTATION, NOT_HONOURED, UNUSABLE_SECRET];

/// The events that lead from one status to the next.
pub fn object_events(before: &ImageCacheStatus, after: &ImageCacheStatus) -> Vec<Note> {
    let mut told: Vec<(&str, &str)> = before.events.iter().map(step).collect();
    let mut notes = Vec::new();
    for event in &after.events {
        let Some(reason) = STEPS.iter().chain(&NOTICES).find(|reason| **reason == event.reason) else { continue };
        if !told.contains(&step(event)) {
            told.push(step(event));
            notes.push(note(event.kind == "Warning", reason, event.message.clone()));
        }
    }
    if before.phase != after.phase {
        notes.extend(phase_event(after));
    }
    notes
}

/// What makes two steps the same for whoever looks at the object: notices differ in what they say.
fn step(event: &BuildEvent) -> (&str, &str) {
    let about = if NOTICES.contains(&event.reason.as_str()) { &event.message } else { &event.name };
    (&event.reason, about)
}

fn phase_event(status: &ImageCacheStatus) -> Option<Note> {
    let id = status.image_cache_id.as_deref().unwrap_or_default();
    match status.phase {
        // Their first step says that a build has begun.
        Phase::Pending | Phase::Creating => None,
        Phase::Ready => Some(note(false, "Ready", format!("Image cache {id} is ready."))),
        Phase::Updating => Some(note(
            false,
            "Updating",
            format!("Image cache {id} is being built again; what it holds serves meanwhile."),
        )),
        Phase::Failed => Some(note(true, "Failed", status.reason.clone())),
        Phase::UpdateFailed => Some(note(true, "UpdateFailed", status.reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &str, name: &str, message: &str, host: &str) -> BuildEvent {
        BuildEvent {
            name: name.to_owned(),
            message: message.to_owned(),
            kind: if reason == "Pulled" { "Normal" } else { "Warning" }.to_owned(),
            reason: reason.to_owned(),
            host: host.to_owned(),
            timestamp: None,
        }
    }

    fn status(phase: Phase, events: Vec<BuildEvent>) -> ImageCacheStatus {
        ImageCacheStatus { phase, events, reason: "no room".to_owned(), ..ImageCacheStatus::default() }
    }

    fn brief(notes: &[Note]) -> Vec<(&'static str, &str)> {
        notes.iter().map(|note| (note.reason, note.message.as_str())).collect()
    }

    #[test]
    fn each_step_is_told_once_however_many_hosts_make_it() {
        let first = status(Phase::Creating, vec![event("Pulled", "nginx", "got nginx", "a")]);
        assert_eq!(brief(&object_events(&status(Phase::Pending, vec![]), &first)), [("Pulled", "got nginx")]);
        let second = status(
            Phase::Creating,
            vec![
                event("Pulled", "nginx", "got nginx", "a"),
                event("Pulled", "nginx", "got nginx", "b"),
                event("Pulling", "redis", "getting redis", "b"),
                event("Pulled", "redis", "got redis", "b"),
                event("Pulled", "redis", "got redis", "a"),
            ],
        );
        assert_eq!(brief(&object_events(&first, &second)), [("Pulled", "got redis")]);
        assert_eq!(object_events(&second, &second), []);
    }

    #[test]
    fn a_notice_is_told_for_what_it_says() {
        let one = event(NOT_HONOURED, "c", "x has no effect", "");
        let two = event(NOT_HONOURED, "c", "y has no effect", "");
        let before = status(Phase::Ready, vec![one.clone()]);
        let after = status(Phase::Ready, vec![one, two]);
        assert_eq!(brief(&object_events(&before, &after)), [(NOT_HONOURED, "y has no effect")]);
    }

    #[test]
    fn outcomes_are_told_when_they_come() {
        let told = |before, after| {
            let notes = object_events(&status(before, vec![]), &status(after, vec![]));
            notes.into_iter().map(|note| (note.warning, note.reason)).collect::<Vec<_>>()
        };
        assert_eq!(told(Phase::Pending, Phase::Creating), []);
        assert_eq!(told(Phase::Creating, Phase::Ready), [(false, "Ready")]);
        assert_eq!(told(Phase::Ready, Phase::Ready), []);
        assert_eq!(told(Phase::Ready, Phase::Updating), [(false, "Updating")]);
        assert_eq!(told(Phase::Updating, Phase::UpdateFailed), [(true, "UpdateFailed")]);
        assert_eq!(told(Phase::Creating, Phase::Failed), [(true, "Failed")]);
    }
}

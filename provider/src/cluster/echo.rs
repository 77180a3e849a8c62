//! Tells what a watch says of our own writes from news.
//!
//! A write is answered before the watch tells of it, so for a moment the watch is behind. Only then are resource versions
//! compared: where the API server has gone back to an earlier state, all that it says is "older", and true.
//!
//! Pure: no I/O, no clock, no randomness.

use kube::Resource;

/// What is awaited of the watch of one object.
#[derive(Debug, Default)]
pub struct Echo {
    /// The version that the newest answer bore, until the watch has come to it.
    answered: Option<u64>,
}

impl Echo {
    /// Remembers the answer to a write of ours.
    pub fn answered<K: Resource>(&mut self, object: &K) {
        self.answered = version(object);
    }

    /// Whether the watch tells of a state from before our newest write.
    pub fn is_behind<K: Resource>(&mut self, object: &K) -> bool {
        let is_behind = self.answered.zip(version(object)).is_some_and(|(answered, version)| version < answered);
        if !is_behind {
            self.answered = None;
        }
        is_behind
    }

    /// Forgets what was awaited: a list is what there is.
    pub fn listed(&mut self) {
        self.answered = None;
    }
}

/// Versions of one object grow for as long as the API server does not go back.
fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.resource_version = Some(version.to_owned());
        pod
    }

    #[test]
    fn only_what_is_from_before_our_own_write_is_behind() {
        let mut echo = Echo::default();
        assert!(!echo.is_behind(&pod("9")));
        assert!(!echo.is_behind(&pod("3")), "nothing was written, so nothing is awaited");
        echo.answered(&pod("7"));
        assert!(echo.is_behind(&pod("5")));
        assert!(echo.is_behind(&pod("6")));
        assert!(!echo.is_behind(&pod("7")));
        assert!(!echo.is_behind(&pod("5")), "the watch has caught up, so it is to be believed");
    }

    #[test]
    fn a_list_is_believed_and_so_is_a_version_that_is_no_number() {
        let mut echo = Echo::default();
        echo.answered(&pod("7"));
        echo.listed();
        assert!(!echo.is_behind(&pod("1")));
        echo.answered(&pod("7"));
        assert!(!echo.is_behind(&pod("x")));
    }
}

//! The builds under way. Each ends with a result, also by a panic: a cache must not be Creating for ever.

use std::collections::HashMap;

use tokio::task::{AbortHandle, Id, JoinSet};

use super::{build::BuildError, serving::Held};

/// What came of a build.
#[derive(Debug)]
pub(super) struct Ended {
    /// Of the cache.
    pub(super) id: String,
    /// Of the build.
    pub(super) number: u64,
    pub(super) result: Result<Vec<Held>, BuildError>,
}

/// Their tasks, and what each is about.
#[derive(Debug, Default)]
pub(super) struct Builds {
    tasks: JoinSet<Result<Vec<Held>, BuildError>>,
    /// The cache's id and the build's number.
    about: HashMap<Id, (String, u64)>,
    /// By the build's number.
    handles: HashMap<u64, AbortHandle>,
    next_number: u64,
}

impl Builds {
    /// A number that no other build has.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Starts a build of a cache.
    pub(super) fn spawn(
        &mut self,
        id: &str,
        number: u64,
        build: impl Future<Output = Result<Vec<Held>, BuildError>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(build);
        self.about.insert(handle.id(), (id.to_owned(), number));
        self.handles.insert(number, handle);
    }

    /// Gives up a build, if it has not ended.
    pub(super) fn abort(&mut self, number: u64) {
        if let Some(handle) = self.handles.remove(&number) {
            handle.abort();
        }
    }

    /// Waits for the next that ends by itself; those that were aborted are dropped. None when there is none. Safe to drop
    /// while it waits.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        loop {
            let (task, result) = match self.tasks.join_next_with_id().await? {
                Ok((task, result)) => (task, Some(result)),
                Err(err) if err.is_cancelled() => (err.id(), None),
                Err(err) => {
                    tracing::error!(error = %err, "build of an image cache broke off");
                    (err.id(), Some(Err(BuildError::BrokeOff(err))))
                }
            };
            let Some((id, number)) = self.about.remove(&task) else { continue };
            self.handles.remove(&number);
            if let Some(result) = result {
                return Some(Ended { id, number, result });
            }
        }
    }

    /// Aborts and joins all.
    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
        self.about.clear();
        self.handles.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_result_and_an_abort_is_none() {
        let mut builds = Builds::default();
        let numbers = [builds.next_number(), builds.next_number(), builds.next_number()];
        assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2]);
        builds.spawn("aborted", numbers[0], std::future::pending());
        builds.abort(numbers[0]);
        builds.spawn("broken", numbers[1], async { panic!("for the test") });
        let ended = builds.next().await.unwrap();
        assert_eq!((ended.id.as_str(), ended.number), ("broken", numbers[1]));
        let text = ended.result.unwrap_err().to_string();
        assert!(
            text.starts_with("the build broke off by a fault of the node agent: ") && text.contains("panic"),
            "{text}"
        );
        builds.spawn("whole", numbers[2], async { Ok(Vec::new()) });
        let ended = builds.next().await.unwrap();
        assert_eq!((ended.id.as_str(), ended.result.unwrap().len()), ("whole", 0));
        assert!(builds.next().await.is_none() && builds.about.is_empty() && builds.handles.is_empty());
    }
}

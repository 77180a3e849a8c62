//! The tasks of the agent, each known by the name of its part, also when it panics.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};
use tracing::error;

use super::AppError;
use crate::chain::Chain;

/// The tasks that run.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: JoinSet<Result<(), AppError>>,
    parts: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts the task of a part.
    pub(super) fn spawn(
        &mut self,
        part: &'static str,
        task: impl Future<Output = Result<(), AppError>> + Send + 'static,
    ) {
        let handle = self.running.spawn(task);
        self.parts.insert(handle.id(), part);
    }

    /// The next part that ends, and how. None when none runs. Safe to drop while it waits.
    pub(super) async fn next(&mut self) -> Option<(&'static str, Result<(), AppError>)> {
        let (id, ended) = match self.running.join_next_with_id().await? {
            Ok((id, ended)) => (id, Ok(ended)),
            Err(source) => (source.id(), Err(source)),
        };
        let part = self.parts.remove(&id).unwrap_or("a part");
        Some((part, ended.unwrap_or_else(|source| Err(AppError::Panicked { part, source }))))
    }

    /// Waits until nothing but the task of `left` runs. What fails on the way is logged.
    pub(super) async fn join_all_but(&mut self, left: Option<&str>) {
        while self.parts.values().any(|part| Some(*part) != left) {
            let Some((part, ended)) = self.next().await else { return };
            if let Err(error) = ended {
                error!(part, error = %Chain(&error), "part failed at the end");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_but_one_are_joined_whichever_of_them_has_ended_before() {
        let mut tasks = Tasks::default();
        for part in ["pods", "calls", "left"] {
            tasks.spawn(part, std::future::ready(Ok(())));
        }
        let (ready, gate) = tokio::sync::oneshot::channel();
        tasks.spawn("slow", async { gate.await.map_err(|_| AppError::PartEnded("gate")) });
        // The one that is to be left ends by itself: the slow one is waited for all the same.
        while tasks.parts.len() > 1 {
            tasks.next().await;
        }
        let mut joining = Box::pin(tasks.join_all_but(Some("left")));
        assert!(futures::FutureExt::now_or_never(&mut joining).is_none());
        ready.send(()).unwrap();
        joining.await;
        tasks.spawn("left", std::future::pending());
        tasks.spawn("pods", std::future::ready(Ok(())));
        tasks.join_all_but(Some("left")).await;
        assert_eq!(tasks.parts.into_values().collect::<Vec<_>>(), ["left"]);
    }

    #[tokio::test]
    async fn a_part_that_panics_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("pods", async { panic!("for the test") });
        let (part, ended) = tasks.next().await.unwrap();
        assert_eq!((part, ended.unwrap_err().to_string().as_str()), ("pods", "pods broke off"));
        assert!(tasks.next().await.is_none());
    }
}

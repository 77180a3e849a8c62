//! Tasks that their owner cannot do without: when one panics, or returns before it is told to, its owner ends with its name,
//! and so on upwards until the program does. None is ever missing in silence.
//!
//! What can be begun anew, such as the worker of one pod or one connection, is no part in this sense.

use std::any::Any;
use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Why a part is missing.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// It panicked.
    #[error("{part} has panicked: {message}")]
    Panicked {
        /// Which part.
        part: String,
        /// What it said.
        message: String,
    },
    /// It returned without having been told to.
    #[error("{part} has ended unexpectedly")]
    Ended {
        /// Which part.
        part: String,
    },
    /// It lacks a part of its own.
    #[error("{part} cannot go on")]
    Incomplete {
        /// Which part.
        part: String,
        /// What it lacks.
        source: Box<PartError>,
    },
}

impl PartError {
    /// For something that ended and is no task: a stream that never should.
    pub fn ended(part: &str) -> Self {
        Self::Ended { part: part.to_owned() }
    }

    /// For a task that did not return by itself.
    pub fn broken(part: String, error: JoinError) -> Self {
        match error.try_into_panic() {
            Ok(payload) => Self::Panicked { part, message: panic_message(&*payload) },
            Err(_) => Self::Ended { part },
        }
    }
}

/// What a panic said, in the two forms that `panic!` gives it.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it does not say why").to_owned()
}

/// The parts of one owner. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Parts {
    tasks: JoinSet<Result<(), PartError>>,
    names: HashMap<Id, String>,
}

impl Parts {
    /// Begins a part that has none of its own.
    pub fn spawn(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_owner(name, async {
            task.await;
            Ok(())
        });
    }

    /// Begins a part that ends with an error when it lacks one of its own.
    pub fn spawn_owner(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), PartError>> + Send + 'static,
    ) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name.into());
    }

    /// Waits until a part is missing; for ever while none is. Returning after `stop` is as it should be. Dropping the wait
    /// loses nothing.
    pub async fn missing(&mut self, stop: &CancellationToken) -> PartError {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            match self.outcome(ended) {
                Ok(_) if stop.is_cancelled() => {}
                Ok(part) => return PartError::Ended { part },
                Err(error) => return error,
            }
        }
        std::future::pending().await
    }

    /// Waits until all have returned by themselves, whenever that is.
    ///
    /// # Errors
    /// At the first that does not return well; the others go on.
    pub async fn join(&mut self) -> Result<(), PartError> {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.outcome(ended)?;
        }
        Ok(())
    }

    /// Ends all, wherever they are.
    pub async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
        self.names.clear();
    }

    /// The names of those that have not been joined yet.
    pub fn names(&self) -> Vec<&str> {
        self.names.values().map(String::as_str).collect()
    }

    /// The name of a part that has returned well.
    fn outcome(&mut self, ended: Result<(Id, Result<(), PartError>), JoinError>) -> Result<String, PartError> {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let part = self.names.remove(&id).unwrap_or_default();
        match ended {
            Ok((_, Ok(()))) => Ok(part),
            Ok((_, Err(source))) => Err(PartError::Incomplete { part, source: Box::new(source) }),
            Err(error) => Err(PartError::broken(part, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(stop: CancellationToken) {
        stop.cancelled().await;
    }

    #[tokio::test]
    async fn a_part_that_panics_is_named_with_its_words() {
        let (stop, mut parts) = (CancellationToken::new(), Parts::default());
        parts.spawn("the quiet", until(stop.clone()));
        parts.spawn("the loud", async { panic!("no {}", "way") });
        let error = parts.missing(&stop).await;
        assert_eq!(error.to_string(), "the loud has panicked: no way");
        assert_eq!(parts.names(), ["the quiet"]);
    }

    #[tokio::test]
    async fn a_part_of_a_part_is_found_below_it() {
        let (stop, mut parts) = (CancellationToken::new(), Parts::default());
        let inner = stop.clone();
        parts.spawn_owner("the owner", async move {
            let mut parts = Parts::default();
            parts.spawn("the owned", async {});
            Err(parts.missing(&inner).await)
        });
        let error = parts.missing(&stop).await;
        assert_eq!(error.to_string(), "the owner cannot go on");
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "the owned has ended unexpectedly");
    }

    #[tokio::test(start_paused = true)]
    async fn returning_after_the_stop_is_no_fault_and_a_panic_is() {
        let (stop, mut parts) = (CancellationToken::new(), Parts::default());
        parts.spawn("the good", until(stop.clone()));
        stop.cancel();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), parts.missing(&stop)).await;
        assert!(waited.is_err() && parts.names().is_empty());
        parts.spawn("the late", async { panic!("so late") });
        assert_eq!(parts.missing(&stop).await.to_string(), "the late has panicked: so late");
    }

    #[tokio::test]
    async fn all_are_joined_and_the_first_fault_is_told() {
        let mut parts = Parts::default();
        parts.spawn("one", async {});
        parts.spawn("two", async {});
        assert!(parts.join().await.is_ok() && parts.names().is_empty());
        parts.spawn("three", async { panic!("three") });
        assert_eq!(parts.join().await.unwrap_err().to_string(), "three has panicked: three");
        parts.spawn("four", std::future::pending());
        parts.shutdown().await;
        assert!(parts.join().await.is_ok());
    }
}

//! A container's log, read the way `kubectl logs` asks for it: from the end, since a time, with times, cut, followed.
//!
//! The log is a file in the format of the container runtime interface, written by the container's monitor, which turns it
//! over by size: `0.log` is written now, `0.log.<time>` are the older ones. A reader sees them as one. It never waits for the
//! writer other than through inotify, and it never keeps the writer waiting.

mod chain;
mod entry;
mod selection;
mod tail;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use self::chain::OpenLog;
use self::selection::{Progress, Selection};

/// How much is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// Which part of a log, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what is written until the container has ended.
    pub follow: bool,
    /// Only so many entries from the end.
    pub tail_lines: Option<u64>,
    /// Only what was written at this time or later.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// A log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is none.
    #[error("log {} does not exist", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("read log {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be watched for changes.
    #[error("watch log {}", path.display())]
    Watch {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Reads the log `path` and sends what was asked for. Returns when that is done, when the reader of `out` has gone, or, while
/// following, when the container has ended, which `ended` tells, and all of its log was sent.
///
/// # Errors
/// When there is no such log, or it cannot be read.
pub async fn read(
    path: &Path,
    options: &LogOptions,
    ended: impl Future<Output = ()>,
    out: &mpsc::Sender<Bytes>,
) -> Result<(), LogError> {
    // The watch begins before anything is read, so that no change falls between.
    let mut changes = if options.follow { Some(watch(path)?) } else { None };
    let mut log = open(path, options.tail_lines).await?;
    let mut selection = Selection::new(options);
    let mut ended = std::pin::pin!(ended);
    let mut has_ended = false;
    let mut buffer = vec![0; READ_SIZE];
    loop {
        if copy_available(&mut log, &mut selection, &mut buffer, out, path).await? == Progress::Done {
            return Ok(());
        }
        let Some(changes) = &mut changes else { return Ok(()) };
        if has_ended {
            return Ok(());
        }
        tokio::select! {
            // Both may be dropped: an event that is lost only means that the next turn reads what is there anyway, and the
            // end is remembered.
            () = &mut ended => has_ended = true,
            change = changes.next() => {
                if let Some(Err(source)) = change {
                    return Err(LogError::Watch { path: path.to_owned(), source });
                }
            }
            () = out.closed() => return Ok(()),
        }
    }
}

/// Sends everything that is there now, through all files up to the one that is written.
async fn copy_available(
    log: &mut OpenLog,
    selection: &mut Selection,
    buffer: &mut [u8],
    out: &mpsc::Sender<Bytes>,
    path: &Path,
) -> Result<Progress, LogError> {
    let failed = |source| LogError::Read { path: path.to_owned(), source };
    loop {
        let count = log.file.read(buffer).await.map_err(failed)?;
        if count == 0 {
            if log.advance(path).await.map_err(failed)? {
                continue;
            }
            return Ok(Progress::More);
        }
        let mut selected = Vec::new();
        let progress = selection.take(&buffer[..count], &mut selected);
        let gone = !selected.is_empty() && out.send(selected.into()).await.is_err();
        if gone || progress == Progress::Done {
            return Ok(Progress::Done);
        }
    }
}

async fn open(path: &Path, tail_lines: Option<u64>) -> Result<OpenLog, LogError> {
    let owned = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || match tail_lines {
        None => chain::open_oldest(&owned),
        Some(count) => tail::open(&owned, count),
    });
    opened.await.map_err(io::Error::other).flatten().map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            LogError::NotFound { path }
        } else {
            LogError::Read { path, source }
        }
    })
}

/// Watches the log's directory: for what is written, and for files that change places.
fn watch(path: &Path) -> Result<EventStream<Vec<u8>>, LogError> {
    let begin = || {
        let inotify = Inotify::init()?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        inotify.watches().add(dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVE)?;
        inotify.into_event_stream(vec![0; 4096])
    };
    begin().map_err(|source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            LogError::NotFound { path }
        } else {
            LogError::Watch { path, source }
        }
    })
}

#[cfg(test)]
mod tests;

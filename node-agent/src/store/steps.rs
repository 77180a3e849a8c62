//! The steps between which a crash is worth trying: every change of the store's files, and a few marks.
//!
//! Outside of tests this is nothing at all. Tests observe the steps: to end the process after one of them, or to write down
//! what a power cut after it would leave (see `power_cut.rs`).

use std::fs::File;
use std::path::Path;

#[cfg(test)]
pub(crate) mod observers;
#[cfg(test)]
pub(crate) mod power_cut;

/// Something that has just been done.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "only observers look into it, and they are tests"))]
pub(crate) enum Step<'a> {
    /// A file was made, or emptied.
    File(&'a Path),
    /// A directory was made.
    Directory(&'a Path),
    /// What a file holds was made durable.
    SyncFile(&'a File),
    /// The names in a directory were made durable.
    SyncDirectory(&'a Path),
    /// A directory with all in it was made durable.
    SyncTree(&'a Path),
    /// Something got another name.
    Rename(&'a Path, &'a Path),
    /// A file, or a directory with all in it, was removed.
    Remove(&'a Path),
    /// A place in the code that changes no file.
    Mark(&'static str),
}

/// Says that a step has been done.
#[cfg(test)]
pub(crate) fn passed(step: Step<'_>) {
    observers::tell(step);
}

/// Says that a step has been done: nobody listens.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn passed(_: Step<'_>) {}

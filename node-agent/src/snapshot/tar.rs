//! Tar streams: a state machine that is fed chunks of any size and calls back with entries and their data.
//!
//! Understood are POSIX ustar with PAX extensions, GNU (long names, long links, base-256 numbers, both sparse kinds), the
//! `star` prefix and plain v7. What is not understood is a named error, so that no file is lost in silence.

mod entry;
mod error;
mod header;
mod number;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use entry::{Entry, EntryKind, RegularData};
pub(crate) use error::TarError;
pub(crate) use walk::{Visitor, Walker};

//! What can be wrong with a tar.

/// What is wrong with a tar. `at` is the byte where the header in question begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TarError {
    /// A header's checksum does not match.
    #[error("read tar header at byte {at}: checksum does not match")]
    Checksum {
        /// Where.
        at: u64,
    },
    /// A header's field is no number, or beyond what the field can mean.
    #[error("read tar header at byte {at}: {field} of {path} is not valid")]
    Field {
        /// Where.
        at: u64,
        /// The entry, or what is known of its name.
        path: String,
        /// Which field.
        field: &'static str,
    },
    /// A kind of entry that no container image has.
    #[error("read tar header at byte {at}: entry {path} has type {kind:?}, which is not supported")]
    Kind {
        /// Where.
        at: u64,
        /// The entry.
        path: String,
        /// The type flag.
        kind: char,
    },
    /// An extended header's records are malformed.
    #[error("read tar header at byte {at}: record {record:?} of the extended header is malformed")]
    Extended {
        /// Where.
        at: u64,
        /// The record, or what it begins with.
        record: String,
    },
    /// A sparse file's map is malformed, of an unknown version, or has more pieces than allowed.
    #[error("read tar header at byte {at}: sparse map of {path} is malformed or not supported")]
    Sparse {
        /// Where.
        at: u64,
        /// The entry.
        path: String,
    },
    /// Something is longer than the limit.
    #[error("read tar header at byte {at}: {what} has {length} bytes, more than the limit of {limit}")]
    TooLong {
        /// Where.
        at: u64,
        /// What it is.
        what: &'static str,
        /// How long it is.
        length: u64,
        /// How long it may be.
        limit: u64,
    },
    /// One zero block, then something else: where a tar ends there are two.
    #[error("read tar header at byte {at}: a single block of zeros where a header or the end must be")]
    LoneZeroBlock {
        /// Where the zero block is.
        at: u64,
    },
    /// The stream ends inside an entry.
    #[error("read tar: ends at byte {at}, in the middle of an entry")]
    Truncated {
        /// Where.
        at: u64,
    },
}

//! One 512-byte tar header, of whichever dialect.
//!
//! Field places: POSIX.1-1988 `ustar`; GNU tar's and `star`'s additions as their manuals describe them.
//!
//! Pure: no I/O, no clock, no randomness.

use super::number;

/// Header and data blocks alike.
pub(crate) const BLOCK: usize = 512;

/// A header block.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    bytes: [u8; BLOCK],
}

impl Header {
    pub(crate) fn new(bytes: [u8; BLOCK]) -> Self {
        Self { bytes }
    }

    /// Whether the sum over the block is the one it states; some old writers summed signed bytes.
    pub(crate) fn checksum_matches(&self) -> bool {
        let Some(stated) = number::field(&self.bytes[148..156]) else { return false };
        // The field itself counts as spaces.
        let mut unsigned = 8 * i64::from(b' ');
        let mut negative = 0;
        for part in [&self.bytes[..148], &self.bytes[156..]] {
            for byte in part {
                unsigned += i64::from(*byte);
                negative += i64::from(*byte >> 7);
            }
        }
        // Old programs took the bytes for signed.
        stated == unsigned || stated == unsigned - 256 * negative
    }

    /// The name, with the prefix where the dialect has one.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = text(&self.bytes[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.bytes[345..500]),
            Dialect::Star => text(&self.bytes[345..476]),
            Dialect::Gnu | Dialect::V7 => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.bytes[157..257]).to_vec()
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.bytes[156]
    }

    pub(crate) fn mode(&self) -> Option<u64> {
        number::unsigned(&self.bytes[100..108])
    }

    pub(crate) fn uid(&self) -> Option<u64> {
        number::unsigned(&self.bytes[108..116])
    }

    pub(crate) fn gid(&self) -> Option<u64> {
        number::unsigned(&self.bytes[116..124])
    }

    pub(crate) fn size(&self) -> Option<u64> {
        number::unsigned(&self.bytes[124..136])
    }

    pub(crate) fn mtime(&self) -> Option<i64> {
        number::field(&self.bytes[136..148])
    }

    pub(crate) fn device(&self) -> Option<(u64, u64)> {
        Some((number::unsigned(&self.bytes[329..337])?, number::unsigned(&self.bytes[337..345])?))
    }

    /// Old GNU sparse: the four offset and length pairs in the header.
    pub(crate) fn sparse_pairs(&self) -> &[u8] {
        &self.bytes[386..482]
    }

    /// Old GNU sparse: whether a block with further pairs follows.
    pub(crate) fn sparse_goes_on(&self) -> bool {
        self.bytes[482] != 0
    }

    /// Old GNU sparse: the size with holes.
    pub(crate) fn sparse_size(&self) -> Option<u64> {
        number::unsigned(&self.bytes[483..495])
    }

    fn dialect(&self) -> Dialect {
        match &self.bytes[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") && &self.bytes[508..512] == b"tar\0" => Dialect::Star,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Ustar,
    Star,
    Gnu,
    V7,
}

/// A text field ends at its first zero byte, or at its end.
pub(crate) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

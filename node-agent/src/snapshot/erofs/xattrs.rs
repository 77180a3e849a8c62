//! Extended attributes behind an inode: a 12-byte header, then entries, each padded to four bytes.
//!
//! The sharing area that EROFS also has is not used: few files of an image have attributes.
//!
//! Pure: no I/O, no clock, no randomness.

use super::format::{
    XATTR_ENTRY_BYTES, XATTR_ENTRY_LEN, XATTR_HEADER_BYTES, XATTR_HEADER_LEN, XATTR_PREFIXES, round_up,
};
use crate::snapshot::tree::Xattr;

/// The number of a name's namespace, and the rest of the name. `None` where EROFS has no such namespace.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // A namespace that ends with a dot needs a name after it, the access lists are whole names by themselves.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

/// Bytes that these attributes take behind an inode; none take none.
pub(crate) fn size(xattrs: &[Xattr]) -> u64 {
    if xattrs.is_empty() {
        return 0;
    }
    let entries: u64 = xattrs.iter().map(entry_size).sum();
    XATTR_HEADER_BYTES + entries
}

fn entry_size(xattr: &Xattr) -> u64 {
    let rest = split_name(&xattr.name).map_or(0, |(_, rest)| rest.len());
    round_up(XATTR_ENTRY_BYTES + (rest + xattr.value.len()) as u64, 4)
}

/// The count field of an inode for attributes of this size: the header is 1, each further four bytes 1 more.
pub(crate) fn count_field(size: u64) -> Option<u16> {
    if size == 0 {
        return Some(0);
    }
    u16::try_from((size - XATTR_HEADER_BYTES) / 4 + 1).ok()
}

/// Bytes for a count field: the reverse of [`count_field`].
pub(crate) fn size_of_count(count: u16) -> u64 {
    if count == 0 { 0 } else { XATTR_HEADER_BYTES + (u64::from(count) - 1) * 4 }
}

/// Appends the attributes. `None` where one has no place in EROFS: an unknown namespace, too long a name or value.
pub(crate) fn encode(xattrs: &[Xattr], bytes: &mut Vec<u8>) -> Option<()> {
    if xattrs.is_empty() {
        return Some(());
    }
    bytes.extend_from_slice(&[0; XATTR_HEADER_LEN]);
    for xattr in xattrs {
        let start = bytes.len();
        let (index, rest) = split_name(&xattr.name)?;
        bytes.push(u8::try_from(rest.len()).ok()?);
        bytes.push(index);
        bytes.extend_from_slice(&u16::try_from(xattr.value.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(&xattr.value);
        let padded = start + (bytes.len() - start).next_multiple_of(4);
        bytes.resize(padded, 0);
    }
    Some(())
}

/// Reads attributes back. `None` where the bytes are not what [`encode`] writes.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Xattr>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = bytes.get(XATTR_HEADER_LEN..)?;
    let mut xattrs = Vec::new();
    while let [name_len, index, low, high, after @ ..] = rest {
        let (name_len, value_len) = (usize::from(*name_len), usize::from(u16::from_le_bytes([*low, *high])));
        let (prefix, _) = XATTR_PREFIXES.iter().find(|(_, known)| known == index)?;
        let name = [*prefix, after.get(..name_len)?].concat();
        let value = after.get(name_len..name_len + value_len)?;
        xattrs.push(Xattr { name: name.into(), value: value.into() });
        let used = (XATTR_ENTRY_LEN + name_len + value_len).next_multiple_of(4);
        rest = rest.get(used..)?;
    }
    rest.is_empty().then_some(xattrs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.as_bytes().into(), value: value.into() }
    }

    #[test]
    fn namespaces() {
        assert_eq!(split_name(b"user.x"), Some((1, &b"x"[..])));
        assert_eq!(split_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split_name(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split_name(b"system.posix_acl_access2"), None);
        assert_eq!(split_name(b"user."), None);
        assert_eq!(split_name(b"com.apple.x"), None);
    }

    proptest! {
        #[test]
        fn round_trip(parts in prop::collection::vec(("(user|security|trusted)\\.[a-z]{1,40}", prop::collection::vec(any::<u8>(), 0..90)), 0..9)) {
            let xattrs: Vec<Xattr> = parts.iter().map(|(name, value)| xattr(name, value)).collect();
            let mut bytes = Vec::new();
            encode(&xattrs, &mut bytes).expect("known namespaces");
            prop_assert_eq!(bytes.len() as u64, size(&xattrs));
            prop_assert_eq!(size_of_count(count_field(size(&xattrs)).expect("small")), bytes.len() as u64);
            prop_assert_eq!(decode(&bytes), Some(xattrs));
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}

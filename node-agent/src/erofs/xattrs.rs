//! Extended attributes: behind an inode a 12-byte header, the places of shared attributes, then entries of its own, each
//! padded to four bytes.
//!
//! An attribute that several inodes have (a security label, a capability) is written once, into an area that they share.
//!
//! Pure: no I/O, no clock, no randomness.

use std::collections::HashMap;

use super::format::{
    SHARED_XATTRS_MAX, XATTR_ENTRY_BYTES, XATTR_ENTRY_LEN, XATTR_HEADER_BYTES, XATTR_HEADER_LEN, XATTR_PREFIXES,
    XATTR_UNIT_BYTES, XATTR_UNIT_LEN, round_up,
};
use super::tree::Xattr;

/// A name in full and its value.
pub(crate) type Pair<'a> = (&'a [u8], &'a [u8]);

/// The attributes that more than one inode has.
#[derive(Debug, Default)]
pub(crate) struct Pool<'a> {
    places: HashMap<Pair<'a>, u32>,
    bytes: Vec<u8>,
}

impl<'a> Pool<'a> {
    /// Shares what comes more than once, in the order in which it comes.
    pub(crate) fn of(pairs: impl Iterator<Item = Pair<'a>> + Clone) -> Self {
        let mut counts: HashMap<Pair<'a>, bool> = HashMap::new();
        for pair in pairs.clone() {
            counts.entry(pair).and_modify(|again| *again = true).or_insert(false);
        }
        let mut pool = Self::default();
        for pair in pairs.filter(|pair| counts.get(pair) == Some(&true)) {
            pool.add(pair);
        }
        pool
    }

    /// What cannot be encoded, or lies beyond what a place can name, stays with its inode.
    fn add(&mut self, pair: Pair<'a>) {
        let Ok(place) = u32::try_from(self.bytes.len() / XATTR_UNIT_LEN) else { return };
        if !self.places.contains_key(&pair) && encode_entry(pair, &mut self.bytes).is_some() {
            self.places.insert(pair, place);
        }
    }

    /// The shared area.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The places of an inode's shared attributes, and the attributes that are its own.
    fn split(&self, pairs: impl Iterator<Item = Pair<'a>>) -> (Vec<u32>, Vec<Pair<'a>>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for pair in pairs {
            match self.places.get(&pair) {
                Some(place) if shared.len() < SHARED_XATTRS_MAX => shared.push(*place),
                _ => own.push(pair),
            }
        }
        (shared, own)
    }

    /// Bytes that these attributes take behind an inode; none take none.
    pub(crate) fn size(&self, pairs: impl Iterator<Item = Pair<'a>>) -> u64 {
        let (shared, own) = self.split(pairs);
        if shared.is_empty() && own.is_empty() {
            return 0;
        }
        let entries: u64 = own.into_iter().map(entry_size).sum();
        XATTR_HEADER_BYTES + shared.len() as u64 * XATTR_UNIT_BYTES + entries
    }

    /// Appends the attributes of an inode. `None` where one has no place in EROFS: an unknown namespace, too long a name or
    /// value.
    pub(crate) fn encode(&self, pairs: impl Iterator<Item = Pair<'a>>, bytes: &mut Vec<u8>) -> Option<()> {
        let (shared, own) = self.split(pairs);
        if shared.is_empty() && own.is_empty() {
            return Some(());
        }
        let start = bytes.len();
        bytes.resize(start + XATTR_HEADER_LEN, 0);
        bytes[start + 4] = u8::try_from(shared.len()).ok()?;
        for place in shared {
            bytes.extend_from_slice(&place.to_le_bytes());
        }
        own.into_iter().try_for_each(|pair| encode_entry(pair, bytes))
    }
}

/// The number of a name's namespace, and the rest of the name. `None` where EROFS has no such namespace.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // A namespace that ends with a dot needs a name after it, the access lists are whole names by themselves.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

fn entry_size((name, value): Pair<'_>) -> u64 {
    let rest = split_name(name).map_or(0, |(_, rest)| rest.len());
    round_up(XATTR_ENTRY_BYTES + (rest + value.len()) as u64, XATTR_UNIT_BYTES)
}

/// Appends one entry, or nothing where it has no place in EROFS.
fn encode_entry((name, value): Pair<'_>, bytes: &mut Vec<u8>) -> Option<()> {
    let (index, rest) = split_name(name)?;
    let (name_len, value_len) = (u8::try_from(rest.len()).ok()?, u16::try_from(value.len()).ok()?);
    let start = bytes.len();
    bytes.extend_from_slice(&[name_len, index]);
    bytes.extend_from_slice(&value_len.to_le_bytes());
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(value);
    bytes.resize(start + (bytes.len() - start).next_multiple_of(XATTR_UNIT_LEN), 0);
    Some(())
}

/// The count field of an inode for attributes of this size: the header is 1, each further four bytes 1 more.
pub(crate) fn count_field(size: u64) -> Option<u16> {
    if size == 0 {
        return Some(0);
    }
    u16::try_from((size - XATTR_HEADER_BYTES) / XATTR_UNIT_BYTES + 1).ok()
}

/// Bytes for a count field: the reverse of [`count_field`].
pub(crate) fn size_of_count(count: u16) -> u64 {
    if count == 0 { 0 } else { XATTR_HEADER_BYTES + (u64::from(count) - 1) * XATTR_UNIT_BYTES }
}

/// Reads attributes back, sorted by name; `shared` is what begins at the shared area. `None` where the bytes are not what
/// [`Pool::encode`] writes.
pub(crate) fn decode(bytes: &[u8], shared: &[u8]) -> Option<Vec<Xattr>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let count = usize::from(*bytes.get(4)?);
    let (places, mut own) = bytes.get(XATTR_HEADER_LEN..)?.split_at_checked(count * XATTR_UNIT_LEN)?;
    let mut xattrs = Vec::new();
    for place in places.chunks_exact(XATTR_UNIT_LEN) {
        let place = usize::try_from(u32::from_le_bytes(place.try_into().ok()?)).ok()?;
        let (xattr, _) = decode_entry(shared.get(place.checked_mul(XATTR_UNIT_LEN)?..)?)?;
        xattrs.push(xattr);
    }
    while !own.is_empty() {
        let (xattr, used) = decode_entry(own)?;
        xattrs.push(xattr);
        own = own.get(used..)?;
    }
    xattrs.sort_by(|left: &Xattr, right| left.name.cmp(&right.name));
    Some(xattrs)
}

/// The entry that the bytes begin with, and its length.
fn decode_entry(bytes: &[u8]) -> Option<(Xattr, usize)> {
    let [name_len, index, low, high, after @ ..] = bytes else { return None };
    let (name_len, value_len) = (usize::from(*name_len), usize::from(u16::from_le_bytes([*low, *high])));
    let (prefix, _) = XATTR_PREFIXES.iter().find(|(_, known)| known == index)?;
    let name = [*prefix, after.get(..name_len)?].concat();
    let value = after.get(name_len..name_len + value_len)?;
    let used = (XATTR_ENTRY_LEN + name_len + value_len).next_multiple_of(XATTR_UNIT_LEN);
    Some((Xattr { name: name.into(), value: value.into() }, used))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(xattrs: &[Xattr]) -> impl Iterator<Item = Pair<'_>> + Clone {
        xattrs.iter().map(|xattr| (&*xattr.name, &*xattr.value))
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

    #[test]
    fn what_two_have_is_written_once() {
        let (label, other): (Pair<'_>, Pair<'_>) = ((b"security.selinux", b"a label"), (b"user.x", b"y"));
        let pool = Pool::of([label, other, label].into_iter());
        assert_eq!(pool.bytes().len() as u64, entry_size(label));
        assert_eq!(pool.size([label].into_iter()), 16);
        assert_eq!(pool.size([other].into_iter()), 12 + entry_size(other));
        assert_eq!(pool.size([].into_iter()), 0);
    }

    #[test]
    fn what_is_not_known_stays_with_its_inode_and_is_refused_there() {
        let strange: Pair<'_> = (b"com.apple.x", b"y");
        let pool = Pool::of([strange, strange].into_iter());
        assert!(pool.bytes().is_empty());
        assert_eq!(pool.encode([strange].into_iter(), &mut Vec::new()), None);
    }

    #[test]
    fn an_inode_shares_as_many_as_its_header_can_count() {
        let names: Vec<String> = (0..300).map(|index| format!("user.{index:03}")).collect();
        let all: Vec<Xattr> =
            names.iter().map(|name| Xattr { name: name.as_bytes().into(), value: Box::default() }).collect();
        let pool = Pool::of(pairs(&all).chain(pairs(&all)));
        let mut bytes = Vec::new();
        pool.encode(pairs(&all), &mut bytes).expect("known namespaces");
        assert_eq!(bytes[4], 255);
        assert_eq!(decode(&bytes, pool.bytes()), Some(all));
    }

    fn xattr() -> impl Strategy<Value = Xattr> {
        let value = prop_oneof![prop::collection::vec(any::<u8>(), 0..90), Just(b"often".to_vec())];
        ("(user|security|trusted)\\.([ab]|[a-z]{1,40})", value)
            .prop_map(|(name, value)| Xattr { name: name.into_bytes().into(), value: value.into() })
    }

    proptest! {
        #[test]
        fn round_trip(inodes in prop::collection::vec(prop::collection::vec(xattr(), 0..9), 0..6)) {
            let mut inodes = inodes;
            for xattrs in &mut inodes {
                xattrs.sort_by(|left, right| left.name.cmp(&right.name));
                xattrs.dedup_by(|left, right| left.name == right.name);
            }
            let pool = Pool::of(inodes.iter().flat_map(|xattrs| pairs(xattrs)));
            for xattrs in &inodes {
                let mut bytes = Vec::new();
                pool.encode(pairs(xattrs), &mut bytes).expect("known namespaces");
                prop_assert_eq!(bytes.len() as u64, pool.size(pairs(xattrs)));
                prop_assert_eq!(size_of_count(count_field(bytes.len() as u64).expect("small")), bytes.len() as u64);
                prop_assert_eq!(&decode(&bytes, pool.bytes()), &Some(xattrs.clone()));
            }
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let _ = decode(&bytes, &bytes[cut.min(bytes.len())..]);
        }
    }
}

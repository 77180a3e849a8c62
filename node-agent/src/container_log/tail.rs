//! Finding the place from which so many entries are left.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::chain::{OpenLog, put_aside};

/// How much is looked at in one step backwards, in bytes.
const STEP: u64 = 64 * 1024;

/// Opens the log `path` where its last `count` entries begin, in an older file if need be.
pub(super) fn open(path: &Path, count: u64) -> io::Result<OpenLog> {
    let mut file = File::open(path)?;
    let mut found = find(&mut file, count)?;
    if found.missing > 0 {
        for older in put_aside(path)?.iter().rev() {
            let mut older = match File::open(older) {
                Ok(older) => older,
                // Removed since, and with it all that are older.
                Err(err) if err.kind() == io::ErrorKind::NotFound => break,
                Err(err) => return Err(err),
            };
            found = find(&mut older, found.missing)?;
            file = older;
            if found.missing == 0 {
                break;
            }
        }
    }
    file.seek(SeekFrom::Start(found.offset))?;
    OpenLog::new(file)
}

/// Where to begin in a file.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    /// How many entries are wanted that are not in this file.
    missing: u64,
}

/// Finds the place from which `count` lines are left. What comes after the last newline is a line that is being written and
/// belongs to what is to come.
fn find(file: &mut (impl Read + Seek), count: u64) -> io::Result<Place> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = Vec::new();
    // The newline at the end of the last line is not the one before it.
    let mut wanted = count.saturating_add(1);
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            wanted -= 1;
            if wanted == 0 {
                let index = u64::try_from(index).unwrap_or(u64::MAX);
                return Ok(Place { offset: start + index + 1, missing: 0 });
            }
        }
        end = start;
    }
    // One newline less than was wanted is a whole file of exactly as many lines.
    Ok(Place { offset: 0, missing: if wanted > count { count } else { wanted - 1 } })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a\nb\nc\n", 0, 6, 0)]
    #[case("a\nb\nc\n", 1, 4, 0)]
    #[case("a\nb\nc\n", 3, 0, 0)]
    #[case("a\nb\nc\n", 5, 0, 2)]
    #[case("a\nb\nc", 1, 2, 0)]
    #[case("", 2, 0, 2)]
    #[case("a", 1, 0, 1)]
    #[case("\n\n", 1, 1, 0)]
    fn the_place_is_found(#[case] text: &str, #[case] count: u64, #[case] offset: u64, #[case] missing: u64) {
        assert_eq!(find(&mut Cursor::new(text), count).unwrap(), Place { offset, missing });
    }

    proptest! {
        #[test]
        fn as_many_lines_are_left_as_were_wanted(lengths in prop::collection::vec(0_usize..60_000, 0..8), count in 0_u64..10) {
            let text: String = lengths.iter().map(|length| "x".repeat(*length) + "\n").collect();
            let place = find(&mut Cursor::new(&text), count).unwrap();
            let left = text[usize::try_from(place.offset).unwrap()..].lines().count();
            prop_assert_eq!(u64::try_from(left).unwrap() + place.missing, count);
        }
    }
}

//! A path that is followed component by component, symbolic links included.
//!
//! Pure: no I/O, no clock, no randomness.

/// Symbolic links that one path may lead through, as in Linux.
const HOPS_MAX: usize = 40;

/// Components that the targets of those links may have together: without a bound a short path could cost much time.
const COMPONENTS_MAX: usize = 4096;

/// The path leads through too many symbolic links, or through too long ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyLinks;

/// What is left of a path.
#[derive(Debug)]
pub(super) struct Route {
    /// The next component last.
    left: Vec<Vec<u8>>,
    hops: usize,
    components: usize,
}

impl Route {
    /// All of a path. Components that lead nowhere are left out, `..` is kept.
    pub(super) fn along(path: &[u8]) -> Self {
        Self { left: reversed(path).map(<[u8]>::to_vec).collect(), hops: 0, components: 0 }
    }

    /// The next component.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        self.left.pop()
    }

    /// Puts the target of a symbolic link in front of what is left.
    pub(super) fn follow(&mut self, target: &[u8]) -> Result<(), TooManyLinks> {
        let before = self.left.len();
        self.left.extend(reversed(target).map(<[u8]>::to_vec));
        self.hops += 1;
        self.components += self.left.len() - before;
        if self.hops > HOPS_MAX || self.components > COMPONENTS_MAX { Err(TooManyLinks) } else { Ok(()) }
    }
}

fn reversed(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').rev().filter(|part| !part.is_empty() && *part != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(mut route: Route) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| route.next()).collect()
    }

    #[test]
    fn a_link_is_followed_before_the_rest() {
        let mut route = Route::along(b"/a/./b//c/");
        assert_eq!(route.next(), Some(b"a".to_vec()));
        route.follow(b"../x/y").expect("few");
        assert_eq!(rest(route), [&b".."[..], b"x", b"y", b"b", b"c"]);
    }

    #[test]
    fn links_have_an_end() {
        let mut route = Route::along(b"a");
        for _ in 0..HOPS_MAX {
            route.follow(b"a").expect("as many as Linux follows");
        }
        assert_eq!(route.follow(b"a"), Err(TooManyLinks));
        let long = b"a/".repeat(2047);
        let mut route = Route::along(b"a");
        route.follow(&long).expect("one");
        route.follow(&long).expect("two");
        assert_eq!(route.follow(&long), Err(TooManyLinks));
    }
}

//! Pure: no I/O, no clock, no randomness.
//!
//! How many image caches there may be. Whoever makes one by hand when there are enough is refused, and let in as soon as
//! there is room; a cache that is made for a pod takes the place of the automatic cache that was used least recently. What
//! was let in stays in: a limit that is lowered takes automatic caches only.

use std::collections::BTreeSet;

use jiff::Timestamp;

/// One cache, as far as the limit is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The object's name.
    pub name: String,
    /// Whether it was made for a pod.
    pub is_automatic: bool,
    /// Whether it was let in: hosts have been told of it.
    pub is_in: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When a pod last started from it.
    pub last_used: Option<Timestamp>,
}

/// What the limit asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The caches that no host is told of, by name.
    pub refuse: BTreeSet<String>,
    /// The automatic caches that go, by name, the least recently used first.
    pub evict: Vec<String>,
}

/// What is to be done so that there are no more caches than `limit`, 0 for any number.
pub fn plan(caches: &[Counted], limit: usize) -> Plan {
    if limit == 0 || caches.len() <= limit {
        return Plan::default();
    }
    let is_waiting = |cache: &&Counted| !cache.is_in && !cache.is_automatic;
    let mut waiting: Vec<&Counted> = caches.iter().filter(is_waiting).collect();
    // Whoever was first has waited longest.
    waiting.sort_by_key(|cache| (cache.created, &cache.name));
    let others = caches.len() - waiting.len();
    let refuse = waiting.iter().skip(limit.saturating_sub(others)).map(|cache| cache.name.clone()).collect();
    let evict = automatic(caches).into_iter().take(others.saturating_sub(limit)).collect();
    Plan { refuse, evict }
}

/// The names of the automatic caches, the least recently used first.
fn automatic(caches: &[Counted]) -> Vec<String> {
    let mut automatic: Vec<&Counted> = caches.iter().filter(|cache| cache.is_automatic).collect();
    automatic.sort_by_key(|cache| (cache.last_used.unwrap_or(cache.created), &cache.name));
    automatic.into_iter().map(|cache| cache.name.clone()).collect()
}

/// The automatic caches that make room for one more, the least recently used first; nothing when there is no room to make.
pub fn make_room(caches: &[Counted], limit: usize) -> Option<Vec<String>> {
    let is_counted = |cache: &&Counted| cache.is_in || cache.is_automatic;
    let there = caches.iter().filter(is_counted).count();
    let excess = if limit == 0 { 0 } else { (there + 1).saturating_sub(limit) };
    let automatic = automatic(caches);
    (automatic.len() >= excess).then(|| automatic.into_iter().take(excess).collect())
}

/// Why a cache is refused.
pub fn refusal(limit: usize) -> String {
    format!("image cache quota {limit} is used up: delete an image cache, or raise --image-caches-max")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn counted(name: &str, is_automatic: bool, is_in: bool, created: i64, used: Option<i64>) -> Counted {
        Counted { name: name.to_owned(), is_automatic, is_in, created: at(created), last_used: used.map(at) }
    }

    #[test]
    fn by_hand_is_refused_and_let_in_first_come_first_served() {
        let caches = [
            counted("there", false, true, 1, None),
            counted("late", false, false, 5, None),
            counted("early", false, false, 4, None),
            counted("auto", true, true, 2, None),
        ];
        let refused = |limit| plan(&caches, limit).refuse.into_iter().collect::<Vec<_>>();
        assert_eq!(refused(0), Vec::<String>::new());
        assert_eq!(refused(4), Vec::<String>::new());
        assert_eq!(refused(3), ["late"]);
        assert_eq!(refused(2), ["early", "late"]);
        assert_eq!(plan(&caches, 2).evict, Vec::<String>::new());
        assert_eq!(plan(&caches, 1).evict, ["auto"]);
    }

    #[test]
    fn a_pod_takes_the_place_of_the_least_recently_used() {
        let caches = [
            counted("hand", false, true, 1, None),
            counted("old-but-used", true, true, 2, Some(9)),
            counted("unused", true, true, 5, None),
        ];
        assert_eq!(make_room(&caches, 0), Some(vec![]));
        assert_eq!(make_room(&caches, 4), Some(vec![]));
        assert_eq!(make_room(&caches, 3), Some(vec!["unused".to_owned()]));
        assert_eq!(make_room(&caches, 2), Some(vec!["unused".to_owned(), "old-but-used".to_owned()]));
        assert_eq!(make_room(&caches, 1), None);
        let waiting = [counted("waits", false, false, 1, None), counted("auto", true, true, 1, None)];
        assert_eq!(make_room(&waiting, 2), Some(vec![]));
    }

    fn any_cache() -> impl Strategy<Value = Counted> {
        (any::<bool>(), any::<bool>(), 0..20_i64, proptest::option::of(0..20_i64))
            .prop_map(|(automatic, is_in, created, used)| counted("", automatic, is_in, created, used))
    }

    proptest! {
        /// The limit holds as far as automatic caches and refusals can make it hold, nothing that was made by hand and let
        /// in is touched, nothing is refused while there is room, and what goes was used before all that stays.
        #[test]
        fn the_limit_holds(mut caches in proptest::collection::vec(any_cache(), 0..12), limit in 0..8_usize) {
            for (number, cache) in caches.iter_mut().enumerate() {
                cache.name = format!("c{number}");
            }
            let plan = plan(&caches, limit);
            let goes = |cache: &Counted| plan.evict.contains(&cache.name);
            let by_hand = caches.iter().filter(|cache| cache.is_in && !cache.is_automatic).count();
            let stays = caches.iter().filter(|cache| !goes(cache) && !plan.refuse.contains(&cache.name)).count();
            if limit == 0 {
                prop_assert_eq!(&plan, &Plan::default());
            } else {
                prop_assert!(stays <= limit.max(by_hand));
                prop_assert!(plan.refuse.is_empty() && plan.evict.is_empty() || stays >= limit);
            }
            for cache in &caches {
                prop_assert!(!plan.refuse.contains(&cache.name) || !cache.is_in && !cache.is_automatic);
                prop_assert!(!goes(cache) || cache.is_automatic);
            }
            let used = |cache: &&Counted| cache.last_used.unwrap_or(cache.created);
            let newest_gone = caches.iter().filter(|cache| goes(cache)).map(|cache| used(&cache)).max();
            let oldest_left = caches.iter().filter(|cache| cache.is_automatic && !goes(cache)).map(|cache| used(&cache)).min();
            prop_assert!(newest_gone.is_none() || oldest_left.is_none() || newest_gone <= oldest_left);

            let mut reversed = caches.clone();
            reversed.reverse();
            prop_assert_eq!(super::plan(&reversed, limit), plan);
            if let Some(room) = make_room(&caches, limit) {
                let left = caches.iter().filter(|cache| (cache.is_in || cache.is_automatic) && !room.contains(&cache.name)).count();
                prop_assert!(limit == 0 || left < limit);
            }
        }
    }
}

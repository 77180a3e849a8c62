//! Whose turn it is to transfer a layer: so many at once, so many of them from one registry, in the order in which they came.
//!
//! The bound of one registry leaves turns for the pods of others while one is slow. The bound of all together is that of the
//! memory that decompressors and the names in layers may take.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The queue for turns.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// How many turns there are.
    total: usize,
    /// How many of them one registry may have.
    of_one: usize,
    /// By registry, none of them 0.
    taken: HashMap<String, usize>,
    waiting: VecDeque<(String, oneshot::Sender<Turn>)>,
}

/// A place in the queue. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place(oneshot::Receiver<Turn>);

/// A turn; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    registry: String,
}

impl Turns {
    /// So many turns, of which one registry may have so many.
    pub(super) fn new(total: usize, of_one: usize) -> Self {
        let state =
            State { total: total.max(1), of_one: of_one.max(1), taken: HashMap::new(), waiting: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Takes a place behind all who have one.
    pub(super) fn queue(&self, registry: &str) -> Place {
        let (sender, place) = oneshot::channel();
        self.lock().waiting.push_back((registry.to_owned(), sender));
        self.give();
        Place(place)
    }

    /// Gives the turns that are free to the first who may have them.
    fn give(&self) {
        let mut given = Vec::new();
        let mut state = self.lock();
        state.waiting.retain(|(_, place)| !place.is_closed());
        while let Some((registry, place)) = state.next() {
            given.push((place, Turn { turns: self.clone(), registry }));
        }
        drop(state);
        for (place, turn) in given {
            // A turn that nobody waits for any more ends at once, and is given to the next.
            drop(place.send(turn));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<(String, oneshot::Sender<Turn>)> {
        if self.taken.values().sum::<usize>() >= self.total {
            return None;
        }
        let may_have = |registry: &String| self.taken.get(registry).is_none_or(|&taken| taken < self.of_one);
        let first = self.waiting.iter().position(|(registry, _)| may_have(registry))?;
        let (registry, place) = self.waiting.remove(first)?;
        *self.taken.entry(registry.clone()).or_default() += 1;
        Some((registry, place))
    }
}

impl Place {
    /// Waits for the turn. It is not lost where this is dropped: it goes to the next.
    pub(super) async fn turn(self) -> Option<Turn> {
        self.0.await.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if let Some(taken) = state.taken.get_mut(&self.registry) {
            *taken -= 1;
            if *taken == 0 {
                state.taken.remove(&self.registry);
            }
        }
        drop(state);
        self.turns.give();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    /// The turn of a place, if it has come.
    fn taken(place: Place) -> Turn {
        place.turn().now_or_never().flatten().unwrap()
    }

    fn has_come(place: &Place) -> bool {
        !place.0.is_empty()
    }

    #[test]
    fn turns_go_in_order_and_a_registry_has_only_so_many() {
        let turns = Turns::new(3, 2);
        let [a1, a2, a3, b1, b2] = ["a", "a", "a", "b", "b"].map(|registry| turns.queue(registry));
        assert_eq!([&a1, &a2, &a3, &b1, &b2].map(has_come), [true, true, false, true, false]);
        let held = (taken(a1), taken(b1));
        // One of b ends: the third of a still may not, as two of it are under way.
        drop(held.1);
        assert_eq!([&a3, &b2].map(has_come), [false, true]);
        drop(held.0);
        assert!(has_come(&a3));
    }

    #[test]
    fn a_place_that_is_given_up_is_the_nexts() {
        let turns = Turns::new(1, 1);
        let [first, second, third, fourth] = [(); 4].map(|()| turns.queue("a"));
        drop(second);
        // The turn had come, and was not looked at.
        drop(first);
        assert!(has_come(&third));
        drop(taken(third));
        drop(taken(fourth));
        assert!(turns.lock().taken.is_empty());
    }

    proptest! {
        #[test]
        fn bounds_hold_and_everybody_has_a_turn(
            total in 1usize..5, of_one in 1usize..5, registries in proptest::collection::vec(0u8..4, 0..30)
        ) {
            let turns = Turns::new(total, of_one);
            let mut places: VecDeque<_> = registries.iter().map(|registry| turns.queue(&registry.to_string())).collect();
            while !places.is_empty() {
                let state = turns.lock();
                prop_assert!(state.taken.values().sum::<usize>() <= total);
                prop_assert!(state.taken.values().all(|&taken| taken <= of_one));
                drop(state);
                let come = places.iter().position(has_come);
                prop_assert!(come.is_some(), "nobody goes on");
                places.remove(come.unwrap());
            }
            prop_assert!(turns.lock().taken.is_empty());
        }
    }
}

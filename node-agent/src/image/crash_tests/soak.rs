//! A store that lives through many lives, each killed at a moment that nobody has chosen.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::Child,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    kill::{start, told},
    *,
};

/// How many lives are ended so; `hack/test soak` asks for a thousand.
const KILLS: &str = "LARDER_SOAK_KILLS";
const KILLS_BY_DEFAULT: usize = 60;
/// What a life does is drawn from this.
const SEED: &str = "LARDER_SOAK_SEED";

const IMAGES: u64 = 5;

async fn registry() -> TestRegistry {
    let registry = TestRegistry::start().await;
    for image in 0..IMAGES {
        // Each has a layer in common with the next.
        let layers = [layer(100 + image), layer(100 + (image + 1) % IMAGES), layer(200 + image)];
        push_layers(&registry, &format!("image-{image}"), "v1", &layers);
    }
    registry
}

/// The life that is killed: it makes and removes caches, pulls and prunes, as its seed says. Where nobody asks for that it
/// is a test of its own: a short life that nothing happens to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn life() {
    if let Some((place, registry)) = told() {
        let seed = std::env::var(SEED).unwrap().parse().unwrap();
        return Busy::begin(&place, &registry, seed).await.go_on(usize::MAX).await;
    }
    let (registry, folder) = (registry().await, tempfile::tempdir().unwrap());
    let place = Place::below(folder.path(), Driver::Erofs);
    Busy::begin(&place, &registry.host(), 1).await.go_on(30).await;
    assert_eq!(leftovers(&place), [""; 0]);
}

struct Busy {
    life: Life,
    registry: String,
    random: StdRng,
}

impl Busy {
    async fn begin(place: &Place, registry: &str, seed: u64) -> Self {
        let life = Life::begin(place).await;
        say("begun");
        Self { life, registry: registry.to_owned(), random: StdRng::seed_from_u64(seed) }
    }

    async fn go_on(mut self, actions: usize) {
        for _ in 0..actions {
            let number = self.random.random_range(0..IMAGES);
            let (id, reference) = (format!("imc-{number}"), format!("{}/image-{number}:v1", self.registry));
            match self.random.random_range(0..8) {
                0..3 => {
                    self.life.cache(&id, &reference).await;
                    say(&format!("has {id}"));
                }
                3..5 => {
                    say(&format!("loses {id}"));
                    self.life.service.delete_cache(&id).await.unwrap();
                }
                5..7 => self.life.pull(&reference).await,
                _ => drop(self.life.service.prune(inventory::Prune::Remove).await.unwrap()),
            }
        }
        self.life.end().await;
    }
}

/// Waits until a life has begun, ends it somewhat later, and brings up to date which caches it has promised.
fn end_somewhere(mut child: Child, after: Duration, caches: &mut BTreeSet<String>) {
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The test program itself begins the first line.
    assert!(output.any(|line| line.ends_with("begun")), "a life has ended before it began");
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in output {
        match line.split_once(' ') {
            Some(("has", id)) => drop(caches.insert(id.to_owned())),
            Some(("loses", id)) => drop(caches.remove(id)),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_outlives_kills_at_random() {
    outlives_kills(Driver::Erofs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_directories_outlives_kills_at_random() {
    outlives_kills(Driver::Directory).await;
}

async fn outlives_kills(driver: Driver) {
    let kills = std::env::var(KILLS).map_or(KILLS_BY_DEFAULT, |count| count.parse().expect(KILLS));
    let (registry, folder) = (registry().await, tempfile::tempdir().unwrap());
    let (place, mut caches, mut random) =
        (Place::below(folder.path(), driver), BTreeSet::new(), StdRng::seed_from_u64(7));
    for kill in 0..kills {
        let seed = [(SEED, kill.to_string())];
        let child = start("image::crash_tests::soak::life", folder.path(), driver, &registry.host(), &seed);
        let after = Duration::from_millis(random.random_range(0..120));
        caches = tokio::task::spawn_blocking(move || {
            end_somewhere(child, after, &mut caches);
            caches
        })
        .await
        .unwrap();
        let life = Life::begin(&place).await;
        life.service.unmount_strangers().await;
        say(&format!("kill {kill} after {after:?}: {caches:?}, {:?}", life.store.recovered()));
        life.check(&caches.iter().map(String::as_str).collect::<Vec<_>>()).await;
        life.end().await;
        assert_eq!(leftovers(&place), [""; 0], "kill {kill}");
    }
}

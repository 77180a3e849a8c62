//! `hack/bench pull`: pulling an image and starting a container from it, beside containerd.
//!
//! Engine against engine, without a cluster: the agent alone and containerd alone, each with its own runtime (crun, runc),
//! pull the same images from the same registry on this machine to a fresh file system of the same make. The clock runs
//! from the request until the engine says that the process runs: `RunPod` to `WatchPods` there, `ctr images pull` and
//! `ctr run --detach` here. The two take turns, and each case's first run is dropped. `hack/bench start` measures the whole
//! way of a pod through the API server.

pub(super) mod account;
mod case;
mod containerd;
pub(super) mod disk;
mod engine;
mod goals;
mod ground;
mod larder;
pub(super) mod remains;

use super::Row;
use super::calibration;
use crate::console::step;
use anyhow::Result;
use case::{CASES, Case};
use containerd::Containerd;
use engine::{Engine as _, Sample, life};
use larder::Larder;

pub(super) use goals::verdicts;
pub(super) use ground::Ground;
pub(crate) use remains::clear;

const BENCH: &str = "pull";

/// Measures the cases whose titles contain `only`, each `runs` times, into `rows`, those before a failure too.
pub(super) async fn run(ground: &Ground, runs: usize, only: &str, rows: &mut Vec<Row>) -> Result<()> {
    rows.extend(calibration::row(BENCH));
    let mut larder = Larder::new(ground.layout(), ground.warm_up());
    let mut containerd = Containerd::new(ground.layout(), ground.warm_up())?;
    for case in CASES.iter().filter(|case| case.titles().any(|title| title.contains(only))) {
        let title = format!("{}, {runs} times with each engine", case.steps[0].title);
        let measured = step(&title, both(ground, case, runs, &mut larder, &mut containerd)).await?;
        for (at, case) in case.steps.iter().enumerate() {
            let plain = ground.plain_bytes(case.image).await?;
            let of = |lives: &[Vec<Sample>]| -> Vec<Sample> {
                lives.iter().filter_map(|life| life.get(at)).cloned().collect()
            };
            let sides = measured.each_ref().map(|(side, lives)| (side.as_str(), of(lives)));
            rows.extend(case::rows(BENCH, case.title, plain, &sides));
        }
    }
    rows.extend(calibration::row(BENCH));
    Ok(())
}

/// The lives of one case: of each engine, in turn, so that whatever changes on the machine changes for both. Who goes first
/// changes too.
async fn both(
    ground: &Ground,
    case: &Case,
    runs: usize,
    larder: &mut Larder,
    containerd: &mut Containerd,
) -> Result<[(String, Vec<Vec<Sample>>); 2]> {
    let (starts, folder) = (ground.starts(case), ground.folder());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        if run % 2 == 0 {
            ours.push(life(larder, &folder, &starts).await?);
            theirs.push(life(containerd, &folder, &starts).await?);
        } else {
            theirs.push(life(containerd, &folder, &starts).await?);
            ours.push(life(larder, &folder, &starts).await?);
        }
    }
    let kept = |mut lives: Vec<Vec<Sample>>| lives.split_off(1);
    Ok([(larder.side().to_owned(), kept(ours)), (containerd.side().to_owned(), kept(theirs))])
}

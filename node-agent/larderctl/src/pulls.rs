//! `larderctl pulls`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use larder_proto::v1;
use serde::Serialize;
use tokio::time::MissedTickBehavior;
use tonic::Streaming;

use crate::agent::{Agent, CtlError, refused};
use crate::figures;
use crate::output::{self, Output, Row};
use crate::progress;
use crate::transfer::{Rate, Transfer};

const DOING: &str = "list pulls";
const NONE: &str = "No pulls.";
/// What is drawn is drawn again so often: ages grow, and what stalls slows down.
const REDRAW: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pull {
    reference: String,
    started: Option<Timestamp>,
    #[serde(flatten)]
    transfer: Transfer,
    bytes_per_second: u64,
    waiting: u32,
    waiters: Vec<String>,
}

impl Row for Pull {
    const COLUMNS: &'static [&'static str] = &["IMAGE", "LAYERS", "BYTES", "RATE", "AGE", "WAITING"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.reference.clone(),
            self.transfer.layers(),
            self.transfer.bytes(),
            figures::rate(self.bytes_per_second),
            figures::age(self.started, now),
            self.who_waits(),
        ]
    }
}

impl Pull {
    /// `pod default/web and 3 more`; only how many where an older agent does not tell who.
    fn who_waits(&self) -> String {
        match &self.waiters[..] {
            [] => self.waiting.to_string(),
            [one] => one.clone(),
            [first, more @ ..] => format!("{first} and {} more", more.len()),
        }
    }

    fn words(&self) -> String {
        format!("{}: {}, for {}", self.reference, self.transfer.words(self.bytes_per_second), self.who_waits())
    }
}

/// Lists what is under way now.
pub(crate) async fn list(agent: &Agent, output: Output) -> Result<(), CtlError> {
    let mut lists = lists(agent).await?;
    let pulls = Rates::default().pulls(&next(&mut lists).await?, output.now());
    output.list(&pulls, NONE)
}

/// Follows what is under way until the agent ends: as a table that is drawn anew on a terminal, else a line for each pull
/// that has changed; for programs, a line of JSON whenever the list has.
pub(crate) async fn follow(agent: &Agent, output: Output) -> Result<(), CtlError> {
    let lists = lists(agent).await?;
    if !output.is_for_people() {
        return follow_as_json(lists).await;
    }
    let board = progress::board();
    if board.is_hidden() { follow_by_line(lists).await } else { follow_in_place(lists, output, &board).await }
}

async fn follow_as_json(mut lists: Lists) -> Result<(), CtlError> {
    let mut rates = Rates::default();
    loop {
        let list = next(&mut lists).await?;
        output::json_line(&rates.pulls(&list, Timestamp::now()))?;
    }
}

async fn follow_by_line(mut lists: Lists) -> Result<(), CtlError> {
    let (mut rates, mut before) = (Rates::default(), Vec::new());
    loop {
        let list = next(&mut lists).await?;
        let pulls = rates.pulls(&list, Timestamp::now());
        for line in changes(&before, &pulls) {
            output::line(&line)?;
        }
        before = pulls;
    }
}

async fn follow_in_place(mut lists: Lists, output: Output, board: &indicatif::ProgressBar) -> Result<(), CtlError> {
    let (mut rates, mut list) = (Rates::default(), next(&mut lists).await?);
    let mut redraw = tokio::time::interval(REDRAW);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = Timestamp::now();
        board.set_message(output.at(now).rows(&rates.pulls(&list, now), NONE));
        tokio::select! {
            // A message that has not come in full is kept by the stream.
            news = next(&mut lists) => match news {
                Ok(news) => list = news,
                Err(error) => {
                    board.abandon();
                    return Err(error);
                }
            },
            // A tick that is dropped comes again.
            _ = redraw.tick() => {}
        }
    }
}

type Lists = Streaming<v1::WatchPullsResponse>;

async fn lists(agent: &Agent) -> Result<Lists, CtlError> {
    Ok(agent.pulls().watch_pulls(v1::WatchPullsRequest {}).await.map_err(refused(DOING))?.into_inner())
}

async fn next(lists: &mut Lists) -> Result<Vec<v1::PullState>, CtlError> {
    let list = lists.message().await.map_err(refused(DOING))?;
    Ok(list.ok_or(CtlError::CutShort(DOING))?.pulls)
}

/// How fast each pull is. The same image may be pulled again later.
#[derive(Debug, Default)]
struct Rates(BTreeMap<(String, Option<Timestamp>), Rate>);

impl Rates {
    /// What the agent tells, with rates.
    fn pulls(&mut self, list: &[v1::PullState], now: Timestamp) -> Vec<Pull> {
        let mut before = std::mem::take(&mut self.0);
        let mut pulls = Vec::with_capacity(list.len());
        for state in list {
            let started = figures::time(state.started);
            let key = (state.reference.clone(), started);
            let mut rate = before.remove(&key).unwrap_or_else(|| Rate::since(started.unwrap_or(now)));
            let bytes_per_second = rate.take(state.done_bytes, now);
            self.0.insert(key, rate);
            pulls.push(Pull {
                reference: state.reference.clone(),
                started,
                transfer: Transfer {
                    done_layers: state.done_layers,
                    total_layers: state.total_layers,
                    done_bytes: state.done_bytes,
                    total_bytes: state.total_bytes,
                },
                bytes_per_second,
                waiting: state.waiting,
                waiters: state.waiters.clone(),
            });
        }
        pulls
    }
}

/// A line for each pull that is new, further on, waited for by others, or gone.
fn changes(before: &[Pull], after: &[Pull]) -> Vec<String> {
    let same = |one: &Pull, other: &Pull| one.reference == other.reference && one.started == other.started;
    let is_news = |pull: &&Pull| {
        let known = before.iter().find(|known| same(known, pull));
        known.is_none_or(|known| (known.transfer, &known.waiters) != (pull.transfer, &pull.waiters))
    };
    let gone = before.iter().filter(|pull| !after.iter().any(|other| same(pull, other)));
    let gone = gone.map(|pull| format!("{}: ended", pull.reference));
    gone.chain(after.iter().filter(is_news).map(Pull::words)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(reference: &str, started: i64, done_bytes: u64) -> v1::PullState {
        v1::PullState {
            reference: reference.to_owned(),
            started: Some(prost_types::Timestamp { seconds: started, nanos: 0 }),
            waiting: 1,
            done_bytes,
            total_bytes: 4096,
            done_layers: 0,
            total_layers: 2,
            waiters: vec!["pod ns/a".to_owned()],
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_pull_that_begins_anew_has_a_rate_of_its_own() {
        let mut rates = Rates::default();
        let rate = |pulls: Vec<Pull>| pulls.iter().map(|pull| pull.bytes_per_second).collect::<Vec<_>>();
        assert_eq!(rate(rates.pulls(&[state("a", 100, 1024), state("b", 101, 0)], at(102))), [512, 0]);
        assert_eq!(rate(rates.pulls(&[state("a", 103, 2048)], at(104))), [2048]);
        assert_eq!(rates.0.len(), 1, "what has ended is forgotten");
    }

    #[test]
    fn who_waits_is_told_as_far_as_it_is_known() {
        let mut pull = Rates::default().pulls(&[state("a", 1, 0)], at(1)).remove(0);
        assert_eq!(pull.who_waits(), "pod ns/a");
        pull.waiters.push("pod ns/b".to_owned());
        assert_eq!(pull.who_waits(), "pod ns/a and 1 more");
        pull.waiters.clear();
        assert_eq!(pull.who_waits(), "1");
    }

    #[test]
    fn a_line_is_told_of_what_has_changed() {
        let mut rates = Rates::default();
        let first = rates.pulls(&[state("a", 100, 0), state("b", 100, 1024)], at(101));
        let second = rates.pulls(&[state("b", 100, 1024), state("c", 102, 0)], at(102));
        let third = rates.pulls(&[state("b", 100, 1024), state("c", 102, 2048)], at(104));
        assert_eq!(changes(&[], &first).len(), 2);
        assert_eq!(
            changes(&first, &second),
            ["a: ended", "c: 0/2 layers, 0 B/4.0 KiB (0%), 0 B/s, for pod ns/a"],
            "nothing of b, whose rate alone has changed"
        );
        assert_eq!(changes(&second, &third), ["c: 0/2 layers, 2.0 KiB/4.0 KiB (50%), 1.0 KiB/s, for pod ns/a"]);
        let again = rates.pulls(&[state("b", 100, 1024), state("c", 105, 0)], at(105));
        assert_eq!(changes(&third, &again).len(), 2, "ended and begun anew");
    }
}

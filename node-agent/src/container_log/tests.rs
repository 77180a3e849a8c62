//! Whole logs: several files, files that are turned over under the reader, and followers.

use std::fs;
use std::io::Write;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn entry(number: usize) -> String {
    format!("1970-01-01T00:00:{:02}.000000000Z stdout F line {number}\n", number % 60)
}

fn entries(numbers: std::ops::Range<usize>) -> String {
    numbers.map(entry).collect()
}

fn lines(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| format!("line {number}\n")).collect()
}

struct Log {
    dir: tempfile::TempDir,
}

impl Log {
    fn new(files: &[(&str, String)]) -> Self {
        let log = Self { dir: tempfile::tempdir().unwrap() };
        for (name, content) in files {
            fs::write(log.dir.path().join(name), content).unwrap();
        }
        log
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    fn append(&self, text: &str) {
        fs::File::options().append(true).create(true).open(self.path()).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn turn_over(&self, suffix: &str) {
        fs::rename(self.path(), self.dir.path().join(format!("0.log.{suffix}"))).unwrap();
    }

    async fn read(&self, options: LogOptions) -> String {
        let (out, received) = mpsc::channel(4);
        let (reading, text) = tokio::join!(
            async {
                let result = read(&self.path(), &options, std::future::pending(), &out).await;
                drop(out);
                result
            },
            collect(received)
        );
        reading.unwrap();
        text
    }
}

async fn collect(mut received: mpsc::Receiver<Bytes>) -> String {
    let mut all = Vec::new();
    while let Some(bytes) = received.recv().await {
        all.extend_from_slice(&bytes);
    }
    String::from_utf8(all).unwrap()
}

/// Receives until as much has come as `expected` has.
async fn expect(received: &mut mpsc::Receiver<Bytes>, expected: &str) {
    let mut text = String::new();
    let receiving = async {
        while text.len() < expected.len() {
            text.push_str(std::str::from_utf8(&received.recv().await.expect("the reader goes on")).unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.expect("what is written arrives");
    assert_eq!(text, expected);
}

fn three_files() -> Log {
    Log::new(&[
        ("0.log.20240101-000000.1", entries(0..3)),
        ("0.log.20240102-000000.1", entries(3..6)),
        ("0.log", entries(6..8)),
        ("1.log", entries(50..52)),
        ("other", "x".into()),
    ])
}

#[tokio::test]
async fn older_files_are_part_of_the_log() {
    assert_eq!(three_files().read(LogOptions::default()).await, lines(0..8));
}

#[tokio::test]
async fn the_tail_reaches_into_older_files() {
    let log = three_files();
    for count in [0, 1, 2, 3, 5, 6, 8, 100_usize] {
        let options = LogOptions { tail_lines: Some(u64::try_from(count).unwrap()), ..LogOptions::default() };
        assert_eq!(log.read(options).await, lines(8_usize.saturating_sub(count)..8), "{count}");
    }
}

#[tokio::test]
async fn options_work_together() {
    let options = LogOptions {
        tail_lines: Some(5),
        since: Some(Timestamp::from_second(5).unwrap()),
        timestamps: true,
        limit_bytes: Some(45),
        follow: true,
    };
    // The limit ends it, although it follows.
    assert_eq!(three_files().read(options).await, "1970-01-01T00:00:05.000000000Z line 5\n1970-01");
}

#[tokio::test]
async fn a_log_that_is_not_there_is_said_to_be_missing() {
    let log = Log::new(&[("0.log.20240101-000000.1", entries(0..3))]);
    for follow in [false, true] {
        let options = LogOptions { follow, ..LogOptions::default() };
        let error = read(&log.path(), &options, std::future::pending(), &mpsc::channel(1).0).await.unwrap_err();
        assert!(matches!(error, LogError::NotFound { .. }));
    }
}

#[tokio::test]
async fn a_follower_gets_everything_through_every_turn() {
    let log = Log::new(&[("0.log", entries(0..2))]);
    let (out, mut received) = mpsc::channel(4);
    let (end, ended) = oneshot::channel::<()>();
    let path = log.path();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let following = async {
        let ended = async { drop(ended.await) };
        read(&path, &options, ended, &out).await.unwrap();
        drop(out);
    };
    let writing = async {
        expect(&mut received, &lines(0..2)).await;
        log.append(&entries(2..4));
        expect(&mut received, &lines(2..4)).await;
        // Written and turned over before the follower can look, twice.
        log.append(&entries(4..5));
        log.turn_over("20240101-000000.1");
        log.append(&entries(5..7));
        log.turn_over("20240102-000000.1");
        log.append(&entries(7..8));
        expect(&mut received, &lines(4..8)).await;
        // Half an entry, then the rest.
        let text = entry(8);
        log.append(&text[..20]);
        log.append(&text[20..]);
        expect(&mut received, &lines(8..9)).await;
        // What is written right before the end is not lost.
        log.append(&entries(9..10));
        end.send(()).unwrap();
        assert_eq!(collect(received).await, lines(9..10));
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(following, writing) }).await.unwrap();
}

#[tokio::test]
async fn a_follower_whose_reader_goes_away_ends() {
    let log = Log::new(&[("0.log", entries(0..1))]);
    let (out, mut received) = mpsc::channel(4);
    let path = log.path();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let leaving = async {
        expect(&mut received, &lines(0..1)).await;
        log.append(&entries(1..2));
        expect(&mut received, &lines(1..2)).await;
        drop(received);
    };
    let following = read(&path, &options, std::future::pending(), &out);
    let (result, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(following, leaving) }).await.unwrap();
    result.unwrap();
}

//! Answers that break off, where no HTTP is in between that would hide when.

use std::{collections::VecDeque, sync::Mutex};

use async_trait::async_trait;
use futures::stream;

use super::*;
use crate::registry::{BlobStream, Resolve, Resolved};

const BLOB: &[u8] = b"the bytes of a blob";

/// What one request is answered with.
#[derive(Debug)]
struct Answer {
    /// Where the answer begins, whatever was asked for.
    begins: usize,
    chunks: Vec<&'static [u8]>,
    /// What comes after them.
    end: End,
}

#[derive(Debug)]
enum End {
    Well,
    Broken,
}

/// Gives its answers in order, and notes from where on it was asked.
#[derive(Debug)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<u64>>,
}

fn broken() -> RegistryError {
    RegistryError::Connection { method: "GET", url: "test".to_owned(), cause: "reset by the test".to_owned() }
}

#[async_trait]
impl Repository for Script {
    fn name(&self) -> &str {
        "script"
    }

    async fn resolve(&self, _: &str, _: Resolve) -> Result<Resolved, RegistryError> {
        panic!("only blobs are asked for")
    }

    async fn manifest(&self, _: &Digest) -> Result<Bytes, RegistryError> {
        panic!("only blobs are asked for")
    }

    fn sources(&self) -> Result<Vec<usize>, RegistryError> {
        Ok(vec![0])
    }

    async fn blob(&self, _: usize, _: &Digest, _: u64, offset: u64) -> Result<BlobStream, RegistryError> {
        self.asked.lock().unwrap().push(offset);
        let Answer { begins, chunks, end } = self.answers.lock().unwrap().pop_front().expect("one answer more");
        let mut items: Vec<_> = chunks.into_iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        match end {
            End::Well => {}
            End::Broken => items.push(Err(broken())),
        }
        let bytes = stream::iter(items).boxed();
        Ok(BlobStream { url: "test".to_owned(), offset: u64::try_from(begins).unwrap(), bytes })
    }
}

/// What came of a transfer.
struct Came {
    ended: Result<(), Stopped>,
    bytes: Vec<u8>,
    asked: Vec<u64>,
    progress: u64,
}

async fn receive(kept: Option<Kept>, answers: Vec<Answer>) -> Came {
    let script = Script { answers: Mutex::new(answers.into()), asked: Mutex::default() };
    let progress = Progress::default();
    let (bandwidth, meters) = (Bandwidth::new(None), Meters::default());
    let content = Content { digest: Digest::of(BLOB), size: u64::try_from(BLOB.len()).unwrap() };
    let transfer =
        Transfer { repository: &script, content, progress: &progress, bandwidth: &bandwidth, meters: &meters };
    let mut bytes = Vec::new();
    let ended = transfer.receive(&mut Route::new(vec![0]), kept, Sink::Memory(&mut bytes)).await;
    assert!(script.answers.lock().unwrap().is_empty(), "it was not asked often enough");
    Came { ended, bytes, asked: script.asked.into_inner().unwrap(), progress: progress.done() }
}

#[tokio::test]
async fn an_answer_that_breaks_off_behind_its_last_byte_has_given_the_blob() {
    let came = receive(None, vec![Answer { begins: 0, chunks: vec![&BLOB[..7], &BLOB[7..]], end: End::Broken }]).await;
    assert_eq!((came.ended, &came.bytes[..], came.asked), (Ok(()), BLOB, vec![0]));
}

#[tokio::test]
async fn the_digest_decides_whether_what_came_before_the_break_is_the_blob() {
    let other = b"the bytes of a liar";
    assert_eq!(other.len(), BLOB.len());
    let came = receive(None, vec![Answer { begins: 0, chunks: vec![other], end: End::Broken }]).await;
    assert_eq!((came.ended, came.asked), (Err(Stopped::Wrong(Verdict::GiveUp)), vec![0]));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_before_its_last_byte_is_gone_on_with() {
    let almost = BLOB.len() - 1;
    let answers = vec![
        Answer { begins: 0, chunks: vec![&BLOB[..almost]], end: End::Broken },
        Answer { begins: almost, chunks: vec![&BLOB[almost..]], end: End::Well },
    ];
    let came = receive(None, answers).await;
    let asked = vec![0, u64::try_from(almost).unwrap()];
    assert_eq!((came.ended, &came.bytes[..], came.asked), (Ok(()), BLOB, asked));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_begins_anew_gives_only_what_has_not_come_yet() {
    // Its first bytes are not those that came; they are not looked at.
    let answers = vec![
        Answer { begins: 0, chunks: vec![&BLOB[..10]], end: End::Broken },
        Answer { begins: 0, chunks: vec![b"xxxx", b"xxxxxx", &BLOB[10..]], end: End::Well },
    ];
    let came = receive(None, answers).await;
    assert_eq!((came.ended, &came.bytes[..], came.asked), (Ok(()), BLOB, vec![0, 10]));
    assert_eq!(came.progress, u64::try_from(BLOB.len()).unwrap());
    // The same where the first bytes are from a file, and a chunk lies on both sides of their end.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &BLOB[..10]).unwrap();
    let kept = Kept { path: file.path().to_owned(), bytes: 10 };
    let came = receive(Some(kept), vec![Answer { begins: 0, chunks: vec![BLOB], end: End::Well }]).await;
    assert_eq!((came.ended, &came.bytes[..], came.asked), (Ok(()), BLOB, vec![10]));
}

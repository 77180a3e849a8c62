//! Whether a blob comes fast enough to be waited for. One whose bytes drip is never silent, and would hold a turn and its pod
//! for as long as it likes; given up, it goes on at another mirror from where it was.

use std::time::Duration;

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::time::Instant;

use super::RegistryError;

/// The least that has to come. No line on which images are pulled is as slow as that.
const LEAST_BYTES_A_SECOND: u128 = 1 << 10;

type Pieces = BoxStream<'static, Result<Bytes, RegistryError>>;

/// How much has come, and how long it was waited for.
#[derive(Debug)]
struct Pace {
    /// Over how much time the rate is taken.
    window: Duration,
    waited: Duration,
    got_bytes: u64,
}

impl Pace {
    /// Notes what came after a wait. At the end of a window in which too little came, says how much that was.
    fn too_slow(&mut self, wait: Duration, bytes: usize) -> Option<u64> {
        self.waited += wait;
        self.got_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.waited < self.window {
            return None;
        }
        let got_bytes = std::mem::take(&mut self.got_bytes);
        let least = std::mem::take(&mut self.waited).as_millis() * LEAST_BYTES_A_SECOND / 1000;
        (u128::from(got_bytes) < least).then_some(got_bytes)
    }
}

/// A blob that is given up when it comes too slowly, taken over `window`. Only the time in which it is waited for counts:
/// whoever takes the bytes may have a bound of his own.
pub(super) fn watched(pieces: Pieces, url: String, what: String, window: Duration) -> Pieces {
    let pace = Pace { window, waited: Duration::ZERO, got_bytes: 0 };
    let watched = stream::unfold(Some((pieces, pace, url, what)), async |state| {
        let (mut pieces, mut pace, url, what) = state?;
        let begun = Instant::now();
        let piece = pieces.next().await?;
        let came = piece.as_ref().map_or(0, Bytes::len);
        match pace.too_slow(begun.elapsed(), came).filter(|_| piece.is_ok()) {
            Some(got_bytes) => Some((Err(RegistryError::TooSlow { what, url, got_bytes, after: pace.window }), None)),
            None => Some((piece, Some((pieces, pace, url, what)))),
        }
    });
    watched.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn coming(pause: Duration, bytes: usize) -> Pieces {
        let pieces = stream::repeat_with(move || Ok(Bytes::from(vec![7; bytes]))).take(100);
        let pieces = pieces.then(move |piece| async move {
            tokio::time::sleep(pause).await;
            piece
        });
        watched(pieces.boxed(), "u".to_owned(), "blob".to_owned(), SECOND * 10)
    }

    #[tokio::test(start_paused = true)]
    async fn what_drips_is_given_up_and_what_is_only_slow_is_not() {
        let drips: Vec<_> = coming(SECOND, 1000).collect().await;
        assert_eq!(drips.len(), 10);
        let text = drips.into_iter().next_back().unwrap().unwrap_err().to_string();
        assert_eq!(text, "blob from u is too slow: 10000 bytes came in 10s");
        assert_eq!(coming(SECOND, 1024).filter(|piece| std::future::ready(piece.is_ok())).count().await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_the_bytes_slowly_does_not_count() {
        let mut pieces = coming(Duration::ZERO, 1);
        let mut count = 0;
        while let Some(piece) = pieces.next().await {
            tokio::time::sleep(SECOND).await;
            count += usize::from(piece.is_ok());
        }
        assert_eq!(count, 100);
    }
}

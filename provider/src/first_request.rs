//! The first request of a connection, which a caller may not put off for ever.
//!
//! A limit on the headers of HTTP/1 begins to count only when it is known which version a caller speaks, and HTTP/2 has none.
//! So who connects and says nothing, or not enough, would keep one of the few connections that a server of ours has.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

/// Whether it has come.
#[derive(Debug)]
pub(crate) struct FirstRequest {
    came: CancellationToken,
}

impl FirstRequest {
    /// Of the connection that this router serves from now on.
    pub(crate) fn of(router: Router) -> (Router, Self) {
        let came = CancellationToken::new();
        let first = Self { came: came.clone() };
        let note = move |request: Request| {
            came.cancel();
            request
        };
        (router.layer(MapRequestLayer::new(note)), first)
    }

    /// Returns when it has not come within this time; never when it has.
    pub(crate) async fn is_late(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.came.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

//! Renews the lease of a node: every 10 seconds for as long as the provider lives, whatever the agent does.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::lease_object::renewed;
use crate::cluster::{ClusterError, NodeApi};

/// Between two renewals: a quarter of the lease.
const RENEW: Duration = Duration::from_secs(10);
/// Between two tries, when one failed.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the lease until `stop`. It begins once the node's UID is known, since the lease belongs to the node.
pub(super) async fn keep(
    api: Arc<dyn NodeApi>,
    node: String,
    mut node_uid: watch::Receiver<Option<String>>,
    stop: CancellationToken,
) {
    let renewing = async {
        let mut held = None;
        let mut ticks = interval(RENEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Both wait for something that stays true until it is taken.
            tokio::select! {
                _ = ticks.tick() => {}
                changed = node_uid.changed() => if changed.is_err() { return },
            }
            let uid = node_uid.borrow_and_update().clone();
            if let Some(uid) = uid {
                renew(&*api, &node, &uid, &mut held).await;
            }
        }
    };
    tokio::select! {
        () = renewing => {}
        // A renewal that is under way may or may not take effect; either is well.
        () = stop.cancelled() => {}
    }
}

/// Tries until the next renewal is due.
async fn renew(api: &dyn NodeApi, node: &str, uid: &str, held: &mut Option<Lease>) {
    let deadline = Instant::now() + RENEW;
    let mut first = true;
    loop {
        match once(api, node, uid, held).await {
            Ok(()) => return,
            Err(error) => {
                // What we hold may be old; the next try reads it first.
                *held = None;
                if first {
                    tracing::warn!(node, %error, "node lease is not renewed, trying again");
                }
                first = false;
            }
        }
        if Instant::now() + RETRY >= deadline {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn once(api: &dyn NodeApi, node: &str, uid: &str, held: &mut Option<Lease>) -> Result<(), ClusterError> {
    let current = match held.take() {
        Some(lease) => Some(lease),
        None => api.lease(node).await?,
    };
    let is_there = current.is_some();
    let lease = renewed(current, node, uid, Timestamp::now());
    *held = Some(if is_there { api.replace_lease(&lease).await? } else { api.create_lease(&lease).await? });
    Ok(())
}

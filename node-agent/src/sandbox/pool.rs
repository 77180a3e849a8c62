//! The owner of all sandboxes of a host: a pool that is kept filled, and what the pods have.
//!
//! One task ([`Pool::run`]) owns the state; requests arrive on a bounded queue. Making and removing happens on blocking
//! threads, whose results come back to the task. What was taken out of the pool is made anew a moment later: at once it would
//! take the processor, and the lock of the host's network, from the very start that it was taken for.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Sandbox, SandboxError, SandboxSpec,
    ipam::{Addresses, PodCidr},
    slot::Slot,
};
use crate::host::netlink;

/// How long after it was taken from the pool is filled again. A pod whose images are cached runs within it.
const REFILL_AFTER: Duration = Duration::from_millis(150);

pub(super) type Reply<T> = oneshot::Sender<Result<T, SandboxError>>;

/// What the pool can be asked.
#[derive(Debug)]
pub(super) enum Request {
    Ensure(SandboxSpec, Reply<Sandbox>),
    Remove(String, Reply<()>),
    List(oneshot::Sender<HashMap<String, Sandbox>>),
}

/// Where and how many.
#[derive(Debug, Clone)]
pub(super) struct PoolConfig {
    pub(super) folder: PathBuf,
    pub(super) cidr: PodCidr,
    pub(super) bridge_index: u32,
    pub(super) size: usize,
}

/// The state. See the module's header.
#[derive(Debug)]
pub(super) struct Pool {
    config: Arc<PoolConfig>,
    addresses: Addresses,
    free: VecDeque<Slot>,
    taken: HashMap<String, Slot>,
    waiting: VecDeque<(SandboxSpec, Reply<Sandbox>)>,
    /// The pods whose sandbox is waited for, being configured or being removed, and what was asked about them meanwhile.
    under_way: HashMap<String, Vec<Request>>,
    creating: usize,
    /// When the pool is to be filled again; none when nothing was taken from it since.
    refill_at: Option<Instant>,
    work: JoinSet<Done>,
}

/// What a blocking thread brings back.
#[derive(Debug)]
enum Done {
    Created { address: std::net::Ipv4Addr, result: io::Result<Slot> },
    Assigned { slot: Slot, spec: SandboxSpec, result: io::Result<()>, reply: Reply<Sandbox> },
    Removed { uid: Option<String>, slot: Slot, result: io::Result<()>, reply: Option<Reply<()>> },
}

impl Pool {
    /// A pool with the slots that were found at start.
    pub(super) fn new(config: PoolConfig, found: Vec<Slot>) -> Self {
        let mut pool = Self {
            addresses: Addresses::new(config.cidr),
            config: Arc::new(config),
            free: VecDeque::new(),
            taken: HashMap::new(),
            waiting: VecDeque::new(),
            under_way: HashMap::new(),
            creating: 0,
            refill_at: None,
            work: JoinSet::new(),
        };
        for slot in found {
            let ours = pool.addresses.claim(slot.record.address);
            match slot.record.uid.clone() {
                // A pod keeps its address even if the node's network has changed since.
                Some(uid) => pool.take(uid, slot),
                None if ours => pool.free.push_back(slot),
                None => pool.remove_slot(None, slot, None),
            }
        }
        pool
    }

    /// Serves requests until `stop`, or until nobody can ask any more. What the pods have stays; what waits in the pool stays
    /// too and is found at the next start.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>, stop: CancellationToken) {
        self.refill();
        loop {
            tokio::select! {
                // Safe to drop: nothing is lost with a wait.
                () = stop.cancelled() => break,
                // Cancel-safe per the docs of `recv`.
                request = requests.recv() => match request {
                    Some(request) => self.serve(request),
                    None => break,
                },
                // Cancel-safe per the docs of `join_next`.
                Some(done) = self.work.join_next() => self.finish(done),
                // Nothing is lost with a wait for a time.
                () = tokio::time::sleep_until(self.refill_at.unwrap_or_else(Instant::now)), if self.refill_at.is_some() => {
                    self.refill();
                }
            }
        }
        // Nothing new is begun for those who asked again.
        self.under_way.clear();
        // A half-made slot would be left for the next start to sweep: better to let it end.
        while let Some(done) = self.work.join_next().await {
            self.finish_last(done);
        }
    }

    fn serve(&mut self, request: Request) {
        let uid = match &request {
            Request::Ensure(spec, _) => Some(&spec.uid),
            Request::Remove(uid, _) => Some(uid),
            Request::List(_) => None,
        };
        if let Some(later) = uid.and_then(|uid| self.under_way.get_mut(uid)) {
            later.push(request);
            return;
        }
        match request {
            Request::Ensure(spec, reply) => self.ensure(spec, reply),
            Request::Remove(uid, reply) => match self.taken.remove(&uid) {
                Some(slot) => {
                    self.under_way.insert(uid.clone(), Vec::new());
                    self.remove_slot(Some(uid), slot, Some(reply));
                }
                None => drop(reply.send(Ok(()))),
            },
            Request::List(reply) => {
                let all = self.taken.iter().map(|(uid, slot)| (uid.clone(), slot.sandbox())).collect();
                drop(reply.send(all));
            }
        }
    }

    fn ensure(&mut self, spec: SandboxSpec, reply: Reply<Sandbox>) {
        if let Some(slot) = self.taken.get(&spec.uid) {
            drop(reply.send(Ok(slot.sandbox())));
        } else {
            self.under_way.insert(spec.uid.clone(), Vec::new());
            match self.free.pop_front() {
                Some(slot) => self.assign(slot, spec, reply),
                None => self.waiting.push_back((spec, reply)),
            }
        }
        self.make_for_waiting();
        self.refill_later();
    }

    /// Serves what was asked about a pod while its sandbox was under way. It no longer is.
    fn settle(&mut self, uid: &str) {
        for request in self.under_way.remove(uid).unwrap_or_default() {
            self.serve(request);
        }
    }

    /// Puts a slot down as a pod's. Whatever the pod had before is given back.
    fn take(&mut self, uid: String, slot: Slot) {
        if let Some(other) = self.taken.insert(uid, slot) {
            tracing::warn!(folder = %other.folder.display(), "remove a second sandbox of the same pod");
            self.remove_slot(None, other, None);
        }
    }

    /// Starts to make as many slots as are wanted: one for each that waits, and the pool's own.
    fn refill(&mut self) {
        self.refill_at = None;
        self.make(self.waiting.len() + self.config.size);
    }

    fn refill_later(&mut self) {
        if self.creating + self.free.len() < self.waiting.len() + self.config.size {
            self.refill_at.get_or_insert_with(|| Instant::now() + REFILL_AFTER);
        }
    }

    fn make_for_waiting(&mut self) {
        self.make(self.waiting.len());
    }

    /// Starts to make slots until `wanted` are there or on their way.
    fn make(&mut self, wanted: usize) {
        while self.creating + self.free.len() < wanted {
            let Some(address) = self.addresses.take() else {
                self.refuse_waiting();
                return;
            };
            self.creating += 1;
            self.work.spawn(create(self.config.clone(), address));
        }
    }

    /// Answers those for whom no address is left, nor on its way.
    fn refuse_waiting(&mut self) {
        while self.waiting.len() > self.creating {
            let Some((spec, reply)) = self.waiting.pop_back() else { return };
            let error = SandboxError::NoAddress { cidr: self.config.cidr.to_string(), used: self.addresses.in_use() };
            drop(reply.send(Err(error)));
            self.settle(&spec.uid);
        }
    }

    fn assign(&mut self, slot: Slot, spec: SandboxSpec, reply: Reply<Sandbox>) {
        self.work.spawn(async move {
            let (mut given, to) = (slot.clone(), spec.clone());
            let assigned = tokio::task::spawn_blocking(move || given.assign(&to).map(|()| given)).await;
            // Whatever happens comes back, or the pod would count as under way for ever.
            let (slot, result) = match assigned.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                Ok(given) => (given, Ok(())),
                Err(error) => (slot, Err(error)),
            };
            Done::Assigned { slot, spec, result, reply }
        });
    }

    fn remove_slot(&mut self, uid: Option<String>, slot: Slot, reply: Option<Reply<()>>) {
        self.work.spawn(removal(uid, slot, reply, Slot::remove));
    }

    fn finish(&mut self, done: Result<Done, JoinError>) {
        let failed = matches!(&done, Ok(Done::Created { result: Err(_), .. }));
        match done {
            Ok(Done::Created { address, result }) => self.created(address, result),
            Ok(Done::Assigned { slot, spec, result, reply }) => self.assigned(slot, spec, result, reply),
            Ok(Done::Removed { uid, slot, result, reply }) => self.removed(uid, slot, result, reply),
            Err(error) => tracing::error!(error = %error, "a sandbox task panicked"),
        }
        self.make_for_waiting();
        // What fails once fails again at once, such as when the bridge is gone: only for those who wait is it tried again.
        if !failed {
            self.refill_later();
        }
    }

    fn finish_last(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(Done::Assigned { slot, spec, result, reply }) => self.assigned(slot, spec, result, reply),
            Ok(Done::Removed { uid, slot, result, reply }) => self.removed(uid, slot, result, reply),
            Ok(Done::Created { .. }) | Err(_) => {}
        }
    }

    fn created(&mut self, address: std::net::Ipv4Addr, result: io::Result<Slot>) {
        self.creating -= 1;
        match result {
            Ok(slot) => match self.waiting.pop_front() {
                Some((spec, reply)) => self.assign(slot, spec, reply),
                None => self.free.push_back(slot),
            },
            Err(source) => {
                self.addresses.release(address);
                tracing::warn!(error = %source, "make a sandbox for the pool");
                // Whoever waits is told, and tries again with its own back-off; an idle pool is filled at the next request.
                if let Some((spec, reply)) = self.waiting.pop_front() {
                    let uid = spec.uid.clone();
                    drop(reply.send(Err(SandboxError::Host { action: "create sandbox", uid, source })));
                    self.settle(&spec.uid);
                }
            }
        }
    }

    fn assigned(&mut self, slot: Slot, spec: SandboxSpec, result: io::Result<()>, reply: Reply<Sandbox>) {
        match result {
            Ok(()) => {
                let sandbox = slot.sandbox();
                self.take(spec.uid.clone(), slot);
                drop(reply.send(Ok(sandbox)));
            }
            Err(source) => {
                self.remove_slot(None, slot, None);
                let uid = spec.uid.clone();
                drop(reply.send(Err(SandboxError::Host { action: "configure sandbox", uid, source })));
            }
        }
        self.settle(&spec.uid);
    }

    fn removed(&mut self, uid: Option<String>, slot: Slot, result: io::Result<()>, reply: Option<Reply<()>>) {
        let result = match (result, &uid) {
            (Ok(()), _) => {
                self.addresses.release(slot.record.address);
                Ok(())
            }
            (Err(source), Some(uid)) => {
                // Still the pod's: asked again, it is tried again.
                self.taken.insert(uid.clone(), slot);
                Err(SandboxError::Host { action: "remove sandbox", uid: uid.clone(), source })
            }
            (Err(source), None) => {
                // Its address stays taken: whatever holds on to the slot may hold on to the address as well.
                tracing::warn!(error = %source, folder = %slot.folder.display(), "remove an unused sandbox");
                return;
            }
        };
        if let Some(reply) = reply {
            drop(reply.send(result));
        }
        if let Some(uid) = uid {
            self.settle(&uid);
        }
    }
}

/// Whatever happens comes back, or the pod would count as under way for ever and its slot would be nobody's.
async fn removal(
    uid: Option<String>,
    slot: Slot,
    reply: Option<Reply<()>>,
    remove: impl FnOnce(&Slot) -> io::Result<()> + Send + 'static,
) -> Done {
    let removed = slot.clone();
    let result = tokio::task::spawn_blocking(move || remove(&removed)).await;
    Done::Removed { uid, slot, result: result.unwrap_or_else(|panic| Err(io::Error::other(panic))), reply }
}

async fn create(config: Arc<PoolConfig>, address: std::net::Ipv4Addr) -> Done {
    let name = hex::encode(rand::random::<[u8; 5]>());
    // 15 bytes is all that a link's name may have (IFNAMSIZ less the final zero).
    let host_link = format!("lard{name}");
    let folder = config.folder.join(&name);
    let result = create_slot(&config, folder, host_link, address).await;
    Done::Created { address, result }
}

async fn create_slot(
    config: &PoolConfig,
    folder: PathBuf,
    host_link: String,
    address: std::net::Ipv4Addr,
) -> io::Result<Slot> {
    let cidr = config.cidr;
    let made = tokio::task::spawn_blocking(move || Slot::create(folder, host_link, address, cidr));
    let slot = made.await.map_err(io::Error::other)??;
    let attached = match netlink::attach_to_bridge(&slot.record.host_link, config.bridge_index).await {
        Ok(()) => slot.save(),
        Err(err) => Err(err),
    };
    if let Err(err) = attached {
        // The error that stopped us is the one to tell; what stays is swept at the next start.
        drop(slot.remove());
        return Err(err);
    }
    Ok(slot)
}

#[cfg(test)]
mod tests;

//! One sandbox on the host, filled beforehand or given to a pod.
//!
//! Layout: `<run dir>/sandboxes/<slot>/` with the pinned namespaces `net`, `ipc`, `uts`, the tmpfs `shm/`, and `slot.json`,
//! which is written last and names the pod once there is one. Whatever has no readable `slot.json` is swept at start.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{PodNamespaces, Sandbox, SandboxSpec, ipam::PodCidr};
use crate::host::{
    namespace::{self, Kind},
    netlink::{self, Ipv4Net, PodLink},
    removal,
};

/// Size of a pod's `/dev/shm`, the container runtimes' usual one.
const SHM_BYTES: u64 = 64 << 20;
const RECORD: &str = "slot.json";

/// A sandbox that exists.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) folder: PathBuf,
    pub(super) record: Record,
}

/// What `slot.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) address: Ipv4Addr,
    pub(super) host_link: String,
    /// The pod that has it; none while it waits in the pool.
    pub(super) uid: Option<String>,
}

impl Slot {
    /// Makes namespaces, link and shared memory. Blocks.
    pub(super) fn create(folder: PathBuf, host_link: String, address: Ipv4Addr, cidr: PodCidr) -> io::Result<Self> {
        let record = Record { address, host_link, uid: None };
        let slot = Self { folder, record };
        slot.fill(cidr).inspect_err(|_| {
            // The error that stopped us is the one to tell; what stays is swept at the next start.
            drop(slot.remove());
        })?;
        Ok(slot)
    }

    fn fill(&self, cidr: PodCidr) -> io::Result<()> {
        fs::create_dir(&self.folder)?;
        let shm = self.folder.join("shm");
        fs::create_dir(&shm)?;
        namespace::mount_shm(&shm, SHM_BYTES)?;
        let link = PodLink {
            host_side: self.record.host_link.clone(),
            address: Ipv4Net { address: self.record.address, prefix_len: cidr.prefix_len() },
            gateway: cidr.gateway(),
        };
        let host = File::open("/proc/thread-self/ns/net")?;
        namespace::create_pinned(&self.folder, || netlink::set_up_pod_network(&link, &host))
    }

    /// Puts the record on disk: from now on the slot is found again.
    pub(super) fn save(&self) -> io::Result<()> {
        let temporary = self.folder.join("slot.json.new");
        fs::write(&temporary, serde_json::to_vec(&self.record)?)?;
        fs::rename(temporary, self.folder.join(RECORD))
    }

    /// Gives the slot to a pod. Blocks.
    pub(super) fn assign(&mut self, spec: &SandboxSpec) -> io::Result<()> {
        let pinned = Kind::ALL.map(|kind| (kind, self.folder.join(kind.file_name())));
        namespace::enter(&pinned, || {
            namespace::set_names(&spec.hostname, &spec.domainname)?;
            for (name, value) in &spec.sysctls {
                namespace::set_sysctl(name, value)
                    .map_err(|err| io::Error::new(err.kind(), format!("set sysctl {name}={value}: {err}")))?;
            }
            Ok(())
        })?;
        self.record.uid = Some(spec.uid.clone());
        self.save()
    }

    /// Reads a slot that an earlier life of this process made. None when it is not whole.
    pub(super) fn find(folder: PathBuf) -> Option<Self> {
        let record = serde_json::from_slice(&fs::read(folder.join(RECORD)).ok()?).ok()?;
        let whole = Kind::ALL.iter().all(|kind| namespace::is_pinned(&folder.join(kind.file_name())));
        whole.then_some(Self { folder, record })
    }

    /// Takes everything away. The kernel ends the namespaces, and with the network one the link, in its own time and in
    /// batches: waiting for it would cost 44 ms a pod. Blocks for the file system calls only.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_folder(&self.folder)
    }

    pub(super) fn sandbox(&self) -> Sandbox {
        let file = |kind: Kind| self.folder.join(kind.file_name());
        Sandbox {
            ips: vec![self.record.address.into()],
            namespaces: PodNamespaces { network: file(Kind::Network), ipc: file(Kind::Ipc), uts: file(Kind::Uts) },
            shm: self.folder.join("shm"),
        }
    }
}

/// Removes a slot's folder, whole or not.
pub(super) fn remove_folder(folder: &Path) -> io::Result<()> {
    // First, so that a half-removed slot is never taken for a whole one.
    removal::remove_file(&folder.join(RECORD))?;
    for kind in Kind::ALL {
        namespace::unpin(&folder.join(kind.file_name()))?;
    }
    namespace::unmount(&folder.join("shm"))?;
    removal::remove_folder(folder)
}

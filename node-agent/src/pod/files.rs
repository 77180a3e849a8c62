//! The files of a pod that its containers see: volumes, names and resolver, and where a last message is left.
//!
//! A seam: the worker asks through [`PodFiles`], [`HostFiles`] does it on this host. All calls block.

use std::{
    fmt, fs,
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Container;

use super::{
    downward::NodeResources,
    network_files::{self, DnsSettings, ResolvConf},
    storage::DiskUse,
    volume::{self, PodFolders, VolumeError, Volumes},
    wish::PodWish,
};
use crate::{
    host::{disk_use, removal},
    runtime::BindMount,
};

/// Where the host says how it resolves names.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// The folder of the last messages, in a pod's folder on disk.
const MESSAGES: &str = "messages";
/// A container's last message is cut after so many bytes (`MaxContainerTerminationMessageLength` of Kubernetes).
const MESSAGE_BYTES: u64 = 4096;

/// Makes and removes the files of pods.
pub trait PodFiles: Send + Sync + fmt::Debug {
    /// Sets up the volumes, or brings them up to date.
    ///
    /// # Errors
    /// When something that is not optional is missing, or the host refuses; calling again resumes.
    fn set_up(&self, wish: &PodWish) -> Result<Arc<dyn ReadyFiles>, FilesError>;

    /// Removes everything of a pod but its record and its logs.
    ///
    /// # Errors
    /// When the host refuses; calling again resumes.
    fn tear_down(&self, uid: &str) -> Result<(), FilesError>;

    /// What the pod's files take of the disk: its volumes, and what else there is.
    ///
    /// # Errors
    /// When the host refuses.
    fn disk_use(&self, uid: &str) -> Result<DiskUse, FilesError>;

    /// The message that a run of a container left behind; empty for none.
    fn last_message(&self, uid: &str, container: &str, attempt: u32) -> String;
}

/// The files of one pod, set up.
pub trait ReadyFiles: Send + Sync + fmt::Debug {
    /// Names of the volumes.
    fn volumes(&self) -> Vec<String>;

    /// What is mounted into one run of a container of the pod that was set up.
    ///
    /// # Errors
    /// When the host refuses.
    fn mounts_for(
        &self,
        wish: &PodWish,
        container: &Container,
        attempt: u32,
        ips: &[IpAddr],
    ) -> Result<Vec<BindMount>, FilesError>;
}

/// What can go wrong with a pod's files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A volume; the text is what the user reads in the event.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The host refused.
    #[error("{action} {path}")]
    Io {
        /// `write` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only in tests: what a fake was told to fail with.
    #[error("{0}")]
    Scripted(String),
}

/// The files of pods on this host.
#[derive(Debug, Clone)]
pub struct HostFiles {
    /// On tmpfs: `<run dir>/pods`.
    pub memory: PathBuf,
    /// On disk: `<root>/pods`.
    pub disk: PathBuf,
    /// How names are resolved.
    pub dns: DnsSettings,
    /// What a container without limits is told.
    pub node: NodeResources,
}

#[derive(Debug)]
struct HostReady {
    folders: PodFolders,
    volumes: Volumes,
    dns: DnsSettings,
}

impl HostFiles {
    fn folders(&self, uid: &str) -> PodFolders {
        PodFolders { memory: self.memory.join(uid), disk: self.disk.join(uid) }
    }
}

impl PodFiles for HostFiles {
    fn set_up(&self, wish: &PodWish) -> Result<Arc<dyn ReadyFiles>, FilesError> {
        let folders = self.folders(&wish.identity().uid);
        let volumes = volume::set_up(&wish.pod, &wish.objects, &self.node, &folders)?;
        Ok(Arc::new(HostReady { folders, volumes, dns: self.dns.clone() }))
    }

    fn tear_down(&self, uid: &str) -> Result<(), FilesError> {
        let folders = self.folders(uid);
        volume::tear_down(&folders)?;
        let own = folders.memory.join("etc");
        removal::remove_folder(&own).map_err(|source| FilesError::Io { action: "remove", path: own, source })
    }

    fn disk_use(&self, uid: &str) -> Result<DiskUse, FilesError> {
        let folders = self.folders(uid);
        let messages = folders.disk.join(MESSAGES);
        let other = disk_use::bytes_below(&messages);
        Ok(DiskUse {
            volumes: volume::disk_use(&folders)?,
            other: other.map_err(|source| FilesError::Io { action: "measure", path: messages, source })?,
            ..DiskUse::default()
        })
    }

    fn last_message(&self, uid: &str, container: &str, attempt: u32) -> String {
        let Ok(file) = fs::File::open(message_file(&self.folders(uid), container, attempt)) else {
            return String::new();
        };
        let mut bytes = Vec::new();
        // A container may have written far more than is wanted.
        let read = file.take(MESSAGE_BYTES).read_to_end(&mut bytes);
        if read.is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl ReadyFiles for HostReady {
    fn volumes(&self) -> Vec<String> {
        self.volumes.names().map(str::to_owned).collect()
    }

    fn mounts_for(
        &self,
        wish: &PodWish,
        container: &Container,
        attempt: u32,
        ips: &[IpAddr],
    ) -> Result<Vec<BindMount>, FilesError> {
        let mut mounts = self.volumes.mounts_for(container)?;
        let mut own = self.network_mounts(wish, ips)?;
        own.push(self.message_mount(container, attempt)?);
        // What the pod mounts itself comes in the place of ours.
        own.retain(|mount| mounts.iter().all(|other| other.destination != mount.destination));
        mounts.extend(own);
        Ok(mounts)
    }
}

impl HostReady {
    fn network_mounts(&self, wish: &PodWish, ips: &[IpAddr]) -> Result<Vec<BindMount>, FilesError> {
        let names = network_files::names(&wish.pod, &self.dns);
        let host = ResolvConf::parse(&fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default());
        let resolver = network_files::resolver(&wish.pod, &self.dns, &host);
        let folder = self.folders.memory.join("etc");
        let files = [
            ("hosts", network_files::hosts(&wish.pod, &names, ips)),
            ("hostname", format!("{}\n", names.hostname)),
            ("resolv.conf", resolver.conf.to_string()),
        ];
        let mounts = files.into_iter().map(|(name, content)| {
            let source = folder.join(name);
            write_once(&source, content.as_bytes(), 0o644)?;
            Ok(BindMount { source, destination: Path::new("/etc").join(name), read_only: false })
        });
        mounts.collect()
    }

    fn message_mount(&self, container: &Container, attempt: u32) -> Result<BindMount, FilesError> {
        let source = message_file(&self.folders, &container.name, attempt);
        // Whatever user the container runs as, it may leave a message.
        write_once(&source, b"", 0o666)?;
        let destination = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        Ok(BindMount { source, destination: PathBuf::from(destination), read_only: false })
    }
}

/// Where a run leaves its message. On disk: what a container writes there must not fill the host's memory.
fn message_file(folders: &PodFolders, container: &str, attempt: u32) -> PathBuf {
    folders.disk.join(MESSAGES).join(container).join(attempt.to_string())
}

/// Writes a file that containers share, unless it is there: they may have changed it since. Containers of a pod start side by
/// side, and all of them get the one file that was first.
fn write_once(path: &Path, content: &[u8], mode: u32) -> Result<(), FilesError> {
    if path.exists() {
        return Ok(());
    }
    let error = |action| move |source| FilesError::Io { action, path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(error("create the folder of"))?;
    }
    let unfinished = path.with_extension(format!("{:x}.unfinished", rand::random::<u64>()));
    fs::write(&unfinished, content).map_err(error("write"))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode)).map_err(error("set the mode of"))?;
    // A rename would take the place of a file that another container has mounted by now.
    let linked = match fs::hard_link(&unfinished, path) {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(error("write")),
    };
    fs::remove_file(&unfinished).map_err(error("write"))?;
    linked
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, os::unix::fs::MetadataExt as _, sync::Barrier, thread};

    use super::*;
    use crate::pod::fakes;

    #[test]
    fn containers_that_start_side_by_side_share_their_files() {
        const CONTAINERS: usize = 8;
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..CONTAINERS).map(|index| format!("c{index}")).collect();
        let containers: Vec<_> = names.iter().map(|name| serde_json::json!({"name": name})).collect();
        let settings = fakes::settings(dir.path());
        let files = HostFiles {
            memory: dir.path().join("memory"),
            disk: dir.path().join("disk"),
            dns: settings.dns,
            node: settings.node,
        };
        for round in 0..100 {
            let wish = fakes::wish(&format!("u{round}"), serde_json::json!({"containers": containers}));
            let (ready, at_once) = (files.set_up(&wish).unwrap(), Barrier::new(CONTAINERS));
            let ips = [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))];
            let hosts: Vec<u64> = thread::scope(|scope| {
                let start = |container| {
                    let (ready, at_once, wish, ips) = (&ready, &at_once, &wish, &ips);
                    scope.spawn(move || {
                        at_once.wait();
                        let mounts = ready.mounts_for(wish, container, 0, ips).unwrap();
                        let hosts = mounts.iter().find(|mount| mount.destination.ends_with("hosts")).unwrap();
                        fs::metadata(&hosts.source).unwrap().ino()
                    })
                };
                let started: Vec<_> = wish.containers().map(start).collect();
                started.into_iter().map(|started| started.join().unwrap()).collect()
            });
            assert!(hosts.iter().all(|inode| *inode == hosts[0]), "one file for all: {hosts:?}");
            assert_eq!(fs::read_dir(files.memory.join(format!("u{round}/etc"))).unwrap().count(), 3);
            files.tear_down(&format!("u{round}")).unwrap();
        }
    }
}

//! A pod's volumes: emptyDir, configMap, secret, downwardAPI and projected (service account tokens among them).
//!
//! Everything but an emptyDir on disk lies below the pod's folder on tmpfs, so that no secret reaches a disk. Content that
//! comes from objects is written whole and then switched, as a kubelet does it: a reader never sees half an update.
//!
//! Layout: `<pod folder>/volumes/<name>/` for content, and for what a container writes to an emptyDir without a medium
//! `<disk folder>/volumes/<name>/`. All calls block.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume};

use self::payload::{Payload, PayloadError, SourceContext};
use super::{
    downward::NodeResources,
    objects::PodObjects,
    quantity::{ParseQuantityError, Quantity},
};
use crate::{
    host::{disk_use, namespace, removal},
    runtime::BindMount,
};

mod atomic;
mod payload;

/// Where a pod's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFolders {
    /// On tmpfs: `<run dir>/pods/<uid>`.
    pub memory: PathBuf,
    /// On disk: `<root>/pods/<uid>`.
    pub disk: PathBuf,
}

/// Why a volume is not there. The pod waits, with the event `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Its content cannot be made.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {source}")]
    Payload {
        /// The volume.
        volume: String,
        /// Why; part of the text, because that is what the user reads in the event.
        source: PayloadError,
    },
    /// A size limit that cannot be read.
    #[error("volume {volume:?}: emptyDir.sizeLimit: {source}")]
    SizeLimit {
        /// The volume.
        volume: String,
        /// Why.
        source: ParseQuantityError,
    },
    /// A kind that this agent does not offer.
    #[error(
        "volume {0:?} is of a kind that is not supported here: use emptyDir, configMap, secret, downwardAPI or projected"
    )]
    UnsupportedKind(String),
    /// A mount of a volume that the pod does not have.
    #[error("container {container:?} mounts volume {volume:?}, which the pod does not have")]
    NoSuchVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// The host refused.
    #[error("{action} {path}")]
    Io {
        /// `create folder` ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The volumes of a pod that are set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volumes {
    by_name: BTreeMap<String, Ready>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ready {
    folder: PathBuf,
    /// Content of objects cannot be written to, whatever the mount says.
    read_only: bool,
}

/// Sets up all volumes of a pod. Calling it again brings content up to date and leaves everything else alone.
///
/// # Errors
/// When an object that is not optional is missing, or the host refuses; what was set up stays and is gone on with.
pub fn set_up(
    pod: &Pod,
    objects: &PodObjects,
    node: &NodeResources,
    folders: &PodFolders,
) -> Result<Volumes, VolumeError> {
    let context = SourceContext { pod, objects, node };
    let fs_group = fs_group(pod);
    let mut by_name = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let ready = if let Some(empty_dir) = &volume.empty_dir {
            set_up_empty_dir(volume, empty_dir, folders, fs_group)?
        } else {
            set_up_content(volume, &context, folders, fs_group)?
        };
        by_name.insert(volume.name.clone(), ready);
    }
    Ok(Volumes { by_name })
}

/// Removes all volumes of a pod, mounts included. A pod without any is not an error.
///
/// # Errors
/// When the host refuses; calling it again resumes.
pub fn tear_down(folders: &PodFolders) -> Result<(), VolumeError> {
    let in_memory = folders.memory.join("volumes");
    for entry in fs::read_dir(&in_memory).into_iter().flatten().flatten() {
        let path = entry.path();
        namespace::unmount(&path).map_err(io_error("unmount", &path))?;
    }
    for path in [in_memory, folders.disk.clone()] {
        removal::remove_folder(&path).map_err(io_error("remove folder", &path))?;
    }
    Ok(())
}

/// Bytes on disk of a pod's volumes, by name. Those in memory are none.
///
/// # Errors
/// When the host refuses.
pub fn disk_use(folders: &PodFolders) -> Result<BTreeMap<String, u64>, VolumeError> {
    let on_disk = folders.disk.join("volumes");
    let mut used = BTreeMap::new();
    for entry in fs::read_dir(&on_disk).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let bytes = disk_use::bytes_below(&path).map_err(io_error("measure", &path))?;
        // Every volume's name is text.
        used.insert(name.to_string_lossy().into_owned(), bytes);
    }
    Ok(used)
}

impl Volumes {
    /// The mounts of one container, in the pod's order.
    ///
    /// # Errors
    /// When it mounts a volume that is not there.
    pub fn mounts_for(&self, container: &Container) -> Result<Vec<BindMount>, VolumeError> {
        let mounts = container.volume_mounts.iter().flatten().map(|mount| {
            let volume = self.by_name.get(&mount.name).ok_or_else(|| VolumeError::NoSuchVolume {
                container: container.name.clone(),
                volume: mount.name.clone(),
            })?;
            Ok(BindMount {
                source: volume.folder.clone(),
                destination: PathBuf::from(&mount.mount_path),
                read_only: volume.read_only || mount.read_only == Some(true),
            })
        });
        mounts.collect()
    }

    /// Names of the volumes, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn set_up_empty_dir(
    volume: &Volume,
    source: &EmptyDirVolumeSource,
    folders: &PodFolders,
    fs_group: Option<u32>,
) -> Result<Ready, VolumeError> {
    let in_memory = source.medium.as_deref() == Some("Memory");
    let parent = if in_memory { &folders.memory } else { &folders.disk };
    let folder = parent.join("volumes").join(&volume.name);
    let ready = Ready { folder: folder.clone(), read_only: false };
    if folder.exists() {
        return Ok(ready);
    }
    // Made under another name, and named last: a folder that is there is a folder that is finished.
    let unfinished = parent.join("volumes").join(format!(".{}.new", volume.name));
    create_folder(&unfinished)?;
    if !in_memory {
        prepare_empty_dir(&unfinished, source, fs_group)?;
        fs::rename(&unfinished, &folder).map_err(io_error("rename", &unfinished))?;
        return Ok(ready);
    }
    let limit = match &source.size_limit {
        Some(limit) => limit.0.parse::<Quantity>().map(Quantity::value),
        None => Ok(0),
    };
    let limit = limit.map_err(|source| VolumeError::SizeLimit { volume: volume.name.clone(), source })?;
    fs::rename(&unfinished, &folder).map_err(io_error("rename", &unfinished))?;
    let mounted = namespace::mount_memory_volume(&folder, limit).map_err(io_error("mount tmpfs on", &folder));
    if let Err(err) = mounted.and_then(|()| prepare_empty_dir(&folder, source, fs_group)) {
        // So that the next try does not take it for finished. The error that stopped us is the one to tell.
        drop(namespace::unmount(&folder).and_then(|()| fs::remove_dir(&folder)));
        return Err(err);
    }
    Ok(ready)
}

/// Everybody may write, as a kubelet has it, unless the volume says otherwise.
fn prepare_empty_dir(folder: &Path, source: &EmptyDirVolumeSource, fs_group: Option<u32>) -> Result<(), VolumeError> {
    let mode = source.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o777);
    let set_group = if fs_group.is_some() { 0o2000 } else { 0 };
    if fs_group.is_some() {
        chown(folder, None, fs_group).map_err(io_error("change group of", folder))?;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode | set_group)).map_err(io_error("set mode of", folder))
}

fn set_up_content(
    volume: &Volume,
    context: &SourceContext<'_>,
    folders: &PodFolders,
    fs_group: Option<u32>,
) -> Result<Ready, VolumeError> {
    let payload = Payload::of(volume, context)
        .map_err(|source| VolumeError::Payload { volume: volume.name.clone(), source })?
        .ok_or_else(|| VolumeError::UnsupportedKind(volume.name.clone()))?;
    let folder = folders.memory.join("volumes").join(&volume.name);
    create_folder(&folder)?;
    atomic::write(&folder, &payload, fs_group).map_err(io_error("write", &folder))?;
    Ok(Ready { folder, read_only: true })
}

fn create_folder(path: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(path).map_err(io_error("create folder", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    move |source| VolumeError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;

//! Finding the containers of an earlier life, and taking away what was left half made. All of it blocks.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use larder_monitor::files;

use super::{Entry, Inner, failed};
use crate::runtime::record::{ContainerDirs, RECORD_FILE, Record, is_usable_id};
use crate::runtime::{RuntimeError, monitor_client, rootfs};

impl Inner {
    /// Every container that has a record. What an earlier life left half made is removed on the way.
    pub(super) fn find_containers(&self) -> Result<Vec<Arc<Entry>>, RuntimeError> {
        let mut found = Vec::new();
        for id in names_in(&self.containers_run_dir()).map_err(failed("read", &self.containers_run_dir()))? {
            let dirs = self.dirs(&id);
            match files::read_json::<Record>(&dirs.run, RECORD_FILE) {
                Ok(Some(record)) if record.id == id && !never_started(&dirs, &record) => {
                    found.push(Entry::new(record, dirs));
                }
                Ok(Some(record)) if record.id == id => {
                    self.forget_cgroups(&record);
                    rootfs::remove(&dirs).map_err(failed("remove", &dirs.run))?;
                }
                Ok(_) => rootfs::remove(&dirs).map_err(failed("remove", &dirs.run))?,
                Err(err) => {
                    tracing::warn!(container = %id, error = &err as &dyn std::error::Error, "container record is unreadable, removing it");
                    rootfs::remove(&dirs).map_err(failed("remove", &dirs.run))?;
                }
            }
        }
        // After a reboot the run directory is empty, but what containers wrote is still on disk.
        for id in names_in(&self.containers_disk_dir()).map_err(failed("read", &self.containers_disk_dir()))? {
            let dirs = self.dirs(&id);
            if !found.iter().any(|entry| entry.dirs == dirs) {
                rootfs::remove(&dirs).map_err(failed("remove", &dirs.writable))?;
            }
        }
        Ok(found)
    }
}

/// Whether the agent died before the container's monitor was at work, so that nothing of it can ever have run. The monitor
/// opens the log before it starts the runtime, and holds the socket for as long as it lives; the other files are the traces
/// of a container whose log somebody took away, and of one that a spare's runtime started: that leaves `pid` before it does.
fn never_started(dirs: &ContainerDirs, record: &Record) -> bool {
    // Asked first: a monitor that is gone leaves no further trace.
    if monitor_client::is_at_work(&dirs.run) {
        return false;
    }
    let traces = [files::PID_FILE, files::STATE_FILE, files::EXIT_FILE].map(|name| dirs.run.join(name));
    !traces.iter().chain([&record.log_path]).any(|path| path.exists())
}

/// The names in a directory that can be ids of containers. A directory that is not there has none.
fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok().filter(|name| is_usable_id(name)));
    }
    Ok(names)
}

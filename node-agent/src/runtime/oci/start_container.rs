//! Starting a container: its directories, its root, its specification, and then its monitor. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_monitor::files::{self, CONFIG_FILE};
use larder_monitor::{LogConfig, MonitorConfig, RuntimeCommand};
use tokio::time::Instant;

use super::spares::Taken;
use super::{Entry, Inner};
use crate::host::cgroup;
use crate::runtime::oci_spec::{Seccomp, SpecError, Surroundings, describe};
use crate::runtime::program::Program;
use crate::runtime::record::{ContainerDirs, RECORD_FILE, Record, is_usable_id};
use crate::runtime::users::ProcessUser;
use crate::runtime::{
    Container, ContainerSpec, RuntimeError, capabilities, exit, monitor_client, rootfs, seccomp, users,
};

impl Inner {
    /// Makes everything that a container needs and starts its monitor. What it made is taken back if that fails.
    pub(super) fn start(
        self: &Arc<Self>,
        spec: &ContainerSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Container, RuntimeError> {
        let mut spare = self.take_spare(spec);
        let id = spare.as_ref().map_or(&spec.id.0, Taken::id).clone();
        if !is_usable_id(&id) {
            let message = format!("container id {id:?} has other characters than letters, digits, - and _");
            return Err(RuntimeError::InvalidSpec { reason: "CreateContainerError", message });
        }
        let dirs = self.dirs(&id);
        let mut record = self.record(&id, spec, annotations);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::Io { action, path, source }
        };
        if spare.is_none() {
            self.make_folder(&dirs).map_err(failed("create", &dirs.run))?;
        }
        let begun = Instant::now();
        let prepared = self.prepare(spec, &record, &dirs).and_then(|user| {
            record.user = Some(user.into());
            write(&dirs.run, RECORD_FILE, &record)
        });
        let after = begun.elapsed();
        let begin = |()| match &mut spare {
            Some(spare) => spare.feed(&dirs, &spec.log_path).map(|()| None).map_err(failed("feed", &dirs.run)),
            None => monitor_client::start(&self.config.monitor, &dirs.run, self.program.sealed.as_ref())
                .map(Some)
                .map_err(failed("start monitor", &self.config.monitor)),
        };
        let begun_with = prepared.and_then(begin);
        let (is_spare, monitor) = (spare.is_some(), begun.elapsed().saturating_sub(after));
        tracing::debug!(container = id, is_spare, prepared = ?after, ?monitor, "start");
        match begun_with {
            Ok(monitor) => {
                let entry = Entry::new(record, dirs);
                self.look_after(&entry, monitor.or_else(|| spare.map(Taken::begin)));
                Ok(entry.container.clone())
            }
            Err(err) => {
                match spare {
                    Some(spare) => self.put_away(spare),
                    // The first error is the one to tell. What cannot be removed now is found at the next start of the agent.
                    None => drop(rootfs::remove(&dirs)),
                }
                Err(err)
            }
        }
    }

    /// Makes the directory of a container.
    pub(super) fn make_folder(&self, dirs: &ContainerDirs) -> io::Result<()> {
        for folder in [self.containers_run_dir(), self.containers_disk_dir()] {
            // What is in there is the containers' alone: their environment, and what they write.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        }
        fs::create_dir(&dirs.run)
    }

    fn record(&self, id: &str, spec: &ContainerSpec, annotations: BTreeMap<String, String>) -> Record {
        let image = spec.image.config().as_ref();
        Record {
            id: id.to_owned(),
            pod_uid: spec.pod.uid.clone(),
            pod_namespace: spec.pod.namespace.clone(),
            pod_name: spec.pod.name.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            annotations,
            user: None,
            stop_signal: exit::stop_signal(image.and_then(|config| config.stop_signal().as_deref())),
            cgroup: cgroup::container_path(&self.config.cgroup_parent, &spec.pod.uid, id),
            log_path: spec.log_path.clone(),
        }
    }

    /// Makes everything that the monitor needs to start the container, and says who its process runs as.
    fn prepare(
        &self,
        spec: &ContainerSpec,
        record: &Record,
        dirs: &ContainerDirs,
    ) -> Result<ProcessUser, RuntimeError> {
        let root = dirs.rootfs();
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::Io { action, path, source }
        };
        rootfs::mount(dirs, &spec.lower_dirs).map_err(failed("mount", &root))?;
        let read = |path: &str| rootfs::read_beneath(&root, path).map_err(failed("read account files in", &root));
        let image_user = spec.image.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
        let user = users::resolve(&spec.security, &image_user, &read("/etc/passwd")?, &read("/etc/group")?)
            .map_err(|err| RuntimeError::InvalidSpec { reason: err.reason(), message: err.to_string() })?;
        let surroundings = Surroundings {
            rootfs: &root,
            user: &user,
            cgroups_path: &record.cgroup,
            cgroups: self.facts.cgroups.features(),
            available_capabilities: &self.facts.capabilities,
            oom_score_floor: self.facts.oom_score_floor,
            seccomp: self.filter_for(spec)?,
        };
        write(&dirs.run, "config.json", &describe(spec, &surroundings).map_err(invalid)?)?;
        if let Some(folder) = spec.log_path.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        let config = MonitorConfig {
            terminal: spec.tty,
            stdin: spec.stdin,
            memory_cgroup: self.facts.cgroups.dir("memory", &record.cgroup),
            spare: false,
            ..self.monitor_config(&record.id, dirs, record.log_path.clone())
        };
        write(&dirs.run, CONFIG_FILE, &config)?;
        Ok(user)
    }

    fn filter_for(&self, spec: &ContainerSpec) -> Result<Seccomp, RuntimeError> {
        if spec.security.privileged || spec.security.seccomp_unconfined {
            return Ok(Seccomp::Unconfined);
        }
        let capabilities = capabilities::resolve(&spec.security, &self.facts.capabilities).map_err(invalid)?;
        let (default, default_filter) = &self.default_filter;
        if capabilities == *default { Ok(default_filter.clone()) } else { filter(&self.program, &capabilities) }
    }

    /// The configuration of the monitor of a container that is not known yet.
    pub(super) fn monitor_config(&self, id: &str, dirs: &ContainerDirs, log_path: PathBuf) -> MonitorConfig {
        MonitorConfig {
            id: id.to_owned(),
            bundle: dirs.run.clone(),
            runtime: RuntimeCommand {
                path: self.program.path.clone(),
                root: self.config.run_dir.join("runtime"),
                options: Vec::new(),
            },
            log: LogConfig {
                path: log_path,
                max_size: self.config.log_max_size,
                max_files: self.config.log_max_files.max(1),
            },
            terminal: false,
            stdin: false,
            hidden_mounts: self.facts.cgroups.hidden_mounts(),
            memory_cgroup: None,
            start_timeout_ms: u64::try_from(self.config.start_limit.as_millis()).unwrap_or(u64::MAX),
            spare: true,
        }
    }
}

/// The default filter in the form that the runtime takes.
pub(super) fn filter(program: &Program, capabilities: &BTreeSet<String>) -> Result<Seccomp, RuntimeError> {
    if !program.takes_compiled_filter() {
        return Ok(Seccomp::Profile(seccomp::profile(capabilities)));
    }
    seccomp::program(capabilities).map(Seccomp::Program).map_err(|err| RuntimeError::InvalidSpec {
        reason: "CreateContainerError",
        message: match std::error::Error::source(&err) {
            Some(cause) => format!("{err}: {cause}"),
            None => err.to_string(),
        },
    })
}

fn invalid(err: SpecError) -> RuntimeError {
    RuntimeError::InvalidSpec { reason: "CreateContainerError", message: err.to_string() }
}

fn write<T: serde::Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), RuntimeError> {
    files::write_json(dir, name, value).map_err(|err| RuntimeError::Io {
        action: "write",
        path: dir.join(name),
        source: io::Error::other(err),
    })
}

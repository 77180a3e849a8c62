//! Starting a container: its directories, its root, its specification, and then its monitor. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_monitor::files::{self, CONFIG_FILE, SPEC_FILE};
use larder_monitor::{Launch, LogConfig, MonitorConfig, RuntimeCommand, Starter};
use tokio::time::Instant;

use super::spares::Taken;
use super::{Entry, Inner, failed};
use crate::host::cgroup;
use crate::runtime::oci_spec::{Seccomp, SpecError, Surroundings, describe};
use crate::runtime::program::Program;
use crate::runtime::record::{ContainerDirs, RECORD_FILE, Record, is_usable_id};
use crate::runtime::users::ProcessUser;
use crate::runtime::{
    Container, ContainerSpec, RuntimeError, capabilities, exit, monitor_client, oci_spec, rootfs, seccomp, users,
};

impl Inner {
    /// Makes everything that a container needs and has it started. What was made is taken back if that fails.
    pub(super) fn start(
        self: &Arc<Self>,
        spec: &ContainerSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Container, RuntimeError> {
        if let Some(spare) = self.take_spare(spec) {
            match self.start_with_spare(spare, spec, annotations.clone())? {
                Some(container) => return Ok(container),
                None => tracing::debug!("a spare start was lost, doing without"),
            }
        }
        let id = &spec.id.0;
        if !is_usable_id(id) {
            let message = format!("container id {id:?} has other characters than letters, digits, - and _");
            return Err(RuntimeError::InvalidSpec { reason: "CreateContainerError", message });
        }
        let dirs = self.dirs(id);
        self.make_folder(&dirs).map_err(failed("create", &dirs.run))?;
        let begun = Instant::now();
        let started = self.put_together(id, spec, annotations, &dirs).and_then(|record| {
            // The first error is the one to tell. What cannot be removed now is found at the next start of the agent.
            let monitor = monitor_client::start(self.monitor(), &dirs.run)
                .inspect_err(|_| drop(self.take_back(&record, &dirs)))
                .map_err(failed("start monitor", &self.config.monitor))?;
            Ok((record, monitor))
        });
        tracing::debug!(container = id, took = ?begun.elapsed(), "start");
        let (record, monitor) = started.inspect_err(|_| drop(rootfs::remove(&dirs)))?;
        Ok(self.begin_with(record, dirs, monitor))
    }

    /// The same around a spare; nothing when that was lost meanwhile.
    fn start_with_spare(
        self: &Arc<Self>,
        mut spare: Taken,
        spec: &ContainerSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Option<Container>, RuntimeError> {
        let dirs = self.dirs(spare.id());
        let begun = Instant::now();
        let record = match self.put_together(spare.id(), spec, annotations, &dirs) {
            Ok(record) => record,
            Err(err) => {
                self.put_away(spare);
                return Err(err);
            }
        };
        let prepared = begun.elapsed();
        if let Err(err) = spare.feed(&dirs) {
            tracing::debug!(container = record.id, %err, "feed a spare start");
            self.forget_cgroups(&record);
            self.put_away(spare);
            return Ok(None);
        }
        let fed = begun.elapsed().saturating_sub(prepared);
        tracing::debug!(container = record.id, ?prepared, ?fed, "start with a spare");
        Ok(Some(self.begin_with(record, dirs, spare.begin())))
    }

    fn begin_with(self: &Arc<Self>, record: Record, dirs: ContainerDirs, monitor: tokio::process::Child) -> Container {
        let entry = Entry::new(record, dirs);
        self.look_after(&entry, Some(monitor));
        entry.container.clone()
    }

    /// Puts a container together in `dirs`. The last that is written is the monitor's configuration: where a spare monitor
    /// waits, that is the moment from which on the container will be started.
    pub(super) fn put_together(
        &self,
        id: &str,
        spec: &ContainerSpec,
        annotations: BTreeMap<String, String>,
        dirs: &ContainerDirs,
    ) -> Result<Record, RuntimeError> {
        let mut record = self.record(id, spec, annotations);
        record.user = Some(self.prepare(spec, &record, dirs)?.into());
        write(&dirs.run, RECORD_FILE, &record)?;
        let configured = self
            .starter(spec, &record)
            .and_then(|starter| write(&dirs.run, CONFIG_FILE, &self.configuration(spec, &record, dirs, starter)));
        configured.inspect_err(|_| self.forget_cgroups(&record))?;
        Ok(record)
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
        // In the place of a spare's fifo, whose other end the runtime has open: it copies the file from its path later.
        write(&dirs.run, SPEC_FILE, &describe(spec, &surroundings).map_err(invalid)?)?;
        if let Some(folder) = spec.log_path.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        Ok(user)
    }

    /// Who starts a container, with what it needs for that: its cgroups, which an OCI runtime makes by itself.
    fn starter(&self, spec: &ContainerSpec, record: &Record) -> Result<Starter, RuntimeError> {
        if !self.program.is_built_in {
            return Ok(self.waiting_starter());
        }
        let cgroups = &self.facts.cgroups;
        let made = cgroups.create(&record.cgroup, &oci_spec::limits(spec, cgroups.features()));
        let cgroups = made.map_err(failed("create cgroup", Path::new(&record.cgroup)))?;
        Ok(Starter::Launch(Launch { cgroups }))
    }

    /// The same before anything of the container is known.
    fn waiting_starter(&self) -> Starter {
        if self.program.is_built_in {
            return Starter::Launch(Launch::default());
        }
        Starter::Runtime(RuntimeCommand {
            path: self.program.path.clone(),
            root: self.config.run_dir.join("runtime"),
            options: Vec::new(),
        })
    }

    fn configuration(
        &self,
        spec: &ContainerSpec,
        record: &Record,
        dirs: &ContainerDirs,
        starter: Starter,
    ) -> MonitorConfig {
        MonitorConfig {
            terminal: spec.tty,
            stdin: spec.stdin,
            memory_cgroup: self.facts.cgroups.dir("memory", &record.cgroup),
            spare: false,
            starter,
            ..self.monitor_config(&record.id, dirs, record.log_path.clone())
        }
    }

    fn filter_for(&self, spec: &ContainerSpec) -> Result<Seccomp, RuntimeError> {
        if spec.security.privileged || spec.security.seccomp_unconfined {
            return Ok(Seccomp::Unconfined);
        }
        let capabilities = capabilities::resolve(&spec.security, &self.facts.capabilities).map_err(invalid)?;
        let (default, default_filter) = &self.default_filter;
        if capabilities == *default { Ok(default_filter.clone()) } else { filter(&self.program, &capabilities) }
    }

    /// The mounts that whoever starts a container must not see.
    pub(super) fn hidden_mounts(&self) -> Vec<PathBuf> {
        if self.program.is_built_in { Vec::new() } else { self.facts.cgroups.hidden_mounts() }
    }

    /// The configuration of the monitor of a container that is not known yet.
    pub(super) fn monitor_config(&self, id: &str, dirs: &ContainerDirs, log_path: PathBuf) -> MonitorConfig {
        MonitorConfig {
            id: id.to_owned(),
            bundle: dirs.run.clone(),
            starter: self.waiting_starter(),
            log: LogConfig {
                path: log_path,
                max_size: self.config.log_max_size,
                max_files: self.config.log_max_files.max(1),
            },
            terminal: false,
            stdin: false,
            hidden_mounts: self.hidden_mounts(),
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

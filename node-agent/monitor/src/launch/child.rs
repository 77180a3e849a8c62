//! The container's first process, before it executes the container's program.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use larder_monitor::CgroupDir;
use rustix::fs::Mode;
use rustix::process::{Signal, set_parent_process_death_signal, setsid, umask};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::program::Program;
use super::spec::{NamespaceKind, Spec};
use super::{Failure, OrFailure, READY, confinement, devices, root, streams};
use crate::runtime::Stdios;
use crate::sys;

/// What the child needs.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) spec: Spec,
    /// The container's cgroups.
    pub(super) cgroups: Vec<CgroupDir>,
    pub(super) streams: Stdios,
    /// Has a byte once the process is in its cgroups.
    pub(super) gate: PipeReader,
    /// Where the terminal's other side goes, for a container that has one.
    pub(super) terminal: Option<UnixStream>,
}

impl Child {
    /// Becomes the container. Comes back only if that fails.
    pub(super) fn run(self, reporter: &mut PipeWriter) -> Failure {
        match self.prepare().and_then(|program| execute(program, reporter)) {
            Err(failure) => failure,
        }
    }

    fn prepare(self) -> Result<Program, Failure> {
        // Without the monitor there is nobody to look after it. What is executed is not killed, but found by its cgroups.
        set_parent_process_death_signal(Some(Signal::KILL)).or_failure(|| "bind to the monitor's life".into())?;
        sys::default_signals().or_failure(|| "set up signals".into())?;
        sys::close_on_execution().or_failure(|| "set up descriptors".into())?;
        setsid().or_failure(|| "begin a session".into())?;
        // Modes are given in full where something is made.
        umask(Mode::empty());
        streams::take(&self.streams, self.spec.process.user.uid)?;
        self.join_namespaces()?;
        let sources = root::open_sources(&self.spec, &self.cgroups)?;
        root::change(&self.spec.root.path)?;
        self.await_cgroups()?;
        let bound = root::place_file_systems(sources)?;
        // All that goes by the paths of our own file systems comes before there is anything of the pod's.
        streams::fill(&self.streams)?;
        if let Some(socket) = &self.terminal {
            devices::open_terminal(socket, self.spec.process.user.uid)?;
        }
        root::protect(&self.spec)?;
        root::place_bound(bound)?;
        let process = &self.spec.process;
        root::make_directory(&process.cwd)?;
        if self.spec.root.readonly {
            root::make_read_only()?;
        }
        let entered = enter(process);
        let program = Program::new(process)?;
        umask(Mode::WGRP | Mode::WOTH);
        confinement::confine(process, self.spec.filter()?)?;
        // Who may not enter it as the container's user may have to as the user.
        if entered.is_err() {
            enter(process)?;
        }
        program.find()
    }

    /// Enters the pod's namespaces. New ones for processes and mounts it has already.
    fn join_namespaces(&self) -> Result<(), Failure> {
        let kinds = [
            (NamespaceKind::Network, LinkNameSpaceType::Network, UnshareFlags::NEWNET),
            (NamespaceKind::Ipc, LinkNameSpaceType::InterProcessCommunication, UnshareFlags::NEWIPC),
            (NamespaceKind::Uts, LinkNameSpaceType::HostNameAndNISDomainName, UnshareFlags::NEWUTS),
        ];
        for (kind, joined, new) in kinds {
            match self.spec.namespace(kind).map(|namespace| &namespace.path) {
                None => {}
                Some(None) => sys::unshare(new).or_failure(|| format!("make a {kind:?} namespace"))?,
                Some(Some(path)) => {
                    let file = File::open(path).or_failure(|| format!("open namespace {}", path.display()))?;
                    move_into_link_name_space(file.as_fd(), Some(joined))
                        .or_failure(|| format!("join namespace {}", path.display()))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until the monitor has put us into our cgroups, which become the root of a namespace for cgroups.
    fn await_cgroups(&self) -> Result<(), Failure> {
        (&self.gate).read_exact(&mut [0]).or_failure(|| "be put into the container's cgroups".into())?;
        match self.spec.namespace(NamespaceKind::Cgroup) {
            None => Ok(()),
            Some(_) => sys::unshare(UnshareFlags::NEWCGROUP).or_failure(|| "make a cgroup namespace".into()),
        }
    }
}

fn enter(process: &super::spec::Process) -> Result<(), Failure> {
    let entered = || {
        rustix::process::chdir(&process.cwd)?;
        // A link to an open descriptor could lead out; a way from the root to there is one within.
        if rustix::process::getcwd(Vec::new())?.to_bytes().starts_with(b"/") {
            return Ok(());
        }
        Err(io::Error::other("it is not in the container"))
    };
    entered().or_failure(|| format!("enter working directory {}", process.cwd.display()))
}

fn execute(program: Program, reporter: &mut PipeWriter) -> Result<Infallible, Failure> {
    reporter.write_all(&[READY]).or_failure(|| "report".into())?;
    set_parent_process_death_signal(None).or_failure(|| "leave the monitor's life".into())?;
    Err(program.execute())
}

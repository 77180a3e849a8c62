//! A machine of their own for the tests: network, mount and process namespaces in which they may do what they like.
//!
//! The test program starts itself again twice. The first child is process 1 of a new process namespace: it mounts `/proc`,
//! brings up the loopback and a link to nowhere, and reaps. The second child runs the tests. When the tests end, process 1
//! ends, and with it the kernel ends everything that they started: no process, mount, link or rule stays, whatever failed. The
//! cgroups that are left are removed then.

use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, WaitOptions, geteuid, wait};
use rustix::thread::UnshareFlags;

/// Tells a child which part it plays.
const ROLE: &str = "LARDER_E2E_ROLE";

/// Runs `tests` in a machine of their own. The exit code is theirs.
///
/// # Errors
/// When the namespaces cannot be made: the tests need root.
pub fn run(tests: impl FnOnce() -> ExitCode) -> anyhow::Result<ExitCode> {
    match std::env::var(ROLE).as_deref() {
        Ok("tests") => Ok(tests()),
        Ok("init") => init(),
        Ok(_) | Err(_) => outside(),
    }
}

/// Makes the namespaces and waits for process 1 of them.
fn outside() -> anyhow::Result<ExitCode> {
    ensure!(geteuid().is_root(), "the end-to-end tests make namespaces, mounts and containers: run them as root");
    let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    #[expect(unsafe_code, reason = "rustix marks unshare unsafe for the sake of CLONE_FILES")]
    // SAFETY: only CLONE_FILES endangers other threads, and it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("make namespaces")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("keep mounts apart")?;
    // Asked now: process 1 mounts its own /proc over ours.
    let hierarchies = larder_dev::down::cgroup_hierarchies()?;
    let status = again("init")?.status().context("start process 1")?;
    // There are no namespaces for these: what runs in them has ended, but they have not.
    larder_dev::down::remove_empty_cgroups(&hierarchies, crate::cluster::CGROUPS);
    Ok(exit_code(status.code()))
}

/// Process 1.
fn init() -> anyhow::Result<ExitCode> {
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("mount /proc")?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None).context("mount /run")?;
    // The link gives the machine an address beyond loopback and a way out that ends at once. The addresses are for
    // documentation (RFC 5737).
    for line in [
        "link set lo up",
        "link add uplink type veth peer name uplink-end",
        "link set uplink-end up",
        "address add 192.0.2.10/24 dev uplink",
        "link set uplink up",
        "route add default via 192.0.2.1 dev uplink",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status().context("run ip (package iproute2)")?;
        ensure!(status.success(), "ip {line}: {status}");
    }
    // Nobody answers to names here. Asked at loopback, that is known at once and not after a time-out.
    let resolver = "/run/resolv.conf";
    std::fs::write(resolver, "nameserver 127.0.0.1\n").context("write resolv.conf")?;
    mount_bind(resolver, "/etc/resolv.conf").context("mount resolv.conf")?;
    let tests = again("tests")?.spawn().context("start the tests")?;
    let tests = i32::try_from(tests.id()).ok().and_then(Pid::from_raw).context("the tests have no process id")?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == tests => return Ok(exit_code(status.exit_status())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno)).context("wait for the tests"),
        }
    }
}

/// This program with the same arguments, in another part.
fn again(role: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(std::env::args_os().skip(1).collect::<Vec<OsString>>()).env(ROLE, role);
    Ok(command)
}

fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

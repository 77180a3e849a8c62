//! The program by which a cgroup of the unified hierarchy says which devices may be used.
#![expect(unsafe_code, reason = "bpf has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::devices::{self, Instruction};

/// Commands, types and flags of `linux/bpf.h`.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the cgroup in `dir` refuse all devices but those that every container may use.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn attach(dir: &Path) -> io::Result<()> {
    let cgroup = File::open(dir)?;
    let program = load(&devices::program())?;
    let number = |fd: libc::c_int| u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let attributes = Attach {
        target: number(cgroup.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes live for as long as the call, which is told their size, and hold no pointer.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<Attach>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: c"MIT".as_ptr().expose_provenance() as u64,
        ..Load::default()
    };
    // SAFETY: the attributes, the instructions and the licence live for as long as the call, which is told their sizes.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    /// A mount of the unified hierarchy, taken away whatever happens.
    pub(in crate::host::cgroup) struct Hierarchy(tempfile::TempDir);

    impl Hierarchy {
        pub(in crate::host::cgroup) fn path(&self) -> &Path {
            self.0.path()
        }

        pub(in crate::host::cgroup) fn mount() -> Self {
            let dir = tempfile::tempdir().unwrap();
            rustix::mount::mount("none", dir.path(), "cgroup2", rustix::mount::MountFlags::empty(), None).unwrap();
            Self(dir)
        }
    }

    impl Drop for Hierarchy {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }

    /// Runs a shell in the cgroup.
    fn shell(cgroup: &Path, script: &str) -> bool {
        let procs = cgroup.join("cgroup.procs");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stderr(std::process::Stdio::null());
        // SAFETY: it writes a file, in a process that has but this thread.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        command.status().unwrap().success()
    }

    /// On any host with a unified hierarchy, whether it is in charge or not.
    #[test]
    fn only_a_containers_devices_can_be_used() {
        let hierarchy = Hierarchy::mount();
        let cgroup = hierarchy.0.path().join(format!("larder-devices-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // The kernel's messages.
        let messages = dir.path().join("kmsg");
        let make = format!("mknod {} c 1 11", messages.display());
        let read = format!(": < {}", messages.display());
        let usual =
            "for d in zero full random urandom; do head -c1 /dev/$d >/dev/null || exit 1; done; echo x >/dev/null";
        assert!(shell(&cgroup, &make) && shell(&cgroup, &read), "all devices, before");
        attach(&cgroup).unwrap();
        assert!(shell(&cgroup, usual));
        assert!(!shell(&cgroup, &read), "no other can be opened");
        fs::remove_file(&messages).unwrap();
        assert!(shell(&cgroup, &make), "but made");
        fs::remove_dir(&cgroup).unwrap();
    }
}

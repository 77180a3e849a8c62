//! The programs that a machine must have. As root on Debian or Ubuntu what is missing is installed, elsewhere it is
//! listed and nothing is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// A program in PATH, or an absolute path of a file.
    pub what: &'static str,
    /// Its package.
    pub package: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// What a host of the virtual node needs, with what the development cluster needs besides.
pub const ALL: [Need; 6] = [
    Need { what: "docker-registry", package: "docker-registry", purpose: "the registry that holds the sample images" },
    Need { what: "nft", package: "nftables", purpose: "masquerade and Service addresses" },
    Need { what: "ip", package: "iproute2", purpose: "removing bridges" },
    Need { what: "setsid", package: "util-linux", purpose: "detaching processes from the terminal" },
    Need { what: "cc", package: "gcc", purpose: "building" },
    Need { what: "/etc/ssl/certs/ca-certificates.crt", package: "ca-certificates", purpose: "reaching registries" },
];

/// What the tests need besides.
pub const FOR_TESTS: [Need; 6] = [
    Need { what: "crun", package: "crun", purpose: "an OCI runtime in the place of the built-in one" },
    Need { what: "/usr/bin/busybox", package: "busybox-static", purpose: "the root file system of test containers" },
    Need { what: "umoci", package: "umoci", purpose: "unpacking layers for comparison" },
    Need { what: "fsck.erofs", package: "erofs-utils", purpose: "having indexes checked by EROFS's own programs" },
    Need { what: "tar", package: "tar", purpose: "making and unpacking layers for comparison" },
    Need { what: "find", package: "findutils", purpose: "making layers to test with" },
];

/// What measuring beside other engines needs besides, and the tests too.
pub const FOR_PEERS: [Need; 3] = [
    Need {
        what: "runc",
        package: "runc",
        purpose: "a second OCI runtime, that of the engine Larder is measured beside",
    },
    Need { what: "mkfs.ext4", package: "e2fsprogs", purpose: "a fresh file system for each run" },
    Need { what: "losetup", package: "mount", purpose: "mounting it" },
];

/// Folders besides PATH's where Debian keeps programs of the administrator.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where Debian's package scripts ask whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Sees to it that all is there.
///
/// # Errors
/// When something is missing and cannot be installed here; the message is the list.
pub fn ensure_all() -> anyhow::Result<()> {
    ensure_each(&ALL)
}

/// Sees to it that all is there, and what the tests need besides.
///
/// # Errors
/// When something is missing and cannot be installed here; the message is the list.
pub fn ensure_for_tests() -> anyhow::Result<()> {
    ensure_each(&[&ALL[..], &FOR_TESTS, &FOR_PEERS].concat())
}

/// Sees to it that all is there, and what measuring beside other engines needs besides.
///
/// # Errors
/// When something is missing and cannot be installed here; the message is the list.
pub fn ensure_for_peers() -> anyhow::Result<()> {
    ensure_each(&[&ALL[..], &FOR_PEERS].concat())
}

/// Sees to it that what fuzzing needs is there: libFuzzer is C++.
///
/// # Errors
/// When it is missing and cannot be installed here; the message is the list.
pub fn ensure_for_fuzzing() -> anyhow::Result<()> {
    ensure_each(&[Need { what: "c++", package: "g++", purpose: "building libFuzzer" }])
}

fn ensure_each(needs: &[Need]) -> anyhow::Result<()> {
    let missing = missing(needs, &|what| find(what).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    if !(rustix::process::geteuid().is_root() && find("apt-get").is_some()) {
        bail!("{}", list(&missing));
    }
    install(&missing)
}

/// The program of this name, in PATH or where administrators' programs are; an absolute path is itself.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Path::new(program).exists().then(|| PathBuf::from(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

fn missing(needs: &[Need], is_there: &dyn Fn(&str) -> bool) -> Vec<Need> {
    needs.iter().filter(|need| !is_there(need.what)).copied().collect()
}

fn list(missing: &[Need]) -> String {
    let lines: Vec<String> = missing
        .iter()
        .map(|need| format!("  {} (Debian package {}): {}", need.what, need.package, need.purpose))
        .collect();
    format!("these are missing; install them, or run this as root on Debian or Ubuntu:\n{}", lines.join("\n"))
}

fn install(missing: &[Need]) -> anyhow::Result<()> {
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let _no_services = NoServices::begin()?;
    // Package lists may be missing or old: fetched only when it does not work without.
    if !apt(&[&["install", "--yes", "--no-install-recommends"], &packages[..]].concat())? {
        ensure!(apt(&["update"])?, "apt-get update failed");
        let installed = apt(&[&["install", "--yes", "--no-install-recommends"], &packages[..]].concat())?;
        ensure!(installed, "apt-get install {} failed", packages.join(" "));
    }
    if packages.contains(&"docker-registry") && Path::new("/run/systemd/system").exists() {
        // The package would start a registry of its own at the next boot, on our port.
        let status =
            Command::new("systemctl").args(["disable", "docker-registry"]).status().context("run systemctl")?;
        ensure!(status.success(), "systemctl disable docker-registry: {status}");
    }
    let still: Vec<Need> = self::missing(missing, &|what| find(what).is_some());
    ensure!(still.is_empty(), "{}", list(&still));
    Ok(())
}

fn apt(args: &[&str]) -> anyhow::Result<bool> {
    let output = Command::new("apt-get")
        .args(["-q", "-o", "Dpkg::Use-Pty=0"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("run apt-get")?;
    if !output.status.success() {
        crate::console::note(String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.status.success())
}

/// While this lives, package scripts start no services; a policy that the machine has already stays untouched.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> anyhow::Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            // 101 means "not allowed".
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(err) = fs::remove_file(POLICY)
        {
            crate::console::note(&format!("remove {POLICY}: {err}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_named() {
        let missing = missing(&ALL, &|what| what != "ip" && what != "nft");
        assert_eq!(missing.iter().map(|need| need.package).collect::<Vec<_>>(), ["nftables", "iproute2"]);
        let text = list(&missing);
        assert!(text.contains("iproute2") && text.contains("nftables") && !text.contains("docker-registry"));
    }

    #[test]
    fn programs_are_found() {
        assert!(find("sh").is_some());
        assert!(find("/bin/sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}

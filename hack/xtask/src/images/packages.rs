//! Fetches Debian packages together with what they depend on.
//!
//! apt works on a state folder of its own that believes nothing is installed, so the answer does not depend on the
//! machine, another architecture's packages can be asked for, and nothing outside the folder is changed. Package files
//! that are already there are not fetched again. Never installs anything.

use super::recipe::Architecture;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The keys of all of Debian's releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package file on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    /// The package's name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The `.deb`.
    pub(crate) path: PathBuf,
    /// Hex SHA-256 of the `.deb`.
    pub(crate) sha256: String,
    /// Size of the `.deb` in bytes.
    pub(crate) size: u64,
}

/// Where packages are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archive {
    /// What this machine's own apt is set to.
    OfMachine,
    /// A release of Debian by its name, from the mirror that this machine's apt is set to.
    Release(&'static str),
}

/// The packages of one architecture, kept below one folder.
#[derive(Debug)]
pub(crate) struct Packages {
    root: PathBuf,
    archive: Archive,
    architecture: Architecture,
}

impl Packages {
    /// Prepares the folder and reads the package lists if there are none yet.
    pub(crate) fn open(root: &Path, archive: Archive, architecture: Architecture) -> Result<Self> {
        for tool in ["apt-get", "dpkg-deb"] {
            if Command::new(tool).arg("--version").output().is_err() {
                bail!("this is made from Debian packages: {tool} is missing (use Debian or Ubuntu)");
            }
        }
        let root = std::path::absolute(root.join(architecture.name()))?;
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(folder)).with_context(|| format!("create {}", root.join(folder).display()))?;
        }
        fs::write(root.join("status"), "")?;
        if let Archive::Release(release) = archive {
            fs::write(root.join("sources.list"), format!("deb [signed-by={KEYRING}] {} {release} main\n", mirror()?))?;
        }
        let packages = Self { root, archive, architecture };
        if !packages.has_lists()? {
            packages.update()?;
        }
        Ok(packages)
    }

    /// `names` and all they depend on, in order of name.
    pub(crate) fn fetch(&self, names: &[&str]) -> Result<Vec<Package>> {
        match self.fetch_once(names) {
            Ok(packages) => Ok(packages),
            // Lists that have aged name files that the archive no longer has.
            Err(_) => {
                self.update()?;
                self.fetch_once(names)
            }
        }
    }

    fn fetch_once(&self, names: &[&str]) -> Result<Vec<Package>> {
        let simulated = self.apt(&["--simulate", "install"], names)?;
        let mut wanted = parse_simulated(&String::from_utf8_lossy(&simulated.stdout));
        wanted.sort();
        wanted.dedup();
        if wanted.is_empty() {
            bail!("apt-get names no package for {names:?}");
        }
        let archives = self.root.join("cache/archives");
        if wanted.iter().any(|wanted| !archives.join(wanted.file()).exists()) {
            self.apt(&["--download-only", "--yes", "install"], names)?;
        }
        wanted.into_iter().map(|wanted| describe(&archives, wanted)).collect()
    }

    fn has_lists(&self) -> Result<bool> {
        let lists = self.root.join("state/lists");
        Ok(fs::read_dir(lists)?
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("Packages")))
    }

    fn update(&self) -> Result<()> {
        self.apt(&["update"], &[]).map(drop)
    }

    fn apt(&self, verb: &[&str], names: &[&str]) -> Result<Output> {
        let root = self.root.display();
        let name = self.architecture.name();
        let mut options = vec![
            format!("APT::Architecture={name}"),
            format!("APT::Architectures={name}"),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            format!("Dir::State={root}/state"),
            format!("Dir::State::status={root}/status"),
            format!("Dir::Cache={root}/cache"),
        ];
        match self.archive {
            Archive::OfMachine => {}
            Archive::Release(_) => {
                options.push(format!("Dir::Etc::sourcelist={root}/sources.list"));
                options.push("Dir::Etc::sourceparts=-".to_owned());
            }
        }
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        for option in &options {
            command.arg("-o").arg(option);
        }
        let output = command.args(verb).args(names).output().context("run apt-get")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("apt-get {} {} for {name} failed: {}", verb.join(" "), names.join(" "), said.trim());
        }
        Ok(output)
    }
}

/// The address of Debian's packages that this machine's apt uses.
fn mirror() -> Result<String> {
    let listing = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let output = Command::new("apt-get").args(listing).output().context("run apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout);
    find_mirror(&text).map(str::to_owned).context("apt is not set to a mirror of Debian")
}

fn find_mirror(addresses: &str) -> Option<&str> {
    addresses.lines().find(|address| address.trim_end_matches('/').ends_with("/debian"))
}

/// A package that apt would install.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    name: String,
    version: String,
    architecture: String,
}

impl Wanted {
    /// The name apt gives the file: an epoch's colon is written as `%3a`.
    fn file(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.architecture)
    }
}

/// Lines `Inst NAME (VERSION ORIGIN.. [ARCH])` of a simulated installation.
fn parse_simulated(text: &str) -> Vec<Wanted> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Wanted> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    let version = rest.split_whitespace().next()?;
    let architecture = rest.split('[').nth(1)?.split(']').next()?;
    // A foreign package is shown as NAME:ARCH.
    let name = name.split(':').next()?;
    Some(Wanted { name: name.to_owned(), version: version.to_owned(), architecture: architecture.to_owned() })
}

fn describe(archives: &Path, wanted: Wanted) -> Result<Package> {
    let path = archives.join(wanted.file());
    let (sha256, size) = hash_file(&path)?;
    Ok(Package { name: wanted.name, version: wanted.version, path, sha256, size })
}

fn hash_file(path: &Path) -> Result<(String, u64)> {
    let mut file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 256 * 1024];
    let mut size = 0u64;
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        if read == 0 {
            return Ok((hex::encode(hasher.finalize()), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_simulated_installation() {
        let text = "Reading package lists...\n\
            Inst libcap2 (1:2.66-4+deb12u3+b1 Debian:12.15/oldstable [amd64])\n\
            Inst nginx-common (1.22.1-9 Debian-Security:12/oldstable-security, Debian:12 [all])\n\
            Conf libcap2 (1:2.66-4+deb12u3+b1 Debian:12.15/oldstable [amd64])\n";
        let files: Vec<String> = parse_simulated(text).iter().map(Wanted::file).collect();
        assert_eq!(files, ["libcap2_1%3a2.66-4+deb12u3+b1_amd64.deb", "nginx-common_1.22.1-9_all.deb"]);
    }

    #[test]
    fn finds_the_mirror_among_other_archives() {
        let addresses = "http://a.example/debian-security/\nhttp://b.example/node\nhttp://c.example/debian/\n";
        assert_eq!(find_mirror(addresses), Some("http://c.example/debian/"));
        assert_eq!(find_mirror("http://a.example/debian-security/\n"), None);
    }

    #[test]
    fn other_lines_are_not_packages() {
        assert!(parse_simulated("Inst broken\nE: no such package\nInst x (1.0\n").is_empty());
    }
}

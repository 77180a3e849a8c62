//! Builds Go programs from a module below `hack/`, once: they are current while the hash of the module's sources, of Go's
//! version and of the flags is the one that they were built from.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::{console, workspace};

/// What is built, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GoProgram<'a> {
    /// The module's folder, from the root of the source tree.
    pub(crate) module: &'a str,
    /// The files that decide what comes out.
    pub(crate) sources: &'a [&'a str],
    /// What to build: packages, or `tool` for the tools that `go.mod` names.
    pub(crate) package: &'a str,
    /// Build tags.
    pub(crate) tags: &'a str,
    /// Flags for the linker.
    pub(crate) link_flags: &'a str,
    /// The programs that come out. The stamp beside them has the name of the first.
    pub(crate) programs: &'a [&'a str],
}

impl GoProgram<'_> {
    /// Whether the programs in this folder are built from the sources as they are.
    ///
    /// # Errors
    /// When a source cannot be read or Go is missing.
    pub(crate) fn is_current(&self, folder: &Path) -> anyhow::Result<bool> {
        let stamp = self.stamp()?;
        Ok(self.programs.iter().all(|program| folder.join(program).exists())
            && fs::read_to_string(self.stamp_file(folder)).is_ok_and(|old| old == stamp))
    }

    /// Builds the programs if they are not current.
    ///
    /// # Errors
    /// When the build fails.
    pub(crate) fn build(&self, folder: &Path) -> anyhow::Result<()> {
        if self.is_current(folder)? {
            return Ok(());
        }
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let fresh = tempfile::tempdir_in(folder).context("make a folder for what is built")?;
        // A folder that exists is where the programs are put, under the names of their packages; one program is put where
        // it is told.
        let out = match self.programs {
            [program] => fresh.path().join(program),
            _ => fresh.path().to_owned(),
        };
        let mut build = Command::new("go")
            .args(["build", "-trimpath", "-tags", self.tags, "-ldflags", self.link_flags, "-o"])
            .arg(out)
            .arg(self.package)
            .current_dir(self.folder())
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .stderr(Stdio::piped())
            .spawn()
            .context("run go")?;
        if let Some(messages) = build.stderr.take() {
            show_messages(messages).context("read what go says")?;
        }
        let status = build.wait().context("wait for go")?;
        ensure!(status.success(), "building {}: {status}", self.module);
        for program in self.programs {
            // Renamed, not written over: the old one may be running.
            fs::rename(fresh.path().join(program), folder.join(program))
                .with_context(|| format!("put {program} in place"))?;
        }
        fs::write(self.stamp_file(folder), self.stamp()?).context("write the stamp")
    }

    /// The module's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        workspace::root().join(self.module)
    }

    fn stamp_file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.stamp", self.programs.first().copied().unwrap_or_default()))
    }

    fn stamp(&self) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        for name in self.sources {
            let path = self.folder().join(name);
            hash.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        let go = Command::new("go").arg("version").current_dir(self.folder()).output().context("run go")?;
        ensure!(go.status.success(), "go version: {}", String::from_utf8_lossy(&go.stderr));
        hash.update(&go.stdout);
        hash.update([self.package, self.tags, self.link_flags].join("\n"));
        Ok(hex::encode(hash.finalize()))
    }
}

/// Shows what Go says, but for the line that it writes for each of two hundred modules that it fetches.
fn show_messages(messages: impl Read) -> std::io::Result<()> {
    for line in BufReader::new(messages).lines() {
        let line = line?;
        if !line.starts_with("go: downloading ") {
            console::note(&line);
        }
    }
    Ok(())
}

/// The version of a module that a `go.mod` requires.
pub(crate) fn required_version(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next())?.map(|version| version.trim_start_matches('v').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_a_go_mod() {
        let text = "module x\n\nrequire example.com/one v1.2.3\n\nrequire (\n\texample.com/two/v2 v2.4.2 // indirect\n)\n\
                    tool example.com/two/v2/cmd\n";
        assert_eq!(required_version(text, "example.com/one").as_deref(), Some("1.2.3"));
        assert_eq!(required_version(text, "example.com/two/v2").as_deref(), Some("2.4.2"));
        assert_eq!(required_version(text, "example.com/two"), None);
    }
}

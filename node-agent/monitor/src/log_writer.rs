//! The container's log file: appended to, turned over by size, and never a reason for the container to wait. When the disk is
//! full, entries are dropped and counted; the container goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use larder_monitor::cri_log::rotated_suffix;
use larder_monitor::{LogConfig, UnixNanos};

use crate::diagnostics::report;

/// The log file and where it stands.
#[derive(Debug)]
pub(crate) struct LogWriter {
    config: LogConfig,
    /// None while the file cannot be opened.
    file: Option<File>,
    /// How long the file is. Always the end of an entry.
    size: u64,
    /// How many bytes of entries were dropped since the last one that could be written.
    dropped: u64,
}

impl LogWriter {
    /// A writer that opens its file at the first entry, or at [`LogWriter::open`].
    pub(crate) fn new(config: LogConfig) -> Self {
        Self { config, file: None, size: 0, dropped: 0 }
    }

    /// Creates the file, so that it is there even for a container that never says anything.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.config.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Appends whole entries.
    pub(crate) fn append(&mut self, entries: &[u8], now: UnixNanos) {
        if entries.is_empty() {
            return;
        }
        let length = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.config.max_size {
            self.turn_over(now);
        }
        match self.write(entries) {
            Ok(()) => {
                self.size += length;
                if self.dropped > 0 {
                    report(&format_args!("log is written again, {} bytes were dropped", self.dropped));
                    self.dropped = 0;
                }
            }
            Err(err) => {
                if self.dropped == 0 {
                    report(&format_args!("write log {}: {err}", self.config.path.display()));
                }
                self.dropped = self.dropped.saturating_add(length);
            }
        }
    }

    fn write(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.open()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(entries).inspect_err(|_| {
            // A part may have been written. Half an entry would spoil the next one.
            drop(file.set_len(self.size));
        })
    }

    /// Puts the current file aside and begins a new one. If that fails the current one just grows.
    fn turn_over(&mut self, now: UnixNanos) {
        let mut aside = self.config.path.clone().into_os_string();
        aside.push(".");
        aside.push(rotated_suffix(now));
        if let Err(err) = fs::rename(&self.config.path, PathBuf::from(aside)) {
            report(&format_args!("turn over log {}: {err}", self.config.path.display()));
            return;
        }
        self.file = None;
        self.size = 0;
        if let Err(err) = self.open().and_then(|()| remove_oldest(&self.config)) {
            report(&format_args!("turn over log {}: {err}", self.config.path.display()));
        }
    }
}

/// Removes the oldest files that were put aside, until as many are left as the configuration allows.
fn remove_oldest(config: &LogConfig) -> io::Result<()> {
    let mut aside = rotated_files(&config.path)?;
    let keep = usize::try_from(config.max_files.saturating_sub(1)).unwrap_or(usize::MAX);
    let surplus = aside.len().saturating_sub(keep);
    aside.sort();
    aside.iter().take(surplus).try_for_each(fs::remove_file)
}

/// The files that were put aside for the log `path`.
fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let rotated =
            entry.file_name().to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.')).is_some();
        if rotated {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, max_size: u64, max_files: u32) -> LogConfig {
        LogConfig { path: dir.join("0.log"), max_size, max_files }
    }

    #[test]
    fn the_file_is_turned_over_by_size_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(config(dir.path(), 25, 3));
        for n in 0..9_u64 {
            log.append(format!("entry {n} .\n").as_bytes(), UnixNanos(n * 1000));
        }
        let mut aside = rotated_files(&dir.path().join("0.log")).unwrap();
        aside.sort();
        let content: Vec<String> = aside.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(content, ["entry 4 .\nentry 5 .\n", "entry 6 .\nentry 7 .\n"]);
        assert_eq!(fs::read_to_string(dir.path().join("0.log")).unwrap(), "entry 8 .\n");
    }

    #[test]
    fn one_file_means_that_nothing_is_put_aside_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(config(dir.path(), 10, 1));
        for n in 0..3_u64 {
            log.append(format!("entry {n}\n").as_bytes(), UnixNanos(n));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_entry_larger_than_a_file_is_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(config(dir.path(), 4, 2));
        log.append(b"longer than four\n", UnixNanos(1));
        assert_eq!(fs::read_to_string(dir.path().join("0.log")).unwrap(), "longer than four\n");
    }

    #[test]
    fn a_log_that_cannot_be_written_drops_and_then_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("later");
        let mut log = LogWriter::new(config(&missing, 100, 2));
        log.append(b"dropped\n", UnixNanos(1));
        assert_eq!(log.dropped, 8);
        fs::create_dir(&missing).unwrap();
        log.append(b"kept\n", UnixNanos(2));
        assert_eq!(fs::read_to_string(missing.join("0.log")).unwrap(), "kept\n");
        assert_eq!(log.dropped, 0);
    }
}

//! The files of a container's run directory, and how they are written: whole or not at all.
//!
//! | file | written by | when |
//! |---|---|---|
//! | `monitor.json` | agent | before the monitor starts; of a spare once more, when there is a container |
//! | `monitor.sock` | agent binds it, the monitor answers on it | the same |
//! | `fed` | agent | of a spare: once the runtime has been given all of the specification |
//! | `runtime.log` | OCI runtime | when it has something to complain about |
//! | `pid` | OCI runtime | once the container's first process is there |
//! | `state.json` | monitor | once the container runs |
//! | `exit.json` | monitor (or its `collect` mode) | once, when the container has ended or could not be started |
//! | `removed` | the same | once the runtime has let go of the container |
//! | `monitor.log` | monitor | only when something is odd |
//!
//! The directory lives on a tmpfs, so nothing is synced: after a reboot no file claims that something runs.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the file with the [`MonitorConfig`].
pub const CONFIG_FILE: &str = "monitor.json";
/// An empty file that says that the runtime of a spare has been given the whole specification of its container.
pub const FED_FILE: &str = "fed";
/// Name of the socket on which the monitor answers.
pub const SOCKET_FILE: &str = "monitor.sock";
/// Name of the file with the [`ContainerState`].
pub const STATE_FILE: &str = "state.json";
/// Name of the file with the [`Exit`].
pub const EXIT_FILE: &str = "exit.json";
/// Name of the empty file that says that the runtime has let go of the container.
pub const REMOVED_FILE: &str = "removed";
/// Name of the file into which the runtime writes the container's process id.
pub const PID_FILE: &str = "pid";
/// Name of the file into which the runtime writes its own messages.
pub const RUNTIME_LOG_FILE: &str = "runtime.log";
/// Name of the file of a bundle with the runtime specification.
pub const SPEC_FILE: &str = "config.json";
/// The annotation of a specification with a compiled system call filter, `struct sock_filter`s in base64: crun's name for it.
pub const FILTER_ANNOTATION: &str = "run.oci.seccomp_bpf_data";
/// Name of the file into which the monitor writes what it finds odd.
pub const MONITOR_LOG_FILE: &str = "monitor.log";

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixNanos(pub u64);

/// Everything a monitor needs to start one container and to look after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorConfig {
    /// The container's id, as the runtime knows it.
    pub id: String,
    /// Directory that holds the runtime specification (`config.json`).
    pub bundle: PathBuf,
    /// Who starts the container.
    #[serde(flatten)]
    pub starter: Starter,
    /// Where the container's output goes.
    pub log: LogConfig,
    /// Whether the container gets a terminal instead of pipes. The specification must say the same.
    #[serde(default)]
    pub terminal: bool,
    /// Whether the container's standard input stays open. When false it is at its end from the start.
    #[serde(default)]
    pub stdin: bool,
    /// Mounts that the runtime must not see. They are taken away in a mount namespace that only the runtime lives in:
    /// crun refuses a cgroup v1 host whose unused v2 hierarchy has a controller left.
    #[serde(default)]
    pub hidden_mounts: Vec<PathBuf>,
    /// The container's directory in the memory (v1) or unified (v2) hierarchy, to tell whether the kernel killed for memory.
    #[serde(default)]
    pub memory_cgroup: Option<PathBuf>,
    /// How long the runtime may take to start the container, in milliseconds.
    pub start_timeout_ms: u64,
    /// Whether no container is known yet. Once there is one, this is written anew without `spare`. A runtime is started all the
    /// same: the bundle's `config.json` is a fifo, at which it waits, and which is fed afterwards. Without a runtime, the end
    /// of the connection that keeps the spare has the monitor look.
    #[serde(default)]
    pub spare: bool,
}

/// Who starts a container: a member of [`MonitorConfig`], named by what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Starter {
    /// An OCI runtime.
    Runtime(RuntimeCommand),
    /// The monitor itself.
    Launch(Launch),
}

/// What the monitor needs to start a container by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The container's cgroups, which are there, with their limits. Of a spare, none.
    pub cgroups: Vec<CgroupDir>,
}

/// A cgroup of a container in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDir {
    /// Its directory.
    pub path: PathBuf,
    /// What the hierarchy's directory is called in a container, and what else it goes by: `cpu,cpuacct`, `cpu`, `cpuacct`.
    pub names: Vec<String>,
}

/// An OCI runtime: any program with the command line of runc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeCommand {
    /// The program. The monitor prefers the sealed copy that it was handed at its start, where there is one.
    pub path: PathBuf,
    /// The runtime's own state directory (`--root`).
    pub root: PathBuf,
    /// Further global options, put before the subcommand.
    #[serde(default)]
    pub options: Vec<String>,
}

/// Where a container's output goes and when the file is turned over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file that is written now. Older ones lie beside it as `<path>.<time>`.
    pub path: PathBuf,
    /// Size in bytes from which a new file is begun.
    pub max_size: u64,
    /// How many files are kept, the one that is written now included. At least 1.
    pub max_files: u32,
}

/// The default size from which a log file is turned over, as a kubelet has it: 10 MiB.
pub const DEFAULT_LOG_MAX_SIZE: u64 = 10 * 1024 * 1024;
/// The default number of log files that are kept, as a kubelet has it.
pub const DEFAULT_LOG_MAX_FILES: u32 = 5;

/// A container that runs, or did when this was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container's id.
    pub id: String,
    /// Its first process, as the host sees it.
    pub pid: i32,
    /// When that process began, in clock ticks after boot (field 22 of `/proc/<pid>/stat`). A process with the same id but
    /// another value here is somebody else.
    pub start_time: u64,
    /// The monitor's own process.
    pub monitor_pid: i32,
    /// When the container ran.
    pub started_at: UnixNanos,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The container's id.
    pub id: String,
    /// What the process returned, or 128 plus the number of the signal that ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of this container because its memory limit was reached.
    #[serde(default)]
    pub oom_killed: bool,
    /// When it ran. None if it never did.
    #[serde(default)]
    pub started_at: Option<UnixNanos>,
    /// When it ended.
    pub finished_at: UnixNanos,
    /// Set when the container never ran.
    #[serde(default)]
    pub start_error: Option<StartError>,
    /// Whether the monitor died, so that nobody knows how the container really ended.
    #[serde(default)]
    pub lost: bool,
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// What the runtime, or the monitor itself, said: one line.
    pub message: String,
}

/// The exit code that stands for "could not be started", as container engines report it.
pub const START_ERROR_EXIT_CODE: i32 = 128;
/// The exit code that stands for "killed, or nobody knows": 128 + SIGKILL.
pub const KILLED_EXIT_CODE: i32 = 137;

/// A file of the run directory could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is there but is not what it should be.
    #[error("parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// Writes `value` as JSON under `dir/name`, so that a reader sees the old content or the new, never a part.
pub fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), FileError> {
    let path = dir.join(name);
    let fresh = dir.join(format!(".{name}.new"));
    let bytes = serde_json::to_vec(value).map_err(|source| FileError::Parse { path: path.clone(), source })?;
    let written = fs::File::create(&fresh).and_then(|mut file| file.write_all(&bytes));
    written.and_then(|()| fs::rename(&fresh, &path)).map_err(|source| FileError::Write { path, source })
}

/// Reads the JSON under `dir/name`. A file that is not there is `None`, not an error.
pub fn read_json<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, FileError> {
    let path = dir.join(name);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Read { path, source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| FileError::Parse { path, source })
}

/// Takes the start time out of the content of `/proc/<pid>/stat`: field 22, counted after the command's name, which may
/// itself hold spaces and brackets.
pub fn start_time_from_stat(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// When the process `pid` began, in clock ticks after boot; `None` when there is no such process.
pub fn process_start_time(pid: i32) -> Option<u64> {
    start_time_from_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let exit = Exit {
            id: "c1".into(),
            exit_code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at: Some(UnixNanos(5)),
            finished_at: UnixNanos(u64::MAX),
            start_error: None,
            lost: false,
        };
        write_json(dir.path(), EXIT_FILE, &exit).unwrap();
        assert_eq!(read_json::<Exit>(dir.path(), EXIT_FILE).unwrap(), Some(exit));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the file itself is left");
    }

    #[test]
    fn an_absent_file_is_none_and_a_broken_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_json::<Exit>(dir.path(), EXIT_FILE).unwrap(), None);
        fs::write(dir.path().join(EXIT_FILE), b"{\"id\":").unwrap();
        assert!(matches!(read_json::<Exit>(dir.path(), EXIT_FILE), Err(FileError::Parse { .. })));
    }

    #[test]
    fn a_record_of_an_older_monitor_still_parses() {
        let old = r#"{"id":"c1","exit_code":0,"finished_at":7}"#;
        let exit: Exit = serde_json::from_str(old).unwrap();
        assert!(!exit.lost && !exit.oom_killed && exit.start_error.is_none());
    }

    #[test]
    fn who_starts_a_container_is_told_by_name() {
        let old = r#"{"id":"c1","bundle":"/b","runtime":{"path":"/usr/bin/crun","root":"/r"},
            "log":{"path":"/l","max_size":1,"max_files":1},"start_timeout_ms":5}"#;
        let config: MonitorConfig = serde_json::from_str(old).unwrap();
        let runtime = RuntimeCommand { path: "/usr/bin/crun".into(), root: "/r".into(), options: Vec::new() };
        assert_eq!(config.starter, Starter::Runtime(runtime));
        let cgroups = vec![CgroupDir { path: "/c".into(), names: vec!["memory".into()] }];
        let config = MonitorConfig { starter: Starter::Launch(Launch { cgroups }), ..config };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""launch":{"cgroups":"#), "{text}");
        assert_eq!(serde_json::from_str::<MonitorConfig>(&text).unwrap(), config);
    }

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let fields = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        for name in ["sh", "a b", "x) R 1 (", "((", ")"] {
            assert_eq!(start_time_from_stat(&format!("7 ({name}) S {fields}")), Some(22), "{name}");
        }
        assert_eq!(start_time_from_stat("7 sh S 1"), None);
        assert_eq!(start_time_from_stat(""), None);
    }

    #[test]
    fn this_process_has_a_start_time() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(process_start_time(me).is_some());
        assert_eq!(process_start_time(i32::MAX), None);
    }
}

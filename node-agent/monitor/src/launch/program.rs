//! The container's program: where it is, its arguments and its environment.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags, access};

use super::Failure;
use super::spec::Process;
use crate::sys;

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest passwd file that is looked at, in bytes.
const MAX_PASSWD: u64 = 1024 * 1024;

/// What is executed.
#[derive(Debug)]
pub(super) struct Program {
    /// As the specification has it; once it was found, where it is.
    path: PathBuf,
    search_path: String,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Of a process, with the home directory of its user where the environment has none. Reads the container's passwd.
    pub(super) fn new(process: &Process) -> Result<Self, Failure> {
        let mut env = process.env.clone();
        let value = |name: &str| process.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
        if value("HOME").is_none() {
            env.push(format!("HOME={}", home(&read_passwd(), process.user.uid).unwrap_or("/")));
        }
        let strings = |what: &str, all: &[String]| {
            let strings = all.iter().map(|text| CString::new(text.as_bytes())).collect::<Result<Vec<_>, _>>();
            strings.map_err(|_| Failure(format!("{what} hold a zero byte")))
        };
        Ok(Self {
            path: process.args.first().map(PathBuf::from).unwrap_or_default(),
            search_path: value("PATH").unwrap_or(DEFAULT_PATH).to_owned(),
            args: strings("arguments", &process.args)?,
            env: strings("environment variables", &env)?,
        })
    }

    /// Looks for it as the container's user, from the working directory.
    pub(super) fn find(mut self) -> Result<Self, Failure> {
        if self.path.components().count() != 1 || self.path.has_root() {
            return Ok(self);
        }
        let mut candidates = self.search_path.split(':').map(|dir| {
            let dir = if dir.is_empty() { "." } else { dir };
            Path::new(dir).join(&self.path)
        });
        let found = candidates.find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok());
        self.path = found.ok_or_else(|| {
            Failure(format!("exec {:?}: executable file not found in $PATH ({})", self.path, self.search_path))
        })?;
        Ok(self)
    }

    /// Executes it. Comes back only if that fails.
    pub(super) fn execute(self) -> Failure {
        let path = self.path.clone();
        let err = match CString::new(self.path.into_os_string().into_vec()) {
            Ok(program) => sys::execute(&program, &self.args, &self.env),
            Err(err) => err.into(),
        };
        Failure(format!("exec {path:?}: {err}"))
    }
}

fn read_passwd() -> String {
    let read = || {
        // A fifo must not keep us waiting.
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
        let file = File::options().read(true).custom_flags(flags).open("/etc/passwd")?;
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_PASSWD).read_to_end(&mut bytes)?;
        }
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    // Without it nobody has a home.
    read().unwrap_or_default()
}

/// The home directory of a user, out of passwd(5).
fn home(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2)).flatten().filter(|dir| !dir.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_found_by_the_users_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n#\nbroken:x:7\nempty:x:8:8:::/bin/sh\napp:x:101:102::/srv/app:/bin/sh\n";
        assert_eq!(home(passwd, 0), Some("/root"));
        assert_eq!(home(passwd, 101), Some("/srv/app"));
        for nobody in [7, 8, 102] {
            assert_eq!(home(passwd, nobody), None);
        }
    }
}

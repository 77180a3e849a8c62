//! What the sample images contain: names, packages, files and how each is started.
//! Pure: no I/O, no clock, no randomness.
//!
//! The two images of the documented Deployment keep the names that Deployment uses, so that its YAML runs to the letter
//! behind a registry mirror. The others are `samples/...` and are pulled from wherever they were pushed.

use oci_spec::image::Arch;

/// Raised when the way an image is put together changes, so that images made by older code are made again.
pub(super) const REVISION: u32 = 2;

/// The nginx of the documented Deployment.
pub const NGINX: &str = "registry.cn-shanghai.aliyuncs.com/eci_open/nginx:1.14.2";
/// The busybox of the documented Deployment: an index over two architectures.
pub const BUSYBOX: &str = "registry.cn-shanghai.aliyuncs.com/eci_open/busybox:1.30";
/// The same busybox for this machine alone, with the media types of Docker's registry format.
pub const BUSYBOX_DOCKER: &str = "samples/busybox:docker";
/// The same busybox, which waits: what a kubelet's sandbox may be made of.
pub const PAUSE: &str = "samples/busybox:pause";
/// The large image as one gzip layer.
pub const LARGE_GZIP: &str = "samples/large:gzip";
/// The large image as four gzip layers.
pub const LARGE_GZIP4: &str = "samples/large:gzip-4";
/// The large image as one zstd layer.
pub const LARGE_ZSTD: &str = "samples/large:zstd";
/// The large image as four zstd layers.
pub const LARGE_ZSTD4: &str = "samples/large:zstd-4";
/// The four gzip layers and one small layer on top: what a rebuilt application looks like.
pub const LARGE_NEXT: &str = "samples/large:gzip-4-next";
/// An index: the large gzip image for this machine, a busybox for the other architecture.
pub const LARGE_INDEX: &str = "samples/large:index";

/// A file of ours that goes into an image: path without a leading slash, mode, content.
pub(super) type OwnFile = (&'static str, u32, &'static str);

/// Files that every image has.
pub(super) const BASE_FILES: &[OwnFile] = &[
    ("etc/passwd", 0o644, include_str!("../../../images/passwd")),
    ("etc/group", 0o644, include_str!("../../../images/group")),
    ("etc/nsswitch.conf", 0o644, include_str!("../../../images/nsswitch.conf")),
];

/// Files that make the packaged nginx a container's nginx. They replace the package's own.
pub(super) const NGINX_FILES: &[OwnFile] = &[
    ("etc/nginx/nginx.conf", 0o644, include_str!("../../../images/nginx.conf")),
    ("usr/share/nginx/html/index.html", 0o644, include_str!("../../../images/index.html")),
];

/// Links of the nginx image, as `(path, target)`: its logs are the container's streams.
pub(super) const NGINX_LINKS: &[(&str, &str)] =
    &[("var/log/nginx/access.log", "/dev/stdout"), ("var/log/nginx/error.log", "/dev/stderr")];

/// The package that gives every image its shell and tools, as one static program.
pub(super) const TOOLS: &str = "busybox-static";

/// Packages that make the nginx image; what they depend on comes along.
pub(super) const NGINX_PACKAGES: &[&str] = &["nginx", TOOLS];

/// Packages whose files form the nginx image's upper layer. All else is its base layer.
pub(super) const NGINX_UPPER: &[&str] = &["nginx", "nginx-common"];

/// Packages that make the large image. Chosen for their weight and number of files: about 250 MB compressed, 750 MB
/// plain, 28 000 entries, a mix of a few large libraries, fonts that hardly compress, and many small text files.
pub(super) const LARGE_PACKAGES: &[&str] = &["python3-scipy", "python3-sympy", "g++", "fonts-noto-cjk", TOOLS];

/// What the packages above ask for and the large image does without: static libraries of the same code.
pub(super) const LARGE_LEFT_OUT: &[&str] = &["libopenblas-pthread-dev"];

/// Directories that every image has, with their modes. Package files are moved below `usr` where the merged-`/usr`
/// layout wants them there.
pub(super) const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// Top-level links of the merged-`/usr` layout.
pub(super) const MERGED: &[&str] = &["bin", "lib", "lib64", "sbin"];

/// The variable every image sets.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a container of an image starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// The default command.
    pub(super) command: &'static [&'static str],
    /// Ports that the image declares.
    pub(super) ports: &'static [&'static str],
    /// The signal that asks for a clean end, if not SIGTERM.
    pub(super) stop_signal: Option<&'static str>,
}

/// nginx in the foreground.
pub(super) const START_NGINX: Start =
    Start { command: &["nginx", "-g", "daemon off;"], ports: &["80/tcp"], stop_signal: Some("SIGQUIT") };
/// A shell.
pub(super) const START_SHELL: Start = Start { command: &["sh"], ports: &[], stop_signal: None };
/// A container that waits.
pub(super) const START_SLEEP: Start = Start { command: &["sleep", "infinity"], ports: &[], stop_signal: None };

/// An architecture by Debian's name for it, which for both of these is the name in an OCI platform too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// 64-bit x86.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Architecture {
    /// The one of this machine, as `std::env::consts::ARCH` names it. `None`: no sample images for it.
    pub(crate) fn of_machine(arch: &str) -> Option<Self> {
        match arch {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// The other one, for indexes.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Amd64 => Self::Arm64,
            Self::Arm64 => Self::Amd64,
        }
    }

    /// Debian's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The name in a platform object.
    pub(super) fn oci(self) -> Arch {
        match self {
            Self::Amd64 => Arch::Amd64,
            Self::Arm64 => Arch::ARM64,
        }
    }
}

/// Where a path of a package lies under the merged-`/usr` layout.
pub(super) fn merged_path(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) { format!("usr/{path}") } else { path.to_owned() }
}

/// Everything in this file that decides an image's content, in a form to be hashed into a stamp.
pub(super) fn fingerprint() -> String {
    let mut text = format!("revision {REVISION}\n");
    for (path, mode, content) in BASE_FILES.iter().chain(NGINX_FILES) {
        text.push_str(&format!("{path} {mode:o} {content}\n"));
    }
    text.push_str(&format!(
        "{NGINX_LINKS:?}{NGINX_PACKAGES:?}{NGINX_UPPER:?}{LARGE_PACKAGES:?}{LARGE_LEFT_OUT:?}{DIRECTORIES:?}{MERGED:?}{PATH}\
         {START_NGINX:?}{START_SHELL:?}{START_SLEEP:?}"
    ));
    text
}

/// Splits a list of sizes into `parts` runs of about equal weight, keeping the order. Every run but the last ends as soon
/// as it has reached its share, so no run is empty while there are as many items as parts.
pub(super) fn split_by_weight(sizes: &[u64], parts: usize) -> Vec<std::ops::Range<usize>> {
    let total: u64 = sizes.iter().sum();
    let mut runs = Vec::with_capacity(parts);
    let (mut start, mut sum) = (0, 0u64);
    for (at, size) in sizes.iter().enumerate() {
        sum += size;
        let share = total * (runs.len() as u64 + 1) / parts as u64;
        let left = sizes.len() - at - 1;
        let open = parts - runs.len() - 1;
        if open > 0 && (sum >= share || left == open) {
            runs.push(start..at + 1);
            start = at + 1;
        }
    }
    runs.push(start..sizes.len());
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn package_paths_move_below_usr() {
        for (given, wanted) in [
            ("./bin/busybox", "usr/bin/busybox"),
            ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
            ("./usr/bin/env", "usr/bin/env"),
            ("./lib64/", "usr/lib64"),
            ("./library/x", "library/x"),
            ("./", ""),
        ] {
            assert_eq!(merged_path(given), wanted, "{given}");
        }
    }

    proptest! {
        #[test]
        fn runs_cover_everything_once(sizes in proptest::collection::vec(1u64..1000, 1..60), parts in 1usize..6) {
            prop_assume!(sizes.len() >= parts);
            let runs = split_by_weight(&sizes, parts);
            prop_assert_eq!(runs.len(), parts);
            let mut at = 0;
            for run in &runs {
                prop_assert_eq!(run.start, at);
                prop_assert!(run.end > run.start);
                at = run.end;
            }
            prop_assert_eq!(at, sizes.len());
        }
    }
}

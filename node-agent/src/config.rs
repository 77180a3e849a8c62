//! The command line. Every flag can also be given in the environment as `LARDER_<NAME>`.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Parser, ValueEnum};

/// The host side of Larder: runs the pods of one virtual node.
#[derive(Debug, Clone, Parser)]
#[command(name = "larder-node-agent", version)]
pub struct Config {
    /// Folder on disk: layers, images, caches, and what containers write.
    #[arg(long, env = "LARDER_ROOT", default_value = "/var/lib/larder", value_name = "DIR")]
    pub root: PathBuf,
    /// Folder on tmpfs: pods, their secrets, sandboxes, mounts. What is in it does not outlive a reboot.
    #[arg(long, env = "LARDER_RUN_DIR", default_value = "/run/larder", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Folder of the containers' logs.
    #[arg(long, env = "LARDER_LOG_ROOT", default_value = "/var/log/pods", value_name = "DIR")]
    pub log_root: PathBuf,
    /// Where the provider reaches this agent: unix:///PATH, or https://IP:PORT with the --tls flags.
    #[arg(long, env = "LARDER_LISTEN", default_value = "unix:///run/larder/agent.sock", value_name = "URL")]
    pub listen: Listen,
    /// This agent's certificate, PEM; with https.
    #[arg(long, env = "LARDER_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM; with https.
    #[arg(long, env = "LARDER_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Who signs the provider's certificate, PEM; with https.
    #[arg(long, env = "LARDER_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Addresses of this node's pods.
    #[arg(long, env = "LARDER_POD_CIDR", default_value = "10.244.0.0/24", value_name = "CIDR")]
    pub pod_cidr: String,
    /// Addresses of all pods of the cluster, to which traffic keeps its source; --pod-cidr where it is not given.
    #[arg(long, env = "LARDER_CLUSTER_CIDR", value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// Name of the bridge that the pods hang on.
    #[arg(long, env = "LARDER_BRIDGE", default_value = "larder0", value_name = "NAME", value_parser = parse_link_name)]
    pub bridge: String,
    /// How many sandboxes are made beforehand.
    #[arg(long, env = "LARDER_NETWORK_POOL_SIZE", default_value_t = 8, value_name = "N")]
    pub network_pool_size: usize,
    /// Address of the cluster's DNS; may be given more than once.
    #[arg(long, env = "LARDER_CLUSTER_DNS", value_delimiter = ',', value_name = "IP")]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    #[arg(long, env = "LARDER_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
    /// Folder with one folder a registry host, each with a hosts.toml: mirrors, certificates, plain http.
    #[arg(long, env = "LARDER_REGISTRY_CONFIG", default_value = "/etc/larder/registries", value_name = "DIR")]
    pub registry_config: PathBuf,
    /// How layers are kept. `auto` takes erofs where the kernel can mount it.
    #[arg(long, env = "LARDER_SNAPSHOTTER", default_value = "auto", value_name = "DRIVER")]
    pub snapshotter: SnapshotterChoice,
    /// What starts containers: `builtin` for the monitor itself, which is fastest, or an OCI runtime such as crun or runc, by its
    /// path or a name to be found in PATH.
    #[arg(long, env = "LARDER_RUNTIME", default_value = "builtin", value_name = "PROGRAM")]
    pub runtime: PathBuf,
    /// The container monitor; where it is not given, larder-monitor beside this program.
    #[arg(long, env = "LARDER_MONITOR", value_name = "PROGRAM")]
    pub monitor: Option<PathBuf>,
    /// How many starts are kept ready: a monitor, and crun where that is the runtime, executed, that wait for a container. None
    /// with other runtimes.
    #[arg(long, env = "LARDER_SPARE_STARTS", default_value_t = 4, value_name = "N")]
    pub spare_starts: usize,
    /// How many containers are started at the same time at most; twice as many as there are cores where it is not given.
    #[arg(long, env = "LARDER_MAX_PARALLEL_STARTS", value_name = "N")]
    pub max_parallel_starts: Option<usize>,
    /// How many layers are transferred from one registry at the same time at most. Each registry has its own, so that one
    /// that is slow does not hold up the pods of another.
    #[arg(long, env = "LARDER_MAX_PARALLEL_LAYERS", default_value_t = 4, value_name = "N")]
    pub max_parallel_layers: usize,
    /// How many layers are transferred from all registries at the same time at most. Each may take memory for its
    /// decompression, 128 MiB at most with zstd, and for its names, see --max-layer-metadata-bytes.
    #[arg(long, env = "LARDER_MAX_PARALLEL_LAYERS_IN_ALL", default_value_t = 16, value_name = "N")]
    pub max_parallel_layers_in_all: usize,
    /// How long a registry may be silent before a request is given up and tried again or at the next mirror. A blob that
    /// comes with less than 1 KiB/s, taken over four times this, is given up as well.
    #[arg(long, env = "LARDER_REGISTRY_STALL", default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub registry_stall: Duration,
    /// How many bytes a second may come from registries at most, all pulls together: 20Mi, 100M. No bound where it is not
    /// given.
    #[arg(long, env = "LARDER_REGISTRY_BANDWIDTH", value_name = "BYTES", value_parser = parse_bandwidth)]
    pub registry_bandwidth: Option<NonZeroU64>,
    /// What comes of a layer whose download takes longer is kept, so that it goes on where it was when the agent was
    /// killed; a shorter one is begun anew. 0s keeps each.
    #[arg(long, env = "LARDER_RESUME_OVER", default_value = "5s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub resume_over: Duration,
    /// Registry logins of this node, in the form of docker's config.json. Pods' own logins are tried first.
    #[arg(long, env = "LARDER_REGISTRY_AUTH_FILE", default_value = "/etc/larder/config.json", value_name = "FILE")]
    pub registry_auth_file: PathBuf,
    /// The kubelet's CredentialProviderConfig: programs that are asked for registry logins.
    #[arg(long, env = "LARDER_IMAGE_CREDENTIAL_PROVIDER_CONFIG", value_name = "FILE")]
    #[arg(requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Folder of these programs.
    #[arg(long, env = "LARDER_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR", value_name = "DIR")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Which images that a cache holds are given to a pod only when its own logins can pull them: the kubelet's
    /// imagePullCredentialsVerificationPolicy. Preloaded are the caches that were made by hand. A cache may have its own.
    #[arg(long, env = "LARDER_IMAGE_PULL_CREDENTIALS_VERIFICATION_POLICY", value_name = "POLICY")]
    #[arg(default_value = "NeverVerifyPreloadedImages")]
    pub image_pull_credentials_verification_policy: VerificationPolicy,
    /// What NeverVerifyAllowlistedImages lets pass: repositories in full, or what they begin with and /* behind it. May be
    /// given more than once.
    #[arg(long, env = "LARDER_PRELOADED_IMAGES_VERIFICATION_ALLOWLIST", value_delimiter = ',', value_name = "PATTERN")]
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// How many bytes one layer may have, unpacked: what a small download may become on this disk.
    #[arg(long, env = "LARDER_MAX_LAYER_BYTES", default_value_t = 256 << 30, value_name = "BYTES")]
    pub max_layer_bytes: u64,
    /// How many files and directories one layer may have.
    #[arg(long, env = "LARDER_MAX_LAYER_ENTRIES", default_value_t = 1_000_000, value_name = "N")]
    pub max_layer_entries: usize,
    /// How many bytes of memory the names and attributes of one layer may take while it is pulled; those of all layers of
    /// an image may take four times as much together.
    #[arg(long, env = "LARDER_MAX_LAYER_METADATA_BYTES", default_value_t = 512 << 20, value_name = "BYTES")]
    pub max_layer_metadata_bytes: u64,
    /// From this use of the store's file system on, in percent, layers that nobody uses are removed, the longest unused
    /// first (`imageGCHighThresholdPercent` of the kubelet); 100 for never.
    #[arg(long, env = "LARDER_IMAGE_GC_HIGH", default_value_t = 85, value_name = "PERCENT", value_parser = percent())]
    pub image_gc_high: u8,
    /// Down to this use they are (`imageGCLowThresholdPercent`).
    #[arg(long, env = "LARDER_IMAGE_GC_LOW", default_value_t = 80, value_name = "PERCENT", value_parser = percent())]
    pub image_gc_low: u8,
    /// A layer stays so long after its last use, however full the disk is (`imageMinimumGCAge`).
    #[arg(long, env = "LARDER_IMAGE_GC_MIN_AGE", default_value = "2m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub image_gc_min_age: Duration,
    /// A layer goes so long after its last use, however empty the disk is (`imageMaximumGCAge`); 0s for never.
    #[arg(long, env = "LARDER_IMAGE_GC_MAX_AGE", default_value = "0s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub image_gc_max_age: Duration,
    /// How many pods this node takes.
    #[arg(long, env = "LARDER_MAX_PODS", default_value_t = 250, value_name = "N")]
    pub max_pods: u32,
    /// The cgroup that all pods are put into.
    #[arg(long, env = "LARDER_CGROUP_PARENT", default_value = "larder", value_name = "NAME")]
    pub cgroup_parent: String,
    /// Let containers be privileged.
    #[arg(long, env = "LARDER_ALLOW_PRIVILEGED")]
    pub allow_privileged: bool,
    /// How this program's own log is written; RUST_LOG says how much.
    #[arg(long, env = "LARDER_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Where metrics are served, if at all.
    #[arg(long, env = "LARDER_METRICS_LISTEN", value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Where the provider reaches this agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP with mutual TLS.
    Https(SocketAddr),
}

/// How layers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SnapshotterChoice {
    /// EROFS where the kernel can mount it, directories elsewhere.
    Auto,
    /// The tar as it came, with a metadata-only EROFS index over it.
    Erofs,
    /// Unpacked directories.
    Directory,
}

/// Which images are given to pods only when their logins have been verified; the names are the kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum VerificationPolicy {
    /// None.
    NeverVerify,
    /// Those of caches that were made for a pod.
    NeverVerifyPreloadedImages,
    /// All but those that the list names.
    NeverVerifyAllowlistedImages,
    /// All.
    AlwaysVerify,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with the command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not an address that can be listened on.
    #[error("{0:?} is neither unix:///PATH nor https://IP:PORT")]
    Listen(String),
    /// A flag that https needs.
    #[error("--listen https://.. needs {0}")]
    MissingTls(&'static str),
    /// A flag that only https uses.
    #[error("{0} is used with --listen https://.. only")]
    NeedlessTls(&'static str),
    /// A path that is not absolute.
    #[error("{flag} must be an absolute path, not {path:?}")]
    Relative {
        /// The flag.
        flag: &'static str,
        /// What was given.
        path: PathBuf,
    },
    /// A number that must not be 0.
    #[error("{0} must be 1 or more")]
    Zero(&'static str),
    /// A registry cannot be given up at once.
    #[error("--registry-stall must be 1s or more")]
    Stall,
    /// Water marks the wrong way round.
    #[error("--image-gc-low ({low}) must be less than --image-gc-high ({high})")]
    WaterMarks {
        /// The low one.
        low: u8,
        /// The high one.
        high: u8,
    },
    /// Ages the wrong way round.
    #[error("--image-gc-max-age must be more than --image-gc-min-age, or 0s for never")]
    Ages,
    /// Not a name for a network link.
    #[error("{0:?} is no name for a link: 1 to 15 characters, none of them / or white space")]
    LinkName(String),
    /// Not a number of bytes.
    #[error(
        "{0:?} is no number of bytes a second: a whole number above 0, with K, M, G, Ki, Mi or Gi behind it or nothing"
    )]
    Bandwidth(String),
}

/// Files of mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This agent's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs the provider's certificate.
    pub client_ca: PathBuf,
}

impl Config {
    /// Checks what clap cannot: flags that need each other.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        for (flag, path) in [("--root", &self.root), ("--run-dir", &self.run_dir), ("--log-root", &self.log_root)] {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { flag, path: path.clone() });
            }
        }
        for (flag, number) in [
            ("--max-parallel-starts", self.max_parallel_starts.unwrap_or(1)),
            ("--max-parallel-layers", self.max_parallel_layers),
            ("--max-parallel-layers-in-all", self.max_parallel_layers_in_all),
        ] {
            if number == 0 {
                return Err(ConfigError::Zero(flag));
            }
        }
        if self.registry_stall < Duration::from_secs(1) {
            return Err(ConfigError::Stall);
        }
        let (low, high) = (self.image_gc_low, self.image_gc_high);
        if low >= high {
            return Err(ConfigError::WaterMarks { low, high });
        }
        if !self.image_gc_max_age.is_zero() && self.image_gc_max_age <= self.image_gc_min_age {
            return Err(ConfigError::Ages);
        }
        self.tls().map(|_| ())
    }

    /// The files of mutual TLS; none for a Unix socket.
    ///
    /// # Errors
    /// When one is missing, or given without need.
    pub fn tls(&self) -> Result<Option<TlsFiles>, ConfigError> {
        let files =
            [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-client-ca", &self.tls_client_ca)];
        match &self.listen {
            Listen::Unix(_) => match files.iter().find(|(_, file)| file.is_some()) {
                Some((flag, _)) => Err(ConfigError::NeedlessTls(flag)),
                None => Ok(None),
            },
            Listen::Https(_) => {
                let [cert, key, client_ca] =
                    files.map(|(flag, file)| file.clone().ok_or(ConfigError::MissingTls(flag)));
                Ok(Some(TlsFiles { cert: cert?, key: key?, client_ca: client_ca? }))
            }
        }
    }

    /// The monitor's program; `own` is this program's.
    pub fn monitor(&self, own: &Path) -> PathBuf {
        self.monitor.clone().unwrap_or_else(|| own.with_file_name("larder-monitor"))
    }
}

impl FromStr for Listen {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix://").map(Path::new)
            && path.is_absolute()
        {
            return Ok(Self::Unix(path.to_owned()));
        }
        let address = text.strip_prefix("https://").and_then(|address| address.parse().ok());
        address.map(Self::Https).ok_or_else(|| ConfigError::Listen(text.to_owned()))
    }
}

fn percent() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=100)
}

fn parse_link_name(text: &str) -> Result<String, ConfigError> {
    // IFNAMSIZ less the end, and what the kernel's dev_valid_name refuses.
    let valid = (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if valid { Ok(text.to_owned()) } else { Err(ConfigError::LinkName(text.to_owned())) }
}

fn parse_bandwidth(text: &str) -> Result<NonZeroU64, ConfigError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: Option<u64> = match unit {
        "" => Some(1),
        "K" | "k" => Some(1000),
        "M" => Some(1000 * 1000),
        "G" => Some(1000 * 1000 * 1000),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    bytes.and_then(NonZeroU64::new).ok_or_else(|| ConfigError::Bandwidth(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let config = Config::try_parse_from([&["larder-node-agent"], flags].concat()).map_err(|e| e.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_defaults_are_whole() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen, Listen::Unix("/run/larder/agent.sock".into()));
        assert_eq!(config.monitor(Path::new("/usr/bin/larder-node-agent")), Path::new("/usr/bin/larder-monitor"));
    }

    #[test]
    fn faults_are_named() {
        for (flags, part) in [
            (&["--listen", "tcp://1.2.3.4:5"][..], "neither unix:///PATH nor https://IP:PORT"),
            (&["--listen", "unix://relative"], "neither unix:///PATH nor https://IP:PORT"),
            (&["--listen", "https://1.2.3.4:5"], "needs --tls-cert"),
            (&["--listen", "https://1.2.3.4:5", "--tls-cert", "/c", "--tls-key", "/k"], "needs --tls-client-ca"),
            (&["--tls-cert", "/c"], "--tls-cert is used with"),
            (&["--root", "var"], "--root must be an absolute path"),
            (&["--max-parallel-layers", "0"], "--max-parallel-layers must be 1 or more"),
            (&["--max-parallel-layers-in-all", "0"], "--max-parallel-layers-in-all must be 1 or more"),
            (&["--registry-stall", "0s"], "--registry-stall must be 1s or more"),
            (&["--image-gc-high", "80"], "--image-gc-low (80) must be less than --image-gc-high (80)"),
            (&["--image-gc-high", "101"], "101 is not in 0..=100"),
            (&["--image-gc-max-age", "1m"], "--image-gc-max-age must be more than"),
            (&["--image-gc-min-age", "soon"], "--image-gc-min-age"),
            (&["--bridge", "a-name-that-is-too-long"], "no name for a link"),
            (&["--registry-bandwidth", "0"], "no number of bytes a second"),
            (&["--registry-bandwidth", "1.5M"], "no number of bytes a second"),
            (&["--registry-bandwidth", "99999999999Gi"], "no number of bytes a second"),
            (&["--image-credential-provider-config", "/c"], "--image-credential-provider-bin-dir"),
            (&["--snapshotter", "zfs"], "possible values: auto, erofs, directory"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }

    #[test]
    fn bandwidth_has_units() {
        for (text, bytes) in [("1", 1), ("20Mi", 20 << 20), ("100M", 100_000_000), ("3G", 3_000_000_000), ("8Ki", 8192)]
        {
            let config = parse(&["--registry-bandwidth", text]).unwrap();
            assert_eq!(config.registry_bandwidth.map(NonZeroU64::get), Some(bytes), "{text}");
        }
        assert_eq!(parse(&[]).unwrap().registry_bandwidth, None);
    }

    #[test]
    fn https_with_its_files_is_taken() {
        let flags = ["--listen", "https://[::1]:5", "--tls-cert", "/c", "--tls-key", "/k", "--tls-client-ca", "/a"];
        let tls = parse(&flags).unwrap().tls().unwrap().unwrap();
        assert_eq!(tls, TlsFiles { cert: "/c".into(), key: "/k".into(), client_ca: "/a".into() });
    }
}

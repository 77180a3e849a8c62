//! The part of the OCI runtime specification (`config.json`, version 1.0) that the launcher honours. What is not named here is
//! refused, so that nothing that somebody asks for is silently left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use larder_monitor::files::{FILTER_ANNOTATION, SPEC_FILE};
use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Failure;

/// A container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(rename = "ociVersion")]
    _version: IgnoredAny,
    pub(super) root: Root,
    pub(super) process: Process,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    pub(super) linux: Linux,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Root {
    /// A mount.
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Process {
    #[serde(default)]
    pub(super) terminal: bool,
    pub(super) user: User,
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) capabilities: Capabilities,
    #[serde(default)]
    pub(super) no_new_privileges: bool,
    #[serde(default)]
    pub(super) oom_score_adj: i32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    #[serde(default)]
    pub(super) additional_gids: Vec<u32>,
}

/// None of them is inheritable or ambient.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Capabilities {
    #[serde(deserialize_with = "capability_set")]
    pub(super) bounding: CapabilitySet,
    #[serde(deserialize_with = "capability_set")]
    pub(super) effective: CapabilitySet,
    #[serde(deserialize_with = "capability_set")]
    pub(super) permitted: CapabilitySet,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    /// In the container, from its root.
    pub(super) destination: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) source: PathBuf,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Linux {
    #[serde(default)]
    pub(super) namespaces: Vec<Namespace>,
    #[serde(default)]
    pub(super) masked_paths: Vec<PathBuf>,
    #[serde(default)]
    pub(super) readonly_paths: Vec<PathBuf>,
    /// The cgroups are made, and the limits set, by who starts us.
    #[serde(rename = "cgroupsPath")]
    _cgroups_path: Option<IgnoredAny>,
    #[serde(rename = "resources")]
    _resources: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: NamespaceKind,
    /// One that is there; a new one otherwise.
    pub(super) path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NamespaceKind {
    Pid,
    Mount,
    Network,
    Ipc,
    Uts,
    Cgroup,
}

fn capability_set<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<CapabilitySet, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let set = |name: &String| {
        let known = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
        known.ok_or_else(|| serde::de::Error::custom(format!("unknown capability {name}")))
    };
    names.iter().map(set).try_fold(CapabilitySet::empty(), |all, one| one.map(|one| all | one))
}

impl Spec {
    /// Reads a specification.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let spec: Self = serde_json::from_slice(bytes).map_err(|err| Failure(format!("parse {SPEC_FILE}: {err}")))?;
        for kind in [NamespaceKind::Pid, NamespaceKind::Mount] {
            if spec.namespace(kind).is_none_or(|namespace| namespace.path.is_some()) {
                return Err(Failure(format!("{SPEC_FILE}: the {kind:?} namespace has to be a new one")));
            }
        }
        // The devices that hide paths come from there.
        if !spec.mounts.iter().any(|mount| mount.destination == Path::new("/dev") && mount.kind == "tmpfs") {
            return Err(Failure("nothing can be mounted in the place of /dev".into()));
        }
        for mount in spec.mounts.iter().filter(|mount| mount.kind == "bind") {
            let (flags, data) = mount.flags();
            if !(flags - MountFlags::RDONLY).is_empty() || !data.is_empty() {
                let path = mount.destination.display();
                return Err(Failure(format!("{SPEC_FILE}: mount {path} has options that are not honoured")));
            }
        }
        if spec.process.args.is_empty() {
            return Err(Failure(format!("{SPEC_FILE}: there is nothing to execute")));
        }
        Ok(spec)
    }

    /// The namespace of a kind, where the container does not share the monitor's.
    pub(super) fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// The compiled system call filter.
    pub(super) fn filter(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(text) = self.annotations.get(FILTER_ANNOTATION) else { return Ok(None) };
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        bytes.map(Some).map_err(|err| Failure(format!("{SPEC_FILE}: annotation {FILTER_ANNOTATION}: {err}")))
    }
}

impl Mount {
    /// What the options say: the mount's flags, and the rest, for the file system. Those of a bind mount are flags alone.
    pub(super) fn flags(&self) -> (MountFlags, String) {
        let mut flags = MountFlags::empty();
        let mut data = Vec::new();
        for option in &self.options {
            match option.as_str() {
                "ro" => flags |= MountFlags::RDONLY,
                "nosuid" => flags |= MountFlags::NOSUID,
                "noexec" => flags |= MountFlags::NOEXEC,
                "nodev" => flags |= MountFlags::NODEV,
                "relatime" => flags |= MountFlags::RELATIME,
                "strictatime" => flags |= MountFlags::STRICTATIME,
                // The first is so by default, the others are how we mount anyway.
                "rw" | "rbind" | "rprivate" => {}
                other => data.push(other),
            }
        }
        (flags, data.join(","))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": { "path": "/r" },
            "process": {
                "user": { "uid": 1, "gid": 2 },
                "args": ["x"],
                "cwd": "/",
                "capabilities": { "bounding": ["CAP_CHOWN"], "effective": [], "permitted": [] },
            },
            "mounts": [{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        })
    }

    fn refusal(spec: &Value) -> String {
        Spec::parse(spec.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        Spec::parse(minimal().to_string().as_bytes()).unwrap();
        for (pointer, name) in [("", "hooks"), ("/process", "rlimits"), ("/linux", "sysctl"), ("/root", "extra")] {
            let mut spec = minimal();
            spec.pointer_mut(pointer).unwrap()[name] = json!([]);
            assert!(refusal(&spec).contains(&format!("unknown field `{name}`")), "{}", refusal(&spec));
        }
        let mut spec = minimal();
        spec["linux"]["namespaces"] = json!([{ "type": "user" }]);
        assert!(refusal(&spec).contains("`user`"));
        spec["linux"]["namespaces"] = json!([{ "type": "pid", "path": "/proc/1/ns/pid" }, { "type": "mount" }]);
        assert!(refusal(&spec).contains("Pid namespace"));
        let mut spec = minimal();
        spec["mounts"][0]["type"] = json!("bind");
        assert!(refusal(&spec).contains("in the place of /dev"));
        let mut spec = minimal();
        let bind = json!({ "destination": "/x", "type": "bind", "source": "/y", "options": ["rbind", "noexec"] });
        spec["mounts"].as_array_mut().unwrap().push(bind);
        assert!(refusal(&spec).contains("mount /x has options"));
        let mut spec = minimal();
        spec["process"]["capabilities"]["bounding"] = json!(["CAP_FLY"]);
        assert!(refusal(&spec).contains("unknown capability CAP_FLY"));
    }

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let options = ["nosuid", "rprivate", "ro", "mode=755", "size=1k"].map(str::to_owned).to_vec();
        let mount = Mount { destination: "/".into(), kind: "tmpfs".into(), source: "tmpfs".into(), options };
        assert_eq!(mount.flags(), (MountFlags::NOSUID | MountFlags::RDONLY, "mode=755,size=1k".to_owned()));
    }
}

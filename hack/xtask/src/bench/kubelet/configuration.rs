//! What the peer's programs are told. Pure: no I/O, no clock, no randomness.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bench::pull::account::CGROUP;
use crate::bench::pull::remains::BRIDGE;
use crate::pki::PairFiles;

/// Addresses of its pods; no cluster of ours has them.
const PODS: &str = "10.247.0.0/16";
/// Its port; the provider has the usual one.
const PORT: u16 = 10350;
/// Room for a hundred pods at once and a few more.
const MOST_PODS: u16 = 250;

/// Where everything of one life is.
#[derive(Debug)]
pub(super) struct Places {
    /// Sockets and configurations, on tmpfs.
    pub(super) state: PathBuf,
    /// containerd's store.
    store: PathBuf,
    /// The kubelet's folder.
    pub(super) kubelet: PathBuf,
    /// The containers' logs.
    pub(super) logs: PathBuf,
    /// Configurations of pod networks.
    pub(super) networks: PathBuf,
    registries: PathBuf,
}

impl Places {
    pub(super) fn new(state: &Path, disk: &Path, registries: &Path) -> Self {
        Self {
            state: state.to_owned(),
            store: disk.join("containerd"),
            kubelet: state.join("kubelet"),
            logs: state.join("pod-logs"),
            networks: state.join("net.d"),
            registries: registries.to_owned(),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    pub(super) fn containerd_config(&self) -> PathBuf {
        self.state.join("config.toml")
    }

    pub(super) fn kubelet_config(&self) -> PathBuf {
        self.state.join("kubelet.json")
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubelet.kubeconfig")
    }

    pub(super) fn network(&self) -> PathBuf {
        self.networks.join("10-bench.conflist")
    }
}

/// containerd's configuration: what `containerd config default` says, but for where things are, a sandbox image that the
/// local registry has, and scores of the kernel's memory killer, which this machine may not allow to be lowered.
pub(super) fn containerd(places: &Places, runc: &Path, sandbox: &str) -> String {
    let (root, state, socket) = (places.store.display(), places.state.display(), places.socket().display().to_string());
    let (networks, registries, runc) = (places.networks.display(), places.registries.display(), runc.display());
    format!(
        "version = 3\nroot = \"{root}\"\nstate = \"{state}\"\n\
         disabled_plugins = [\"io.containerd.nri.v1.nri\", \"io.containerd.internal.v1.opt\"]\n\n\
         [grpc]\n  address = \"{socket}\"\n\n[ttrpc]\n  address = \"{socket}.ttrpc\"\n\n\
         [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{sandbox}\"\n\n\
         [plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = \"{registries}\"\n\n\
         [plugins.\"io.containerd.cri.v1.runtime\"]\n  restrict_oom_score_adj = true\n  \
         netns_mounts_under_state_dir = true\n\n\
         [plugins.\"io.containerd.cri.v1.runtime\".cni]\n  bin_dirs = [\"/opt/cni/bin\", \"/usr/lib/cni\"]\n  \
         conf_dir = \"{networks}\"\n\n\
         [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n  \
         runtime_type = \"io.containerd.runc.v2\"\n\n\
         [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\n  BinaryName = \"{runc}\"\n  \
         SystemdCgroup = false\n"
    )
}

/// The network of its pods: a bridge, as most clusters of one node have it.
pub(super) fn network(places: &Places) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "larder-bench",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": PODS }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": places.state.join("addresses"),
            },
        }],
    })
}

/// The kubelet's configuration.
pub(super) fn kubelet(places: &Places, serving: &PairFiles, clients: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", places.socket().display()),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "cgroupRoot": format!("/{CGROUP}"),
        "failSwapOn": false,
        "port": PORT,
        "healthzPort": 0,
        "tlsCertFile": serving.certificate,
        "tlsPrivateKeyFile": serving.key,
        "authentication": { "anonymous": { "enabled": false }, "x509": { "clientCAFile": clients } },
        "authorization": { "mode": "Webhook" },
        "maxPods": MOST_PODS,
        "podLogsDir": places.logs,
        "volumePluginDir": places.state.join("volume-plugins"),
        // No rules in the machine's own packet filter.
        "makeIPTablesUtilChains": false,
        // Nobody else's pods come here; the bench's tolerate everything.
        "registerWithTaints": [{ "key": "larder-bench", "value": "true", "effect": "NoSchedule" }],
        // A disk that is nearly full is not what is measured.
        "evictionHard": { "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_name_our_folders_alone() {
        let places = Places::new(Path::new("/run/x"), Path::new("/disk"), Path::new("/registries"));
        let config: toml::Value =
            toml::from_str(&containerd(&places, Path::new("/usr/sbin/runc"), "a/pause:1")).unwrap();
        assert_eq!(config["root"].as_str(), Some("/disk/containerd"));
        assert_eq!(config["grpc"]["address"].as_str(), Some("/run/x/containerd.sock"));
        let runtime = &config["plugins"]["io.containerd.cri.v1.runtime"];
        assert_eq!(runtime["cni"]["conf_dir"].as_str(), Some("/run/x/net.d"));
        let pair = PairFiles::named(Path::new("/run/x"), "serving");
        let kubelet = kubelet(&places, &pair, Path::new("/ca.crt"));
        assert_eq!(kubelet["containerRuntimeEndpoint"], "unix:///run/x/containerd.sock");
        assert_eq!(network(&places)["plugins"][0]["ipam"]["dataDir"], "/run/x/addresses");
    }
}

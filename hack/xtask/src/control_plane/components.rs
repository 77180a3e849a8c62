//! The command lines of the components. Pure: no I/O, no clock, no randomness.

use std::path::{Path, PathBuf};

use super::{Config, Files};
use crate::pki::Authority;
use crate::process::Spec;

/// Where pid files and logs of a control plane lie.
pub(super) fn run_dir(dir: &Path) -> PathBuf {
    dir.join("run")
}

fn spec(config: &Config, name: &str) -> Spec {
    Spec::new(name, &run_dir(&config.dir), config.programs.join(name))
}

/// A component that is written in Go and has much to do: its memory is collected less often than by default. On a machine with
/// two cores the collections of the API server and etcd otherwise take a quarter of all processor time while pods start,
/// whoever's pods they are.
fn busy(config: &Config, name: &str) -> Spec {
    spec(config, name).env("GOGC", "400").env("GOMEMLIMIT", "1GiB")
}

/// etcd, for the API server alone.
pub(super) fn etcd(config: &Config, files: &Files) -> Spec {
    let client = format!("https://127.0.0.1:{}", config.ports.etcd_client);
    let peer = format!("https://127.0.0.1:{}", config.ports.etcd_peer);
    busy(config, "etcd")
        .flag("--name", "larder")
        .flag("--data-dir", config.dir.join("etcd").display())
        .flag("--listen-client-urls", &client)
        .flag("--advertise-client-urls", &client)
        .flag("--listen-peer-urls", &peer)
        .flag("--initial-advertise-peer-urls", &peer)
        .flag("--initial-cluster", format!("larder={peer}"))
        .flag("--cert-file", files.etcd.certificate.display())
        .flag("--key-file", files.etcd.key.display())
        .flag("--trusted-ca-file", files.etcd_authority.display())
        .arg("--client-cert-auth")
        .flag("--peer-cert-file", files.etcd.certificate.display())
        .flag("--peer-key-file", files.etcd.key.display())
        .flag("--peer-trusted-ca-file", files.etcd_authority.display())
        .arg("--peer-client-cert-auth")
        // The data is thrown away with the cluster; without this every write waits for the disk.
        .arg("--unsafe-no-fsync")
        .flag("--log-level", "warn")
}

/// The API server, with RBAC and Node authorization.
pub(super) fn api_server(config: &Config, cluster: &Authority, files: &Files) -> Spec {
    let authority = cluster.files().certificate.display();
    let spec = busy(config, "kube-apiserver")
        .flag("--etcd-servers", format!("https://127.0.0.1:{}", config.ports.etcd_client))
        .flag("--etcd-cafile", files.etcd_authority.display())
        .flag("--etcd-certfile", files.etcd_client.certificate.display())
        .flag("--etcd-keyfile", files.etcd_client.key.display())
        .flag("--bind-address", config.bind_address)
        .flag("--secure-port", config.ports.api)
        .flag("--tls-cert-file", files.api_server.certificate.display())
        .flag("--tls-private-key-file", files.api_server.key.display())
        .flag("--client-ca-file", &authority)
        .flag("--authorization-mode", "Node,RBAC")
        .flag("--enable-admission-plugins", "NodeRestriction")
        .flag("--service-cluster-ip-range", &config.service_cidr)
        .flag("--service-account-issuer", format!("https://kubernetes.default.svc.{}", config.cluster_domain))
        .flag("--service-account-key-file", files.token_public_key.display())
        .flag("--service-account-signing-key-file", files.token_key.display())
        // It proves itself to a node, and may ask the node's kubelet API to prove itself.
        .flag("--kubelet-client-certificate", files.kubelet_client.certificate.display())
        .flag("--kubelet-client-key", files.kubelet_client.key.display())
        .flag("--kubelet-preferred-address-types", "InternalIP,Hostname")
        .arg("--allow-privileged=true")
        .arg("--profiling=false");
    let spec = if config.verify_kubelets { spec.flag("--kubelet-certificate-authority", &authority) } else { spec };
    match config.advertise_address {
        Some(address) => spec.flag("--advertise-address", address),
        None => spec,
    }
}

/// The controller manager. It serves nothing, so that it needs no port.
pub(super) fn controller_manager(config: &Config, cluster: &Authority, files: &Files) -> Spec {
    spec(config, "kube-controller-manager")
        .flag("--kubeconfig", config.dir.join("pki/kube-controller-manager.kubeconfig").display())
        .arg("--leader-elect=false")
        .flag("--secure-port", 0)
        .arg("--use-service-account-credentials=true")
        .flag("--service-account-private-key-file", files.token_key.display())
        .flag("--root-ca-file", cluster.files().certificate.display())
        .flag("--cluster-signing-cert-file", cluster.files().certificate.display())
        .flag("--cluster-signing-key-file", cluster.files().key.display())
        .flag("--service-cluster-ip-range", &config.service_cidr)
        // It makes this folder when it is missing; by default one of the machine's.
        .flag("--flex-volume-plugin-dir", config.dir.join("flex-volume").display())
        .arg("--profiling=false")
}

/// The scheduler. It serves nothing either.
pub(super) fn scheduler(config: &Config) -> Spec {
    spec(config, "kube-scheduler")
        .flag("--kubeconfig", config.dir.join("pki/kube-scheduler.kubeconfig").display())
        .arg("--leader-elect=false")
        .flag("--secure-port", 0)
        .arg("--profiling=false")
}

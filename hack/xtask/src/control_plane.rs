//! A real Kubernetes control plane on this machine: etcd, API server, controller manager and scheduler, with
//! certificates, RBAC and Node authorization. Started from a folder, ended by pid.
//!
//! ```text
//! DIR/pki/            authorities, server and client certificates, the service account key
//! DIR/etcd/           the data; syncing to disk is off, a cluster made here is thrown away
//! DIR/run/            pid files and logs
//! DIR/kubeconfig      the administrator's
//! ```
//!
//! kube-proxy is apart, because it works on the machine's own packet filter: one a machine (or network namespace).

pub mod kube_proxy;

mod components;
mod readiness;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::kubeconfig::{self, Identity};
use crate::pki::{Authority, Leaf, PairFiles, Usage, token_key};
use crate::process::{self, Process};

/// How long a component gets to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// The names of the four, in the order of their start.
const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Where a control plane lives.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its folder.
    pub dir: PathBuf,
    /// The folder with the programs, one a component (see [`crate::controlplane_program`]).
    pub programs: PathBuf,
    /// The address that the API server listens on.
    pub bind_address: Ipv4Addr,
    /// The address that pods reach the API server at, behind `kubernetes.default`. Must not be a loopback address. None
    /// takes the machine's own.
    pub advertise_address: Option<Ipv4Addr>,
    /// Whether the API server asks a kubelet API for a certificate of the cluster's authority; installers of clusters mostly
    /// leave that out.
    pub verify_kubelets: bool,
    /// TCP ports.
    pub ports: Ports,
    /// Addresses of Services.
    pub service_cidr: String,
    /// The first of them, that of `kubernetes.default`.
    pub service_ip: Ipv4Addr,
    /// Addresses of pods, all nodes together.
    pub pod_cidr: String,
    /// The domain of Services.
    pub cluster_domain: String,
}

/// TCP ports of a control plane, all on loopback but the API server's where it is told to listen elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The API server's.
    pub api: u16,
    /// etcd's, for the API server.
    pub etcd_client: u16,
    /// etcd's, for other members, of which there are none.
    pub etcd_peer: u16,
}

impl Config {
    /// A control plane in this folder with the usual ports and addresses.
    #[must_use]
    pub fn new(dir: &Path, programs: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            programs: programs.to_owned(),
            bind_address: Ipv4Addr::LOCALHOST,
            advertise_address: None,
            verify_kubelets: true,
            ports: Ports { api: 6443, etcd_client: 2379, etcd_peer: 2380 },
            service_cidr: "10.96.0.0/16".to_owned(),
            service_ip: Ipv4Addr::new(10, 96, 0, 1),
            pod_cidr: "10.244.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }

    /// The same on free ports, to run beside others.
    ///
    /// # Errors
    /// When no ports are free.
    pub fn on_free_ports(self) -> std::io::Result<Self> {
        let [api, etcd_client, etcd_peer] = crate::ports::free()?;
        Ok(Self { ports: Ports { api, etcd_client, etcd_peer }, ..self })
    }
}

/// A control plane, running or not.
#[derive(Debug)]
pub struct ControlPlane {
    config: Config,
    cluster: Authority,
    files: Files,
}

/// The certificates and keys that the components are told of.
#[derive(Debug)]
struct Files {
    etcd_authority: PathBuf,
    etcd: PairFiles,
    etcd_client: PairFiles,
    api_server: PairFiles,
    kubelet_client: PairFiles,
    token_key: PathBuf,
    token_public_key: PathBuf,
}

impl ControlPlane {
    /// Makes (or finds, in a folder used before) the certificates and kubeconfigs. Starts nothing.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare(config: Config) -> anyhow::Result<Self> {
        let pki = config.dir.join("pki");
        let cluster = Authority::open(&pki, "cluster-ca")?;
        let etcd_authority = Authority::open(&pki, "etcd-ca")?;
        let (token_key, token_public_key) = token_key(&pki, "service-account")?;
        let loopback = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let etcd = Leaf { usage: Usage::Both, ..Leaf::server("etcd", &loopback) };
        let api_server = Leaf::server("kube-apiserver", &api_server_names(&config));
        let kubelet_client = Leaf::client("kube-apiserver-kubelet-client", None);
        let files = Files {
            etcd_authority: etcd_authority.files().certificate.clone(),
            etcd: etcd_authority.sign_once(&pki, "etcd", &etcd)?,
            etcd_client: etcd_authority.sign_once(&pki, "etcd-client", &Leaf::client("kube-apiserver", None))?,
            api_server: cluster.sign_once(&pki, "kube-apiserver", &api_server)?,
            kubelet_client: cluster.sign_once(&pki, "kubelet-client", &kubelet_client)?,
            token_key,
            token_public_key,
        };
        let control_plane = Self { config, cluster, files };
        control_plane.write_kubeconfig("kubeconfig", &Leaf::client("larder-admin", Some("system:masters")))?;
        for user in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            let leaf = Leaf::client(&format!("system:{user}"), None);
            control_plane.write_kubeconfig(&format!("pki/{user}.kubeconfig"), &leaf)?;
        }
        Ok(control_plane)
    }

    /// Starts what does not run yet, and waits until the API server says it is ready.
    ///
    /// # Errors
    /// When a component ends early or is not ready in time; the message holds the end of its log.
    pub async fn start(&self) -> anyhow::Result<()> {
        process::ensure(&components::etcd(&self.config, &self.files), GRACE)?;
        self.start_api_server().await?;
        process::ensure(&components::controller_manager(&self.config, &self.cluster, &self.files), GRACE)?;
        process::ensure(&components::scheduler(&self.config), GRACE)?;
        Ok(())
    }

    /// Starts the API server if it does not run, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends early or is not ready in time.
    pub async fn start_api_server(&self) -> anyhow::Result<()> {
        let spec = components::api_server(&self.config, &self.cluster, &self.files);
        let process = process::ensure(&spec, GRACE)?;
        readiness::wait(&self.kubeconfig(), &process).await
    }

    /// Ends the API server alone; the others keep trying to reach it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_api_server(&self) -> anyhow::Result<()> {
        stop(&self.config.dir, "kube-apiserver")
    }

    /// Ends all components, the last started first.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop(&self) -> anyhow::Result<()> {
        COMPONENTS.iter().rev().try_for_each(|name| stop(&self.config.dir, name))
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.config.dir.join("kubeconfig")
    }

    /// Where it lives.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The address of the API server as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let host =
            if self.config.bind_address.is_unspecified() { Ipv4Addr::LOCALHOST } else { self.config.bind_address };
        format!("https://{host}:{}", self.config.ports.api)
    }

    /// The authority that signs servers and clients of this cluster, kubelet serving certificates among them.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.cluster
    }

    /// Writes a kubeconfig for a client, below the folder of the control plane, once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_kubeconfig(&self, name: &str, client: &Leaf) -> anyhow::Result<PathBuf> {
        let path = self.config.dir.join(name);
        if !path.exists() {
            let identity = Identity::Certificate(self.cluster.sign(client)?);
            kubeconfig::write(&path, &self.url(), self.cluster.certificate(), &identity)?;
        }
        Ok(path)
    }

    /// Signs the serving certificate of a kubelet API at these addresses or names, once.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn kubelet_serving_pair(&self, node: &str, names: &[String]) -> anyhow::Result<PairFiles> {
        let leaf = Leaf::server(&format!("system:node:{node}"), names);
        let stem = format!("kubelet-{node}");
        self.cluster.sign_once(&self.config.dir.join("pki"), &stem, &leaf).context("sign kubelet serving certificate")
    }
}

/// Ends one component in this folder if it runs.
fn stop(dir: &Path, name: &str) -> anyhow::Result<()> {
    match process::find(&components::run_dir(dir), name) {
        Some(process) => Ok(process.stop(GRACE)?),
        None => Ok(()),
    }
}

/// Every component of the control plane in this folder that runs.
#[must_use]
pub fn running(dir: &Path) -> Vec<Process> {
    COMPONENTS.iter().filter_map(|name| process::find(&components::run_dir(dir), name)).collect()
}

/// Ends the control plane that lives in this folder, if one does.
///
/// # Errors
/// When a component does not end.
pub fn stop_all(dir: &Path) -> anyhow::Result<()> {
    COMPONENTS.iter().rev().try_for_each(|name| stop(dir, name))
}

/// Every name and address that a client may reach the API server by.
fn api_server_names(config: &Config) -> Vec<String> {
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let addresses = [Some(Ipv4Addr::LOCALHOST), Some(config.service_ip), config.advertise_address];
    service
        .into_iter()
        .chain([format!("kubernetes.default.svc.{}", config.cluster_domain), "localhost".to_owned()])
        .chain(addresses.into_iter().flatten().map(|address| IpAddr::V4(address).to_string()))
        .collect()
}

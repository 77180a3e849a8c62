//! `hack/up` and `hack/down` as a person calls them: nothing is left on the machine, a cluster that is up already is found
//! so within seconds, and a cluster of somebody else is joined and left.
//!
//! The only tests that use the ports, bridges and folders of `hack/up` itself, hence one at a time in a program of their own.

#![expect(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, LogParams};
use larder_dev::conditions::pod_is_ready;
use larder_dev::control_plane::{self, ControlPlane};
use larder_dev::footprint::Footprint;
use larder_dev::up::layout::{Layout, Settings};
use larder_dev::{manifests, workspace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

/// How long the kernel may take to remove the links of namespaces that are gone.
const SETTLE: Duration = Duration::from_secs(30);
/// What "takes seconds" means for a cluster that is up already, on a machine that is busy with nothing else.
const SECOND_CALL: Duration = Duration::from_secs(20);

/// Held by the test that uses them; what it has brought up goes down however the test ends.
struct Machine {
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    async fn take() -> anyhow::Result<Self> {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let up = Settings::read(&Layout::new(&workspace::state()))?;
        ensure!(up.is_none(), "a cluster is up on this machine; run hack/down first");
        Ok(Self { _alone: alone })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that failed has said so; the next one says what stays.
        if !matches!(Settings::read(&Layout::new(&workspace::state())), Ok(None)) {
            drop(hack("down", &[]));
        }
    }
}

/// Runs a command of `hack/` and gives what it printed.
fn hack(command: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(workspace::root().join("hack").join(command)).args(args).output().context("run hack")?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
    ensure!(output.status.success(), "hack/{command} {args:?}: {}\n{said}", output.status);
    Ok(said)
}

/// Waits until nothing is there that was not there before.
async fn settled(before: &Footprint) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let left = Footprint::take()?.since(before);
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left on the machine:\n{}", left.join("\n"));
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn up_and_down_leave_nothing() -> anyhow::Result<()> {
    let _machine = Machine::take().await?;
    let layout = Layout::new(&workspace::state());
    let before = Footprint::take()?;
    let said = hack("up", &[])?;
    ensure!(!said.contains("!!"), "nothing is amiss:\n{said}");
    keeps_its_promise(&said).await?;
    ensure!(!Footprint::take()?.since(&before).is_empty(), "a cluster that is up has a footprint");
    let grown = hack("up", &["--nodes", "2"])?;
    ensure!(grown.contains("virtual-node-eci-1 "), "a second node joins a cluster that is up:\n{grown}");
    let again = Instant::now();
    hack("up", &["--nodes", "2"])?;
    ensure!(again.elapsed() < SECOND_CALL, "the second call took {:?}", again.elapsed());
    hack("down", &[])?;
    settled(&before).await?;
    ensure!(layout.agents().exists(), "stores outlive the cluster");
    hack("up", &["--nodes", "2", "--empty"])?;
    hack("down", &[])?;
    settled(&before).await
}

/// What `hack/up` ends with is so: both Deployments run, their start was timed, nginx answers and logs are read.
async fn keeps_its_promise(said: &str) -> anyhow::Result<()> {
    let running = said.lines().filter(|line| line.contains("pod/test-") && line.contains(" 2/2 "));
    ensure!(running.filter(|line| line.contains(" Running ")).count() == 4, "two Deployments of two pods:\n{said}");
    let times =
        said.lines().skip_while(|line| !line.contains("READY AFTER")).filter(|line| line.trim_end().ends_with(" ms"));
    ensure!(times.count() == 4, "four pods were timed:\n{said}");
    let page = said.lines().find_map(|line| line.trim().strip_prefix("curl http://"));
    let address = page.context("a page to ask for")?.trim_end_matches('/');
    let mut page = TcpStream::connect((address, 80)).await.context("reach nginx from the host")?;
    page.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    page.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    let seen = hack("kubectl", &["logs", "deployment/test", "--all-pods", "--container", "nginx"])?;
    ensure!(seen.contains("\"GET / HTTP/1.0\" 200"), "nginx logs its visitor:\n{seen}");
    hack("kubectl", &["logs", "deployment/test", "--container", "busybox"])?;
    Ok(())
}

/// A control plane that `hack/up` knows nothing of, ended however the test ends.
struct Foreign(ControlPlane);

impl Drop for Foreign {
    fn drop(&mut self) {
        // The test has failed or is over: what went wrong has been said.
        drop(self.0.stop());
    }
}

#[tokio::test]
async fn a_cluster_that_is_there_is_joined_and_left() -> anyhow::Result<()> {
    let _machine = Machine::take().await?;
    let folder = tempfile::tempdir().context("make a folder")?;
    let config = control_plane::Config::new(folder.path(), &workspace::state().join("bin")).on_free_ports()?;
    let config = control_plane::Config { verify_kubelets: false, ..config };
    let foreign = Foreign(ControlPlane::prepare(config)?);
    foreign.0.start().await?;
    let kubeconfig = foreign.0.kubeconfig();
    let client = manifests::client(&kubeconfig).await?;
    // Installers of clusters let the API server call kubelets; this control plane leaves it to who uses it.
    let may_call = std::fs::read_to_string(workspace::root().join("hack/deploy/kubelet-client.yaml"))?;
    manifests::apply(&client, &may_call, "default").await?;
    let before = Footprint::take()?;
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::all(client.clone());
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());

    let kubeconfig = kubeconfig.to_str().context("the folder's name is text")?;
    let said = hack("up", &["--kubeconfig", kubeconfig])?;
    ensure!(!said.contains("!!"), "the API server reaches the provider, but hack/up says:\n{said}");
    let ready = |pod: &&Pod| pod_is_ready(pod);
    let sample = pods.list(&ListParams::default().labels("app=nginx")).await?.items;
    ensure!(sample.iter().filter(ready).count() == 4, "both Deployments run two pods each:\n{said}");
    let name = sample.iter().find(|pod| pod.metadata.namespace.as_deref() == Some("larder-sample"));
    let name = name.and_then(|pod| pod.metadata.name.clone()).context("a pod of the first Deployment")?;
    let params = LogParams { container: Some("busybox".into()), ..LogParams::default() };
    Api::<Pod>::namespaced(client.clone(), "larder-sample").logs(&name, &params).await.context("read a log")?;

    hack("down", &[])?;
    ensure!(nodes.list(&ListParams::default()).await?.items.is_empty(), "the virtual node is gone");
    ensure!(webhooks.list(&ListParams::default()).await?.items.is_empty(), "the webhook is gone");
    ensure!(pods.list(&ListParams::default()).await?.items.is_empty(), "no pod is left");
    settled(&before).await?;

    hack("up", &["--kubeconfig", kubeconfig, "--empty"])?;
    foreign.0.stop()?;
    let said = hack("down", &[])?;
    ensure!(said.contains("does not answer"), "hack/down says that objects stay in a cluster that is away:\n{said}");
    settled(&before).await
}

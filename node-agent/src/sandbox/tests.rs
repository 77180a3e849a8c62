//! Sandboxes for real: namespaces, links and packets, on a test host of their own.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use tokio::task::JoinHandle;

use super::*;
use crate::host::namespace::{Kind, enter, on_test_host};

struct Bench {
    run_dir: tempfile::TempDir,
    sandboxes: Arc<BridgeSandboxes>,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

fn config(run_dir: &std::path::Path, cidr: &str) -> SandboxConfig {
    SandboxConfig {
        run_dir: run_dir.to_owned(),
        bridge: "larder-t".into(),
        pod_cidr: cidr.parse().unwrap(),
        cluster_cidr: cidr.into(),
        pool_size: 1,
    }
}

impl Bench {
    async fn open(run_dir: tempfile::TempDir, cidr: &str) -> Self {
        let (sandboxes, task) = BridgeSandboxes::open(config(run_dir.path(), cidr)).await.unwrap();
        let stop = CancellationToken::new();
        let mut set = tokio::task::JoinSet::new();
        set.spawn(task.run(stop.clone()));
        #[expect(clippy::disallowed_methods, reason = "joined by close, which every test ends with")]
        let task = tokio::spawn(async move { set.join_next().await.unwrap().unwrap() });
        Self { run_dir, sandboxes, task, stop }
    }

    async fn close(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.task.await.unwrap();
        self.run_dir
    }
}

fn spec(uid: &str) -> SandboxSpec {
    SandboxSpec {
        uid: uid.into(),
        hostname: format!("host-{uid}"),
        domainname: String::new(),
        sysctls: vec![("net.core.somaxconn".into(), "321".into())],
    }
}

fn inside<T: Send>(sandbox: &Sandbox, work: impl FnOnce() -> std::io::Result<T> + Send) -> T {
    let files = [
        (Kind::Network, sandbox.namespaces.network.clone()),
        (Kind::Uts, sandbox.namespaces.uts.clone()),
        (Kind::Ipc, sandbox.namespaces.ipc.clone()),
    ];
    enter(&files, work).unwrap()
}

/// Sends a word from where `connect` runs to a listener at `ip` inside `server`, and says what came.
fn talk(server: &Sandbox, ip: IpAddr, connect: impl FnOnce(SocketAddr) -> TcpStream) -> String {
    let listener = inside(server, move || TcpListener::bind((ip, 0)));
    let address = listener.local_addr().unwrap();
    let mut client = connect(address);
    client.write_all(b"word").unwrap();
    drop(client);
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    text
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
}

#[test]
fn pods_have_names_settings_and_reach_each_other_and_the_host() {
    on_test_host(async || {
        let bench = Bench::open(tempfile::tempdir().unwrap(), "10.99.0.0/24").await;
        let a = bench.sandboxes.ensure(spec("a")).await.unwrap();
        let b = bench.sandboxes.ensure(spec("b")).await.unwrap();
        assert_ne!(a.ips, b.ips);
        let nodename = inside(&a, || Ok(rustix::system::uname().nodename().to_string_lossy().into_owned()));
        assert_eq!(nodename, "host-a");
        let somaxconn = inside(&a, || std::fs::read_to_string("/proc/sys/net/core/somaxconn"));
        assert_eq!(somaxconn.trim(), "321");
        assert_eq!(talk(&a, a.ips[0], |to| inside(&b, move || connect(to))), "word");
        assert_eq!(talk(&a, a.ips[0], |to| connect(to).unwrap()), "word");
        bench.close().await;
    });
}

#[test]
fn a_restart_finds_what_pods_have_and_sweeps_the_rest() {
    on_test_host(async || {
        let bench = Bench::open(tempfile::tempdir().unwrap(), "10.99.0.0/24").await;
        let before = bench.sandboxes.ensure(spec("a")).await.unwrap();
        let run_dir = bench.close().await;
        let half_made = run_dir.path().join("sandboxes/half-made");
        std::fs::create_dir(&half_made).unwrap();
        std::fs::write(half_made.join("net"), "").unwrap();

        let bench = Bench::open(run_dir, "10.99.0.0/24").await;
        assert!(!half_made.exists());
        assert_eq!(bench.sandboxes.list().await.unwrap(), HashMap::from([("a".to_owned(), before.clone())]));
        assert_eq!(bench.sandboxes.ensure(spec("a")).await.unwrap(), before);
        let b = bench.sandboxes.ensure(spec("b")).await.unwrap();
        assert_ne!(b.ips, before.ips);
        bench.close().await;
    });
}

#[test]
fn a_full_network_is_refused_by_name_and_recovers() {
    on_test_host(async || {
        let bench = Bench::open(tempfile::tempdir().unwrap(), "10.99.0.0/30").await;
        bench.sandboxes.ensure(spec("a")).await.unwrap();
        let error = bench.sandboxes.ensure(spec("b")).await.unwrap_err();
        assert_eq!(error.to_string(), "no free address in 10.99.0.0/30: 1 are in use");
        bench.sandboxes.remove("a").await.unwrap();
        bench.sandboxes.remove("a").await.unwrap();
        bench.sandboxes.ensure(spec("b")).await.unwrap();
        bench.close().await;
    });
}

#[test]
fn a_setting_that_does_not_exist_is_named() {
    on_test_host(async || {
        let bench = Bench::open(tempfile::tempdir().unwrap(), "10.99.0.0/29").await;
        let mut bad = spec("a");
        bad.sysctls = vec![("net.core.nothing".into(), "1".into())];
        let error = bench.sandboxes.ensure(bad).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("net.core.nothing=1"), "{cause}");
        assert_eq!(bench.sandboxes.list().await.unwrap(), HashMap::new());
        bench.close().await;
    });
}

#[test]
fn removal_leaves_no_mount_and_no_link() {
    on_test_host(async || {
        let bench = Bench::open(tempfile::tempdir().unwrap(), "10.99.0.0/30").await;
        bench.sandboxes.ensure(spec("a")).await.unwrap();
        bench.sandboxes.remove("a").await.unwrap();
        // The one address goes back to the pool, so exactly one sandbox is made again.
        bench.sandboxes.ensure(spec("b")).await.unwrap();
        let sandboxes = bench.run_dir.path().join("sandboxes");
        assert_eq!(std::fs::read_dir(&sandboxes).unwrap().count(), 1);
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = mounts.lines().filter(|line| line.contains(sandboxes.to_str().unwrap())).count();
        assert_eq!(ours, 4, "three namespaces and one tmpfs:\n{mounts}");
        bench.close().await;
    });
}

//! The end-to-end tests: everything that a user does, against a real control plane, a real registry and real containers.
//!
//! `cargo test -p larder-e2e NAME` runs those whose name contains NAME; `hack/test e2e` builds what they need first. Tests that
//! leave a cluster as they found it share one and run side by side; tests that stop or break its parts share another, one at a
//! time.

mod annotations;
mod disruption;
mod documented;
mod image_cache;
mod lifecycle;
mod matrix;
mod mounted;
mod network;
mod node;
mod private_images;
mod profile;
mod registry;
mod scheduling;
mod selector;
mod two_nodes;
mod volumes;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use larder_e2e::cluster::{Cluster, Options, TEST_REGISTRY};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OnceCell, RwLock};

/// No test takes longer; one that does hangs.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// A test on the shared cluster.
type Shared = for<'c> fn(&'c Cluster) -> BoxFuture<'c, Result<()>>;
/// A test that has a cluster for itself while it runs.
type Alone = for<'c> fn(&'c mut Cluster) -> BoxFuture<'c, Result<()>>;

/// The clusters, started when first asked for.
struct Clusters {
    runtime: Runtime,
    shared: OnceCell<Cluster>,
    /// Read by tests that leave both nodes alone, written by those that stop one.
    pair: OnceCell<RwLock<Cluster>>,
    alone: OnceCell<Mutex<Cluster>>,
}

/// Names a function as a test.
macro_rules! tests {
    ($module:ident: $($name:ident),+ $(,)?) => {
        vec![$((concat!(stringify!($module), "::", stringify!($name)), |cluster| Box::pin($module::$name(cluster)))),+]
    };
}

fn main() -> ExitCode {
    match larder_e2e::isolation::run(run) {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "this is where the user looks")]
            {
                eprintln!("{error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> ExitCode {
    // Several crates of the graph use rustls; it wants one provider for the process.
    drop(rustls::crypto::ring::default_provider().install_default());
    let arguments = Arguments::from_args();
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(_) => return ExitCode::FAILURE,
    };
    let clusters =
        Arc::new(Clusters { runtime, shared: OnceCell::new(), pair: OnceCell::new(), alone: OnceCell::new() });
    let mut trials = Vec::new();
    for (name, test) in shared() {
        let clusters = clusters.clone();
        trials.push(Trial::test(name, move || clusters.run_shared(test)));
    }
    for (name, test) in pair() {
        let clusters = clusters.clone();
        trials.push(Trial::test(name, move || clusters.run_pair(test)));
    }
    for (name, test) in pair_alone() {
        let clusters = clusters.clone();
        trials.push(Trial::test(name, move || clusters.run_pair_alone(test)));
    }
    for (name, test) in alone() {
        let clusters = clusters.clone();
        trials.push(Trial::test(name, move || clusters.run_alone(test)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Tests that leave the cluster as they found it.
fn shared() -> Vec<(&'static str, Shared)> {
    let mut all: Vec<(&'static str, Shared)> = Vec::new();
    all.extend::<Vec<(&'static str, Shared)>>(tests!(scheduling: by_label, by_namespace_label, by_node_selector, other_pods_are_left_alone, refused_pods_say_why));
    all.extend::<Vec<(&'static str, Shared)>>(tests!(lifecycle: completion_and_exit_codes, crash_loop_backs_off, deletion_keeps_to_its_grace, init_containers_run_in_order, logs_have_the_kubelets_options, memory_limit_kills, unsupported_fields_are_refused_by_name));
    all.extend::<Vec<(&'static str, Shared)>>(tests!(volumes: objects_reach_files_and_variables, missing_objects_are_named_and_awaited, tokens_reach_the_api_server));
    all.extend::<Vec<(&'static str, Shared)>>(tests!(network: pods_reach_pods_and_services, names_and_resolver));
    all.extend::<Vec<(&'static str, Shared)>>(
        tests!(registry: wrong_digest, wrong_length, truncated, reset, silent, server_errors, endless, unauthorized, token_loop, not_found, huge_manifest, manifest_of_itself, redirected, too_many_requests, slow, pull_secret),
    );
    all.extend::<Vec<(&'static str, Shared)>>(tests!(image_cache: made_by_hand, pinned_without_the_registry, matched_without_the_registry, made_when_missing, pinned_to_one_that_is_missing, pinned_to_one_in_the_making, one_for_many_pods, gone_from_the_host_when_deleted, invalid_annotations, as_kubectl_shows_it, explained, refused_and_taken, updated, annotations_are_told_of_once, of_another_namespace, only_for_who_may_read_them, deleted_while_pods_start));
    all.extend::<Vec<(&'static str, Shared)>>(
        tests!(private_images: of_another_tenant, each_policy, public_ones_need_no_request),
    );
    all.extend::<Vec<(&'static str, Shared)>>(tests!(mounted: images_are_what_umoci_unpacks));
    all.extend::<Vec<(&'static str, Shared)>>(
        tests!(annotations: partly_hit, init_containers_count, a_change_comes_too_late_and_is_told_once, figures),
    );
    all.extend::<Vec<(&'static str, Shared)>>(tests!(documented: automatic, pinned, image_cache));
    all.extend::<Vec<(&'static str, Shared)>>(tests!(node: shape, deleted_and_recreated));
    all
}

/// Tests of two virtual nodes whose agents are reached over TCP, as if each were a host of its own.
fn pair() -> Vec<(&'static str, Shared)> {
    let mut all: Vec<(&'static str, Shared)> = Vec::new();
    all.extend::<Vec<(&'static str, Shared)>>(
        tests!(two_nodes: pods_keep_their_addresses, agents_ask_for_a_certificate),
    );
    all.extend::<Vec<(&'static str, Shared)>>(tests!(image_cache: each_host_is_shown, only_where_it_is_wanted));
    all
}

/// Tests that stop one of the two.
fn pair_alone() -> Vec<(&'static str, Alone)> {
    tests!(image_cache: a_host_lost_in_mid_build, a_host_that_joins_later, deleted_while_a_host_is_away)
}

/// Tests that stop or break parts of the cluster.
fn alone() -> Vec<(&'static str, Alone)> {
    let mut all: Vec<(&'static str, Alone)> = Vec::new();
    all.extend::<Vec<(&'static str, Alone)>>(
        tests!(disruption: agent_killed, provider_killed, agent_away_shows_on_the_node, api_server_away, disk_full),
    );
    all.extend::<Vec<(&'static str, Alone)>>(tests!(image_cache: room_for_two, definition_by_flag, provider_killed_in_mid_build, agent_killed_in_mid_build, api_server_away_while_a_build_ends));
    all.extend::<Vec<(&'static str, Alone)>>(tests!(annotations: a_forged_cache_is_not_believed));
    // There is one profile in a cluster.
    all.extend::<Vec<(&'static str, Alone)>>(
        tests!(profile: selects_and_writes_in_order, documented, a_broken_one_is_named_and_the_last_good_one_holds),
    );
    all.extend::<Vec<(&'static str, Alone)>>(
        tests!(selector: policies, ordinary_nodes_come_first, the_highest_priority_acts_alone, a_broken_one_is_named_and_the_last_good_state_holds, upstreams_example),
    );
    all.extend::<Vec<(&'static str, Alone)>>(tests!(matrix: every_annotation_alone_and_in_every_pair));
    all
}

impl Clusters {
    fn run_shared(&self, test: Shared) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let allowed =
                format!("--preloaded-images-verification-allowlist={TEST_REGISTRY}/{}", private_images::ALLOWED);
            let agent_flags = vec!["--registry-stall=5s".to_owned(), allowed];
            let options = Options { kube_proxy: true, agent_flags, ..Options::new('s', 201) };
            let cluster = self.shared.get_or_try_init(|| Cluster::start(options)).await.map_err(failed)?;
            limited(test(cluster)).await.map_err(failed)
        })
    }

    async fn pair(&self) -> Result<&RwLock<Cluster>> {
        let options = Options { nodes: 2, mutual_tls: true, ..Options::new('p', 203) };
        self.pair.get_or_try_init(|| async { Cluster::start(options).await.map(RwLock::new) }).await
    }

    fn run_pair(&self, test: Shared) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let cluster = self.pair().await.map_err(failed)?.read().await;
            limited(test(&cluster)).await.map_err(failed)
        })
    }

    fn run_pair_alone(&self, test: Alone) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let mut cluster = self.pair().await.map_err(failed)?.write().await;
            limited(test(&mut cluster)).await.map_err(failed)
        })
    }

    fn run_alone(&self, test: Alone) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let options = Options { small_disk: Some(512 << 20), ..Options::new('a', 202) };
            let start = async { Cluster::start(options).await.map(Mutex::new) };
            let cluster = self.alone.get_or_try_init(|| start).await.map_err(failed)?;
            let mut cluster = cluster.lock().await;
            limited(test(&mut cluster)).await.map_err(failed)
        })
    }
}

async fn limited(test: BoxFuture<'_, Result<()>>) -> Result<()> {
    tokio::time::timeout(TEST_LIMIT, test)
        .await
        .with_context(|| format!("the test takes longer than {TEST_LIMIT:?}"))?
}

fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

//! The specification of a plain container as a snapshot, and every rule as a table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::oci_spec::image::{Config, ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder};
use rstest::rstest;

use super::*;
use crate::runtime::{ContainerId, PodIdentity, SecuritySpec};
use crate::sandbox::PodNamespaces;

fn image(config: Config) -> Arc<ImageConfiguration> {
    Arc::new(ImageConfigurationBuilder::default().config(config).build().unwrap())
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn container() -> ContainerSpec {
    let config = ConfigBuilder::default()
        .entrypoint(strings(&["/entrypoint.sh"]))
        .cmd(strings(&["nginx", "-g", "daemon off;"]))
        .env(strings(&["PATH=/bin", "NGINX_VERSION=1.14.2"]))
        .build()
        .unwrap();
    ContainerSpec {
        id: ContainerId("c1".into()),
        pod: PodIdentity { uid: "u1".into(), namespace: "default".into(), name: "web".into() },
        name: "nginx".into(),
        attempt: 0,
        image: image(config),
        command: Vec::new(),
        args: Vec::new(),
        env: vec![("A".into(), "1".into())],
        working_dir: None,
        tty: false,
        stdin: false,
        security: SecuritySpec { allow_privilege_escalation: true, ..SecuritySpec::default() },
        resources: ResourceSpec {
            cpu_request_milli: Some(250),
            cpu_limit_milli: Some(500),
            memory_limit_bytes: Some(64 << 20),
            oom_score_adj: 1000,
        },
        mounts: vec![BindMount { source: "/h/hosts".into(), destination: "/etc/hosts".into(), read_only: false }],
        lower_dirs: Vec::new(),
        namespaces: PodNamespaces { network: "/n/net".into(), ipc: "/n/ipc".into(), uts: "/n/uts".into() },
        shm: "/n/shm".into(),
        hostname: "web".into(),
        log_path: "/log/0.log".into(),
    }
}

fn describe_on(spec: &ContainerSpec, cgroups: CgroupFeatures, seccomp: Seccomp) -> Result<Value, SpecError> {
    let available: BTreeSet<String> = capabilities::from_mask(u64::MAX);
    let user = ProcessUser { uid: 0, gid: 0, additional_gids: vec![0] };
    describe(
        spec,
        &Surroundings {
            rootfs: Path::new("/run/c1/rootfs"),
            user: &user,
            cgroups_path: "/larder/podu1/c1",
            cgroups,
            available_capabilities: &available,
            oom_score_floor: 0,
            seccomp,
        },
    )
}

const V1: CgroupFeatures = CgroupFeatures { unified: false, swap: true };
const V2: CgroupFeatures = CgroupFeatures { unified: true, swap: true };

fn described(spec: &ContainerSpec) -> Value {
    describe_on(spec, V1, Seccomp::Unconfined).unwrap()
}

#[test]
fn a_plain_container_on_cgroup_v1() {
    insta::assert_json_snapshot!(describe_on(&container(), V1, Seccomp::Program("AAAA".into())).unwrap());
}

#[test]
fn a_plain_container_on_cgroup_v2_with_a_profile() {
    let spec = describe_on(&container(), V2, Seccomp::Profile(json!({ "defaultAction": "SCMP_ACT_ERRNO" }))).unwrap();
    insta::assert_json_snapshot!(json!({ "linux": spec["linux"], "annotations": spec["annotations"] }));
}

#[rstest]
#[case::the_image_alone(&[], &[], &["/entrypoint.sh", "nginx", "-g", "daemon off;"])]
#[case::args_replace_cmd(&[], &["x"], &["/entrypoint.sh", "x"])]
#[case::command_replaces_both(&["sh"], &[], &["sh"])]
#[case::both(&["sh", "-c"], &["exit"], &["sh", "-c", "exit"])]
fn arguments_are_merged_as_a_kubelet_does(#[case] command: &[&str], #[case] args: &[&str], #[case] expected: &[&str]) {
    let spec = ContainerSpec { command: strings(command), args: strings(args), ..container() };
    assert_eq!(described(&spec)["process"]["args"], json!(expected));
}

#[test]
fn nothing_to_run_is_an_error() {
    let spec = ContainerSpec { image: image(Config::default()), ..container() };
    assert_eq!(describe_on(&spec, V1, Seccomp::Unconfined), Err(SpecError::NoCommand));
}

#[test]
fn the_environment_is_layered_and_keeps_its_order() {
    let mut spec = container();
    spec.env = vec![("NGINX_VERSION".into(), "2".into()), ("B".into(), "x=y".into()), ("B".into(), "last".into())];
    spec.tty = true;
    let expected = ["PATH=/bin", "HOSTNAME=web", "TERM=xterm", "NGINX_VERSION=2", "B=last"];
    assert_eq!(described(&spec)["process"]["env"], json!(expected));
}

#[rstest]
#[case::neither(None, None, Ok("/"))]
#[case::the_image(None, Some("/srv"), Ok("/srv"))]
#[case::the_pod(Some("/w"), Some("/srv"), Ok("/w"))]
#[case::empty(Some(""), Some(""), Ok("/"))]
#[case::relative(Some("w"), None, Err("working directory \"w\" is not an absolute path"))]
fn the_working_directory(
    #[case] pod: Option<&str>,
    #[case] image_dir: Option<&str>,
    #[case] expected: Result<&str, &str>,
) {
    let mut config = Config::default();
    config.set_working_dir(image_dir.map(str::to_owned));
    let spec = ContainerSpec {
        working_dir: pod.map(str::to_owned),
        image: image(config),
        command: strings(&["true"]),
        ..container()
    };
    let found = describe_on(&spec, V1, Seccomp::Unconfined);
    let found = found.map(|spec| spec["process"]["cwd"].as_str().unwrap().to_owned()).map_err(|err| err.to_string());
    assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned));
}

#[rstest]
#[case::nothing(None, None, 2, None)]
#[case::request(Some(250), None, 256, None)]
#[case::limit_stands_for_the_request(None, Some(500), 512, Some(50_000))]
#[case::zero_request(Some(0), Some(500), 2, Some(50_000))]
#[case::tiny_limit(None, Some(1), 2, Some(1_000))]
#[case::huge(Some(u64::MAX), Some(u64::MAX), 262_144, Some(u64::MAX / 1000))]
fn the_processor_is_shared_as_a_kubelet_computes(
    #[case] request: Option<u64>,
    #[case] limit: Option<u64>,
    #[case] shares: u64,
    #[case] quota: Option<u64>,
) {
    let resources = ResourceSpec { cpu_request_milli: request, cpu_limit_milli: limit, ..ResourceSpec::default() };
    let cpu = described(&ContainerSpec { resources, ..container() })["linux"]["resources"]["cpu"].clone();
    assert_eq!(cpu["shares"], json!(shares));
    assert_eq!(cpu.get("quota").and_then(Value::as_u64), quota);
}

#[rstest]
#[case(1000, 1000)]
#[case(-997, 0)]
#[case(2, 2)]
fn the_oom_score_stays_above_what_we_may_set(#[case] wanted: i32, #[case] set: i32) {
    let resources = ResourceSpec { oom_score_adj: wanted, ..ResourceSpec::default() };
    assert_eq!(described(&ContainerSpec { resources, ..container() })["process"]["oomScoreAdj"], json!(set));
}

#[test]
fn the_pods_mounts_replace_defaults_and_come_parents_first() {
    let mount = |destination: &str, read_only| BindMount {
        source: PathBuf::from("/src"),
        destination: destination.into(),
        read_only,
    };
    let mounts = vec![mount("/data/deep/er", false), mount("/dev/shm", false), mount("/data", true)];
    let spec = described(&ContainerSpec { mounts, ..container() });
    let found: Vec<(&str, &str)> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| (mount["destination"].as_str().unwrap(), mount["type"].as_str().unwrap()))
        .collect();
    assert_eq!(found[found.len() - 3..], [("/data", "bind"), ("/dev/shm", "bind"), ("/data/deep/er", "bind")]);
    assert_eq!(found.iter().filter(|(destination, _)| *destination == "/dev/shm").count(), 1);
    assert_eq!(spec["mounts"][found.len() - 3]["options"], json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn a_relative_mount_is_an_error() {
    let mounts = vec![BindMount { source: "/s".into(), destination: "data".into(), read_only: false }];
    let error = describe_on(&ContainerSpec { mounts, ..container() }, V1, Seccomp::Unconfined).unwrap_err();
    assert_eq!(error.to_string(), "mount destination \"data\" is not an absolute path");
}

#[test]
fn security_settings_reach_the_specification() {
    let mut spec = container();
    spec.security =
        SecuritySpec { read_only_root: true, drop_capabilities: strings(&["ALL"]), ..SecuritySpec::default() };
    let restricted = described(&spec);
    assert_eq!(restricted["root"]["readonly"], json!(true));
    assert_eq!(restricted["process"]["noNewPrivileges"], json!(true));
    assert_eq!(restricted["process"]["capabilities"]["bounding"], json!([]));
    spec.security = SecuritySpec { privileged: true, allow_privilege_escalation: true, ..SecuritySpec::default() };
    let privileged = described(&spec);
    assert_eq!(privileged["linux"].get("maskedPaths"), None);
    assert_eq!(privileged["linux"]["resources"]["devices"], json!([{ "allow": true, "access": "rwm" }]));
}

//! Volumes on a real file system. Needs root for mounts and owners.

use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use super::*;
use crate::host::namespace::on_test_host;

struct Bench {
    _folder: tempfile::TempDir,
    folders: PodFolders,
    pod: Pod,
}

impl Bench {
    fn new(security: serde_json::Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let folders = PodFolders { memory: folder.path().join("run"), disk: folder.path().join("disk") };
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "securityContext": security,
                "containers": [{"name": "c", "volumeMounts": [
                    {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "config", "mountPath": "/etc/app"},
                ]}],
                "volumes": [
                    {"name": "scratch", "emptyDir": {}},
                    {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    {"name": "config", "configMap": {"name": "c"}},
                ],
            },
        }))
        .unwrap();
        Self { _folder: folder, folders, pod }
    }

    fn set_up(&self, content: &[(&str, &str)]) -> Result<Volumes, VolumeError> {
        let data = content.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        let objects = PodObjects { config_maps: BTreeMap::from([("c".into(), data)]), ..PodObjects::default() };
        set_up(&self.pod, &objects, &NodeResources::default(), &self.folders)
    }

    fn config(&self, path: &str) -> PathBuf {
        self.folders.memory.join("volumes/config").join(path)
    }
}

#[test]
fn a_second_set_up_switches_content_and_keeps_scratch_files() {
    on_test_host(async || {
        let bench = Bench::new(json!({}));
        let volumes = bench.set_up(&[("a", "1"), ("gone", "x")]).unwrap();
        assert_eq!(fs::read_to_string(bench.config("a")).unwrap(), "1");
        let scratch = bench.folders.disk.join("volumes/scratch/file");
        fs::write(&scratch, "kept").unwrap();
        let before = fs::read_link(bench.config("..data")).unwrap();
        assert_eq!(bench.set_up(&[("a", "1"), ("gone", "x")]).unwrap(), volumes);
        assert_eq!(fs::read_link(bench.config("..data")).unwrap(), before, "the same content is not written again");

        bench.set_up(&[("a", "2"), ("b", "3")]).unwrap();
        assert_eq!(fs::read_to_string(bench.config("a")).unwrap(), "2");
        assert_eq!(fs::read_to_string(bench.config("b")).unwrap(), "3");
        assert!(fs::symlink_metadata(bench.config("gone")).is_err());
        assert!(!bench.config("").join(before).exists());
        assert_eq!(fs::read_to_string(&scratch).unwrap(), "kept");
        tear_down(&bench.folders).unwrap();
    });
}

#[test]
fn mounts_are_those_of_the_container_and_content_is_read_only() {
    on_test_host(async || {
        let bench = Bench::new(json!({}));
        let volumes = bench.set_up(&[("a", "1")]).unwrap();
        assert_eq!(volumes.names().collect::<Vec<_>>(), ["config", "fast", "scratch"]);
        let mut container = bench.pod.spec.clone().unwrap().containers.remove(0);
        let mounts = volumes.mounts_for(&container).unwrap();
        let shown: Vec<_> = mounts.iter().map(|m| (m.destination.to_str().unwrap(), m.read_only)).collect();
        assert_eq!(shown, [("/scratch", false), ("/etc/app", true)]);
        container.volume_mounts.as_mut().unwrap()[0].name = "none".into();
        let message = volumes.mounts_for(&container).unwrap_err().to_string();
        assert_eq!(message, "container \"c\" mounts volume \"none\", which the pod does not have");
        tear_down(&bench.folders).unwrap();
    });
}

#[test]
fn the_pod_s_group_owns_what_it_is_given() {
    on_test_host(async || {
        let bench = Bench::new(json!({"fsGroup": 4321}));
        bench.set_up(&[("a", "1")]).unwrap();
        for folder in ["disk/volumes/scratch", "run/volumes/fast"] {
            let data = fs::metadata(bench.folders.memory.parent().unwrap().join(folder)).unwrap();
            assert_eq!((data.gid(), data.mode() & 0o7777), (4321, 0o2777), "{folder}");
        }
        let file = fs::metadata(bench.config("a")).unwrap();
        assert_eq!((file.gid(), file.mode() & 0o777), (4321, 0o644));
        tear_down(&bench.folders).unwrap();
    });
}

#[test]
fn memory_has_its_limit_and_goes_away_whole() {
    on_test_host(async || {
        let bench = Bench::new(json!({}));
        bench.set_up(&[]).unwrap();
        let file = bench.folders.memory.join("volumes/fast/file");
        let error = fs::write(&file, vec![0; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        tear_down(&bench.folders).unwrap();
        tear_down(&bench.folders).unwrap();
        assert!(!bench.folders.disk.exists() && !bench.folders.memory.join("volumes").exists());
    });
}

#[test]
fn a_missing_object_is_named_as_a_kubelet_names_it() {
    on_test_host(async || {
        let bench = Bench::new(json!({}));
        let error = set_up(&bench.pod, &PodObjects::default(), &NodeResources::default(), &bench.folders).unwrap_err();
        assert_eq!(error.to_string(), "MountVolume.SetUp failed for volume \"config\" : configmap \"c\" not found");
        bench.set_up(&[("a", "1")]).unwrap();
        tear_down(&bench.folders).unwrap();
    });
}

#[test]
fn what_is_on_disk_is_measured_and_what_is_in_memory_is_not() {
    on_test_host(async || {
        let bench = Bench::new(json!({}));
        bench.set_up(&[("a", "1")]).unwrap();
        fs::write(bench.folders.disk.join("volumes/scratch/file"), vec![1; 1 << 20]).unwrap();
        fs::write(bench.folders.memory.join("volumes/fast/file"), vec![1; 1 << 19]).unwrap();
        let used = disk_use(&bench.folders).unwrap();
        assert_eq!(used.keys().collect::<Vec<_>>(), ["scratch"]);
        assert!((1 << 20..2 << 20).contains(&used["scratch"]), "{used:?}");
        tear_down(&bench.folders).unwrap();
        assert!(disk_use(&bench.folders).unwrap().is_empty());
    });
}

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

/// A pod of one plain container, with `patch` laid over its spec.
fn pod(patch: Value) -> Pod {
    let mut spec = json!({"containers": [{"name": "app", "image": "nginx"}]});
    merge(&mut spec, patch);
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(patch)) if into.len() == patch.len() => {
            into.iter_mut().zip(patch).for_each(|(into, patch)| merge(into, patch));
        }
        (into, patch) => *into = patch,
    }
}

fn container(patch: Value) -> Value {
    json!({"containers": [patch]})
}

#[rstest]
#[case(json!({"hostNetwork": true}), "spec.hostNetwork")]
#[case(json!({"hostPID": true}), "spec.hostPID")]
#[case(json!({"hostIPC": true}), "spec.hostIPC")]
#[case(json!({"shareProcessNamespace": true}), "spec.shareProcessNamespace")]
#[case(json!({"hostUsers": false}), "spec.hostUsers")]
#[case(json!({"runtimeClassName": "kata"}), "spec.runtimeClassName")]
#[case(json!({"resources": {"limits": {"cpu": "1"}}}), "spec.resources")]
#[case(json!({"os": {"name": "windows"}}), "spec.os")]
#[case(json!({"ephemeralContainers": [{"name": "debug", "image": "x"}]}), "spec.ephemeralContainers")]
#[case(json!({"containers": []}), "spec.containers")]
#[case(json!({"securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}), "sysctls[0] vm.swappiness")]
#[case(json!({"securityContext": {"supplementalGroupsPolicy": "Loose"}}), "supplementalGroupsPolicy")]
#[case(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "spec.volumes[0].hostPath (volume v)")]
#[case(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}), "persistentVolumeClaim")]
#[case(json!({"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}]}), "emptyDir.medium")]
#[case(json!({"initContainers": [{"name": "i", "image": "x", "restartPolicy": "Always"}]}), "spec.initContainers[0].restartPolicy")]
#[case(json!({"initContainers": [{"name": "app", "image": "x"}]}), "spec.containers[0].name")]
#[case(container(json!({"name": "../etc"})), "spec.containers[0].name")]
#[case(container(json!({"image": ""})), "spec.containers[0].image")]
#[case(container(json!({"livenessProbe": {"exec": {"command": ["true"]}}})), "spec.containers[0].livenessProbe")]
#[case(container(json!({"readinessProbe": {"exec": {"command": ["true"]}}})), "readinessProbe")]
#[case(container(json!({"startupProbe": {"exec": {"command": ["true"]}}})), "startupProbe")]
#[case(container(json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}})), "lifecycle.preStop")]
#[case(container(json!({"lifecycle": {"postStart": {"sleep": {"seconds": 1}}}})), "lifecycle.postStart")]
#[case(container(json!({"ports": [{"containerPort": 80, "hostPort": 80}]})), "ports[0].hostPort")]
#[case(container(json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "b"}]})), "volumeMounts[0].subPath")]
#[case(container(json!({"volumeMounts": [{"name": "v", "mountPath": "/a/../b"}]})), "volumeMounts[0].mountPath")]
#[case(container(json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"}]})), "mountPropagation")]
#[case(container(json!({"securityContext": {"privileged": true}})), "securityContext.privileged")]
#[case(container(json!({"securityContext": {"procMount": "Unmasked"}})), "procMount")]
#[case(container(json!({"resources": {"limits": {"nvidia.com/gpu": "1"}}})), "resources.limits nvidia.com/gpu")]
fn what_is_not_offered_is_named(#[case] patch: Value, #[case] field: &str) {
    let refusal = check(&pod(patch.clone()), Policy::default()).unwrap_err();
    assert_eq!(refusal.0.len(), 1, "{patch}: {refusal}");
    assert!(refusal.0[0].field.contains(field), "{patch}: {refusal}");
    assert!(!refusal.0[0].remedy.is_empty());
}

#[test]
fn what_the_api_server_fills_in_is_taken() {
    let pod = pod(json!({
        "containers": [{
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}},
            "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [
                {"name": "t", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}
            ],
            "securityContext": {"privileged": false, "seccompProfile": {"type": "RuntimeDefault"}},
        }],
        "volumes": [{"name": "t", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}],
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "securityContext": {"supplementalGroupsPolicy": "Strict", "sysctls": [{"name": "net.core.somaxconn", "value": "1024"}]},
        "schedulerName": "default-scheduler",
        "enableServiceLinks": true,
        "terminationGracePeriodSeconds": 30,
        "tolerations": [{"key": "k", "operator": "Exists"}],
    }));
    assert_eq!(check(&pod, Policy::default()), Ok(()));
}

#[test]
fn privileged_is_the_operators_to_allow() {
    let pod = pod(container(json!({"securityContext": {"privileged": true}})));
    assert_eq!(check(&pod, Policy { allow_privileged: true }), Ok(()));
}

#[test]
fn all_faults_are_told_at_once() {
    let refusal = check(&pod(json!({"hostNetwork": true, "hostPID": true})), Policy::default()).unwrap_err();
    assert_eq!(refusal.0.len(), 2);
    assert!(
        refusal.to_string().contains("spec.hostPID: is not supported by this node; pods of this node share nothing")
    );
}

#[test]
fn a_pod_on_record_is_renewed_though_somebody_debugged_it() {
    let debugged = pod(json!({"ephemeralContainers": [{"name": "debug", "image": "x"}]}));
    assert_eq!(check_known(&debugged, Policy::default()), Ok(()));
    assert!(check(&debugged, Policy::default()).unwrap_err().to_string().contains("runs no ephemeral containers"));
    let other = pod(json!({"hostNetwork": true}));
    assert_eq!(check_known(&other, Policy::default()), check(&other, Policy::default()));
    assert!(check_known(&other, Policy::default()).is_err());
}

/// Things that are not offered, in fields that do not touch each other.
fn faults() -> Vec<Value> {
    vec![
        json!({"hostNetwork": true}),
        json!({"hostPID": true}),
        json!({"hostUsers": false}),
        json!({"runtimeClassName": "kata"}),
        json!({"os": {"name": "windows"}}),
        json!({"ephemeralContainers": [{"name": "debug", "image": "x"}]}),
        json!({"initContainers": [{"name": "i", "image": "x", "restartPolicy": "Always"}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
        json!({"securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}),
        json!({"securityContext": {"supplementalGroupsPolicy": "Loose"}}),
        container(json!({"name": "../etc"})),
        container(json!({"image": ""})),
        container(json!({"livenessProbe": {}})),
        container(json!({"lifecycle": {"preStop": {}}})),
        container(json!({"ports": [{"containerPort": 80, "hostPort": 80}]})),
        container(json!({"volumeMounts": [{"name": "v", "mountPath": "/a/../b", "subPath": "b"}]})),
        container(json!({"securityContext": {"privileged": true}})),
        container(json!({"securityContext": {"procMount": "Unmasked"}})),
        container(json!({"resources": {"limits": {"nvidia.com/gpu": "1"}}})),
    ]
}

fn pod_with(faults: &[Value]) -> Pod {
    let mut spec = json!({});
    for fault in faults {
        // Lists in one field lie over each other, as the one container does.
        merge(&mut spec, fault.clone());
    }
    pod(spec)
}

fn findings(pod: &Pod, policy: Policy) -> Vec<Unsupported> {
    check(pod, policy).err().map(|refusal| refusal.0).unwrap_or_default()
}

proptest! {
    #[test]
    fn one_more_fault_never_hides_another(
        some in proptest::sample::subsequence(faults(), 0..=8),
        more in proptest::sample::select(faults()),
        allow_privileged: bool,
    ) {
        let policy = Policy { allow_privileged };
        let before = findings(&pod_with(&some), policy);
        let mut all = some;
        all.push(more);
        let after = findings(&pod_with(&all), policy);
        for finding in &before {
            prop_assert!(after.contains(finding), "{} is no longer told among {:?}", finding, after);
        }
        // An operator who allows less never lets more in.
        let strict = findings(&pod_with(&all), Policy { allow_privileged: false });
        prop_assert!(after.iter().all(|finding| strict.contains(finding)));
        // What is passed over in a pod on record is ephemeral containers, and nothing else.
        let known = check_known(&pod_with(&all), policy).err().map(|refusal| refusal.0).unwrap_or_default();
        let rest: Vec<_> = after.into_iter().filter(|finding| finding.field != "spec.ephemeralContainers").collect();
        prop_assert_eq!(known, rest);
    }
}

//! What pods are given: ConfigMaps, Secrets, themselves, and a token.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::LogParams;
use larder_e2e::cluster::Cluster;
use larder_e2e::scene::{Scene, at, sh};
use serde_json::json;

pub(crate) async fn objects_reach_files_and_variables(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "objects", &[]).await?;
    let _: ConfigMap = scene.create(json!({"metadata": {"name": "conf"}, "data": {"colour": "blue"}})).await?;
    let _: Secret = scene.create(json!({"metadata": {"name": "key"}, "stringData": {"pin": "1234"}})).await?;
    let mut container = sh("cat /conf/colour /key/pin /me/labels; echo; echo $PIN $IP $NAME $(stat -L -c %a /key/pin)");
    container["env"] = json!([
        {"name": "PIN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "pin"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]);
    container["volumeMounts"] = json!([
        {"name": "conf", "mountPath": "/conf"}, {"name": "key", "mountPath": "/key"}, {"name": "me", "mountPath": "/me"},
    ]);
    let spec = json!({
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "key", "secret": {"secretName": "key", "defaultMode": 256}},
            {"name": "me", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ],
    });
    scene.pod("reader", spec).await?;
    let pod = scene.wait_phase("reader", "Succeeded").await?;
    let ip = larder_e2e::scene::pod_ip(&pod)?;
    let log = scene.logs("reader", &LogParams::default()).await?;
    ensure!(log == format!("blue1234objects\n1234 {ip} reader 400\n"), "{log:?}");
    scene.wait_event("reader", "SuccessfulMountVolume", "\"conf\"").await?;
    Ok(())
}

/// A pod waits for what it needs, says for what, and goes on when it comes.
pub(crate) async fn missing_objects_are_named_and_awaited(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "missing", &[]).await?;
    let mut container = sh("cat /conf/colour");
    container["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}]);
    let volumes = json!([{"name": "conf", "configMap": {"name": "late"}}]);
    scene.pod("mounts", json!({"restartPolicy": "Never", "containers": [container], "volumes": volumes})).await?;
    let mut container = sh("echo $COLOUR");
    container["env"] = json!([{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "colour"}}}]);
    scene.pod("reads", json!({"restartPolicy": "Never", "containers": [container]})).await?;
    scene.wait_event("mounts", "FailedMount", "configmap \"late\" not found").await?;
    let waiting =
        |pod: &Pod| at(pod, "/status/containerStatuses/0/state/waiting/reason") == "CreateContainerConfigError";
    let pod = scene.wait_pod("reads", "waiting", waiting).await?;
    let message = at(&pod, "/status/containerStatuses/0/state/waiting/message");
    ensure!(message == "configmap \"late\" not found", "{message}");
    let _: ConfigMap = scene.create(json!({"metadata": {"name": "late"}, "data": {"colour": "red"}})).await?;
    for pod in ["mounts", "reads"] {
        scene.wait_phase(pod, "Succeeded").await?;
        let log = scene.logs(pod, &LogParams::default()).await?;
        ensure!(log.trim_end() == "red", "{pod}: {log:?}");
    }
    Ok(())
}

/// The token that every pod gets by default is bound, fresh, and good for the API server.
pub(crate) async fn tokens_reach_the_api_server(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "tokens", &[]).await?;
    let spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": true,
        "containers": [sh("cd /var/run/secrets/kubernetes.io/serviceaccount && cat token && test -s ca.crt && test $(cat namespace) = tokens")],
    });
    scene.pod("holder", spec).await?;
    scene.wait_phase("holder", "Succeeded").await?;
    let token = scene.logs("holder", &LogParams::default()).await?;
    let review = k8s_openapi::api::authentication::v1::TokenReview {
        spec: k8s_openapi::api::authentication::v1::TokenReviewSpec { token, audiences: None },
        ..Default::default()
    };
    let reviews = kube::Api::all(cluster.client.clone());
    let answer: k8s_openapi::api::authentication::v1::TokenReview =
        reviews.create(&Default::default(), &review).await?;
    let user = answer.status.and_then(|status| status.user).and_then(|user| user.username);
    ensure!(user.as_deref() == Some("system:serviceaccount:tokens:default"), "{user:?}");
    Ok(())
}

//! Pods, Services and names.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use larder_e2e::cluster::{Cluster, NGINX};
use larder_e2e::scene::{Scene, pod_ip};
use serde_json::json;

/// nginx answers on its own address and on its Service's, which kube-proxy leads there.
pub(crate) async fn pods_reach_pods_and_services(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "network", &[]).await?;
    let object = json!({
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "nodeSelector": {"type": "virtual-kubelet"},
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "nginx", "image": NGINX, "ports": [{"containerPort": 80}]}],
        },
    });
    let _: Pod = scene.create(object).await?;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080, "targetPort": 80}]}});
    let service: Service = scene.create(service).await?;
    let cluster_ip = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
    let address = pod_ip(&scene.wait_ready("web").await?)?;
    let page = scene.run("by-pod-ip", &format!("wget -q -O - http://{address}/")).await?;
    ensure!(page.contains("nginx"), "{page:?}");
    // The Service's rules follow its endpoints after a moment, so the client asks until it is answered.
    let ask = format!("until timeout 2 wget -q -O - http://{cluster_ip}:8080/; do sleep 0.2; done");
    let page = scene.run("by-cluster-ip", &ask).await?;
    ensure!(page.contains("nginx"), "{page:?}");
    let from_host = tokio::net::TcpStream::connect((address.as_str(), 80)).await;
    ensure!(from_host.is_ok(), "{from_host:?}");
    Ok(())
}

pub(crate) async fn names_and_resolver(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "names", &[]).await?;
    let spec = json!({
        "restartPolicy": "Never",
        "hostname": "db", "subdomain": "all",
        "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["alias.example"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.96.0.10"], "searches": ["x.example"], "options": [{"name": "ndots", "value": "2"}]},
        "containers": [larder_e2e::scene::sh("hostname; cat /etc/resolv.conf; grep -c -e db.all.names.svc.cluster.local -e alias.example /etc/hosts")],
    });
    scene.pod("named", spec).await?;
    scene.wait_phase("named", "Succeeded").await?;
    let log = scene.logs("named", &Default::default()).await?;
    ensure!(log == "db\nsearch x.example\nnameserver 10.96.0.10\noptions ndots:2\n2\n", "{log:?}");
    Ok(())
}

//! Two virtual nodes, their agents behind mutual TLS.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use larder_e2e::cluster::{Cluster, NGINX};
use larder_e2e::scene::{Scene, pod_ip, sh};
use larder_proto::v1::{GetNodeRequest, node_service_client::NodeServiceClient};
use serde_json::json;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// A pod of one node reaches a pod of the other, which sees the caller's own address and not that of its host.
pub(crate) async fn pods_keep_their_addresses(cluster: &Cluster) -> Result<()> {
    let scene = Scene::new(cluster, "two-nodes", &[]).await?;
    let on = |index: usize| json!({"type": "virtual-kubelet", "kubernetes.io/hostname": cluster.node(index)});
    let server = json!({"nodeSelector": on(0), "containers": [{"name": "nginx", "image": NGINX}]});
    scene.pod("server", server).await?;
    let address = pod_ip(&scene.wait_ready("server").await?)?;
    let ask = sh(&format!("until wget -q -O - http://{address}/from-afar; do sleep 0.2; done"));
    let ask = json!({"nodeSelector": on(1), "restartPolicy": "Never", "containers": [ask]});
    scene.pod("client", ask).await?;
    let client = pod_ip(&scene.wait_pod("client", "given an address", |pod| pod_ip(pod).is_ok()).await?)?;
    ensure!(client.starts_with("10.203.1."), "{client} is not of the second node");
    let seen = scene.wait_log("server", &format!("{client} ")).await?;
    ensure!(seen.contains("/from-afar"), "{seen:?}");
    Ok(())
}

/// Without a certificate of their authority agents answer nothing.
pub(crate) async fn agents_ask_for_a_certificate(cluster: &Cluster) -> Result<()> {
    let (pair, authority) = cluster.agent_tls().context("this cluster has no mutual TLS")?;
    let anonymous = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(authority)?));
    let identity = Identity::from_pem(fs::read(&pair.certificate)?, fs::read(&pair.key)?);
    let endpoint = Endpoint::from_shared(cluster.agents[0].endpoint())?;
    let known = endpoint.clone().tls_config(anonymous.clone().identity(identity))?.connect().await?;
    NodeServiceClient::new(known).get_node(GetNodeRequest {}).await?;
    // TLS 1.3 lets the client believe that it is connected until it reads.
    if let Ok(unknown) = endpoint.tls_config(anonymous)?.connect().await {
        let refused = NodeServiceClient::new(unknown).get_node(GetNodeRequest {}).await;
        ensure!(refused.is_err(), "answered without a certificate: {refused:?}");
    }
    Ok(())
}

//! The variables by which containers find Services (`FOO_SERVICE_HOST` ...), as the kubelet makes them.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};

/// The Services of the cluster itself, which every pod is told of.
const MASTER_NAMESPACE: &str = "default";
const MASTER_NAMES: [&str; 1] = ["kubernetes"];

/// The variables for a pod, in the order in which they are set: by the Service's name, then its ports as written.
pub(super) fn service_env(pod: &Pod, services: &[Service]) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut visible: Vec<&Service> = services.iter().filter(|service| is_visible(service, namespace, links)).collect();
    // A Service of the pod's own namespace hides the master Service of the same name.
    visible.sort_by_key(|service| (name(service), service.metadata.namespace.as_deref() != Some(namespace)));
    visible.dedup_by_key(|service| name(service));
    visible.into_iter().flat_map(variables).collect()
}

fn name(service: &Service) -> &str {
    service.metadata.name.as_deref().unwrap_or_default()
}

fn is_visible(service: &Service, namespace: &str, links: bool) -> bool {
    if cluster_ip(service).is_none() {
        return false;
    }
    let home = service.metadata.namespace.as_deref().unwrap_or_default();
    (home == MASTER_NAMESPACE && MASTER_NAMES.contains(&name(service))) || (links && home == namespace)
}

fn cluster_ip(service: &Service) -> Option<&str> {
    let address = service.spec.as_ref()?.cluster_ip.as_deref()?;
    (!address.is_empty() && address != "None").then_some(address)
}

fn variables(service: &Service) -> Vec<(String, String)> {
    let (Some(address), Some(spec)) = (cluster_ip(service), &service.spec) else { return vec![] };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let prefix = upper(name(service));
    let mut out = vec![(format!("{prefix}_SERVICE_HOST"), address.to_owned())];
    if let Some(first) = ports.first() {
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    }
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            out.push((format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        out.extend(link(&prefix, address, port, index == 0));
    }
    out
}

/// What Docker's links looked like.
fn link(prefix: &str, address: &str, port: &ServicePort, first: bool) -> Vec<(String, String)> {
    let protocol = port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP");
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
    let stem = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
    let mut out = vec![];
    if first {
        out.push((format!("{prefix}_PORT"), url.clone()));
    }
    out.push((stem.clone(), url));
    out.push((format!("{stem}_PROTO"), protocol.to_lowercase()));
    out.push((format!("{stem}_PORT"), port.port.to_string()));
    out.push((format!("{stem}_ADDR"), address.to_owned()));
    out
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": ip, "ports": [{"name": "p-1", "port": 80}, {"port": 53, "protocol": "UDP"}]}
        }))
        .unwrap()
    }

    fn pod(links: Option<bool>) -> Pod {
        let spec = json!({"containers": [], "enableServiceLinks": links});
        serde_json::from_value(json!({"metadata": {"namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn variables_are_the_kubelets() {
        let env = service_env(&pod(None), &[service("ns", "my-web", "10.96.0.7")]);
        let text: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            text,
            [
                "MY_WEB_SERVICE_HOST=10.96.0.7",
                "MY_WEB_SERVICE_PORT=80",
                "MY_WEB_SERVICE_PORT_P_1=80",
                "MY_WEB_PORT=tcp://10.96.0.7:80",
                "MY_WEB_PORT_80_TCP=tcp://10.96.0.7:80",
                "MY_WEB_PORT_80_TCP_PROTO=tcp",
                "MY_WEB_PORT_80_TCP_PORT=80",
                "MY_WEB_PORT_80_TCP_ADDR=10.96.0.7",
                "MY_WEB_PORT_53_UDP=udp://10.96.0.7:53",
                "MY_WEB_PORT_53_UDP_PROTO=udp",
                "MY_WEB_PORT_53_UDP_PORT=53",
                "MY_WEB_PORT_53_UDP_ADDR=10.96.0.7",
            ]
        );
    }

    #[test]
    fn only_the_own_namespace_and_the_master_are_seen() {
        let all = [
            service("ns", "web", "10.96.0.7"),
            service("other", "far", "10.96.0.8"),
            service("ns", "headless", "None"),
            service("default", "kubernetes", "10.96.0.1"),
        ];
        let hosts = |links| {
            let env = service_env(&pod(links), &all);
            env.into_iter().map(|(key, _)| key).filter(|key| key.ends_with("_HOST")).collect::<Vec<_>>()
        };
        assert_eq!(hosts(None), ["KUBERNETES_SERVICE_HOST", "WEB_SERVICE_HOST"]);
        assert_eq!(hosts(Some(false)), ["KUBERNETES_SERVICE_HOST"]);
    }

    #[test]
    fn ipv6_stands_in_brackets_in_urls_only() {
        let env = service_env(&pod(None), &[service("ns", "web", "fd00::7")]);
        assert!(env.contains(&("WEB_SERVICE_HOST".into(), "fd00::7".into())));
        assert!(env.contains(&("WEB_PORT".into(), "tcp://[fd00::7]:80".into())));
    }
}

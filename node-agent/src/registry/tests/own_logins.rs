//! The node's own logins beside the pods'.

use super::*;

struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn auth_file(&self, text: &str) {
        std::fs::write(self.folder.path().join("config.json"), text).unwrap();
    }

    /// A provider for this registry that is a shell with this script.
    fn provider(&self, registry: &TestRegistry, script: &str) -> CredentialProviders {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": "give", "matchImages": [registry.host()], "defaultCacheDuration": "0s",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": ["-c", script],
            }],
        });
        std::fs::write(self.folder.path().join("providers"), config.to_string()).unwrap();
        std::os::unix::fs::symlink("/bin/sh", self.folder.path().join("give")).unwrap();
        CredentialProviders::load(&self.folder.path().join("providers"), self.folder.path()).unwrap()
    }

    fn client(&self, credential_providers: CredentialProviders) -> RegistryClient {
        RegistryClient::new(RegistryConfig {
            auth_file: Some(self.folder.path().join("config.json")),
            credential_providers,
            stall: Duration::from_millis(400),
            ..RegistryConfig::default()
        })
    }
}

fn auths(host: &str, user: &str) -> String {
    json!({"auths": {host: {"username": user, "password": "secret"}}}).to_string()
}

/// The users of the logins that a registry has seen, in order.
fn users(registry: &TestRegistry) -> Vec<String> {
    use base64::Engine as _;

    let decode = |header: String| {
        let text = base64::engine::general_purpose::STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
        Some(String::from_utf8(text).ok()?.split_once(':')?.0.to_owned())
    };
    registry.seen().into_iter().filter_map(|seen| decode(seen.authorization?)).collect()
}

#[tokio::test]
async fn the_pods_logins_come_first_then_the_file_then_the_programs() {
    let (registry, node) = (TestRegistry::start().await, Node::new());
    registry.put_manifest("a", "v1", &manifest());
    registry.set_door(Door::Basic("program:secret".into()));
    node.auth_file(&auths(&registry.host(), "file"));
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry", "auth": {registry.host(): {"username": "program", "password": "secret"}},
    });
    let client = node.client(node.provider(&registry, &format!("echo '{answer}'")));
    let secret = access(vec![login(&registry.host(), "pod")]);
    let found = resolve(&client, &format!("{}/a:v1", registry.host()), &secret).await.unwrap();
    // What the node has lets any pod in.
    assert_eq!(found.entry, Entry::Anybody);
    assert_eq!(users(&registry), ["pod", "file", "program"]);
}

#[tokio::test]
async fn a_program_that_fails_is_named_where_a_login_is_missed() {
    let (registry, node) = (TestRegistry::start().await, Node::new());
    registry.put_manifest("a", "v1", &manifest());
    registry.set_door(Door::Basic("program:secret".into()));
    let client = node.client(node.provider(&registry, "echo 'no such role' >&2; exit 4"));
    let text = resolve(&client, &format!("{}/a:v1", registry.host()), &access(vec![])).await.unwrap_err().to_string();
    assert!(text.ends_with("; credential provider give failed with exit status: 4: no such role"), "{text}");
}

#[tokio::test]
async fn the_file_is_read_at_each_use_and_may_be_missing() {
    let (registry, node) = (TestRegistry::start().await, Node::new());
    registry.put_manifest("a", "v1", &manifest());
    registry.set_door(Door::Basic("node:secret".into()));
    let (client, image) = (node.client(CredentialProviders::default()), format!("{}/a:v1", registry.host()));
    assert!(resolve(&client, &image, &access(vec![])).await.is_err());
    node.auth_file(&auths(&registry.host(), "node"));
    resolve(&client, &image, &access(vec![])).await.unwrap();
    // One that cannot be read stops no public image, and is named where a login is missed.
    node.auth_file("{");
    let text = resolve(&client, &image, &access(vec![])).await.unwrap_err().to_string();
    assert!(
        text.contains("check imagePullSecrets; registry logins /") && text.contains("config.json: line 1"),
        "{text}"
    );
    registry.set_door(Door::Open);
    resolve(&client, &image, &access(vec![])).await.unwrap();
}

//! Providers that are shell scripts, which note each time that they are run.

use serde_json::json;

use super::*;
use crate::registry::Login;

struct Bench {
    folder: tempfile::TempDir,
    providers: CredentialProviders,
}

/// A provider that is a shell with this script. The program itself is not written by us: one that has just been written
/// may be busy.
fn bench(script: &str) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let script = format!("read question\necho \"$1 $question\" >> {}\n{script}\n", log.display());
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "give",
            "matchImages": ["*.example.com", "reg.example.com:5000/team"],
            "defaultCacheDuration": "10m",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "args": ["-c", script, "give", "one"],
            "env": [{"name": "SECRET", "value": "s3"}],
        }],
    });
    std::fs::write(folder.path().join("config"), config.to_string()).unwrap();
    std::os::unix::fs::symlink("/bin/sh", folder.path().join("give")).unwrap();
    let providers = CredentialProviders::load(&folder.path().join("config"), folder.path()).unwrap();
    Bench { folder, providers }
}

/// A script's last line: an answer with these fields.
fn answering(fields: &str) -> String {
    format!(
        r#"echo '{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse",'"{}"'}}'"#,
        fields.replace('"', "\\\"")
    )
}

impl Bench {
    fn runs(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    async fn ask(&self, host: &str, repository: &str) -> Result<Vec<Credential>, ProviderError> {
        self.providers.ask(host, repository).await.remove(0)
    }
}

const AUTH: &str = r#""auth":{"*.example.com":{"username":"me","password":"$SECRET"}}"#;

#[tokio::test]
async fn asks_the_program_and_takes_its_logins() {
    let bench = bench(&answering(&format!(r#""cacheKeyType":"Image",{AUTH}"#)));
    let found = bench.ask("reg.example.com", "team/app").await.unwrap();
    assert_eq!(found[0].registry, "*.example.com");
    assert!(found[0].login == Login::Basic { username: "me".to_owned(), password: "s3".to_owned() });
    let asked = r#"one {"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"reg.example.com/team/app"}"#;
    assert_eq!(bench.runs(), [asked]);
    for (host, repository) in [("example.com", "a"), ("other.org", "a"), ("reg.example.com:5000", "other")] {
        assert!(bench.providers.ask(host, repository).await.is_empty(), "{host}/{repository}");
    }
    assert_eq!(bench.providers.ask("reg.example.com:5000", "team/x").await.len(), 1);
}

#[tokio::test]
async fn keeps_an_answer_for_what_it_is_for_and_as_long_as_it_holds() {
    // Each is asked for: the same image, another of the registry, another registry.
    for (fields, expected) in [
        (r#""cacheKeyType":"Image""#, [1, 2, 3]),
        (r#""cacheKeyType":"Registry""#, [1, 1, 2]),
        (r#""cacheKeyType":"Global""#, [1, 1, 1]),
        (r#""cacheKeyType":"Global","cacheDuration":"0s""#, [2, 3, 4]),
    ] {
        let bench = bench(&answering(fields));
        bench.ask("a.example.com", "x").await.unwrap();
        let mut runs = Vec::new();
        for (host, repository) in [("a.example.com", "x"), ("a.example.com", "y"), ("b.example.com", "x")] {
            bench.ask(host, repository).await.unwrap();
            runs.push(bench.runs().len());
        }
        assert_eq!(runs, expected, "{fields}");
    }
}

#[tokio::test]
async fn an_answer_ends() {
    let bench = bench(&answering(r#""cacheKeyType":"Global","cacheDuration":"1h""#));
    bench.ask("a.example.com", "x").await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3599)).await;
    assert!(bench.providers.all[0].known("a.example.com/x", "a.example.com").is_some());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(bench.providers.all[0].known("a.example.com/x", "a.example.com").is_none());
}

#[tokio::test]
async fn runs_once_for_all_who_ask_at_once() {
    let bench = bench(&answering(r#""cacheKeyType":"Image","cacheDuration":"0s""#));
    let all = futures::future::join_all((0..20).map(|_| bench.ask("a.example.com", "x"))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(bench.runs().len(), 1);
}

#[tokio::test]
async fn says_what_went_wrong_and_nothing_secret() {
    for (script, words) in [
        ("echo 'no metadata service' >&2; exit 3", "failed with exit status: 3: no metadata service"),
        ("echo '{\"password\": \"hunter2\"}'", "its answer is not a CredentialProviderResponse"),
        ("head -c 3000000 /dev/zero", "its answer is not a CredentialProviderResponse"),
        ("kill -9 $$", "failed with signal: 9"),
    ] {
        let text = bench(script).ask("a.example.com", "x").await.unwrap_err().to_string();
        assert!(text.starts_with("credential provider give") && text.contains(words), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_program_that_is_not_there_is_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c");
    let load = |text: &str| {
        std::fs::write(&config, text).unwrap();
        CredentialProviders::load(&config, folder.path()).unwrap_err().to_string()
    };
    let missing = "{apiVersion: kubelet.config.k8s.io/v1, kind: CredentialProviderConfig, providers: [{name: none, \
                   matchImages: [a], defaultCacheDuration: 0s, apiVersion: credentialprovider.kubelet.k8s.io/v1}]}";
    assert!(load(missing).ends_with("/none"));
    assert!(load("{").starts_with("credential provider configuration /"));
}

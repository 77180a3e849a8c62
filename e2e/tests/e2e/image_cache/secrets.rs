//! Private images: whose Secrets a cache is built with, and who may name them.

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use larder_e2e::cluster::{Cluster, TEST_REGISTRY};
use larder_e2e::registry_proxy::{Fault, Rule};
use larder_e2e::scene::{Scene, image_caches, wait_cache};
use serde_json::json;

use super::{merge_kind, wait_cache_gone};

/// A Secret with the login that the repository asks for.
async fn login(scene: &Scene<'_>, repository: &str) -> Result<()> {
    let cluster = scene.cluster;
    let needs = Fault::Credentials { username: "user".into(), password: "secret".into() };
    cluster.registry.add(repository, Rule { kind: None, reference: None, fault: needs, times: None });
    let login = json!({"username": "user", "password": "secret"});
    let config = json!({"auths": {TEST_REGISTRY: login, cluster.registry.address().to_string(): login}});
    let mut secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "login"}, "type": "kubernetes.io/dockerconfigjson"}))?;
    secret.data = Some([(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))].into());
    scene.api::<Secret>().create(&Default::default(), &secret).await?;
    Ok(())
}

/// A cache of a private image is built with the Secret of any namespace; one that is missing is named where it fails.
pub(crate) async fn of_another_namespace(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("imc-private").await?;
    let scene = Scene::new(cluster, "imc-private", &[]).await?;
    login(&scene, "imc-private").await?;
    let cache = |name: &str, secret: &str| {
        let spec = json!({"images": [image], "imagePullSecrets": [format!("imc-private:{secret}")]});
        serde_json::from_value(merge_kind(json!({"metadata": {"name": name}, "spec": spec})))
    };
    let caches = image_caches(&cluster.client);
    caches.create(&Default::default(), &cache("private-missing", "nothing")?).await?;
    let failed = wait_cache(cluster, "private-missing", "Failed", |it| it.data["status"]["phase"] == "Failed").await?;
    let reason = failed.data["status"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("pull secret imc-private:nothing cannot be used: it does not exist"), "{reason}");
    let described = cluster.kubectl(&["describe", "imagecache", "private-missing"]).await?;
    ensure!(described.contains("PullSecretUnusable"), "{described}");
    caches.create(&Default::default(), &cache("private", "login")?).await?;
    wait_cache(cluster, "private", "Ready", |it| it.data["status"]["phase"] == "Ready").await?;
    for name in ["private", "private-missing"] {
        caches.delete(name, &Default::default()).await?;
        wait_cache_gone(cluster, name).await?;
    }
    cluster.registry.heal("imc-private");
    Ok(())
}

/// Whoever may make an ImageCache does not thereby get the use of every Secret: each entry needs the right to read it.
pub(crate) async fn only_for_who_may_read_them(cluster: &Cluster) -> Result<()> {
    let image = cluster.own_image("imc-author").await?;
    let scene = Scene::new(cluster, "imc-author", &[]).await?;
    login(&scene, "imc-author").await?;
    cluster
        .kubectl(&[
            "create",
            "clusterrole",
            "imc-author",
            "--verb=create,update,patch,get,delete",
            "--resource=imagecaches.eci.alibabacloud.com",
        ])
        .await?;
    cluster.kubectl(&["create", "clusterrolebinding", "imc-author", "--clusterrole=imc-author", "--user=jane"]).await?;
    let cache = |images: serde_json::Value, secrets: serde_json::Value| -> Result<tempfile::NamedTempFile> {
        let spec = json!({"images": images, "imagePullSecrets": secrets});
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(merge_kind(json!({"metadata": {"name": "janes"}, "spec": spec})).to_string().as_bytes())?;
        Ok(file)
    };
    let as_jane = async |verb: &str, file: &tempfile::NamedTempFile| {
        let path = file.path().to_str().context("the path is not text")?;
        cluster.kubectl(&["--as=jane", verb, "-f", path]).await
    };
    let (with, without) = (cache(json!([image]), json!(["imc-author:login"]))?, cache(json!([image]), json!([]))?);
    let refused = as_jane("create", &with).await.expect_err("nobody has granted it");
    for part in ["\"jane\"", "imc-author:login", "grant"] {
        ensure!(refused.to_string().contains(part), "{refused:#}");
    }
    // Without Secrets nobody is asked; and what is new in an object is asked for as in a new one.
    as_jane("create", &without).await?;
    ensure!(as_jane("replace", &with).await.is_err(), "an update brought the Secret in");
    cluster
        .kubectl(&[
            "create",
            "role",
            "imc-author",
            "-n",
            "imc-author",
            "--verb=get",
            "--resource=secrets",
            "--resource-name=login",
        ])
        .await?;
    cluster
        .kubectl(&["create", "rolebinding", "imc-author", "-n", "imc-author", "--role=imc-author", "--user=jane"])
        .await?;
    as_jane("replace", &with).await?;
    wait_cache(cluster, "janes", "Ready", |it| it.data["status"]["phase"] == "Ready").await?;
    // Once she may no longer read it, she may leave the entry as it is, and not use it for other images.
    cluster.kubectl(&["delete", "rolebinding", "imc-author", "-n", "imc-author"]).await?;
    cluster.kubectl(&["--as=jane", "label", "imagecache", "janes", "team=x"]).await?;
    let other = cache(json!([image, "registry.larder.test/other:1"]), json!(["imc-author:login"]))?;
    ensure!(as_jane("replace", &other).await.is_err(), "the Secret can be used for other images");
    image_caches(&cluster.client).delete("janes", &Default::default()).await?;
    wait_cache_gone(cluster, "janes").await?;
    cluster.registry.heal("imc-author");
    Ok(())
}

//! `larderctl pull`.

use std::io;

use larder_proto::v1;
use larder_proto::v1::pull_image_response::Item;
use serde::Serialize;

use crate::agent::{Agent, CtlError, refused};
use crate::cli::Pull;
use crate::figures;
use crate::output::Output;
use crate::progress;

const DOING: &str = "pull";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    reference: String,
    image_id: String,
    manifest: String,
    size_bytes: u64,
    transferred_bytes: u64,
}

pub(crate) async fn pull(agent: &Agent, output: Output, wish: Pull) -> Result<(), CtlError> {
    let mut store = agent.store();
    let answer = store.pull_image(request(wish)?).await.map_err(refused(DOING))?;
    let mut steps = answer.into_inner();
    let bar = progress::bar();
    let mut transferred_bytes = 0;
    while let Some(step) = steps.message().await.map_err(refused(DOING))? {
        match step.item {
            Some(Item::Progress(progress)) => {
                transferred_bytes = progress.total_bytes;
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
            Some(Item::Done(image)) => {
                bar.finish_and_clear();
                return output.one(&done(image, transferred_bytes), words);
            }
            // A newer agent tells more than we know.
            None => {}
        }
    }
    Err(CtlError::CutShort(DOING))
}

fn done(image: v1::PulledImage, transferred_bytes: u64) -> Image {
    Image {
        reference: image.reference,
        image_id: image.image_id,
        manifest: image.manifest_digest,
        size_bytes: image.size_bytes,
        transferred_bytes,
    }
}

fn words(image: &Image) -> String {
    let (size, transferred) = (figures::bytes(image.size_bytes), figures::bytes(image.transferred_bytes));
    format!("{}\n{size}, {transferred} of it transferred", image.image_id)
}

fn request(wish: Pull) -> Result<v1::PullImageRequest, CtlError> {
    let mut credentials = Vec::new();
    if let Some(username) = wish.username {
        let mut password = String::new();
        io::stdin().read_line(&mut password).map_err(CtlError::Password)?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        let registry = registry(&wish.reference).to_owned();
        credentials.push(v1::RegistryCredential { registry, username, password, ..Default::default() });
    }
    Ok(v1::PullImageRequest {
        reference: wish.reference,
        credentials,
        plain_http_registries: wish.plain_http,
        insecure_registries: wish.insecure,
    })
}

/// Whose login it is, as an imagePullSecret names it.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => "https://index.docker.io/v1/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_for_the_images_registry() {
        for (reference, expected) in [
            ("nginx", "https://index.docker.io/v1/"),
            ("team/nginx:1", "https://index.docker.io/v1/"),
            ("localhost/nginx", "localhost"),
            ("r.example/team/nginx@sha256:00", "r.example"),
            ("host:5000/nginx", "host:5000"),
        ] {
            assert_eq!(registry(reference), expected, "{reference}");
        }
    }
}

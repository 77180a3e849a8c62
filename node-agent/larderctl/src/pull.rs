//! `larderctl pull`.

use std::io;

use indicatif::ProgressBar;
use jiff::Timestamp;
use larder_proto::v1;
use larder_proto::v1::pull_image_response::Item;
use serde::Serialize;

use crate::agent::{Agent, CtlError, refused};
use crate::cli::Pull;
use crate::figures;
use crate::output::{self, Output};
use crate::progress;
use crate::transfer::{Milestones, Rate, Transfer};

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
    let mut seen =
        Seen { bar: progress::bar(), rate: Rate::since(Timestamp::now()), milestones: Milestones::default() };
    let mut transferred_bytes = 0;
    while let Some(step) = steps.message().await.map_err(refused(DOING))? {
        match step.item {
            Some(Item::Progress(progress)) => {
                transferred_bytes = progress.total_bytes;
                seen.show(transfer(progress), Timestamp::now());
            }
            Some(Item::Done(image)) => {
                seen.bar.finish_and_clear();
                return output.one(&done(image, transferred_bytes), words);
            }
            // A newer agent tells more than we know.
            None => {}
        }
    }
    Err(CtlError::CutShort(DOING))
}

/// What whoever started the pull sees of it: a bar on a terminal, else lines.
struct Seen {
    bar: ProgressBar,
    rate: Rate,
    milestones: Milestones,
}

impl Seen {
    fn show(&mut self, transfer: Transfer, now: Timestamp) {
        let bytes_per_second = self.rate.take(transfer.done_bytes, now);
        if !self.bar.is_hidden() {
            self.bar.set_length(transfer.total_bytes);
            self.bar.set_position(transfer.done_bytes);
            if transfer.total_layers > 0 {
                self.bar.set_message(format!("{} layers", transfer.layers()));
            }
        } else if self.milestones.reached(transfer) {
            output::note(&transfer.words(bytes_per_second));
        }
    }
}

fn transfer(progress: v1::PullProgress) -> Transfer {
    Transfer {
        done_layers: progress.done_layers,
        total_layers: progress.total_layers,
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
    }
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

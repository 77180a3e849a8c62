//! `larderctl images`.

use jiff::Timestamp;
use larder_proto::v1;
use serde::Serialize;

use crate::agent::{Agent, CtlError, refused};
use crate::figures;
use crate::output::{Output, Row};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    references: Vec<String>,
    manifest: String,
    layers: Vec<String>,
    size_bytes: u64,
    caches: Vec<String>,
    in_use: bool,
    last_use: Option<Timestamp>,
}

impl Row for Image {
    const COLUMNS: &'static [&'static str] = &["IMAGE", "MANIFEST", "LAYERS", "SIZE", "CACHES", "IN USE", "LAST USE"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.references.first().cloned().unwrap_or_else(|| "-".to_owned()),
            figures::short(&self.manifest),
            self.layers.len().to_string(),
            figures::bytes(self.size_bytes),
            figures::all(&self.caches),
            figures::yes(self.in_use),
            figures::age(self.last_use, now),
        ]
    }
}

pub(crate) async fn list(agent: &Agent, output: Output) -> Result<(), CtlError> {
    let answer = agent.store().list_images(v1::ListImagesRequest {}).await.map_err(refused("list images"))?;
    let image = |image: v1::StoredImage| Image {
        references: image.references,
        manifest: image.manifest_digest,
        layers: image.layers,
        size_bytes: image.size_bytes,
        caches: image.caches,
        in_use: image.in_use,
        last_use: figures::time(image.last_use),
    };
    let images: Vec<Image> = answer.into_inner().images.into_iter().map(image).collect();
    output.list(&images, "No images.")
}

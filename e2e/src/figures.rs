//! What our own programs count and time: read as a monitoring system would.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Where a program of ours serves its figures.
const FLAG: &str = "--metrics-listen";

/// How many [`flags`] there are.
pub(crate) const FLAGS: usize = 2;

/// The flags of a program that is to serve them.
pub(crate) fn flags(port: u16) -> Vec<String> {
    vec![FLAG.to_owned(), format!("127.0.0.1:{port}")]
}

/// A figure of the program that was started with these flags; 0 where it has none of that name.
pub(crate) async fn read(flags: &[String], name: &str) -> Result<f64> {
    let address = flags.windows(2).find(|pair| pair[0] == FLAG).context("it serves no figures")?[1].as_str();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.get(format!("http://{address}/metrics").parse()?).await.context("ask for figures")?;
    let text = String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(Ok(0.0), |value| value.trim().parse().with_context(|| format!("{name} is {value:?}")))
}

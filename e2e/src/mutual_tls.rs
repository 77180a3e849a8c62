//! Certificates for provider and agents that speak over TCP, as they do between hosts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use larder_dev::larder::{Agent, Listen};
use larder_dev::pki::{Authority, Leaf, PairFiles};
use larder_dev::ports;

/// Has each agent listen on a TCP port with a certificate of its own, and gives what the provider needs to reach them: its
/// certificate, and the authority that signed all of them.
///
/// # Errors
/// When a file cannot be written or no port is free.
pub(crate) fn between(pki: &Path, agents: &mut [Agent]) -> Result<(PairFiles, PathBuf)> {
    let authority = Authority::open(pki, "agents-ca")?;
    let client_authority = authority.files().certificate.clone();
    for agent in agents {
        let [port] = ports::free()?;
        let leaf = Leaf::server("larder-node-agent", &[Ipv4Addr::LOCALHOST.to_string()]);
        agent.listen = Listen::MutualTls {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            serving: authority.sign_once(pki, &agent.node, &leaf)?,
            client_authority: client_authority.clone(),
        };
    }
    Ok((authority.sign_once(pki, "agents-client", &Leaf::client("larder-provider", None))?, client_authority))
}

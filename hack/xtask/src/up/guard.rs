//! Keeps other machines away from what listens for pods: the API server, the kubelet API and the webhook must be reached
//! from bridges, so they listen on every address, and this table drops what comes from elsewhere.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

const TABLE: &str = "larder-guard";

/// Writes the table; doing so again changes nothing.
pub(super) fn raise(ports: &[u16]) -> anyhow::Result<()> {
    let rules = rules(ports);
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("run nft")?;
    let mut stdin = nft.stdin.take().context("nft has no input")?;
    stdin.write_all(rules.as_bytes()).context("give nft its rules")?;
    drop(stdin);
    let status = nft.wait().context("wait for nft")?;
    ensure!(status.success(), "nft refused:\n{rules}");
    Ok(())
}

/// Removes the table, if it is there.
pub(crate) fn lower() {
    // Fails when the table is not there, which is what we want.
    drop(Command::new("nft").args(["delete", "table", "inet", TABLE]).output());
}

fn rules(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(
        "add table inet {TABLE}\n\
         flush table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy accept;\n\
         \t\tiifname {{ \"lo\", \"larder*\" }} accept\n\
         \t\ttcp dport {{ {} }} drop\n\
         \t}}\n\
         }}\n",
        ports.join(", ")
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_are_listed() {
        assert!(super::rules(&[6443, 10250]).contains("tcp dport { 6443, 10250 } drop"));
    }
}

//! What a pod refers to and the agent cannot look up for itself: it comes with the pod and is replaced as a whole when it
//! changes. Secret content never reaches a log: `Debug` prints names only.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeMap, fmt};

/// Content of a ConfigMap or Secret: key -> bytes.
pub type ObjectData = BTreeMap<String, Vec<u8>>;

/// The objects that a pod's volumes and environment name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PodObjects {
    /// ConfigMaps by name. A name that is missing does not exist.
    pub config_maps: BTreeMap<String, ObjectData>,
    /// Secrets by name. A name that is missing does not exist.
    pub secrets: BTreeMap<String, ObjectData>,
    /// Tokens of the pod's service account.
    pub tokens: Vec<ServiceAccountToken>,
    /// Service variables (`FOO_SERVICE_HOST` ...), in order.
    pub service_env: Vec<(String, String)>,
}

/// A bound token of the pod's service account.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceAccountToken {
    /// The audience that the volume asked for; empty for the API server's default.
    pub audience: String,
    /// The lifetime that the volume asked for, in seconds.
    pub expiration_seconds: i64,
    /// The token itself.
    pub token: String,
}

impl fmt::Debug for PodObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodObjects")
            .field("config_maps", &self.config_maps.keys())
            .field("secrets", &self.secrets.keys())
            .field("tokens", &self.tokens)
            .field("service_env", &self.service_env.len())
            .finish()
    }
}

impl fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountToken")
            .field("audience", &self.audience)
            .field("expiration_seconds", &self.expiration_seconds)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_content() {
        let mut objects = PodObjects::default();
        objects.secrets.insert("db".into(), BTreeMap::from([("password".into(), b"hunter2".to_vec())]));
        objects.tokens.push(ServiceAccountToken {
            audience: "vault".into(),
            expiration_seconds: 3600,
            token: "ey.secret".into(),
        });
        let shown = format!("{objects:?}");
        assert!(shown.contains("db") && shown.contains("vault"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("ey.secret"), "{shown}");
    }
}

//! The webhook's certificates: an authority of our own, and the server's certificate under it. Both are made at each start
//! and kept in memory only, so no Secret holds a key; the API server trusts the authority because we write it into the
//! webhook's entry.
//!
//! A renewal makes a new authority. For one more period the entry names the old one too, so that a review on its way is
//! still answered.

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// How long a certificate lives.
const LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);
/// When it is renewed.
const RENEWED_AFTER: SignedDuration = SignedDuration::from_hours(24 * 243);
/// How far clocks may differ.
const SKEW: SignedDuration = SignedDuration::from_hours(24);

/// Why no certificate can be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The name does not fit into a certificate, or the key cannot be made.
    #[error("make a certificate for {name}")]
    Make {
        /// The name that it was to bear.
        name: String,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// The key cannot be used.
    #[error("use the key of the certificate for {name}")]
    Use {
        /// The name that it bears.
        name: String,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// The certificates in use.
#[derive(Debug, Clone)]
pub struct Certificates {
    name: String,
    authority: String,
    earlier_authority: Option<String>,
    key: Arc<CertifiedKey>,
    renewal: Timestamp,
}

impl Certificates {
    /// Makes them for a server that is called by `name`.
    ///
    /// # Errors
    /// When `name` is neither an address nor a host name.
    pub fn make(name: &str, now: Timestamp) -> Result<Self, CertificateError> {
        let failed = |source| CertificateError::Make { name: name.to_owned(), source };
        let (authority, server, key) = issue(name, now).map_err(failed)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::ring::sign::any_supported_type(&der)
            .map_err(|source| CertificateError::Use { name: name.to_owned(), source })?;
        Ok(Self {
            name: name.to_owned(),
            authority,
            earlier_authority: None,
            key: Arc::new(CertifiedKey::new(vec![server], signing)),
            renewal: now + RENEWED_AFTER,
        })
    }

    /// Makes new ones. The authority of these stays trusted.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn renewed(&self, now: Timestamp) -> Result<Self, CertificateError> {
        Ok(Self { earlier_authority: Some(self.authority.clone()), ..Self::make(&self.name, now)? })
    }

    /// What the API server is to trust, in PEM.
    pub fn bundle(&self) -> String {
        format!("{}{}", self.authority, self.earlier_authority.as_deref().unwrap_or_default())
    }

    /// What the server shows.
    pub fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// When new ones are due.
    pub fn renewal(&self) -> Timestamp {
        self.renewal
    }
}

/// The authority in PEM, the server's certificate, and its key.
fn issue(
    name: &str,
    now: Timestamp,
) -> Result<(String, rustls::pki_types::CertificateDer<'static>, KeyPair), rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    lifetime(&mut params, now);
    params.distinguished_name.push(DnType::CommonName, "larder webhook authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    lifetime(&mut params, now);
    params.distinguished_name.push(DnType::CommonName, "larder webhook");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let server = params.signed_by(&key, &authority)?;
    Ok((authority.pem(), server.der().clone(), key))
}

fn lifetime(params: &mut CertificateParams, now: Timestamp) {
    let day = |time: Timestamp| {
        let date = time.to_zoned(TimeZone::UTC).date();
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(now - SKEW);
    params.not_after = day(now + LIFE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn the_server_bears_its_name_under_the_authority() {
        for name in ["10.0.0.1", "::1", "provider.larder-system.svc"] {
            let made = Certificates::make(name, now()).unwrap();
            let (_, pem) = parse_x509_pem(made.bundle().as_bytes()).unwrap();
            let authority = pem.parse_x509().unwrap();
            let key = made.key();
            let (_, server) = X509Certificate::from_der(&key.cert[0]).unwrap();
            server.verify_signature(Some(authority.public_key())).unwrap();
            assert!(authority.is_ca() && !server.is_ca());
            assert_eq!(server.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
            let at = |time: Timestamp| ASN1Time::from_timestamp(time.as_second()).unwrap();
            assert!(server.validity().is_valid_at(at(now() - SignedDuration::from_hours(12))));
            assert!(server.validity().is_valid_at(at(made.renewal() + SignedDuration::from_hours(24 * 90))));
        }
    }

    #[test]
    fn a_renewal_keeps_the_earlier_authority_for_one_period() {
        let first = Certificates::make("10.0.0.1", now()).unwrap();
        let second = first.renewed(first.renewal()).unwrap();
        let third = second.renewed(second.renewal()).unwrap();
        assert!(second.bundle().contains(&first.bundle()));
        assert!(!third.bundle().contains(&first.bundle()));
        assert!(second.renewal() > first.renewal());
    }

    #[test]
    fn an_impossible_name_is_an_error() {
        assert!(Certificates::make("not a name \u{e9}", now()).is_err());
    }
}

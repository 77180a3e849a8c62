//! Who a client certificate names: the common name is the user, the organisations are the groups, as everywhere in
//! Kubernetes.
//!
//! Pure: no I/O, no clock, no randomness.

use k8s_openapi::api::authentication::v1::UserInfo;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The group of everybody who is somebody.
pub(super) const AUTHENTICATED: &str = "system:authenticated";

/// The user that a verified certificate names; `None` when it names none.
pub(super) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    if name.is_empty() {
        return None;
    }
    let organisations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    let groups = organisations.map(str::to_owned).chain([AUTHENTICATED.to_owned()]).collect();
    Some(UserInfo { username: Some(name.to_owned()), groups: Some(groups), ..UserInfo::default() })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn name_and_organisations_become_user_and_groups() {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let user = from_certificate(certificate.der()).unwrap();
        assert_eq!(user.username.as_deref(), Some("kube-apiserver"));
        assert_eq!(user.groups.unwrap(), ["system:masters", AUTHENTICATED]);
        assert_eq!(from_certificate(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}

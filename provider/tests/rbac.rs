//! The rights of the provider, as the manifests grant them.

#[cfg(test)]
mod rbac {
    mod rights;
}

//! Pure: no I/O, no clock, no randomness.
//!
//! Whether somebody may name the Secrets that an ImageCache names. The provider reads Secrets with a right of its own, and
//! what a cache was built with serves every pod; without this, whoever may make an ImageCache could use every login of the
//! cluster. So each entry is for those who may read the Secret themselves.
//!
//! An entry that was there before is not asked for again, unless the object now asks for other images, or speaks to other
//! registries, with it.

use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::ResourceExt as _;

use crate::custom_resource::{INSECURE_ANNOTATION, ImageCache, PLAIN_HTTP_ANNOTATION};

/// A Secret that an object names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The entries whose Secrets the user must have the right to read, each once. `before` is what the object was.
pub fn entries(cache: &ImageCache, before: Option<&ImageCache>) -> Vec<Entry> {
    let kept = before.filter(|before| uses(before) == uses(cache)).map(|before| &before.spec.image_pull_secrets);
    let mut found: Vec<Entry> = Vec::new();
    for text in &cache.spec.image_pull_secrets {
        // What is no entry names no Secret; the schema refuses it.
        let Some((namespace, name)) = text.split_once(':') else { continue };
        let entry = Entry { namespace: namespace.to_owned(), name: name.to_owned() };
        if !kept.is_some_and(|kept| kept.contains(text)) && !found.contains(&entry) {
            found.push(entry);
        }
    }
    found
}

/// What the logins are used for.
fn uses(cache: &ImageCache) -> (&[String], Option<&String>, Option<&String>) {
    let value = |key: &str| cache.annotations().get(key);
    (&cache.spec.images, value(PLAIN_HTTP_ANNOTATION), value(INSECURE_ANNOTATION))
}

impl Entry {
    /// The right that the user must have.
    pub fn right(&self) -> ResourceAttributes {
        ResourceAttributes {
            verb: Some("get".to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("secrets".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            ..ResourceAttributes::default()
        }
    }

    /// What somebody is told who has not.
    pub fn refusal(&self, user: &str) -> String {
        let Self { namespace, name } = self;
        format!(
            "spec.imagePullSecrets: user {user:?} may not name {namespace}:{name}, because an image cache can be built \
             only with Secrets that its author may read: have someone grant you \"get\" on secret {name} in namespace \
             {namespace}, or leave the entry out"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom_resource::ImageCacheSpec;

    fn cache(images: &[&str], secrets: &[&str]) -> ImageCache {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let spec =
            ImageCacheSpec { images: texts(images), image_pull_secrets: texts(secrets), ..ImageCacheSpec::default() };
        ImageCache::new("c", spec)
    }

    fn asked(cache: &ImageCache, before: Option<&ImageCache>) -> Vec<String> {
        entries(cache, before).into_iter().map(|entry| format!("{}:{}", entry.namespace, entry.name)).collect()
    }

    #[test]
    fn a_new_object_is_asked_for_each_entry_once() {
        assert_eq!(asked(&cache(&["a"], &["x:s", "y:t", "x:s"]), None), ["x:s", "y:t"]);
        assert_eq!(asked(&cache(&["a"], &[]), None), Vec::<String>::new());
    }

    #[test]
    fn a_change_is_asked_for_what_is_new_and_for_all_when_it_is_used_otherwise() {
        let before = cache(&["a"], &["x:s"]);
        assert_eq!(asked(&before, Some(&before)), Vec::<String>::new());
        assert_eq!(asked(&cache(&["a"], &["y:t", "x:s"]), Some(&before)), ["y:t"]);
        assert_eq!(asked(&cache(&["b"], &["x:s"]), Some(&before)), ["x:s"]);
        let mut labelled = before.clone();
        labelled.metadata.labels = Some([("team".to_owned(), "x".to_owned())].into());
        labelled.spec.retention_days = Some(3);
        assert_eq!(asked(&labelled, Some(&before)), Vec::<String>::new());
        for key in [PLAIN_HTTP_ANNOTATION, INSECURE_ANNOTATION] {
            let elsewhere = before.clone().annotated(&[(key, "r")]);
            assert_eq!(asked(&elsewhere, Some(&before)), ["x:s"], "{key}");
        }
    }

    #[test]
    fn a_refusal_names_entry_user_and_remedy() {
        let entry = Entry { namespace: "x".to_owned(), name: "s".to_owned() };
        let text = entry.refusal("jane");
        for part in ["\"jane\"", "x:s", "\"get\" on secret s in namespace x", "leave the entry out"] {
            assert!(text.contains(part), "{text}");
        }
        let right = entry.right();
        assert_eq!((right.verb.as_deref(), right.resource.as_deref()), (Some("get"), Some("secrets")));
        assert_eq!((right.namespace.as_deref(), right.name.as_deref()), (Some("x"), Some("s")));
    }
}

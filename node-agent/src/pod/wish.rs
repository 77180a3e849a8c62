//! What the provider asks for: a pod, and what the agent cannot look up for itself.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{
    lifecycle::{ContainerKind, ContainerPlan, Plan},
    objects::PodObjects,
    restart::{self, RestartPolicy},
};
use crate::{
    image::{ChosenCache, PullPolicy, RegistryAccess},
    runtime::PodIdentity,
};

/// `terminationGracePeriodSeconds` where the pod has none, which the API server does not let happen.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// A pod to run.
#[derive(Debug, Clone, PartialEq)]
pub struct PodWish {
    /// The pod as the API server has it.
    pub pod: Pod,
    /// What it refers to.
    pub objects: PodObjects,
    /// How registries are spoken to for it.
    pub access: RegistryAccess,
    /// The image cache that was chosen for it.
    pub cache: Option<ChosenCache>,
}

/// An image that containers of the pod run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageWish {
    /// The reference as the pod has it.
    pub reference: String,
    /// When the registry is asked.
    pub policy: PullPolicy,
}

impl PodWish {
    /// Whose wish it is.
    pub fn identity(&self) -> PodIdentity {
        let metadata = &self.pod.metadata;
        PodIdentity {
            uid: metadata.uid.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// A newer wish for the same pod, as far as it counts: annotations act when a pod is created and not later.
    pub fn renewed(&self, newer: Self) -> Self {
        let RegistryAccess { plain_http, insecure, credentials: _ } = self.access.clone();
        let access = RegistryAccess { credentials: newer.access.credentials, plain_http, insecure };
        Self { pod: newer.pod, objects: newer.objects, access, cache: self.cache.clone() }
    }

    /// Init containers, then app containers, in the pod's order: the order of [`Plan::containers`].
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        let spec = self.pod.spec.as_ref();
        let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        init.chain(spec.into_iter().flat_map(|spec| &spec.containers))
    }

    /// The container at a place in the plan.
    pub fn container(&self, index: usize) -> Option<&Container> {
        self.containers().nth(index)
    }

    /// The distinct images of the pod: the order of the plan's images.
    pub fn images(&self) -> Vec<ImageWish> {
        let mut images = Vec::new();
        for container in self.containers() {
            let image = image_of(container);
            if !images.contains(&image) {
                images.push(image);
            }
        }
        images
    }

    /// What the pod is to become; `started_at` is when the agent took it on.
    pub fn plan(&self, started_at: Timestamp) -> Plan {
        let images = self.images();
        let init_count = self.pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).map_or(0, Vec::len);
        let containers = self.containers().enumerate().map(|(index, container)| {
            let image = image_of(container);
            ContainerPlan {
                kind: if index < init_count { ContainerKind::Init } else { ContainerKind::App },
                image: images.iter().position(|other| *other == image).unwrap_or_default(),
                pull_again: image.policy == PullPolicy::Always,
            }
        });
        let default = PodSpec::default();
        let spec = self.pod.spec.as_ref().unwrap_or(&default);
        let started_at =
            self.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(started_at, |time| time.0);
        Plan {
            containers: containers.collect(),
            images: images.len(),
            restart_policy: RestartPolicy::of(spec.restart_policy.as_deref()),
            grace: spec.termination_grace_period_seconds.and_then(positive_seconds).unwrap_or(DEFAULT_GRACE),
            deadline: spec
                .active_deadline_seconds
                .and_then(positive_seconds)
                .map(|deadline| restart::later(started_at, deadline)),
        }
    }
}

fn positive_seconds(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// The image that a container runs on.
pub fn image_of(container: &Container) -> ImageWish {
    let reference = container.image.clone().unwrap_or_default();
    let policy = match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ if has_moving_tag(&reference) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    };
    ImageWish { reference, policy }
}

/// The API's default policy depends on whether the tag is `latest` or missing.
fn has_moving_tag(reference: &str) -> bool {
    if reference.contains('@') {
        return false;
    }
    let last = reference.rsplit('/').next().unwrap_or(reference);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_policy_follows_the_tag() {
        for (reference, policy) in [
            ("nginx", PullPolicy::Always),
            ("nginx:latest", PullPolicy::Always),
            ("registry:5000/nginx", PullPolicy::Always),
            ("nginx:1.14.2", PullPolicy::IfNotPresent),
            ("nginx@sha256:00", PullPolicy::IfNotPresent),
        ] {
            let container = Container { image: Some(reference.into()), ..Container::default() };
            assert_eq!(image_of(&container).policy, policy, "{reference}");
        }
    }

    #[test]
    fn containers_that_share_an_image_share_its_place() {
        let pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [{"name": "i", "image": "a:1"}],
            "containers": [{"name": "x", "image": "b:1"}, {"name": "y", "image": "a:1"}],
            "terminationGracePeriodSeconds": 5,
            "restartPolicy": "OnFailure",
            "activeDeadlineSeconds": 60,
        }}))
        .unwrap();
        let wish = PodWish { pod, objects: PodObjects::default(), access: RegistryAccess::default(), cache: None };
        let plan = wish.plan(Timestamp::UNIX_EPOCH);
        assert_eq!(plan.images, 2);
        assert_eq!(plan.containers.iter().map(|c| c.image).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(plan.containers[0].kind, ContainerKind::Init);
        assert_eq!(plan.grace, Duration::from_secs(5));
        assert_eq!(plan.deadline, Some(Timestamp::from_second(60).unwrap()));
    }
    fn containers(names: &'static str) -> impl Strategy<Value = Vec<Container>> {
        let image = proptest::option::of(proptest::sample::select(vec!["", "a", "a:1", "b:latest", "c@sha256:00"]));
        let policy = proptest::option::of(proptest::sample::select(vec!["Always", "IfNotPresent", "Never", "Odd"]));
        let one = (image, policy).prop_map(move |(image, policy)| Container {
            name: names.to_owned(),
            image: image.map(str::to_owned),
            image_pull_policy: policy.map(str::to_owned),
            ..Container::default()
        });
        proptest::collection::vec(one, 0..5)
    }

    proptest! {
        #[test]
        fn a_plan_has_a_place_for_each_container_and_each_image(
            init in containers("i"),
            app in containers("a"),
            grace: Option<i64>,
            deadline: Option<i64>,
        ) {
            let kinds = [vec![ContainerKind::Init; init.len()], vec![ContainerKind::App; app.len()]].concat();
            let spec = PodSpec {
                init_containers: Some(init),
                containers: app,
                termination_grace_period_seconds: grace,
                active_deadline_seconds: deadline,
                ..PodSpec::default()
            };
            let pod = Pod { spec: Some(spec), ..Pod::default() };
            let wish = PodWish { pod, objects: PodObjects::default(), access: RegistryAccess::default(), cache: None };
            let (plan, images) = (wish.plan(Timestamp::UNIX_EPOCH), wish.images());
            prop_assert_eq!(plan.containers.iter().map(|container| container.kind).collect::<Vec<_>>(), kinds);
            prop_assert_eq!(plan.images, images.len());
            for (index, planned) in plan.containers.iter().enumerate() {
                prop_assert_eq!(&images[planned.image], &image_of(wish.container(index).unwrap()));
                prop_assert_eq!(planned.pull_again, images[planned.image].policy == PullPolicy::Always);
            }
            prop_assert!((0..images.len()).all(|place| plan.containers.iter().any(|planned| planned.image == place)));
            // Times that are none count as not given; none is so long that it overflows.
            let given = |seconds: Option<i64>| seconds.filter(|seconds| *seconds >= 0).map(i64::unsigned_abs);
            prop_assert_eq!(plan.grace, given(grace).map_or(DEFAULT_GRACE, Duration::from_secs));
            prop_assert_eq!(plan.deadline.is_some(), given(deadline).is_some());
            prop_assert!(plan.deadline.is_none_or(|deadline| deadline >= Timestamp::UNIX_EPOCH));
        }
    }
}

//! The Kubernetes events of a pod, in the kubelet's words.
//!
//! Pure: no I/O, no clock, no randomness.

use std::time::Duration;

use jiff::Timestamp;

use crate::image::Moved;

/// Something to be recorded as a Kubernetes event on a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The part of the pod that it is about, `spec.containers{nginx}`; empty for the pod as a whole.
    pub field_path: String,
    /// What is said.
    pub notice: Notice,
    /// When.
    pub time: Timestamp,
}

/// Type, reason and message of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `Normal` or `Warning`.
    pub severity: Severity,
    /// `Pulling`, `Created` ...
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The two types of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Not as it should be.
    Warning,
}

impl Severity {
    /// As the API has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

fn normal(reason: &'static str, message: String) -> Notice {
    Notice { severity: Severity::Normal, reason, message }
}

fn warning(reason: &'static str, message: String) -> Notice {
    Notice { severity: Severity::Warning, reason, message }
}

/// The registry is being asked.
pub fn pulling(image: &str) -> Notice {
    normal("Pulling", format!("Pulling image \"{image}\""))
}

/// How far a pull that takes long has come: what is done, and of how much.
pub fn pull_progress(image: &str, moved: Moved) -> Notice {
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    let (done, total) = (mebibytes(moved.done_bytes), mebibytes(moved.total_bytes));
    let (whole, all) = (moved.done_layers, moved.total_layers);
    normal("Pulling", format!("Pulling image \"{image}\": {done} of {total} MiB, {whole} of {all} layers"))
}

/// The image came from the registry.
pub fn pulled(image: &str, took: Duration, with_waiting: Duration, size_bytes: u64) -> Notice {
    let (took, with_waiting) = (go_duration(took), go_duration(with_waiting));
    normal(
        "Pulled",
        format!(
            "Successfully pulled image \"{image}\" in {took} ({with_waiting} including waiting). Image size: {size_bytes} bytes."
        ),
    )
}

/// No registry had to be asked.
pub fn already_present(image: &str) -> Notice {
    normal("Pulled", format!("Container image \"{image}\" already present on machine"))
}

/// The image is not to be had.
pub fn image_failed(image: &str, reason: &str, message: &str) -> Notice {
    match reason {
        // The kubelet's words, and what more there is to say.
        "ErrImageNeverPull" => warning("ErrImageNeverPull", message.to_owned()),
        "InvalidImageName" => {
            warning("InspectFailed", format!("Failed to apply default image tag \"{image}\": {message}"))
        }
        _ => warning("Failed", format!("Failed to pull image \"{image}\": {message}")),
    }
}

/// The image is not asked for before the back-off ends.
pub fn pull_back_off(image: &str) -> Notice {
    normal("BackOff", format!("Back-off pulling image \"{image}\""))
}

/// A container does not start; `what` is a reason (`ErrImagePull`) or a message.
pub fn failed(what: &str) -> Notice {
    warning("Failed", format!("Error: {what}"))
}

/// The container exists.
pub fn created(container: &str) -> Notice {
    normal("Created", format!("Created container: {container}"))
}

/// Its process runs.
pub fn started(container: &str) -> Notice {
    normal("Started", format!("Started container {container}"))
}

/// It is asked to end.
pub fn killing(container: &str) -> Notice {
    normal("Killing", format!("Stopping container {container}"))
}

/// It is asked to end because its image has changed.
pub fn replacing(container: &str) -> Notice {
    normal("Killing", format!("Container {container} definition changed, will be restarted"))
}

/// It is not started again before the back-off ends; `pod` is `name_namespace(uid)`.
pub fn crash_loop(container: &str, pod: &str) -> Notice {
    warning("BackOff", format!("Back-off restarting failed container {container} in pod {pod}"))
}

/// A volume is there.
pub fn mounted(volume: &str) -> Notice {
    normal("SuccessfulMountVolume", format!("MountVolume.SetUp succeeded for volume \"{volume}\""))
}

/// A volume is not there; the cause says which and why.
pub fn mount_failed(cause: &str) -> Notice {
    let told = cause.starts_with("MountVolume");
    warning("FailedMount", if told { cause.to_owned() } else { format!("Unable to attach or mount volumes: {cause}") })
}

/// The pod asked for the cluster's DNS, and this node knows none; `pod` is `name_namespace(uid)`.
pub fn missing_cluster_dns(pod: &str) -> Notice {
    warning(
        "MissingClusterDNS",
        format!(
            "pod: \"{pod}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" \
             policy. Falling back to \"Default\" policy."
        ),
    )
}

/// There is no sandbox.
pub fn sandbox_failed(cause: &str) -> Notice {
    warning("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {cause}"))
}

/// Keys of an `envFrom` source that are no names for variables.
pub fn skipped_keys(source: &str, keys: &[String]) -> Notice {
    let keys = keys.join(", ");
    warning(
        "InvalidEnvironmentVariableNames",
        format!(
            "Keys [{keys}] from the EnvFrom {source} were skipped since they are considered invalid environment variable names."
        ),
    )
}

/// The pod has had its time.
pub fn deadline_exceeded() -> Notice {
    normal("DeadlineExceeded", "Pod was active on the node longer than the specified deadline".to_owned())
}

/// The pod takes more of the disk than it may; the message says of which limit.
pub fn evicted(message: String) -> Notice {
    warning("Evicted", message)
}

/// A time as Go prints it after truncation to milliseconds: `0s`, `12ms`, `1.2s`, `1m3.004s`.
fn go_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{dot}{fraction}s", rest / 1000);
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_go_prints_them() {
        for (milliseconds, text) in [
            (0, "0s"),
            (12, "12ms"),
            (1000, "1s"),
            (1200, "1.2s"),
            (12_951, "12.951s"),
            (63_004, "1m3.004s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn a_pull_is_told_with_its_figures() {
        let notice = pulled("nginx", Duration::from_millis(1200), Duration::from_millis(1300), 42);
        let message = "Successfully pulled image \"nginx\" in 1.2s (1.3s including waiting). Image size: 42 bytes.";
        assert_eq!(notice, Notice { severity: Severity::Normal, reason: "Pulled", message: message.to_owned() });
    }
}

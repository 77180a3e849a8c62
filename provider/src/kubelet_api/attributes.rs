//! What a request amounts to in terms of rights: a verb on a subresource of the node, as the kubelet has it.
//!
//! Pure: no I/O, no clock, no randomness.

/// What somebody must be allowed to do; any one of the subresources will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) verb: &'static str,
    pub(super) subresources: &'static [&'static str],
}

pub(super) fn needed(method: &str, path: &str) -> Needed {
    let verb = match method {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    };
    Needed { verb, subresources }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("GET", "/containerLogs/ns/p/c", "get", &["proxy"])]
    #[case("GET", "/stats/summary", "get", &["stats"])]
    #[case("GET", "/metrics/resource", "get", &["metrics"])]
    #[case("GET", "/pods", "get", &["pods", "proxy"])]
    #[case("GET", "/pods/", "get", &["pods", "proxy"])]
    #[case("GET", "/healthz", "get", &["healthz", "proxy"])]
    #[case("GET", "/logs/syslog", "get", &["log"])]
    #[case("POST", "/exec/ns/p/c", "create", &["proxy"])]
    #[case("GET", "/metricsx", "get", &["proxy"])]
    #[case("GET", "//stats/../exec", "get", &["stats"])]
    fn rights(#[case] method: &str, #[case] path: &str, #[case] verb: &str, #[case] subresources: &[&str]) {
        let needed = needed(method, path);
        assert_eq!((needed.verb, needed.subresources), (verb, subresources));
    }
}

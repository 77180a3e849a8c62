//! What a container's cgroups hold: limits, in the files of either version.
//!
//! Pure: no I/O, no clock, no randomness.

/// The period of the processor's bandwidth control in microseconds.
pub const CPU_PERIOD: u64 = 100_000;
/// The range of `cpu.shares` (version 1).
pub const CPU_SHARES: (u64, u64) = (2, 262_144);

/// The limits of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// The processor's weight, on the scale of version 1.
    pub cpu_shares: u64,
    /// Microseconds of processor time in each [`CPU_PERIOD`].
    pub cpu_quota: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Swap counts, and none may be used: only with a limit of memory, and where the host accounts for swap.
    pub no_swap: bool,
    /// All devices of the host may be used, not only those of `/dev` in a container.
    pub all_devices: bool,
}

/// A value for a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The controller that has the file.
    pub controller: &'static str,
    /// The file.
    pub file: &'static str,
    /// What is written into it.
    pub value: String,
}

impl Setting {
    /// Whether it only says who comes first: not worth to fail for where a host cannot do it.
    pub fn is_weight(&self) -> bool {
        matches!(self.file, "cpu.shares" | "cpu.weight")
    }
}

fn setting(controller: &'static str, file: &'static str, value: impl ToString) -> Setting {
    Setting { controller, file, value: value.to_string() }
}

impl CgroupLimits {
    /// For hierarchies of version 1, in the order in which they have to be written.
    pub fn per_controller(&self) -> Vec<Setting> {
        let mut settings = vec![setting("cpu", "cpu.shares", self.cpu_shares)];
        if let Some(quota) = self.cpu_quota {
            settings.push(setting("cpu", "cpu.cfs_period_us", CPU_PERIOD));
            settings.push(setting("cpu", "cpu.cfs_quota_us", quota));
        }
        if let Some(bytes) = self.memory_bytes {
            settings.push(setting("memory", "memory.limit_in_bytes", bytes));
            if self.no_swap {
                settings.push(setting("memory", "memory.memsw.limit_in_bytes", bytes));
            }
        }
        settings
    }

    /// For the unified hierarchy.
    pub fn unified(&self) -> Vec<Setting> {
        let mut settings = vec![setting("cpu", "cpu.weight", weight(self.cpu_shares))];
        if let Some(quota) = self.cpu_quota {
            settings.push(setting("cpu", "cpu.max", format_args!("{quota} {CPU_PERIOD}")));
        }
        if let Some(bytes) = self.memory_bytes {
            settings.push(setting("memory", "memory.max", bytes));
            if self.no_swap {
                settings.push(setting("memory", "memory.swap.max", 0));
            }
            // A container whose memory is up ends as a whole, as with a kubelet.
            settings.push(setting("memory", "memory.oom.group", 1));
        }
        settings
    }
}

/// `cpu.weight` (1 to 10,000) for `cpu.shares`, as OCI runtimes convert it: along a straight line.
fn weight(shares: u64) -> u64 {
    let (least, most) = CPU_SHARES;
    1 + (shares.clamp(least, most) - least) * 9_999 / (most - least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|Setting { controller, file, value }| format!("{controller} {file}={value}")).collect()
    }

    #[test]
    fn limits_are_written_for_either_version() {
        let limits = CgroupLimits {
            cpu_shares: 256,
            cpu_quota: Some(50_000),
            memory_bytes: Some(1 << 20),
            no_swap: true,
            all_devices: false,
        };
        assert_eq!(
            lines(&limits.per_controller()),
            [
                "cpu cpu.shares=256",
                "cpu cpu.cfs_period_us=100000",
                "cpu cpu.cfs_quota_us=50000",
                "memory memory.limit_in_bytes=1048576",
                "memory memory.memsw.limit_in_bytes=1048576",
            ]
        );
        assert_eq!(
            lines(&limits.unified()),
            [
                "cpu cpu.weight=10",
                "cpu cpu.max=50000 100000",
                "memory memory.max=1048576",
                "memory memory.swap.max=0",
                "memory memory.oom.group=1",
            ]
        );
        let none = CgroupLimits { cpu_shares: 2, ..CgroupLimits::default() };
        assert_eq!(lines(&none.per_controller()), ["cpu cpu.shares=2"]);
        assert_eq!(lines(&none.unified()), ["cpu cpu.weight=1"]);
    }

    #[test]
    fn the_whole_range_of_shares_is_one_of_weights() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 39, 10_000, 10_000]);
    }
}

//! How a container's end is told: reason and message as a kubelet with containerd has them, and which signal asks it to end.
//!
//! Pure: no I/O, no clock, no randomness.

use jiff::Timestamp;
use larder_monitor::{Exit, UnixNanos};

use super::ContainerExit;

/// The signal that asks a container to end when its image names none.
const DEFAULT_STOP_SIGNAL: i32 = libc::SIGTERM;

/// The names of the signals that an image may ask for, without their prefix.
const SIGNALS: [(&str, i32); 31] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// The range of real-time signals as glibc counts them.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The signal that an image's `StopSignal` names: `SIGQUIT`, `QUIT`, `3` or `SIGRTMIN+3`. SIGTERM for what is not one.
pub fn stop_signal(name: Option<&str>) -> i32 {
    name.and_then(parse_signal).unwrap_or(DEFAULT_STOP_SIGNAL)
}

fn parse_signal(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(offset), _) => Some((REAL_TIME.start(), offset)),
        (_, Some(offset)) => Some((REAL_TIME.end(), offset)),
        (None, None) => None,
    };
    if let Some((base, offset)) = real_time {
        let offset = if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
        return base.checked_add(offset).filter(|number| REAL_TIME.contains(number));
    }
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// What a monitor recorded, as the rest of the agent has it.
pub fn container_exit(exit: &Exit) -> ContainerExit {
    let (reason, message) = match &exit.start_error {
        Some(error) => ("StartError", format!("failed to start container: {}", error.message)),
        None if exit.lost => (
            "ContainerStatusUnknown",
            "The container's monitor was killed; the container was ended, how it would have ended is not known"
                .to_owned(),
        ),
        None if exit.oom_killed => ("OOMKilled", String::new()),
        None if exit.exit_code == 0 => ("Completed", String::new()),
        None => ("Error", String::new()),
    };
    ContainerExit {
        exit_code: exit.exit_code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started_at: exit.started_at.map(timestamp),
        finished_at: timestamp(exit.finished_at),
    }
}

/// A monitor's time as a timestamp. All of them fit.
pub fn timestamp(time: UnixNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use larder_monitor::StartError;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, 15)]
    #[case(Some("SIGQUIT"), 3)]
    #[case(Some("quit"), 3)]
    #[case(Some("9"), 9)]
    #[case(Some("SIGRTMIN+3"), 37)]
    #[case(Some("RTMIN"), 34)]
    #[case(Some("SIGRTMAX-1"), 63)]
    #[case(Some("SIGRTMAX+1"), 15)]
    #[case(Some("0"), 15)]
    #[case(Some("65"), 15)]
    #[case(Some("SIGNONSENSE"), 15)]
    #[case(Some(""), 15)]
    fn the_images_stop_signal(#[case] name: Option<&str>, #[case] number: i32) {
        assert_eq!(stop_signal(name), number);
    }

    fn exit(exit_code: i32, oom_killed: bool, lost: bool, start_error: Option<&str>) -> Exit {
        Exit {
            id: "c1".into(),
            exit_code,
            signal: None,
            oom_killed,
            started_at: Some(UnixNanos(1)),
            finished_at: UnixNanos(2_000_000_000),
            start_error: start_error.map(|message| StartError { message: message.into() }),
            lost,
        }
    }

    #[rstest]
    #[case(exit(0, false, false, None), "Completed")]
    #[case(exit(1, false, false, None), "Error")]
    #[case(exit(137, false, false, None), "Error")]
    #[case(exit(137, true, false, None), "OOMKilled")]
    #[case(exit(0, true, false, None), "OOMKilled")]
    #[case(exit(137, false, true, None), "ContainerStatusUnknown")]
    #[case(exit(128, false, false, Some("no such file")), "StartError")]
    fn the_reason_of_an_end(#[case] exit: Exit, #[case] reason: &str) {
        let told = container_exit(&exit);
        assert_eq!(told.reason, reason);
        assert_eq!(told.exit_code, exit.exit_code);
        assert_eq!(told.finished_at.as_second(), 2);
    }

    #[test]
    fn a_start_error_says_what_the_runtime_said() {
        let told = container_exit(&exit(128, false, false, Some("executable file `x` not found in $PATH")));
        assert!(told.message.ends_with(": executable file `x` not found in $PATH"));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_signal_out_of_range(text in ".{0,20}") {
            prop_assert!((1..=64).contains(&stop_signal(Some(&text))));
        }

        #[test]
        fn every_time_is_a_timestamp(nanos in any::<u64>()) {
            prop_assert_eq!(timestamp(UnixNanos(nanos)).as_nanosecond(), i128::from(nanos));
        }
    }
}

//! What is said on a monitor's socket: one JSON value a line, in both directions.
//!
//! A client connects and sends a [`Request`]. After [`Request::Watch`] the monitor says at once what it knows
//! ([`Event::Starting`], [`Event::Started`], and [`Event::Exited`] if it came to that) and later what changes. The monitor
//! closes the connection when the container has been removed from the runtime; a connection that ends without
//! [`Event::Exited`] means that the client has to look for `exit.json`, and, if that is missing too, that the monitor died.

use serde::{Deserialize, Serialize};

use crate::files::{ContainerState, Exit};

/// The longest line that either side accepts, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Tell what is and what becomes of the container.
    Watch,
}

/// What the monitor tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The runtime is at work.
    Starting,
    /// The container runs.
    Started(ContainerState),
    /// The container ended, or could not be started.
    Exited(Exit),
}

/// `value` as one line, its newline included. `None` if it cannot be put as JSON, which no type here allows.
pub fn to_line<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(value).ok()?;
    line.push(b'\n');
    Some(line)
}

/// Reads one line, with or without its newline.
pub fn from_line<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::UnixNanos;

    #[test]
    fn an_event_is_one_line_and_comes_back() {
        let state =
            ContainerState { id: "a\nb".into(), pid: 3, start_time: 4, monitor_pid: 2, started_at: UnixNanos(9) };
        for event in [Event::Starting, Event::Started(state)] {
            let line = to_line(&event).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(from_line::<Event>(&line).unwrap(), event);
        }
    }
}

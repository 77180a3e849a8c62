//! The monitor's own words. They go to standard error, which the agent points at `monitor.log`.

use std::error::Error;
use std::fmt;
use std::io::Write;

/// Writes one line. A monitor that cannot even complain goes on without.
pub(crate) fn report(what: &dyn fmt::Display) {
    drop(writeln!(std::io::stderr(), "larder-monitor: {what}"));
}

/// An error with everything that led to it, on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(err) = cause {
            write!(f, ": {err}")?;
            cause = err.source();
        }
        Ok(())
    }
}

//! An error with all its causes in one line.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{error::Error, fmt};

/// Prints an error and every cause below it, `what: why: why`. A cause that its error prints already is not repeated.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.0.to_string();
        f.write_str(&told)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !told.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            told = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open layer blob")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("mount: {0}")]
    struct Telling(#[source] std::io::Error);

    #[test]
    fn every_cause_is_told_once() {
        let error = || std::io::Error::other("disk on fire");
        assert_eq!(Chain(&Outer(error())).to_string(), "open layer blob: disk on fire");
        assert_eq!(Chain(&Telling(error())).to_string(), "mount: disk on fire");
    }
}

//! Answers as tables or JSON.

use std::io::{self, Write};

use comfy_table::{Table, presets::NOTHING};
use jiff::Timestamp;
use serde::Serialize;

use crate::agent::CtlError;
use crate::cli::Format;

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    /// Ages are counted to this moment.
    now: Timestamp,
}

/// One line of a table, and one object of a JSON array.
pub(crate) trait Row: Serialize {
    /// The columns' names.
    const COLUMNS: &'static [&'static str];

    /// What stands in each column.
    fn cells(&self, now: Timestamp) -> Vec<String>;
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, now: Timestamp::now() }
    }

    /// Writes a list; `none` is what people are told when it is empty.
    pub(crate) fn list<R: Row>(self, rows: &[R], none: &str) -> Result<(), CtlError> {
        match self.format {
            Format::Json => json(&rows),
            Format::Table => line(&self.rows(rows, none)),
        }
    }

    /// A list for people.
    pub(crate) fn rows<R: Row>(self, rows: &[R], none: &str) -> String {
        if rows.is_empty() { none.to_owned() } else { table(rows, self.now) }
    }

    /// Writes one thing, for people in these words.
    pub(crate) fn one<T: Serialize>(self, value: &T, words: impl FnOnce(&T) -> String) -> Result<(), CtlError> {
        match self.format {
            Format::Json => json(value),
            Format::Table => line(&words(value)),
        }
    }

    /// The same at a later moment.
    pub(crate) fn at(self, now: Timestamp) -> Self {
        Self { now, ..self }
    }

    /// The moment that ages are counted to.
    pub(crate) fn now(self) -> Timestamp {
        self.now
    }

    /// Whether people read it.
    pub(crate) fn is_for_people(self) -> bool {
        self.format == Format::Table
    }
}

fn table<R: Row>(rows: &[R], now: Timestamp) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(R::COLUMNS.iter().copied());
    for row in rows {
        table.add_row(row.cells(now));
    }
    trim(&table.to_string())
}

/// A table without the space before and behind its lines.
fn trim(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

fn json<T: Serialize>(value: &T) -> Result<(), CtlError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CtlError::Output(io::Error::from(error)))?;
    line(&text)
}

/// Writes something to standard output as one line of JSON.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<(), CtlError> {
    line(&serde_json::to_string(value).map_err(|error| CtlError::Output(io::Error::from(error)))?)
}

/// Writes a line to standard error. That nobody reads it is no reason to stop.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), CtlError> {
    writeln!(io::stdout().lock(), "{text}").map_err(CtlError::Output)
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Libraries repeat their cause.
        if !words.ends_with(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pair(&'static str, u32);

    impl Row for Pair {
        const COLUMNS: &'static [&'static str] = &["NAME", "COUNT"];

        fn cells(&self, _: Timestamp) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_string()]
        }
    }

    #[test]
    fn a_table_is_like_kubectls() {
        let text = table(&[Pair("a", 1), Pair("longer", 20)], Timestamp::UNIX_EPOCH);
        assert_eq!(text, "NAME    COUNT\na       1\nlonger  20");
    }
}

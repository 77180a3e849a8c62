//! The report of a run in a folder: `cache.md` with the table, `cache.json` with the rows, `cache.svg` with the chart.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{chart, goals};
use crate::bench::{Row, row};
use crate::workspace;

/// Writes it, with what is to be said about the machine. Returns the folder.
pub(in crate::bench) fn write(rows: &[Row], busy: &[String]) -> Result<PathBuf> {
    let folder = workspace::state().join("report/cache");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("cache.md", &markdown(rows, busy, chart::is_drawable(rows)))?;
    write("cache.json", &row::json(rows))?;
    if chart::is_drawable(rows) {
        draw(rows, &folder)?;
    }
    Ok(folder)
}

fn draw(rows: &[Row], folder: &Path) -> Result<()> {
    fs::write(folder.join("cache.svg"), chart::draw(rows)?).context("write the chart")
}

/// The page.
fn markdown(rows: &[Row], busy: &[String], has_chart: bool) -> String {
    let mut text = "# hack/bench cache\n\n".to_owned();
    for busy in busy {
        text += &format!("**{}**\n\n", busy.trim_start_matches('!').trim());
    }
    if has_chart {
        text += "![pods from creation to Ready, both engines](cache.svg)\n\n";
    }
    text += "| case | side | unit | n | p50 | p90 | p99 | min | max |\n|---|---|---|---:|---:|---:|---:|---:|---:|\n";
    for row in rows {
        let values = [row.p50, row.p90, row.p99, row.min, row.max].map(|value| row::shown(row, value)).join(" | ");
        text += &format!("| {} | {} | {} | {} | {values} |\n", row.case, row.side, row.unit, row.n);
    }
    text += "\nWith fewer than 100 samples, p99 is the greatest.\n\n## Goals\n\n";
    for line in goals::verdicts(rows) {
        text += &format!("- {line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_rows_the_goals_and_how_busy_it_was() {
        let rows = [Row::of("cache", super::super::HIT, "ms", &[21.5]).unwrap()];
        let text = markdown(&rows, &["!! this machine is busy".to_owned()], true);
        assert!(text.contains("| pod: cache hit | larder | ms | 1 | 21.5 |"), "{text}");
        assert!(text.contains("**this machine is busy**") && text.contains("- met: pod: cache hit"), "{text}");
    }
}

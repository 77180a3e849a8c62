//! The chart: for each case of pods a bar an engine, as long as its p50, with a whisker up to its p99, on a logarithmic axis.
//! Pure: no I/O, no clock, no randomness.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{AT_ONCE, COLD, HIT, STORE};
use crate::bench::Row;
use crate::bench::row::LARDER;

const SIZE: (u32, u32) = (900, 480);
const OURS: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const THEIRS: RGBColor = RGBColor(0xff, 0x7f, 0x0e);
const LEAST: f64 = 5.0;

/// A bar.
struct Bar<'a> {
    row: &'a Row,
    /// The place of its case, and its own within that.
    from: f64,
    to: f64,
}

/// Whether there is anything to draw.
pub(super) fn is_drawable(rows: &[Row]) -> bool {
    rows.iter().any(is_drawn)
}

fn is_drawn(row: &Row) -> bool {
    row.unit == "ms" && [COLD, STORE, HIT, AT_ONCE].iter().any(|case| row.case.ends_with(case))
}

/// Draws it as SVG.
pub(super) fn draw(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    paint(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), rows).map_err(|err| anyhow!("draw: {err}"))?;
    Ok(text)
}

type Failure<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn paint<'a>(area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>, rows: &[Row]) -> Result<(), Failure<'a>> {
    let drawn: Vec<&Row> = rows.iter().filter(|row| is_drawn(row)).collect();
    let mut cases: Vec<&str> = drawn.iter().map(|row| row.case.as_str()).collect();
    cases.dedup();
    let bars = bars(&drawn, &cases);
    let most = drawn.iter().map(|row| row.p99).fold(LEAST, f64::max) * 2.0;
    let places = f64::from(u32::try_from(cases.len()).unwrap_or(u32::MAX));
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption("Pods from creation to Ready: p50, whisker to p99", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..places, (LEAST..most).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("time, logarithmic")
        .label_style(("sans-serif", 15))
        .y_label_formatter(&|value| time(*value))
        .draw()?;
    for (colour, is_ours) in [(OURS, true), (THEIRS, false)] {
        let mine = |bar: &&Bar<'_>| (bar.row.side == LARDER) == is_ours;
        let Some(first) = bars.iter().find(mine) else { continue };
        let body = |bar: &Bar<'_>| Rectangle::new([(bar.from, LEAST), (bar.to, bar.row.p50)], colour.filled());
        chart
            .draw_series(bars.iter().filter(mine).map(body))?
            .label(&first.row.side)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
    }
    let middle = |bar: &Bar<'_>| f64::midpoint(bar.from, bar.to);
    let whisker = |bar: &Bar<'_>| {
        PathElement::new([(middle(bar), bar.row.p50), (middle(bar), bar.row.p99)], BLACK.stroke_width(2))
    };
    chart.draw_series(bars.iter().map(whisker))?;
    let above = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Bottom));
    let number = |bar: &Bar<'_>| Text::new(time(bar.row.p50), (middle(bar), bar.row.p99 * 1.06), above.clone());
    chart.draw_series(bars.iter().map(number))?;
    let below = ("sans-serif", 14).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    let (_, height) = area.dim_in_pixel();
    for (place, case) in cases.iter().enumerate() {
        let at = f64::from(u32::try_from(place).unwrap_or(u32::MAX)) + 0.5;
        let (x, _) = chart.backend_coord(&(at, LEAST));
        let bottom = i32::try_from(height).unwrap_or(i32::MAX) - 38;
        area.draw(&Text::new((*case).to_owned(), (x, bottom), below.clone()))?;
    }
    chart
        .configure_series_labels()
        .border_style(BLACK)
        .background_style(WHITE)
        .position(SeriesLabelPosition::UpperMiddle)
        .draw()?;
    area.present()
}

/// Milliseconds as people read them.
fn time(milliseconds: f64) -> String {
    if milliseconds < 1000.0 {
        format!("{milliseconds:.0} ms")
    } else {
        format!("{} s", (milliseconds / 100.0).round() / 10.0)
    }
}

/// Where the bars are: those of a case side by side, ours first.
fn bars<'a>(rows: &[&'a Row], cases: &[&str]) -> Vec<Bar<'a>> {
    let mut bars = Vec::new();
    for (place, case) in cases.iter().enumerate() {
        let mut of: Vec<&&Row> = rows.iter().filter(|row| row.case == *case).collect();
        of.sort_by_key(|row| row.side != LARDER);
        let count = f64::from(u32::try_from(of.len()).unwrap_or(u32::MAX));
        let mut from = f64::from(u32::try_from(place).unwrap_or(u32::MAX)) + 0.5 - 0.15 * count;
        for row in of {
            bars.push(Bar { row, from, to: from + 0.28 });
            from += 0.3;
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_and_every_case_are_in_it() {
        let row = |case: &str, samples: &[f64]| Row::of("cache", case, "ms", samples).unwrap();
        let rows = [
            row(HIT, &[20.0, 30.0]),
            row(STORE, &[25.0, 40.0]),
            row(STORE, &[480.0, 520.0]).by("kubelet"),
            row("ImageCache: something else", &[1.0]),
        ];
        let svg = draw(&rows).unwrap();
        for text in [HIT, STORE, "larder", "kubelet", "480 ms"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(!svg.contains("something else"));
        assert_eq!((time(62.4), time(1000.0), time(37_004.0)), ("62 ms".into(), "1 s".into(), "37 s".into()));
        assert!(!is_drawable(&rows[3..]));
    }
}

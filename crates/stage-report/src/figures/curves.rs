//! A quantity along the snapshots of an attack.

use serde_json::Value;
use stage::Usage;

use super::{
    Along, Curves, Sketch, blank, page,
    pivot::Request,
    series::{self, Extras, Series, Sheet, Styles},
};
use crate::{
    document::title as named,
    draw::{Axis, Frame},
    line::Line,
};

impl Along {
    const fn title(self) -> &'static str {
        match self {
            Self::Steps => "attack steps",
            Self::Draws => "attack steps × draws per gradient",
            Self::ForwardQueries => "forward queries per image",
            Self::BackwardQueries => "backward queries per image",
        }
    }

    /// How much of it was spent at a line's snapshot.
    fn of(self, line: &Line) -> Option<f64> {
        let steps = f64::from(line.step?);
        match self {
            Self::Steps => Some(steps),
            Self::Draws => Some(steps * line.parameters.get("attack.eot.draws").and_then(Value::as_f64).unwrap_or(1.0)),
            Self::ForwardQueries => line.queries.map(|queries| queries.0),
            Self::BackwardQueries => line.queries.map(|queries| queries.1),
        }
    }
}

pub(super) fn draw(request: &Request<'_>, kind: &Curves) -> Result<Sketch, Usage> {
    let all = request.snapshots(kind.quantity);
    if !all.iter().any(|line| kind.x.iter().any(|x| drawn(kind, line, *x).is_some())) {
        let caption = "Nothing is drawn at this scale.".to_owned();
        return Ok(Sketch { picture: blank(&request.figure.title), caption, rows: Vec::new() });
    }
    let styles = Styles::new(&kind.colour, &kind.dash, &all);
    let groups = series::panels(&kind.panels, &all);
    let panels: Vec<(&str, Along, &[&Line])> = groups
        .iter()
        .flat_map(|(title, lines)| kind.x.iter().map(|x| (title.as_str(), *x, lines.as_slice())))
        .collect();
    let titles: Vec<String> = panels.iter().map(|panel| panel.0.to_owned()).filter(|t| !t.is_empty()).collect();
    let across = (kind.x.len() > 1 || panels.len() == 1).then_some(kind.x.len());
    let sheet = Sheet::new(&titles, across);
    let (mut picture, top) = page(&request.figure.title, sheet.page());
    let sheet = sheet.from(top, &axis(kind, kind.x[0], &all));
    let extras = Extras { intervals: kind.intervals, baselines: false };
    let mut rows = Vec::new();
    for (index, (title, along, lines)) in panels.iter().enumerate() {
        let (left, top) = sheet.corner(index);
        let x = axis(kind, *along, &all);
        let y = Axis::percent(format!("{}, %", named(kind.quantity)));
        let frame = Frame { left, top, width: sheet.width, height: sheet.height, x, y };
        frame.draw(&mut picture, sheet.first(index));
        sheet.name(&mut picture, index, title);
        let series = styles
            .series(lines)
            .into_iter()
            .map(|(colour, marker, stroke, lines)| {
                let points =
                    points(request, lines.into_iter().filter_map(|line| Some((drawn(kind, line, *along)?, line))))?;
                // The same values stand in every panel of a row.
                if *along == kind.x[0] {
                    rows.extend(points.iter().map(|point| point.1.row(request.params)));
                }
                Ok(Series { colour, marker, stroke, points })
            })
            .collect::<Result<Vec<_>, Usage>>()?;
        series::plot(&mut picture, &frame, &series, &extras);
    }
    let mut entries = styles.entries(true);
    entries.push(series::extra_entries(&all, false));
    series::finish(&mut picture, sheet.bottom(panels.len()), &entries);
    let caption = format!(
        "{} at the snapshots of one run for each line: the points of a line are not independent{}.",
        named(kind.quantity),
        super::intervals(kind.intervals)
    );
    Ok(Sketch { picture, caption, rows })
}

/// Where a line's point lies along the axis; nowhere if it cannot be drawn there.
fn drawn(kind: &Curves, line: &Line, along: Along) -> Option<f64> {
    along.of(line).filter(|&x| !kind.log || x > 0.0)
}

/// The axis of all panels that run along the same.
fn axis(kind: &Curves, along: Along, lines: &[&Line]) -> Axis {
    let spent = lines.iter().filter_map(|line| drawn(kind, line, along));
    let (low, high) = spent.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
    match along.title() {
        title if low == high => Axis::at(title, vec![(low, low.to_string())], kind.log),
        title if low > high => Axis::at(title, Vec::new(), false),
        title if kind.log => Axis::log(title, low, high),
        title => Axis::roomy(title, low, high),
    }
}

/// Points in order of x; each x holds one.
fn points<'a>(
    request: &Request<'_>,
    points: impl Iterator<Item = (f64, &'a Line)>,
) -> Result<Vec<(f64, &'a Line)>, Usage> {
    let mut points: Vec<(f64, &Line)> = points.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    match points.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(request.crowded(pair[0].1, pair[1].1)),
        None => Ok(points),
    }
}

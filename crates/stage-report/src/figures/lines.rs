//! Quantities along an axis.

use stage::Usage;

use super::{
    Lines, Sketch, blank, page,
    pivot::{Labelled as _, Request, names, number},
    series::{self, Extras, Series, Sheet, Styles},
};
use crate::{
    document::{title as named, unique},
    draw::{Axis, Frame},
    line::Line,
};

/// Ticks at the labels themselves as long as there are not many more.
const TICKS: usize = 14;

pub(super) fn draw(request: &Request<'_>, kind: &Lines) -> Result<Sketch, Usage> {
    let all = request.numbers(&kind.quantities);
    if all.is_empty() {
        let caption = "Nothing is drawn at this scale.".to_owned();
        return Ok(Sketch { picture: blank(&request.figure.title), caption, rows: Vec::new() });
    }
    let along = Along::new(request, kind, &all)?;
    let colour = series::with_quantity(&kind.colour, &[&kind.dash, &kind.panels], &all);
    let styles = Styles::new(&colour, &kind.dash, &all);
    let panels = series::panels(&kind.panels, &all);
    let titles: Vec<String> = panels.iter().map(|panel| panel.0.clone()).filter(|title| !title.is_empty()).collect();
    let sheet = Sheet::new(&titles, (panels.len() == 1).then_some(1));
    let (mut picture, top) = page(&request.figure.title, sheet.page());
    let sheet = sheet.from(top, &along.axis);
    let extras = Extras { intervals: kind.intervals, baselines: kind.baselines };
    let mut rows = Vec::new();
    for (index, (title, lines)) in panels.iter().enumerate() {
        let (left, top) = sheet.corner(index);
        let (x, y) = (along.axis.clone(), Axis::percent(heading(kind)));
        let frame = Frame { left, top, width: sheet.width, height: sheet.height, x, y };
        frame.draw(&mut picture, sheet.first(index));
        sheet.name(&mut picture, index, title);
        let series = styles
            .series(lines)
            .into_iter()
            .map(|(colour, marker, stroke, lines)| {
                let points = along.points(request, &lines)?;
                rows.extend(points.iter().map(|point| point.1.row(request.params)));
                Ok(Series { colour, marker, stroke, points })
            })
            .collect::<Result<Vec<_>, Usage>>()?;
        series::plot(&mut picture, &frame, &series, &extras);
    }
    let mut entries = styles.entries(true);
    entries.push(series::extra_entries(&all, kind.baselines));
    series::finish(&mut picture, sheet.bottom(panels.len()), &entries);
    Ok(Sketch { picture, caption: caption(kind, &all), rows })
}

/// What stands up the side.
fn heading(kind: &Lines) -> String {
    match kind.quantities[..] {
        [one] => format!("{}, %", named(one)),
        _ => "percent".to_owned(),
    }
}

fn caption(kind: &Lines, lines: &[&Line]) -> String {
    let quantities: Vec<&str> = kind.quantities.iter().map(|quantity| named(*quantity)).collect();
    let mut text = format!("{} along {}", quantities.join("; "), names(std::slice::from_ref(&kind.x)));
    text += super::intervals(kind.intervals);
    if lines.iter().any(|line| line.paper.is_some()) {
        text += "; hollow, the paper's claims";
    }
    text + "."
}

/// The axis that lines run along.
struct Along<'a> {
    axis: Axis,
    name: &'a str,
    /// The labels in order of appearance, where they are no numbers.
    words: Option<Vec<String>>,
}

impl<'a> Along<'a> {
    fn new(request: &Request<'_>, kind: &'a Lines, lines: &[&Line]) -> Result<Self, Usage> {
        let labels = unique(lines.iter().map(|line| line.label(&kind.x).unwrap_or_default().to_owned()));
        let title = names(std::slice::from_ref(&kind.x));
        let numbers: Option<Vec<f64>> = labels.iter().map(|label| number(label)).collect();
        if kind.log && numbers.as_ref().is_none_or(|numbers| numbers.iter().any(|&number| number <= 0.0)) {
            return Err(request.refuse(&format!("`log` needs positive numbers along `{}`, not {labels:?}", kind.x)));
        }
        Ok(match numbers {
            Some(numbers) => {
                let (low, high) = numbers.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
                let axis = if numbers.len() <= TICKS || low == high {
                    let mut ticks: Vec<_> = numbers.into_iter().zip(labels).collect();
                    ticks.sort_by(|a, b| a.0.total_cmp(&b.0));
                    Axis::at(title, ticks, kind.log)
                } else if kind.log {
                    Axis::log(title, low, high)
                } else {
                    Axis::roomy(title, low, high)
                };
                Self { axis, name: &kind.x, words: None }
            }
            None => Self { axis: Axis::words(title, &labels), name: &kind.x, words: Some(labels) },
        })
    }

    /// The lines by their place along the axis; each place holds one.
    fn points<'b>(&self, request: &Request<'_>, lines: &[&'b Line]) -> Result<Vec<(f64, &'b Line)>, Usage> {
        let place = |line: &Line| {
            let label = line.label(self.name).unwrap_or_default();
            match &self.words {
                Some(words) => words.iter().position(|word| word == label).map(|i| i as f64),
                None => number(label),
            }
        };
        let mut points: Vec<(f64, &Line)> =
            lines.iter().filter_map(|line| place(line).map(|place| (place, *line))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        match points.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(request.crowded(pair[0].1, pair[1].1)),
            None => Ok(points),
        }
    }
}

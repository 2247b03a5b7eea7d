//! Numbers on shades: one map for each panel.

use stage::Usage;

use super::{
    EDGE, HeatMap, PAGE, Sketch, blank, page,
    pivot::{Key, Labelled as _, Request, key, names, shown, title},
};
use crate::{
    document::{title as named, unique},
    draw::{Anchor, BLACK, GREY, LABEL, LEADING, PALE, Picture, SMALL, Stroke, WHITE, blues, width, wrap},
    line::Line,
};

const HEIGHT: f64 = 24.0;
const GAP: f64 = 18.0;
/// Of the scale of shades beside the maps.
const SCALE: f64 = 46.0;

/// A panel: its title and its numbers.
type Panel<'a> = (String, Vec<&'a Line>);

pub(super) fn draw(request: &Request<'_>, kind: &HeatMap) -> Result<Sketch, Usage> {
    let (panels, alike) = panels(request, kind)?;
    let all: Vec<&Line> = panels.iter().flat_map(|panel| panel.1.iter().copied()).collect();
    let sides = unique(all.iter().map(|line| key(line, &kind.rows)));
    let tops = unique(all.iter().map(|line| key(line, &kind.columns)));
    if all.is_empty() {
        let caption = "Nothing is drawn at this scale.".to_owned();
        return Ok(Sketch { picture: blank(&request.figure.title), caption, rows: Vec::new() });
    }
    let maps = Maps::new(kind, sides, tops, (panels.len(), alike));
    let (mut picture, top) = page(&request.figure.title, maps.page());
    let mut rows = Vec::new();
    for (index, (name, lines)) in panels.iter().enumerate() {
        let (left, top) = maps.corner(index, top);
        maps.frame(&mut picture, (left, top), name, index.is_multiple_of(maps.across));
        for (i, side) in maps.sides.iter().enumerate() {
            for (j, head) in maps.tops.iter().enumerate() {
                let at = (left + j as f64 * maps.width, top + i as f64 * HEIGHT);
                let here = |line: &&Line| key(line, &kind.rows) == *side && key(line, &kind.columns) == *head;
                let line = request.single(lines.iter().copied().filter(here))?;
                maps.cell(&mut picture, at, line.and_then(|line| line.value));
                rows.extend(line.map(|line| line.row(request.params)));
            }
        }
    }
    maps.scale(&mut picture, top);
    picture.height = maps.bottom(panels.len(), top) + EDGE;
    let caption = format!("{}, percent; – where there is nothing to count.", named(kind.quantity));
    Ok(Sketch { picture, caption, rows })
}

/// The panels in order, and how many of them differ in the last axis only.
fn panels<'a>(request: &Request<'a>, kind: &HeatMap) -> Result<(Vec<Panel<'a>>, usize), Usage> {
    let mut lines = request.numbers(&[kind.quantity]);
    // Without a panel for each point, the best are the maps, not maps beside others.
    let bare = lines.iter().any(|line| line.selection.is_some());
    let mut axes = kind.panels.clone();
    if bare && kind.best && !axes.iter().any(|axis| axis == "selection") {
        axes.push("selection".to_owned());
    }
    if kind.best && !bare {
        lines.extend(request.best(kind.quantity));
    }
    // The best have no label on the axis they are taken over, but say how they were chosen.
    let over = &request.params.layout.best_over;
    if kind.best && !bare && !kind.panels.iter().any(|axis| over.contains(axis)) {
        return Err(request.refuse(&format!("`best` needs one of the report's best_over ({over:?}) among the panels")));
    }
    let place = |line: &Line| -> Key {
        let label = |axis: &String| match line.label("selection") {
            Some(selection) if over.contains(axis) => shown("selection", selection),
            _ => line.label(axis).unwrap_or_default().to_owned(),
        };
        axes.iter().map(label).collect()
    };
    let places = unique(lines.iter().map(|line| place(line)));
    let group = |panel: &Key| panel.split_last().map(|(_, group)| group.to_vec());
    let groups = unique(places.iter().map(group));
    let grouped: Vec<Vec<&Key>> =
        groups.iter().map(|of| places.iter().filter(|panel| group(panel) == *of).collect()).collect();
    let of = |panel: &Key| lines.iter().copied().filter(|line| place(line) == *panel).collect();
    let panels = grouped.iter().flatten().map(|panel| (title(&axes, panel), of(panel))).collect();
    Ok((panels, grouped.iter().map(Vec::len).max().unwrap_or(1)))
}

/// Where everything stands.
struct Maps<'a> {
    kind: &'a HeatMap,
    sides: Vec<Key>,
    tops: Vec<Key>,
    /// Of the labels down the side.
    labels: f64,
    /// Of one number.
    width: f64,
    /// Lines of the labels along the top.
    lines: usize,
    /// Panels beside each other.
    across: usize,
}

impl<'a> Maps<'a> {
    /// Of so many panels, of which so many are `alike`: those stand beside each other, or in rows of equal length.
    fn new(kind: &'a HeatMap, sides: Vec<Key>, tops: Vec<Key>, (panels, alike): (usize, usize)) -> Self {
        let widest = |keys: &[Key]| keys.iter().map(|key| width(&key.join(", "), SMALL)).fold(0.0, f64::max);
        let cell = (widest(&tops) + 8.0).clamp(36.0, 84.0);
        let lines = tops.iter().map(|top| wrap(&top.join(", "), SMALL, cell - 4.0).len()).max().unwrap_or(1);
        let labels = 18.0 + widest(&sides);
        let map = cell * tops.len() as f64;
        let fit = ((PAGE - labels - SCALE) / (map + GAP)).floor().max(1.0) as usize;
        let across = if alike < panels && alike <= 3 { alike } else { alike.div_ceil(alike.div_ceil(fit)) };
        Self { kind, sides, tops, labels, width: cell, lines, across }
    }

    fn map(&self) -> (f64, f64) {
        (self.width * self.tops.len() as f64, HEIGHT * self.sides.len() as f64)
    }

    fn page(&self) -> f64 {
        2.0 * EDGE + self.labels + self.across as f64 * (self.map().0 + GAP) + SCALE
    }

    /// The height of a row of panels: title, map, labels, names of the axes.
    fn row(&self) -> f64 {
        16.0 + self.map().1 + 6.0 + self.lines as f64 * LEADING * SMALL + LEADING * LABEL + 8.0
    }

    fn corner(&self, index: usize, top: f64) -> (f64, f64) {
        let (column, row) = ((index % self.across) as f64, (index / self.across) as f64);
        (EDGE + self.labels + column * (self.map().0 + GAP), top + 16.0 + row * self.row())
    }

    fn bottom(&self, panels: usize, top: f64) -> f64 {
        top + panels.div_ceil(self.across) as f64 * self.row()
    }

    /// Title and labels of a panel.
    fn frame(&self, picture: &mut Picture, (left, top): (f64, f64), name: &str, labelled: bool) {
        let (across, down) = self.map();
        picture.text((left + across / 2.0, top - 5.0), Anchor::Middle, LABEL, BLACK, name);
        for (j, head) in self.tops.iter().enumerate() {
            let x = left + (j as f64 + 0.5) * self.width;
            let lines = wrap(&head.join(", "), SMALL, self.width - 4.0);
            picture.lines((x, top + down + 4.0 + SMALL), SMALL, &lines);
        }
        let below = top + down + 6.0 + self.lines as f64 * LEADING * SMALL + LABEL;
        picture.text((left + across / 2.0, below), Anchor::Middle, LABEL, BLACK, names(&self.kind.columns));
        if !labelled {
            return;
        }
        for (i, side) in self.sides.iter().enumerate() {
            let y = top + (i as f64 + 0.5) * HEIGHT + 0.35 * SMALL;
            picture.text((left - 4.0, y), Anchor::End, SMALL, BLACK, side.join(", "));
        }
        picture.turned((EDGE + 6.0, top + down / 2.0), LABEL, names(&self.kind.rows));
    }

    fn cell(&self, picture: &mut Picture, at: (f64, f64), value: Option<f64>) {
        let middle = (at.0 + self.width / 2.0, at.1 + HEIGHT / 2.0 + 0.35 * SMALL);
        let (fill, dark) = value.map_or((PALE, false), blues);
        let ink = if dark { WHITE } else { BLACK };
        picture.block(at, (self.width, HEIGHT), fill);
        picture.border(at, (self.width, HEIGHT), Stroke::solid(WHITE, 1.0));
        picture.text(middle, Anchor::Middle, SMALL, ink, value.map_or_else(|| "–".to_owned(), percent));
    }

    /// Which shade is which number.
    fn scale(&self, picture: &mut Picture, top: f64) {
        const STEPS: usize = 40;
        let (left, top) = (self.page() - EDGE - SCALE + GAP - 6.0, top + 16.0);
        let height = self.map().1.max(2.0 * HEIGHT);
        // Each shade reaches to the bottom, where the next covers it: no seams.
        for i in 0..STEPS {
            let from = height * i as f64 / STEPS as f64;
            let share = 1.0 - (i as f64 + 0.5) / STEPS as f64;
            picture.block((left, top + from), (8.0, height - from), blues(share).0);
        }
        picture.border((left, top), (8.0, height), Stroke::solid(GREY, 0.6));
        for share in [0.0, 0.5, 1.0] {
            let y = top + height * (1.0 - share) + 0.35 * SMALL;
            picture.text((left + 11.0, y), Anchor::Start, SMALL, BLACK, format!("{:.0}", 100.0 * share));
        }
    }
}

/// A rate in percent with up to three digits; only all are 100.
fn percent(rate: f64) -> String {
    match format!("{:.1}", 100.0 * rate).as_str() {
        "100.0" if rate < 1.0 => ">99.9".to_owned(),
        "100.0" => "100".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits_and_only_all_is_a_hundred() {
        assert_eq!([0.0, 0.004, 0.5, 0.9998, 1.0].map(percent), ["0.0", "0.4", "50.0", ">99.9", "100"]);
    }
}

//! The Markdown and LaTeX of an attack report.

use std::{collections::BTreeSet, fmt::Write as _};

use stage::{Input, Usage};

use crate::{
    Params, Quantity,
    grid::Grid,
    line::{Line, Selection, claims},
    splice::TABLE,
};

/// A share of exactly zero gradient entries above which an attack is not to be trusted without a look.
const ZERO_GRADIENT: f64 = 0.1;

/// A report's tables.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    params: &'a Params,
    /// Axes down the side and along the top.
    rows: Vec<&'a str>,
    columns: Vec<&'a str>,
    printed: Vec<&'a Line>,
    lines: &'a [Line],
}

impl<'a> Document<'a> {
    pub(crate) fn new(params: &'a Params, lines: &'a [Line]) -> Result<Self, Usage> {
        let layout = &params.layout;
        let axes: BTreeSet<&str> = params.cells.iter().flat_map(|cell| cell.at.keys().map(String::as_str)).collect();
        let named: Vec<&str> =
            [&layout.rows, &layout.columns, &layout.best_over].into_iter().flatten().map(String::as_str).collect();
        if let Some(axis) = named.iter().find(|axis| !axes.contains(*axis)) {
            let text = format!("the layout of {} names the axis `{axis}`; its axes are {axes:?}", params.pipeline);
            return Err(Usage(text));
        }
        let unnamed = axes.iter().copied().filter(|axis| !named.contains(axis));
        let printed = |line: &&Line| {
            line.rule == layout.rule
                && line.quantity == layout.value
                && line.last
                && line.selection.is_some() != layout.best_over.is_empty()
        };
        Ok(Self {
            params,
            rows: layout.rows.iter().map(String::as_str).chain(unnamed).collect(),
            columns: layout.columns.iter().map(String::as_str).collect(),
            printed: lines.iter().filter(printed).collect(),
            lines,
        })
    }

    /// The whole report; `figures` is their section, `inputs` are what it was made from.
    pub(crate) fn markdown(&self, figures: &str, inputs: &[Input]) -> String {
        let params = self.params;
        let mut text =
            format!("# {}\n\n{}\n\n{}{}{}\n", params.title, params.analysis.trim(), TABLE[0], self.table(), TABLE[1]);
        text += figures;
        let _ = write!(text, "## Beside it\n\n{}\n{}\n", BESIDE, self.details().markdown());
        for (title, items) in [("Warnings", self.warnings()), ("The paper's claims", self.claims())] {
            if !items.is_empty() {
                let _ = write!(
                    text,
                    "## {title}\n\n{}\n",
                    items.iter().map(|item| format!("- {item}\n")).collect::<String>()
                );
            }
        }
        text + &trace(inputs)
    }

    /// The printed table, and the cross-fitted one where the best over some axes is taken.
    pub(crate) fn table(&self) -> String {
        let best = self.params.layout.best_over.join(", ");
        let mut text = format!("{}\n\n", self.caption());
        if best.is_empty() {
            return text + &self.pivot(None).markdown();
        }
        let _ = write!(
            text,
            "Best {best} for the adversary, chosen on these same images (optimistic, as in the paper):\n\n"
        );
        text += &self.pivot(Some(Selection::Test)).markdown();
        let _ = write!(text, "\nCross-fitted: {best} chosen on every other image, judged on the rest:\n\n");
        text + &self.pivot(Some(Selection::HeldOut)).markdown()
    }

    /// The printed table for a LaTeX document.
    pub(crate) fn latex(&self) -> String {
        let selection = (!self.params.layout.best_over.is_empty()).then_some(Selection::Test);
        let source = format!("% {}: {}", self.params.pipeline, self.caption());
        format!("{}\n% Needs \\usepackage{{booktabs}}.\n{}", source.replace('\n', " "), self.pivot(selection).latex())
    }

    fn caption(&self) -> String {
        let layout = &self.params.layout;
        let votes: BTreeSet<u32> = self.printed.iter().map(|line| line.votes).collect();
        let votes: Vec<String> = votes.iter().map(u32::to_string).collect();
        format!(
            "{}, percent [95% interval], rule {} of {} votes; scale {}.",
            title(layout.value),
            layout.rule.name.name(),
            votes.join(" or "),
            self.params.scale
        )
    }

    fn pivot(&self, selection: Option<Selection>) -> Grid {
        let lines: Vec<&Line> = self.printed.iter().copied().filter(|line| line.selection == selection).collect();
        let key = |line: &Line, axes: &[&str]| -> Vec<String> {
            axes.iter().map(|&axis| line.at.get(axis).cloned().unwrap_or_default()).collect()
        };
        let sides = unique(lines.iter().map(|line| key(line, &self.rows)));
        let tops = unique(lines.iter().map(|line| key(line, &self.columns)));
        let head = |top: &Vec<String>| {
            if top.is_empty() { title(self.params.layout.value).to_owned() } else { top.join(", ") }
        };
        let place = |side: &Vec<String>, top: &Vec<String>| {
            let here = lines.iter().filter(|line| key(line, &self.rows) == *side && key(line, &self.columns) == *top);
            here.map(|line| printed(line)).collect::<Vec<_>>().join("; ")
        };
        Grid {
            labels: self.rows.len(),
            header: self.rows.iter().map(|&axis| axis.to_owned()).chain(tops.iter().map(head)).collect(),
            rows: sides
                .iter()
                .map(|side| side.iter().cloned().chain(tops.iter().map(|top| place(side, top))).collect())
                .collect(),
        }
    }

    /// One row per printed number: what it was counted from, its baselines and its price.
    fn details(&self) -> Grid {
        let best: &[String] = &self.params.layout.best_over;
        let axes: Vec<&str> =
            self.rows.iter().chain(&self.columns).copied().chain(best.iter().map(String::as_str)).collect();
        let numbers =
            ["value", "counted", "zero", "noise", "steps", "forward", "backward", "benign", "paper", "difference"];
        let mut header: Vec<String> = axes.iter().map(|&axis| axis.to_owned()).collect();
        header.push("protocol".to_owned());
        if !best.is_empty() {
            header.push("chosen on".to_owned());
        }
        let labels = header.len();
        header.extend(numbers.map(str::to_owned));
        Grid { labels, header, rows: self.printed.iter().map(|line| self.detail(line, &axes)).collect() }
    }

    fn detail(&self, line: &Line, axes: &[&str]) -> Vec<String> {
        let mut cells: Vec<String> = axes.iter().map(|&axis| line.at.get(axis).cloned().unwrap_or_default()).collect();
        cells.push(line.protocol.clone());
        cells.extend(line.selection.map(|selection| match selection {
            Selection::Test => "these images".to_owned(),
            Selection::HeldOut => "the other half".to_owned(),
        }));
        let number = |number: Option<f64>| number.map_or_else(|| "–".to_owned(), round);
        let difference = line.value.zip(line.paper).map(|(ours, paper)| signed(ours - paper));
        cells.extend([
            interval(line),
            format!("{}/{}", line.numerator, line.denominator),
            percent(line.zero),
            percent(line.noise),
            line.step.map_or_else(|| "several".to_owned(), |step| step.to_string()),
            number(line.queries.map(|queries| queries.0)),
            number(line.queries.map(|queries| queries.1)),
            percent(self.benign(line).and_then(|benign| benign.value)),
            percent(line.paper),
            difference.unwrap_or_else(|| "–".to_owned()),
        ]);
        cells
    }

    /// The benign accuracy of a line's own cell.
    fn benign(&self, line: &Line) -> Option<&Line> {
        let same = |other: &&Line| {
            (&other.at, other.step, &other.rule, other.selection) == (&line.at, line.step, &line.rule, line.selection)
        };
        self.lines.iter().filter(|line| line.quantity == Quantity::BenignAccuracy).find(same)
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for line in self.printed.iter().filter(|line| line.selection != Some(Selection::HeldOut)) {
            let place = place(line);
            if line.non_finite > 0 {
                warnings.push(format!(
                    "{place}: {} gradient entries were not finite and were taken as 0; the attack is weaker than it could be.",
                    line.non_finite
                ));
            }
            if let Some(share) = line.zero_gradient.filter(|&share| share > ZERO_GRADIENT) {
                warnings.push(format!(
                    "{place}: {}% of the last step's gradient entries were exactly 0; gradients may be masked, try a \
                     margin loss or another attack.",
                    percent(Some(share))
                ));
            }
            if line.quantity == Quantity::AttackSuccessRate
                && let (Some((low, _)), Some(noise)) = (line.interval, line.noise)
                && low <= noise
            {
                warnings.push(format!(
                    "{place}: the attack is not clearly better than uniform noise in the same ball ({}%).",
                    percent(Some(noise))
                ));
            }
        }
        warnings
    }

    fn claims(&self) -> Vec<String> {
        let describe = |claim: &crate::Claim| {
            let at: Vec<String> = claim.at.iter().map(|(axis, label)| format!("{axis} {label}")).collect();
            let found = self.lines.iter().filter(|line| claims(claim, line, self.params));
            let named = |line: &Line| match line.selection {
                Some(Selection::HeldOut) => format!("cross-fitted {}", interval(line)),
                _ => interval(line),
            };
            let ours: Vec<String> = found.map(named).collect();
            let ours =
                if ours.is_empty() { "not measured here".to_owned() } else { format!("ours {}", ours.join("; ")) };
            let note = if claim.note.is_empty() { String::new() } else { format!(" ({})", claim.note) };
            format!("{} at {}: {}{note}; {ours}.", claim.quantity, at.join(", "), percent(Some(claim.value)))
        };
        self.params.paper.iter().map(describe).collect()
    }
}

const BESIDE: &str = "`zero` is the same rate with no perturbation at all, `noise` with uniform noise in the adversary's \
ball, both under fresh draws; `forward` and `backward` are evaluations of the network per image by the attack; `benign` \
is the accuracy before the attack, over all images; `difference` is ours less the paper's.\n";

/// How every file behind a report is looked into.
pub(crate) fn trace(inputs: &[Input]) -> String {
    let mut files: Vec<&Input> = inputs.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let lines: String = files
        .iter()
        .map(|input| format!("make inspect A={}  # sha256 {}\n", input.path.display(), input.sha256))
        .collect();
    format!("## Where the numbers come from\n\n```sh\n{lines}```\n")
}

fn place(line: &Line) -> String {
    line.at.iter().map(|(axis, label)| format!("{axis} {label}")).collect::<Vec<_>>().join(", ")
}

fn printed(line: &Line) -> String {
    let paper = line.paper.map(|paper| format!("; paper {}", percent(Some(paper))));
    interval(line) + &paper.unwrap_or_default()
}

fn interval(line: &Line) -> String {
    match line.interval {
        Some((low, high)) => format!("{} [{}, {}]", percent(line.value), percent(Some(low)), percent(Some(high))),
        None => "– (no images)".to_owned(),
    }
}

/// A rate in percent with one decimal.
pub(crate) fn percent(rate: Option<f64>) -> String {
    rate.map_or_else(|| "–".to_owned(), |rate| format!("{:.1}", 100.0 * rate))
}

/// A difference of rates in points, with its sign.
fn signed(difference: f64) -> String {
    let text = format!("{:.1}", 100.0 * difference.abs());
    if text == "0.0" { text } else { format!("{}{text}", if difference < 0.0 { '−' } else { '+' }) }
}

/// A count per image: whole if it is whole.
fn round(number: f64) -> String {
    if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

/// A quantity's name for readers.
pub(crate) const fn title(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::BenignAccuracy => "Benign accuracy",
        Quantity::AttackSuccessRate => "Attack success rate",
        Quantity::SoftAttackSuccessRate => "Attack success rate of single draws",
        Quantity::RobustAccuracy => "Robust accuracy (right before and after)",
    }
}

/// The different items in order of appearance.
pub(crate) fn unique<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_for_readers() {
        assert_eq!((percent(Some(0.9876)), percent(None)), ("98.8".to_owned(), "–".to_owned()));
        assert_eq!((signed(-0.0121), signed(0.02), signed(-0.0001)), ("−1.2".into(), "+2.0".into(), "0.0".into()));
        assert_eq!((round(50.0), round(12.25)), ("50".to_owned(), "12.2".to_owned()));
    }
}

//! The Markdown and LaTeX of an attack report.

use std::{collections::BTreeSet, fmt::Write as _};

use artifact::ReportRow;
use stage::{Input, Usage};

use crate::{
    Claim, Params, Protocol, QUERIES, Quantity, Rule,
    compare::{Contrast, Verdict, contrasts, diagonals},
    grid::Grid,
    line::{Line, Selection, claims, concerns, printed as is_printed},
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
    contrasts: Vec<Contrast<'a>>,
    diagonals: Vec<Contrast<'a>>,
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
        let printed: Vec<&Line> = lines.iter().filter(|line| is_printed(line, params)).collect();
        Ok(Self {
            contrasts: contrasts(params, &printed),
            diagonals: diagonals(params, &printed),
            params,
            rows: layout.rows.iter().map(String::as_str).chain(unnamed).collect(),
            columns: layout.columns.iter().map(String::as_str).collect(),
            printed,
            lines,
        })
    }

    /// The tidy rows: every number, then the queries that the paper claims, then the comparison.
    pub(crate) fn rows(&self) -> Vec<ReportRow> {
        let numbers = self.lines.iter().map(|line| line.row(self.params));
        let queries = self.printed.iter().flat_map(|line| line.query_rows(self.params));
        let compared = self.contrasts.iter().chain(&self.diagonals);
        numbers.chain(queries).chain(compared.flat_map(|contrast| contrast.rows(self.params))).collect()
    }

    /// The whole report; `figures` is their section, `inputs` are what it was made from.
    pub(crate) fn markdown(&self, figures: &str, inputs: &[Input]) -> String {
        let params = self.params;
        let mut text =
            format!("# {}\n\n{}\n\n{}{}{}\n", params.title, params.analysis.trim(), TABLE[0], self.table(), TABLE[1]);
        text += figures;
        let _ = write!(text, "## Beside it\n\n{BESIDE}\n{}\n", self.details().markdown());
        let _ = write!(text, "## Queries per image\n\n{QUERIED}\n{}\n", self.queries().markdown());
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

    /// The printed table, the cross-fitted one where the best over some axes is taken, the comparison, and the notes.
    pub(crate) fn table(&self) -> String {
        let best = self.params.layout.best_over.join(", ");
        let mut text = format!("{}\n\n", self.caption());
        if best.is_empty() {
            text += &self.pivot(None).markdown();
        } else {
            let _ = write!(
                text,
                "Best {best} for the adversary, chosen on these same images (optimistic, as in the paper):\n\n"
            );
            text += &self.pivot(Some(Selection::Test)).markdown();
            let _ = write!(text, "\nCross-fitted: {best} chosen on every other image, judged on the rest:\n\n");
            text += &self.pivot(Some(Selection::HeldOut)).markdown();
        }
        for (about, grid) in self.comparisons() {
            let _ = write!(text, "\n{about}\n\n{}", grid.markdown());
        }
        if !self.params.notes.is_empty() {
            text += "\nNotes:\n\n";
            self.params.notes.iter().for_each(|note| text += &format!("- {}\n", line_of(note)));
        }
        text
    }

    /// The printed tables for a LaTeX document; the notes are comments.
    pub(crate) fn latex(&self) -> String {
        let selection = (!self.params.layout.best_over.is_empty()).then_some(Selection::Test);
        let mut text = format!("% {}: {}\n% Needs \\usepackage{{booktabs}}.\n", self.params.pipeline, self.caption());
        text += &self.pivot(selection).latex();
        for (about, grid) in self.comparisons() {
            let _ = write!(text, "\n% {}\n{}", line_of(&about), grid.latex());
        }
        self.params.notes.iter().for_each(|note| text += &format!("% {}\n", line_of(note)));
        text
    }

    /// What the printed numbers are; where cells are read differently, which ones are read how.
    fn caption(&self) -> String {
        let scale = &self.params.scale;
        let readings = self.readings();
        if let [(quantity, rule)] = readings[..] {
            let rule = self.votes(quantity, rule);
            return format!("{}, percent [95% interval], {rule}; scale {scale}.", title(quantity));
        }
        let mut text = format!("Percent [95% interval]; scale {scale}.");
        for (quantity, rule) in readings {
            let who = self.read_by(quantity, rule).join(", ");
            let _ = write!(text, " {}, {}: {who}.", title(quantity), self.votes(quantity, rule));
        }
        text
    }

    /// The different ways in which printed numbers are counted.
    fn readings(&self) -> Vec<(Quantity, &'a Rule)> {
        unique(self.printed.iter().map(|line| (line.quantity, &line.rule)))
    }

    /// A rule and the votes it reduces.
    fn votes(&self, quantity: Quantity, rule: &Rule) -> String {
        let read = self.printed.iter().filter(|line| (line.quantity, &line.rule) == (quantity, rule));
        let votes: BTreeSet<u32> = read.map(|line| line.votes).collect();
        let noun = if votes.iter().all(|&votes| votes == 1) { "vote" } else { "votes" };
        let votes: Vec<String> = votes.iter().map(u32::to_string).collect();
        format!("rule {} of {} {noun}", rule.name.name(), votes.join(" or "))
    }

    /// The protocols read this way, each with the rows it is true of unless it is true of all.
    fn read_by(&self, quantity: Quantity, rule: &Rule) -> Vec<String> {
        let read = |line: &&&Line| (line.quantity, &line.rule) == (quantity, rule);
        let of = |protocol: Protocol| self.printed.iter().filter(move |line| line.protocol == protocol);
        let name = |protocol: Protocol| {
            let rows = unique(of(protocol).filter(read).map(|line| labels(line, &self.rows).join(" ")));
            let all = of(protocol).all(|line| read(&line));
            let rows = if all { String::new() } else { format!(" of {}", rows.join(", ")) };
            format!("`{}`{rows}", protocol.name())
        };
        unique(self.printed.iter().filter(read).map(|line| line.protocol)).into_iter().map(name).collect()
    }

    fn pivot(&self, selection: Option<Selection>) -> Grid {
        let lines: Vec<&Line> = self.printed.iter().copied().filter(|line| line.selection == selection).collect();
        let sides = unique(lines.iter().map(|line| labels(line, &self.rows)));
        let tops = unique(lines.iter().map(|line| labels(line, &self.columns)));
        let only = match self.readings()[..] {
            [(quantity, _)] => title(quantity),
            _ => "percent",
        };
        let head = |top: &Vec<String>| if top.is_empty() { only.to_owned() } else { top.join(", ") };
        let place = |side: &Vec<String>, top: &Vec<String>| {
            let here =
                lines.iter().filter(|line| labels(line, &self.rows) == *side && labels(line, &self.columns) == *top);
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

    /// What tells a line from others in the tables beside the printed one: every axis, and the protocol unless an axis
    /// is called so.
    fn identities(&self) -> Vec<&'a str> {
        let best = self.params.layout.best_over.iter().map(String::as_str);
        let axes: Vec<&str> = self.rows.iter().chain(&self.columns).copied().chain(best).collect();
        let protocol = (!axes.contains(&PROTOCOL)).then_some(PROTOCOL);
        axes.into_iter().chain(protocol).collect()
    }

    fn identity(&self, line: &Line) -> Vec<String> {
        let of = |name: &&str| match line.at.get(*name) {
            None if *name == PROTOCOL => line.protocol.name().to_owned(),
            label => label.cloned().unwrap_or_default(),
        };
        self.identities().iter().map(of).collect()
    }

    /// One row per printed number: what it was counted from, and its baselines.
    fn details(&self) -> Grid {
        let (best, mixed) = (!self.params.layout.best_over.is_empty(), self.readings().len() > 1);
        let mut header = self.identities();
        header.extend(mixed.then_some(["number", "rule"]).into_iter().flatten());
        header.extend(best.then_some("chosen on"));
        let count = header.len();
        header.extend(["value", "counted", "zero", "noise", "benign", "paper", "difference"]);
        let row = |line: &&Line| {
            let mut cells = self.identity(line);
            if mixed {
                cells.push(line.quantity.name().to_owned());
                cells.push(self.votes(line.quantity, &line.rule).trim_start_matches("rule ").to_owned());
            }
            cells.extend(line.selection.map(chosen));
            cells.extend(self.detail(line));
            cells
        };
        let rows = self.printed.iter().map(row).collect();
        Grid { labels: count, header: header.into_iter().map(str::to_owned).collect(), rows }
    }

    fn detail(&self, line: &Line) -> [String; 7] {
        let difference = line.value.zip(line.paper).map(|(ours, paper)| signed(ours - paper));
        [
            interval(line),
            format!("{}/{}", line.numerator, line.denominator),
            percent(line.zero),
            percent(line.noise),
            percent(self.benign(line).and_then(|benign| benign.value)),
            percent(line.paper),
            difference.unwrap_or_else(|| "–".to_owned()),
        ]
    }

    /// What the attack of every printed number cost, beside what the paper says.
    fn queries(&self) -> Grid {
        let mut header = self.identities();
        let count = header.len();
        let claimed = self.params.paper.iter().any(is_about_queries);
        header.extend(["steps", "forward", "backward"]);
        header.extend(claimed.then_some(["paper's forward", "paper's backward"]).into_iter().flatten());
        let number = |number: Option<f64>| number.map_or_else(|| "–".to_owned(), round);
        let row = |line: &&Line| {
            let mut cells = self.identity(line);
            cells.push(line.step.map_or_else(|| "several".to_owned(), |step| step.to_string()));
            cells.extend([line.queries.map(|queries| queries.0), line.queries.map(|queries| queries.1)].map(number));
            if claimed {
                cells.extend(QUERIES.map(|name| number(claimed_queries(name, line, self.params))));
            }
            cells
        };
        let rows = self.printed.iter().filter(|line| line.selection != Some(Selection::HeldOut)).map(row).collect();
        Grid { labels: count, header: header.into_iter().map(str::to_owned).collect(), rows }
    }

    /// Every comparison, with what it says.
    fn comparisons(&self) -> Vec<(String, Grid)> {
        self.comparison().into_iter().chain(self.equal_strength()).collect()
    }

    /// The comparison of two points of one axis in every remaining cell.
    fn comparison(&self) -> Option<(String, Grid)> {
        let by = self.params.compare.as_ref().filter(|_| !self.contrasts.is_empty())?;
        let (base, other) = (&by.base, &by.other);
        let mut about = format!("`{other}` against `{base}`, {PAIRED}");
        if let Some(share) = by.share {
            about += &verdicts(&self.contrasts, &format!("`{other}`"), &format!("`{base}`"), share);
        }
        let axes: Vec<&str> =
            self.rows.iter().chain(&self.columns).copied().filter(|axis| **axis != *by.axis).collect();
        Some((about, self.contrasted(&self.contrasts, &axes, [base, other], by.share, false)))
    }

    /// The comparison of several draws per step with one, at as many gradients.
    fn equal_strength(&self) -> Option<(String, Grid)> {
        let by = self.params.equal_strength.as_ref().filter(|_| !self.diagonals.is_empty())?;
        let mut about = format!(
            "One draw per step against several, at as many gradients in all ({} x {}), {PAIRED}",
            by.steps, by.draws
        );
        if let Some(share) = by.share {
            about += &verdicts(&self.diagonals, "one draw", "the rate of several", share);
        }
        let placed = self.rows.iter().chain(&self.columns).copied();
        let axes: Vec<&str> = placed.filter(|&axis| axis != by.steps && axis != by.draws).collect();
        Some((about, self.contrasted(&self.diagonals, &axes, ["several draws", "one draw"], by.share, true)))
    }

    /// Comparisons as a table; `named`, each with the labels of its two.
    fn contrasted(
        &self,
        contrasts: &[Contrast<'_>],
        axes: &[&str],
        sides: [&str; 2],
        share: Option<f64>,
        named: bool,
    ) -> Grid {
        let mut header: Vec<&str> = axes.to_vec();
        header.extend(named.then_some(["several", "one"]).into_iter().flatten());
        header.extend((!self.params.layout.best_over.is_empty()).then_some("chosen on"));
        let labels = header.len();
        header.extend(["images", sides[0], sides[1], "difference", "p"]);
        header.extend(share.is_some().then_some(["margin", "claim"]).into_iter().flatten());
        let header = header.into_iter().map(str::to_owned).collect();
        Grid { labels, header, rows: contrasts.iter().map(|c| contrast(c, axes, named)).collect() }
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
            if matches!(line.quantity, Quantity::AttackSuccessRate | Quantity::AttackedError)
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
        let describe = |claim: &Claim| {
            let at: Vec<String> = claim.at.iter().map(|(axis, label)| format!("{axis} {label}")).collect();
            let at = if at.is_empty() { String::new() } else { format!(" at {}", at.join(", ")) };
            let (name, value, ours) = if is_about_queries(claim) { self.priced(claim) } else { self.measured(claim) };
            let ours =
                if ours.is_empty() { "not measured here".to_owned() } else { format!("ours {}", ours.join("; ")) };
            let note = if claim.note.is_empty() { String::new() } else { format!(" ({})", claim.note) };
            format!("{name}{at}: {value}{note}; {ours}.")
        };
        self.params.paper.iter().map(describe).collect()
    }

    /// A claimed rate: its name, the paper's and ours.
    fn measured(&self, claim: &Claim) -> (String, String, Vec<String>) {
        let found: Vec<&Line> = self.lines.iter().filter(|line| claims(claim, line, self.params)).collect();
        let names = unique(found.iter().map(|line| line.quantity.name())).join(" or ");
        let named = |line: &&Line| match line.selection {
            Some(Selection::HeldOut) => format!("cross-fitted {}", interval(line)),
            _ => interval(line),
        };
        let name = claim.quantity.clone().unwrap_or(names);
        let name = if name.is_empty() { "the printed number".to_owned() } else { name };
        (name, percent(Some(claim.value)), found.iter().map(named).collect())
    }

    /// A claimed number of queries: its name, the paper's and ours.
    fn priced(&self, claim: &Claim) -> (String, String, Vec<String>) {
        let name = claim.quantity.clone().unwrap_or_default();
        let about = self.printed.iter().filter(|line| concerns(claim, line, self.params));
        let ours = unique(about.filter_map(|line| line.queries_named(&name)).map(round));
        (name, round(claim.value), ours)
    }
}

/// How a claim about shares is put to the test, and how it fared.
fn verdicts(contrasts: &[Contrast<'_>], other: &str, base: &str, share: f64) -> String {
    let share = round(100.0 * share);
    let count = |verdict| contrasts.iter().filter(|contrast| contrast.verdict() == Some(verdict)).count();
    let [holds, fails, undecided] = [Verdict::Holds, Verdict::Fails, Verdict::Undecided].map(count);
    format!(
        " The claim is that {other} reaches at least {share}% of {base}: `margin` is the one less {share}% of the other; \
         the claim holds where its whole interval is at or above 0, fails where all of it is below, and is undecided \
         otherwise. Of {} comparisons it holds in {holds}, fails in {fails}, and is undecided in {undecided}.",
        contrasts.len()
    )
}

/// One row of a comparison.
fn contrast(contrast: &Contrast<'_>, axes: &[&str], named: bool) -> Vec<String> {
    let points = |estimate: Option<(f64, (f64, f64))>| match estimate {
        Some((value, (low, high))) => format!("{} [{}, {}]", signed(value), signed(low), signed(high)),
        None => "– (no images)".to_owned(),
    };
    let images = contrast.pairs.images();
    let rate = |hits: u64| percent((images > 0).then(|| hits as f64 / images as f64));
    let mut cells: Vec<String> =
        axes.iter().map(|axis| contrast.at.get(axis).copied().unwrap_or_default().to_owned()).collect();
    cells.extend(contrast.labels().iter().filter(|_| named).cloned());
    cells.extend(contrast.other.selection.map(chosen));
    cells.extend([
        images.to_string(),
        rate(contrast.pairs.both + contrast.pairs.second),
        rate(contrast.pairs.both + contrast.pairs.first),
        points(contrast.difference),
        p_value(contrast.p_value()),
    ]);
    if let Some(verdict) = contrast.verdict() {
        cells.extend([points(contrast.margin), verdict.name().to_owned()]);
    }
    cells
}

fn is_about_queries(claim: &Claim) -> bool {
    claim.quantity.as_deref().is_some_and(|name| QUERIES.contains(&name))
}

/// The paper's number of queries for a printed line.
fn claimed_queries(name: &str, line: &Line, params: &Params) -> Option<f64> {
    let about = |claim: &&Claim| claim.quantity.as_deref() == Some(name) && concerns(claim, line, params);
    params.paper.iter().find(about).map(|claim| claim.value)
}

const PROTOCOL: &str = "protocol";

const BESIDE: &str = "`zero` is the same rate with no perturbation at all, `noise` with uniform noise in the adversary's \
ball, both under fresh draws; `benign` is the accuracy before the attack, over all images; `difference` is ours less the \
paper's.\n";

const PAIRED: &str = "over the images that both count: `difference` in points [95% interval, Newcombe's method 10], and `p` \
of McNemar's exact test.";

const QUERIED: &str = "Evaluations of the network by the attack as counted while it ran, the mean over images; `forward` \
includes those of gradients, votes are counted apart.\n";

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

fn labels(line: &Line, axes: &[&str]) -> Vec<String> {
    axes.iter().map(|&axis| line.at.get(axis).cloned().unwrap_or_default()).collect()
}

fn chosen(selection: Selection) -> String {
    match selection {
        Selection::Test => "these images".to_owned(),
        Selection::HeldOut => "the other half".to_owned(),
    }
}

/// A text on one line.
fn line_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
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

/// A count per image: whole if it is whole, its thousands apart.
fn round(number: f64) -> String {
    let text = if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") };
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let digit = |(index, digit): (usize, char)| {
        let apart = index > 0 && (whole.len() - index).is_multiple_of(3);
        apart.then_some(',').into_iter().chain([digit])
    };
    whole.chars().enumerate().flat_map(digit).chain(rest.chars()).collect()
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "<0.001".to_owned() } else { format!("{p:.3}") }
}

/// A quantity's name for readers.
pub(crate) const fn title(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::BenignAccuracy => "Benign accuracy",
        Quantity::AttackSuccessRate => "Attack success rate",
        Quantity::CommonAttackSuccessRate => "Attack success rate (images that all count)",
        Quantity::AttackedError => "Attacked error (all images count)",
        Quantity::AttackedAccuracy => "Accuracy after the attack (all images count)",
        Quantity::SoftAttackSuccessRate => "Attack success rate of single draws",
        Quantity::RobustAccuracy => "Robust accuracy (right before and after)",
        Quantity::InvarianceRate => "Invariance rate (single draws answered as without the defense)",
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
        let rounded = [50.0, 999.0, 12.25, 30000.0, 1_234_567.5].map(round);
        assert_eq!(rounded, ["50", "999", "12.2", "30,000", "1,234,567.5"]);
        assert_eq!((p_value(0.0525), p_value(0.0002)), ("0.052".to_owned(), "<0.001".to_owned()));
    }
}

//! The numbers of a report: every quantity of every cell, and of the best over some axes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use artifact::ReportRow;
use serde_json::{Map, Value, json};
use stage::{Unfit, Usage};

use crate::{
    Cell, Claim, Layout, Params, Protocol, QUERIES, Quantity, Rule,
    data::Store,
    outcome::{After, Outcome, best, cross_fit, gradients, queries, rate},
};

/// How the point of the `best_over` axes was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// On the images it is judged on.
    Test,
    /// On the other half of the images.
    HeldOut,
}

impl Selection {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::HeldOut => "held-out",
        }
    }
}

/// One number with everything that is said about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// Axis to label.
    pub at: BTreeMap<String, String>,
    pub parameters: BTreeMap<String, Value>,
    pub protocol: Protocol,
    pub rule: Rule,
    /// Votes the rule reduces.
    pub votes: u32,
    /// Attack steps; none where several chosen cells differ.
    pub step: Option<u32>,
    /// Whether it is of the rule and the step that the printed table shows of its cell.
    pub own: bool,
    /// The quantity that the printed table shows of its cell.
    pub prints: Quantity,
    pub selection: Option<Selection>,
    pub quantity: Quantity,
    pub value: Option<f64>,
    pub interval: Option<(f64, f64)>,
    pub numerator: u64,
    pub denominator: u64,
    pub zero: Option<f64>,
    pub noise: Option<f64>,
    pub queries: Option<(f64, f64)>,
    pub zero_gradient: Option<f64>,
    pub non_finite: u64,
    pub paper: Option<f64>,
    /// Where the quantity is the one to print: the images it counts, and what it says about each, in order of ids.
    pub judged: Vec<(u32, bool)>,
}

/// All numbers, rule by rule (each cell's own first), group by group (cells that differ in the `best_over` axes only).
pub(crate) fn lines(params: &Params, store: &Store) -> Result<Vec<Line>> {
    let groups = groups(params);
    if let Some(group) = groups.iter().find(|group| group.iter().any(|cell| cell.reading != group[0].reading)) {
        let (axes, at) = (params.layout.best_over.join(", "), &group[0].at);
        let text = format!("the best over {axes} is taken of cells that are read alike, unlike those beside {at:?}");
        return Err(Usage(text).into());
    }
    let mut lines = Vec::new();
    let mut done = Vec::new();
    let rules = params.cells.iter().map(|cell| 1 + cell.reading.more_rules.len()).max().unwrap_or(0);
    for index in 0..rules {
        for (group, cells) in groups.iter().enumerate() {
            let reading = &cells[0].reading;
            let own = std::iter::once(&reading.rule);
            let Some(rule) = own.chain(&reading.more_rules).nth(index) else { continue };
            // The first of the votes is all of them where one was asked for: one rule, not two.
            let same = (group, rule.name, store.votes(cells[0], rule)?);
            if !done.contains(&same) {
                done.push(same);
                lines.extend(of_group(params, store, rule, cells)?);
            }
        }
    }
    for line in &mut lines {
        line.paper = params.paper.iter().find(|claim| claims(claim, line, params)).map(|claim| claim.value);
    }
    Ok(lines)
}

/// Whether this line is a number of the printed table.
pub(crate) fn printed(line: &Line, params: &Params) -> bool {
    line.own && line.quantity == line.prints && line.selection.is_some() != params.layout.best_over.is_empty()
}

/// Whether a claim is about this line's rate: the one it names, or the one that is printed.
pub(crate) fn claims(claim: &Claim, line: &Line, params: &Params) -> bool {
    let name = claim.quantity.as_deref().unwrap_or(line.prints.name());
    name == line.quantity.name() && concerns(claim, line, params)
}

/// Whether a claim is about this line's cell at the printed rule and step, and about the best where the best is taken,
/// unless the claim names one of the axes over which it is taken.
pub(crate) fn concerns(claim: &Claim, line: &Line, params: &Params) -> bool {
    let over = &params.layout.best_over;
    let best = !over.is_empty() && !over.iter().any(|axis| claim.at.contains_key(axis));
    line.own
        && line.selection.is_some() == best
        && claim.at.iter().all(|(axis, label)| line.at.get(axis) == Some(label))
}

fn groups(params: &Params) -> Vec<Vec<&Cell>> {
    let mut groups: Vec<(BTreeMap<&String, &String>, Vec<&Cell>)> = Vec::new();
    for cell in &params.cells {
        let key = cell.at.iter().filter(|(axis, _)| !params.layout.best_over.contains(axis)).collect();
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, cells)) => cells.push(cell),
            None => groups.push((key, vec![cell])),
        }
    }
    groups.into_iter().map(|(_, cells)| cells).collect()
}

fn of_group(params: &Params, store: &Store, rule: &Rule, cells: &[&Cell]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut candidates = Vec::new();
    let common = common(params, store, rule, cells[0])?;
    for &cell in cells {
        let steps = store.steps(cell)?;
        for &step in &steps {
            let images = store.outcomes(cell, step, rule)?;
            let last = Some(&step) == steps.last();
            let own = last && *rule == cell.reading.rule;
            let line = Draft {
                cell,
                rule,
                votes: store.votes(cell, rule)?,
                step: Some(step),
                own,
                selection: None,
                common: common.as_ref(),
            };
            lines.extend(line.quantities(&images));
            if last {
                candidates.push((step, images));
            }
        }
    }
    if params.layout.best_over.is_empty() {
        return Ok(lines);
    }
    let (steps, candidates): (Vec<u32>, Vec<Vec<Outcome>>) = candidates.into_iter().unzip();
    same_images(cells, &candidates)?;
    let votes = store.votes(cells[0], rule)?;
    let mut selected = |chosen: &[usize], images: &[Outcome], selection| {
        let cell = merge(cells, chosen);
        let step = chosen.iter().all(|&i| steps[i] == steps[chosen[0]]).then(|| steps[chosen[0]]);
        let own = *rule == cell.reading.rule;
        let draft = Draft { cell: &cell, rule, votes, step, own, selection: Some(selection), common: common.as_ref() };
        lines.extend(draft.quantities(images));
    };
    let value = cells[0].reading.value;
    let chosen = best(&candidates, value, |_| true);
    selected(&[chosen], &candidates[chosen], Selection::Test);
    let (images, chosen) = cross_fit(&candidates, value);
    selected(&chosen, &images, Selection::HeldOut);
    Ok(lines)
}

/// The images that count at every point of the layout's common axes; none where it has no such axes.
fn common(params: &Params, store: &Store, rule: &Rule, cell: &Cell) -> Result<Option<BTreeSet<u32>>> {
    let Layout { common, best_over, .. } = &params.layout;
    if common.is_empty() {
        return Ok(None);
    }
    let rest = |at: &BTreeMap<String, String>| -> Vec<(String, String)> {
        let kept = at.iter().filter(|(axis, _)| !common.contains(axis) && !best_over.contains(axis));
        kept.map(|(axis, label)| (axis.clone(), label.clone())).collect()
    };
    let mut all: Option<BTreeSet<u32>> = None;
    // The points over which the best is taken have one vote before the attack.
    let mut seen = BTreeSet::new();
    for other in params.cells.iter().filter(|other| rest(&other.at) == rest(&cell.at)) {
        if seen.insert(&other.none) {
            let counted = store.counted(other, rule)?;
            all = Some(all.map_or_else(|| counted.clone(), |all| &all & &counted));
        }
    }
    Ok(all)
}

fn same_images(cells: &[&Cell], candidates: &[Vec<Outcome>]) -> Result<(), Unfit> {
    for (cell, images) in cells.iter().zip(candidates) {
        if !images.iter().map(|image| image.id).eq(candidates[0].iter().map(|image| image.id)) {
            let (one, other) = (&cells[0].attack, &cell.attack);
            return Err(Unfit(format!("{one} and {other} hold different images; the best of them cannot be taken")));
        }
    }
    Ok(())
}

/// The chosen cells as one: labels side by side where they differ, parameters where they agree.
fn merge(cells: &[&Cell], chosen: &[usize]) -> Cell {
    let mut cell = cells[chosen[0]].clone();
    for &other in &chosen[1..] {
        let other = cells[other];
        for (axis, label) in &mut cell.at {
            if other.at.get(axis) != Some(label) {
                *label = format!("{label} | {}", other.at.get(axis).map_or("", String::as_str));
            }
        }
        cell.parameters.retain(|name, value| other.parameters.get(name) == Some(value));
    }
    cell
}

struct Draft<'a> {
    cell: &'a Cell,
    rule: &'a Rule,
    votes: u32,
    step: Option<u32>,
    own: bool,
    selection: Option<Selection>,
    /// The images of the common denominator.
    common: Option<&'a BTreeSet<u32>>,
}

impl Draft<'_> {
    fn quantities(&self, images: &[Outcome]) -> Vec<Line> {
        Quantity::ALL.into_iter().filter_map(|quantity| self.line(quantity, images)).collect()
    }

    fn line(&self, quantity: Quantity, images: &[Outcome]) -> Option<Line> {
        let shared: Vec<Outcome>;
        let images = if quantity == Quantity::CommonAttackSuccessRate {
            let common = self.common?;
            shared = images.iter().filter(|image| common.contains(&image.id)).copied().collect();
            &shared
        } else {
            images
        };
        let ours = rate(quantity, images, After::Attack)?;
        let attacked = !quantity.is_before();
        let baseline = |after| rate(quantity, images, after).filter(|_| attacked).and_then(|rate| rate.value());
        let (zero_gradient, non_finite) = gradients(images);
        let prints = self.cell.reading.value;
        let judged = |image: &Outcome| Some((image.id, image.judged(quantity, After::Attack)?));
        Some(Line {
            at: self.cell.at.clone(),
            parameters: self.cell.parameters.clone(),
            protocol: self.cell.protocol,
            rule: self.rule.clone(),
            votes: self.votes,
            step: self.step,
            own: self.own,
            prints,
            selection: self.selection,
            quantity,
            value: ours.value(),
            interval: ours.interval(),
            numerator: ours.numerator,
            denominator: ours.denominator,
            zero: baseline(After::Zero),
            noise: baseline(After::Noise),
            queries: queries(images).filter(|_| attacked),
            zero_gradient,
            non_finite,
            paper: None,
            judged: images.iter().filter(|_| self.own && quantity == prints).filter_map(judged).collect(),
        })
    }
}

impl Line {
    /// Evaluations per image, by the name of one of [`QUERIES`].
    pub(crate) fn queries_named(&self, name: &str) -> Option<f64> {
        let (forward, backward) = self.queries?;
        [forward, backward].into_iter().zip(QUERIES).find(|(_, known)| *known == name).map(|(queries, _)| queries)
    }

    /// The tidy rows of the queries of a printed line, where the paper claims some.
    pub(crate) fn query_rows(&self, params: &Params) -> Vec<ReportRow> {
        let row = |name: &&str| {
            let about = |claim: &&Claim| claim.quantity.as_deref() == Some(*name) && concerns(claim, self, params);
            Some(ReportRow {
                quantity: (*name).to_owned(),
                value: self.queries_named(name),
                low: None,
                high: None,
                numerator: None,
                denominator: None,
                baseline_zero: None,
                baseline_noise: None,
                paper: Some(params.paper.iter().find(about)?.value),
                ..self.row(params)
            })
        };
        QUERIES.iter().filter_map(row).collect()
    }

    /// The tidy row: labels of the axes, then every parameter of the cell, then rule, votes, step and selection.
    pub(crate) fn row(&self, params: &Params) -> ReportRow {
        let mut parameters: Map<String, Value> =
            self.at.iter().map(|(axis, label)| (axis.clone(), json!(label))).collect();
        parameters.extend(self.parameters.clone());
        parameters.insert("rule".to_owned(), json!(self.rule.name.name()));
        parameters.insert("votes".to_owned(), json!(self.votes));
        parameters.insert("step".to_owned(), json!(self.step));
        parameters.insert("selection".to_owned(), json!(self.selection.map(Selection::name)));
        ReportRow {
            pipeline: params.pipeline.clone(),
            scale: params.scale.clone(),
            protocol: self.protocol.name().to_owned(),
            quantity: self.quantity.name().to_owned(),
            parameters: Value::Object(parameters).to_string(),
            value: self.value,
            low: self.interval.map(|interval| interval.0),
            high: self.interval.map(|interval| interval.1),
            numerator: Some(self.numerator),
            denominator: Some(self.denominator),
            baseline_zero: self.zero,
            baseline_noise: self.noise,
            forward_queries: self.queries.map(|queries| queries.0),
            backward_queries: self.queries.map(|queries| queries.1),
            paper: self.paper,
        }
    }
}

//! The report of the closed forms: values, claims, findings. Every number in the prose is computed from the rows.

use std::{cmp::Ordering, fmt::Write as _};

use artifact::{ReportRow, TheoryRow};
use libm::erfc;
use serde_json::{Map, Value, json};
use stage::{Input, Unfit};

use crate::{
    Claim, Params,
    document::{trace, unique},
    figures::{self, Drawn},
    grid::Grid,
    splice::TABLE,
    theory_figure,
};

/// A claim of three digits is met to half a unit of the last one.
const ROUNDING: f64 = 5.001e-4;
const QUANTITIES: [&str; 4] = ["accuracy", "robustness", "joint", "invariance"];

/// A theory report's rows, seen from several sides.
#[derive(Debug)]
pub(crate) struct Theory<'a> {
    params: &'a Params,
    rows: &'a [TheoryRow],
}

impl<'a> Theory<'a> {
    pub(crate) fn new(params: &'a Params, rows: &'a [TheoryRow]) -> Result<Self, Unfit> {
        let theory = Self { params, rows };
        if theory.closed().next().is_none() {
            return Err(Unfit("the theory table holds no closed forms; delete it and make it again".to_owned()));
        }
        Ok(theory)
    }

    pub(crate) fn report_rows(&self) -> Vec<ReportRow> {
        self.rows.iter().map(|row| self.report_row(row)).collect()
    }

    fn report_row(&self, row: &TheoryRow) -> ReportRow {
        let votes = row.votes.map_or_else(|| json!("infinite"), |votes| json!(votes));
        let mut parameters = Map::new();
        parameters.insert("k".to_owned(), json!(row.k));
        parameters.insert("sigma".to_owned(), json!(row.sigma));
        parameters.insert("epsilon".to_owned(), json!(row.epsilon));
        parameters.insert("votes".to_owned(), votes);
        parameters.insert("method".to_owned(), json!(row.method));
        let counted = |samples: u64| (row.value * samples as f64).round() as u64;
        let closed = row.method == "closed-form";
        ReportRow {
            pipeline: self.params.pipeline.clone(),
            scale: self.params.scale.clone(),
            protocol: "corrected".to_owned(),
            quantity: row.quantity.clone(),
            parameters: Value::Object(parameters).to_string(),
            value: Some(row.value),
            low: row.low,
            high: row.high,
            numerator: row.samples.map(counted),
            denominator: row.samples,
            baseline_zero: None,
            baseline_noise: None,
            forward_queries: None,
            backward_queries: None,
            paper: self.params.paper.iter().find(|claim| closed && about(claim, row)).map(|claim| claim.value),
        }
    }

    pub(crate) fn markdown(&self, inputs: &[Input]) -> String {
        let mut text = format!("# {}\n\n{}\n\n", self.params.title, self.params.analysis.trim());
        let _ = writeln!(text, "{}{}{}", TABLE[0], self.table(), TABLE[1]);
        text += &figures::markdown(&self.figure().into_iter().collect::<Vec<_>>());
        let claims = self.claims();
        if !claims.rows.is_empty() {
            let _ = write!(text, "## The paper's claims\n\n{}\n", claims.markdown());
        }
        text += "## Findings\n\n";
        for finding in self.findings() {
            let _ = write!(text, "- {finding}\n\n");
        }
        if let Some(maps) = self.maps() {
            text += &maps;
        }
        text + &trace(inputs)
    }

    /// The closed forms, point by point.
    pub(crate) fn table(&self) -> String {
        "Closed forms; k is the trained shift of the boundary (– for the undefended classifier). Every point is in the data \
         files.\n\n"
            .to_owned()
            + &self.grid().markdown()
    }

    /// The figure at the first printed noise and budget.
    pub(crate) fn figure(&self) -> Option<Drawn> {
        let (sigma, epsilon, ..) = self.closed().map(point).find(|point| point.2.is_some() && self.prints(point))?;
        let caption = "Above: filled, right answers; dotted, right for every shift within the budget. Below: closed forms \
                       (lines) and simulations (rings).";
        Some(Drawn {
            stem: self.params.pipeline.clone(),
            title: "Densities and closed forms".to_owned(),
            caption: caption.to_owned(),
            picture: theory_figure::draw(self.rows, sigma, epsilon)?,
            rows: None,
            own: false,
        })
    }

    pub(crate) fn latex(&self) -> String {
        let source = format!("% {}, scale {}: closed forms", self.params.pipeline, self.params.scale);
        format!("{source}\n% Needs \\usepackage{{booktabs}}.\n{}", self.grid().latex())
    }

    fn closed(&self) -> impl Iterator<Item = &'a TheoryRow> {
        self.rows.iter().filter(|row| row.method == "closed-form" && QUANTITIES.contains(&row.quantity.as_str()))
    }

    fn of(&self, quantity: &'static str) -> impl Iterator<Item = &'a TheoryRow> {
        self.rows.iter().filter(move |row| row.method == "closed-form" && row.quantity == quantity)
    }

    fn grid(&self) -> Grid {
        let points = unique(self.closed().map(point).filter(|point| self.prints(point)));
        let header = ["sigma", "epsilon", "votes", "k"].into_iter().chain(QUANTITIES).map(str::to_owned).collect();
        let value = |at: Point, quantity: &'static str| {
            let row = self.of(quantity).find(|row| point(row) == at);
            row.map_or_else(|| "–".to_owned(), |row| format!("{:.6}", row.value))
        };
        let line = |at: &Point| {
            let labels = [at.0.to_string(), at.1.to_string(), votes_text(at), k_text(at.2)];
            labels.into_iter().chain(QUANTITIES.map(|quantity| value(*at, quantity))).collect()
        };
        Grid { labels: 4, header, rows: points.iter().map(line).collect() }
    }

    /// Whether a point is in the printed table: those at the noises and budgets of the paper's claims, if it has any.
    fn prints(&self, point: &Point) -> bool {
        let claimed = |name: &str, ours: f64| {
            let values: Vec<f64> =
                self.params.paper.iter().filter_map(|claim| claim.at.get(name)?.parse().ok()).collect();
            values.is_empty() || values.contains(&ours)
        };
        (point.2.is_none() || claimed("sigma", point.0)) && claimed("epsilon", point.1)
    }

    fn claims(&self) -> Grid {
        let header = ["quantity", "at", "paper", "ours", "verdict", "note"].map(str::to_owned).to_vec();
        let line = |claim: &Claim| {
            let ours = self.ours(claim);
            let at: Vec<String> = claim.at.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            let at = if claim.at.contains_key("k") { at } else { [vec!["undefended".to_owned()], at].concat() };
            let verdict = match ours {
                None => "not computed here",
                Some(row) if (row.value - claim.value).abs() <= ROUNDING => "agrees",
                Some(_) => "differs",
            };
            vec![
                claim.quantity.clone().unwrap_or_default(),
                at.join(", "),
                format!("{:.3}", claim.value),
                ours.map_or_else(|| "–".to_owned(), |row| format!("{:.6}", row.value)),
                verdict.to_owned(),
                claim.note.clone(),
            ]
        };
        Grid { labels: 2, header, rows: self.params.paper.iter().map(line).collect() }
    }

    fn ours(&self, claim: &Claim) -> Option<&'a TheoryRow> {
        self.closed().find(|row| about(claim, row))
    }

    fn findings(&self) -> Vec<String> {
        let mut findings: Vec<String> = self.params.paper.iter().filter_map(|claim| self.discrepancy(claim)).collect();
        findings.extend(self.joint());
        findings.extend(self.reach());
        findings.extend(self.less_noise());
        findings.extend(self.thresholds());
        findings.extend(self.overlay());
        findings
    }

    /// A claim that our value does not round to, and the point whose value it is.
    fn discrepancy(&self, claim: &Claim) -> Option<String> {
        let ours = self.ours(claim).filter(|row| (row.value - claim.value).abs() > ROUNDING)?;
        let head = format!(
            "The paper gives {:.1}% for the {} at {}; the closed form gives {:.1}%.",
            100.0 * claim.value,
            ours.quantity,
            describe(&point(ours)),
            100.0 * ours.value
        );
        let source = self.closed().filter(|row| row.quantity == ours.quantity && row.epsilon == ours.epsilon);
        let rounds = source.filter(|row| (row.value - claim.value).abs() <= ROUNDING);
        // Many votes come close to infinitely many: the limit is the simpler explanation.
        let explains = |row: &&TheoryRow| (row.votes.is_none(), -(row.value - claim.value).abs());
        let Some(nearest) = rounds.max_by(|a, b| explains(a).partial_cmp(&explains(b)).unwrap_or(Ordering::Equal))
        else {
            return Some(head);
        };
        let limit = 1.0 / (phi(0.0) + phi(2.0));
        let formula = if (nearest.value - limit).abs() < 1e-12 { ", which is 1/(Φ(0) + Φ(2))" } else { "" };
        Some(format!(
            "{head} The paper's number is the value at {}: {:.4}{formula}.",
            describe(&point(nearest)),
            nearest.value
        ))
    }

    /// At epsilon = 1 the unconditional robustness does not move.
    fn joint(&self) -> Option<String> {
        let rows: Vec<&TheoryRow> = self.of("joint").filter(|row| row.epsilon == 1.0).collect();
        let deviation = rows.iter().map(|row| (row.value - 0.5).abs()).reduce(f64::max)?;
        let verdict = if deviation < 1e-9 {
            "is one half everywhere: the conditional robustness is 1/(2 accuracy), and the whole trade-off at this \
             budget is carried by its denominator"
        } else {
            "is NOT one half everywhere"
        };
        Some(format!(
            "At epsilon = 1 the probability of being robust and right {verdict} (largest deviation {deviation:.1e} over {} \
             points of k, sigma and votes).",
            rows.len()
        ))
    }

    /// Lemma 2 and observation 3 on the map.
    fn reach(&self) -> Vec<String> {
        let rises: Vec<&TheoryRow> = self.of("robustness_rise").collect();
        let fails: Vec<&&TheoryRow> = rises.iter().filter(|row| rising(row)).collect();
        let mut findings = Vec::new();
        if !rises.is_empty() {
            let places: Vec<String> = fails.iter().map(|row| pair(row)).collect();
            let largest = fails.iter().map(|row| row.value).fold(0.0, f64::max);
            let places = if places.is_empty() {
                ".".to_owned()
            } else {
                format!("; it does not at (sigma, epsilon) = {} (largest rise {largest:.1e}).", places.join(", "))
            };
            let (falls, all) = (rises.len() - fails.len(), rises.len());
            findings.push(format!(
                "Lemma 2 (robustness falls while k rises from 0 to 1) is proven at sigma = epsilon = 1. On the map it holds \
                 at {falls} of {all} points{places}"
            ));
        }
        let gains: Vec<&TheoryRow> = self.of("robustness_gain").collect();
        let losses = gains.iter().filter(|row| row.value <= 0.0).count();
        if !gains.is_empty() {
            findings.push(format!(
                "Observation 3 (the trained classifier is more robust than the undefended one) fails at {losses} of {} points.",
                gains.len()
            ));
        }
        findings
    }

    /// Corollary 2's step: with less noise the trained classifier is less robust.
    fn less_noise(&self) -> Option<String> {
        // The undefended classifier does not depend on sigma: the gain moves as the robustness does.
        let gains: Vec<&TheoryRow> = self.of("robustness_gain").collect();
        let budgets = unique(gains.iter().map(|row| row.epsilon));
        let falls = |epsilon: f64| {
            let mut column: Vec<&&TheoryRow> = gains.iter().filter(|row| row.epsilon == epsilon).collect();
            column.sort_by(|a, b| a.sigma.total_cmp(&b.sigma));
            column.windows(2).all(|pair| pair[0].value <= pair[1].value)
        };
        let fails: Vec<String> = budgets.iter().filter(|&&budget| !falls(budget)).map(f64::to_string).collect();
        (!budgets.is_empty()).then(|| {
            let all = budgets.len();
            let verdict = if fails.is_empty() { "none".to_owned() } else { format!("epsilon = {}", fails.join(", ")) };
            format!(
                "Corollary 2's step (less noise makes the trained classifier less robust) fails for {} of \
                 {all} budgets on the map: {verdict}.",
                fails.len()
            )
        })
    }

    fn thresholds(&self) -> Option<String> {
        let at = |row: &TheoryRow| match row.value {
            0.0 => format!("any budget at sigma = {}", row.sigma),
            value => format!("budgets above {value:.4} at sigma = {}", row.sigma),
        };
        let texts: Vec<String> = self.of("robustness_threshold").map(at).collect();
        (!texts.is_empty()).then(|| {
            format!(
                "The trained classifier (k = 1, one draw) is more robust than the undefended one for {}; below, it is \
                 slightly less robust.",
                texts.join(", ")
            )
        })
    }

    /// How the simulation agrees.
    fn overlay(&self) -> Option<String> {
        let simulated: Vec<&TheoryRow> = self.rows.iter().filter(|row| row.method == "monte-carlo").collect();
        let errors: Vec<f64> = simulated.iter().filter_map(|row| self.standard_errors(row)).collect();
        let largest = errors.iter().copied().reduce(f64::max)?;
        let samples = simulated.iter().filter_map(|row| row.samples).max().unwrap_or(0);
        let far = errors.iter().filter(|&&error| error > 4.0).count();
        Some(format!(
            "The Monte-Carlo overlay ({samples} samples, {} values) is within {largest:.2} standard errors of the closed \
             forms; {far} values are beyond four.",
            errors.len()
        ))
    }

    fn standard_errors(&self, row: &TheoryRow) -> Option<f64> {
        let exact = self.closed().find(|other| other.quantity == row.quantity && point(other) == point(row))?.value;
        let error = (exact * (1.0 - exact) / row.samples? as f64).sqrt();
        Some(if error > 0.0 {
            (row.value - exact).abs() / error
        } else {
            f64::from(u8::from(row.value != exact)) * 9.0
        })
    }

    /// The sign maps, noise down and budget along.
    fn maps(&self) -> Option<String> {
        let lemma = self.map("robustness_rise", |row| {
            if rising(row) { format!("rises {:.1e}", row.value) } else { "falls".to_owned() }
        })?;
        let observation = self.map("robustness_gain", |row| format!("{:+.2e}", row.value))?;
        Some(format!(
            "## Where the lemmas hold\n\nDoes robustness fall as k goes from 0 to 1 (lemma 2)? Noise down, budget \
             along:\n\n{}\nRobustness of the trained classifier less that of the undefended one (observation 3 says \
             positive):\n\n{}\n",
            lemma.markdown(),
            observation.markdown()
        ))
    }

    fn map(&self, quantity: &'static str, show: impl Fn(&TheoryRow) -> String) -> Option<Grid> {
        let rows: Vec<&TheoryRow> = self.of(quantity).collect();
        let (sigmas, budgets) = (unique(rows.iter().map(|row| row.sigma)), unique(rows.iter().map(|row| row.epsilon)));
        let at = |sigma: f64, epsilon: f64| rows.iter().find(|row| row.sigma == sigma && row.epsilon == epsilon);
        let line = |&sigma: &f64| {
            let cells = budgets.iter().map(|&epsilon| at(sigma, epsilon).map_or_else(String::new, |row| show(row)));
            std::iter::once(sigma.to_string()).chain(cells).collect()
        };
        let header = std::iter::once("sigma \\ epsilon".to_owned()).chain(budgets.iter().map(f64::to_string)).collect();
        (!rows.is_empty()).then(|| Grid { labels: 1, header, rows: sigmas.iter().map(line).collect() })
    }
}

/// sigma, epsilon, k, votes.
type Point = (f64, f64, Option<f64>, Option<u32>);

const fn point(row: &TheoryRow) -> Point {
    (row.sigma, row.epsilon, row.k, row.votes)
}

fn k_text(k: Option<f64>) -> String {
    k.map_or_else(|| "–".to_owned(), |k| k.to_string())
}

fn votes_text(point: &Point) -> String {
    match (point.3, point.2) {
        (Some(votes), _) => votes.to_string(),
        (None, Some(_)) => "infinite".to_owned(),
        (None, None) => "–".to_owned(),
    }
}

fn describe(point: &Point) -> String {
    match point.2 {
        None => format!("epsilon = {}, undefended", point.1),
        Some(k) => {
            let votes = match point.3 {
                None => "infinitely many votes".to_owned(),
                Some(1) => "a single draw".to_owned(),
                Some(n) => format!("{n} votes"),
            };
            format!("k = {k}, sigma = {}, epsilon = {}, {votes}", point.0, point.1)
        }
    }
}

fn rising(row: &TheoryRow) -> bool {
    row.value > 1e-12
}

fn pair(row: &TheoryRow) -> String {
    format!("({}, {})", row.sigma, row.epsilon)
}

/// Whether a claim is about a closed form: without `k` the undefended classifier, without `votes` a single draw.
fn about(claim: &Claim, row: &TheoryRow) -> bool {
    let matches = |name: &str, ours: Option<f64>| match claim.at.get(name) {
        None => true,
        Some(text) => text.parse().ok() == ours && ours.is_some(),
    };
    let votes = match claim.at.get("votes").map(String::as_str) {
        _ if row.k.is_none() => true,
        None => row.votes == Some(1),
        Some("infinite") => row.votes.is_none(),
        Some(_) => matches("votes", row.votes.map(f64::from)),
    };
    claim.quantity.as_ref() == Some(&row.quantity)
        && claim.at.contains_key("k") == row.k.is_some()
        && matches("k", row.k)
        && (row.k.is_none() || matches("sigma", Some(row.sigma)))
        && matches("epsilon", Some(row.epsilon))
        && votes
}

/// The standard normal distribution function.
fn phi(z: f64) -> f64 {
    erfc(-z * std::f64::consts::FRAC_1_SQRT_2) / 2.0
}

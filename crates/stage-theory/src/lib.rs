//! The closed forms of the paper's binary Gaussian example (section 5), a Monte-Carlo overlay, and how far the lemmas
//! reach.

mod example;
mod monte_carlo;
mod quadrature;
mod scope;

use anyhow::{Result, ensure};
use artifact::{TheoryRow, Writer};
pub use example::{Example, Votes, undefended_accuracy, undefended_joint, undefended_robustness};
use game::wilson;
pub use monte_carlo::{Counts, simulate};
pub use scope::{robustness_gain, robustness_rise, robustness_threshold};
use serde::{Deserialize, Serialize};
use stage::{Context, Stage, Usage};

/// The points to evaluate: all combinations of the lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Standard deviations of the defense's noise, above 0.
    pub sigma: Vec<f64>,
    /// Budgets, at least 0.
    pub epsilon: Vec<f64>,
    /// Shifts of the decision boundary: 0 without trained invariance, 1 for the noise's mean.
    pub k: Vec<f64>,
    /// Numbers of votes, from 1, or `infinite`.
    pub votes: Vec<Votes>,
    /// Monte-Carlo samples of each point; 0 for none.
    pub samples: u64,
    /// Seed of the samples.
    pub seed: u64,
    /// Noises and budgets on which the lemmas' reach is mapped; null for no map.
    pub scope: Option<Scope>,
}

/// The grid on which the lemmas' reach is mapped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Standard deviations of the defense's noise, above 0.
    pub sigma: Vec<f64>,
    /// Budgets, above 0.
    pub epsilon: Vec<f64>,
}

impl Default for Params {
    /// The paper's assumption 4, sigma = epsilon = 1, at the shifts and votes of its figures.
    fn default() -> Self {
        Self {
            sigma: vec![1.0],
            epsilon: vec![1.0],
            k: vec![0.0, 0.25, 0.5, 0.75, 1.0],
            votes: [1, 3, 11, 101, 501].map(Votes::Finite).into_iter().chain([Votes::Infinite]).collect(),
            samples: 200_000,
            seed: 0,
            scope: Some(Scope {
                sigma: vec![0.1, 0.25, 0.3, 0.5, 0.7, 1.0, 2.0],
                epsilon: vec![0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0],
            }),
        }
    }
}

impl Params {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the parameter that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let scope = self.scope.as_ref();
        let sigmas = self.sigma.iter().chain(scope.iter().flat_map(|scope| &scope.sigma));
        let budgets = self.epsilon.iter().chain(scope.iter().flat_map(|scope| &scope.epsilon));
        for &sigma in sigmas {
            ensure!(sigma.is_finite() && sigma > 0.0, "sigma is {sigma}: give a standard deviation above 0");
        }
        for &epsilon in budgets {
            ensure!(epsilon.is_finite() && epsilon >= 0.0, "epsilon is {epsilon}: give a budget of at least 0");
        }
        for &k in &self.k {
            ensure!(k.is_finite(), "k is {k}: give a finite shift");
        }
        ensure!(!self.votes.contains(&Votes::Finite(0)), "votes hold 0: give numbers from 1, or \"infinite\"");
        Ok(())
    }

    fn points(&self) -> Vec<Example> {
        let mut points = Vec::new();
        for &sigma in &self.sigma {
            for &epsilon in &self.epsilon {
                for &k in &self.k {
                    points.extend(self.votes.iter().map(|&votes| Example { sigma, epsilon, k, votes }));
                }
            }
        }
        points
    }
}

/// The stage `theory`.
#[derive(Debug)]
pub struct Theory;

impl Stage for Theory {
    const NAME: &'static str = "theory";
    const REVISION: u32 = 1;
    const ABOUT: &'static str = "Closed forms of the binary Gaussian example, and a Monte-Carlo overlay";
    type Params = Params;
    type Row = TheoryRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<TheoryRow>) -> Result<()> {
        params.validate().map_err(|error| Usage(error.to_string()))?;
        let rows = rows(params);
        ctx.announce(&format!("{} values, {} Monte-Carlo samples", rows.len(), params.samples));
        let mine = |&(index, _): &(usize, TheoryRow)| ctx.shard.holds(index);
        let rows: Vec<TheoryRow> = rows.into_iter().enumerate().filter(mine).map(|(_, row)| row).collect();
        Ok(out.push(&rows)?)
    }
}

/// Every row of the table: the undefended classifier (sigma 0), the points in closed form and by simulation, the map.
#[must_use]
pub fn rows(params: &Params) -> Vec<TheoryRow> {
    let points = params.points();
    let undefended = params.epsilon.iter().flat_map(|&epsilon| undefended(epsilon));
    let closed = points.iter().flat_map(closed);
    let simulated = if params.samples == 0 { Vec::new() } else { simulate(&points, params.samples, params.seed) };
    let simulated = points.iter().zip(&simulated).flat_map(|(point, counts)| overlay(point, counts));
    let scope = params.scope.iter().flat_map(scope);
    undefended.chain(closed).chain(simulated).chain(scope).collect()
}

fn value(quantity: &str, k: Option<f64>, (sigma, epsilon): (f64, f64), votes: Option<u32>, value: f64) -> TheoryRow {
    let method = "closed-form".to_owned();
    TheoryRow {
        quantity: quantity.to_owned(),
        k,
        sigma,
        epsilon,
        votes,
        method,
        value,
        low: None,
        high: None,
        samples: None,
    }
}

fn undefended(epsilon: f64) -> Vec<TheoryRow> {
    let row = |quantity, number| value(quantity, None, (0.0, epsilon), None, number);
    vec![
        row("accuracy", undefended_accuracy()),
        row("robustness", undefended_robustness(epsilon)),
        row("joint", undefended_joint(epsilon)),
        row("invariance", 1.0),
    ]
}

fn closed(point: &Example) -> Vec<TheoryRow> {
    let at = (point.sigma, point.epsilon);
    let row = |quantity, number| value(quantity, Some(point.k), at, point.votes.finite(), number);
    vec![
        row("accuracy", point.accuracy()),
        row("robustness", point.robustness()),
        row("joint", point.joint()),
        row("invariance", point.invariance()),
    ]
}

fn overlay(point: &Example, counts: &Counts) -> Vec<TheoryRow> {
    let rate = |quantity, count: u64, of: u64| {
        let (low, high) = wilson(count, of);
        let row = value(
            quantity,
            Some(point.k),
            (point.sigma, point.epsilon),
            point.votes.finite(),
            count as f64 / of as f64,
        );
        TheoryRow { method: "monte-carlo".to_owned(), low: Some(low), high: Some(high), samples: Some(of), ..row }
    };
    let mut rows = vec![rate("accuracy", counts.right, counts.samples)];
    if counts.right > 0 {
        rows.push(rate("robustness", counts.robust, counts.right));
    }
    rows.push(rate("joint", counts.robust, counts.samples));
    rows.push(rate("invariance", counts.same, counts.samples));
    rows
}

/// The map, one draw and k = 1: `robustness_threshold` (whose epsilon is the threshold itself), `robustness_rise`, `robustness_gain`.
fn scope(scope: &Scope) -> Vec<TheoryRow> {
    let mut rows = Vec::new();
    for &sigma in &scope.sigma {
        let row = |quantity, epsilon, number| value(quantity, Some(1.0), (sigma, epsilon), Some(1), number);
        let threshold = robustness_threshold(sigma);
        rows.push(row("robustness_threshold", threshold, threshold));
        for &epsilon in &scope.epsilon {
            rows.push(row("robustness_rise", epsilon, robustness_rise(sigma, epsilon)));
            rows.push(row("robustness_gain", epsilon, robustness_gain(sigma, epsilon)));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_read_what_they_write_and_name_what_is_wrong() {
        let params = Params::default();
        let text = serde_json::to_string(&params).unwrap();
        assert_eq!(serde_json::from_str::<Params>(&text).unwrap(), params);
        assert!(text.contains(r#""votes":[1,3,11,101,501,"infinite"]"#), "{text}");
        let refused = |text: &str| match serde_json::from_str::<Params>(text) {
            Ok(params) => params.validate().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(refused(r#"{"votes": [0]}"#).contains("a number of votes from 1"));
        assert!(refused(r#"{"votes": ["many"]}"#).contains("\"infinite\""));
        assert!(refused(r#"{"sigma": [0.0]}"#).contains("sigma is 0"));
        assert!(refused(r#"{"epsilon": [-1.0]}"#).contains("epsilon is -1"));
        assert!(refused(r#"{"noise": 1}"#).contains("unknown field"));
    }

    #[test]
    fn the_table_holds_every_point_once_with_intervals_only_on_simulations() {
        let params = Params { samples: 500, ..Params::default() };
        let rows = rows(&params);
        // Undefended 4; 30 points times 4 in closed form and simulated; 7 thresholds and 49 map points of 2 values.
        assert_eq!(rows.len(), 4 + 120 + 120 + 7 + 98);
        for row in &rows {
            assert!(row.value.is_finite(), "{row:?}");
            assert_eq!(row.method == "monte-carlo", row.low.is_some() && row.high.is_some() && row.samples.is_some());
        }
        let keys: std::collections::BTreeSet<String> = rows
            .iter()
            .map(|row| {
                format!("{} {:?} {} {} {:?} {}", row.quantity, row.k, row.sigma, row.epsilon, row.votes, row.method)
            })
            .collect();
        assert_eq!(keys.len(), rows.len());
    }
}

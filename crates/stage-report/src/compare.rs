//! Two points of one axis, compared over the same images.

use std::collections::BTreeMap;

use artifact::ReportRow;
use game::{Pairs, mcnemar, paired_difference};
use serde_json::{Map, Value, json};

use crate::{
    Params,
    line::{Line, Selection},
};

/// What the interval of a claim's margin says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All of it is at or above 0.
    Holds,
    /// All of it is below 0.
    Fails,
    /// It is neither, or there is none.
    Undecided,
}

impl Verdict {
    const fn of(margin: Option<Estimate>) -> Self {
        match margin {
            Some((_, (low, _))) if low >= 0.0 => Self::Holds,
            Some((_, (_, high))) if high < 0.0 => Self::Fails,
            _ => Self::Undecided,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Undecided => "undecided",
        }
    }
}

/// A value and its 95% interval.
type Estimate = (f64, (f64, f64));

/// `other` against `base` in one of the remaining cells.
#[derive(Debug)]
pub(crate) struct Contrast<'a> {
    /// The axis in which the two differ, and their labels there.
    axis: &'a str,
    labels: [String; 2],
    share: Option<f64>,
    pub base: &'a Line,
    pub other: &'a Line,
    /// The remaining axes.
    pub at: BTreeMap<&'a str, &'a str>,
    /// `other` first, over the images that both count.
    pub pairs: Pairs,
    pub difference: Option<Estimate>,
    /// The margin of the claim, where there is one.
    pub margin: Option<Estimate>,
}

/// Every pair of printed numbers that differ in the compared axis alone.
pub(crate) fn contrasts<'a>(params: &'a Params, printed: &[&'a Line]) -> Vec<Contrast<'a>> {
    let Some(by) = &params.compare else { return Vec::new() };
    let over = |axis: &String| *axis == by.axis || params.layout.best_over.contains(axis);
    let is = |line: &Line, label: &String| line.at.get(&by.axis) == Some(label);
    let pair = |&base: &&'a Line| {
        let same = |other: &&'a Line| at(base, over) == at(other, over) && base.selection == other.selection;
        let other = printed.iter().copied().filter(|line| is(line, &by.other)).find(same)?;
        let labels = [by.base.clone(), by.other.clone()];
        Some(Contrast::new((&by.axis, labels, by.share), base, other, at(base, over)))
    };
    printed.iter().filter(|line| is(line, &by.base)).filter_map(pair).collect()
}

/// Every printed number of several draws per step against that of one draw for as many gradients.
pub(crate) fn diagonals<'a>(params: &'a Params, printed: &[&'a Line]) -> Vec<Contrast<'a>> {
    let Some(by) = &params.equal_strength else { return Vec::new() };
    let over = |axis: &String| [&by.steps, &by.draws].contains(&axis) || params.layout.best_over.contains(axis);
    let count = |line: &Line, axis: &String| line.at.get(axis).and_then(|label| label.parse::<u64>().ok());
    let pair = |&base: &&'a Line| {
        let (steps, draws) = (count(base, &by.steps)?, count(base, &by.draws).filter(|&draws| draws > 1)?);
        let same = |other: &&'a Line| {
            (count(other, &by.steps), count(other, &by.draws)) == (Some(steps * draws), Some(1))
                && at(base, over) == at(other, over)
                && base.selection == other.selection
        };
        let other = printed.iter().copied().find(same)?;
        let labels = [format!("{steps} x {draws}"), format!("{} x 1", steps * draws)];
        Some(Contrast::new(("equal strength", labels, by.share), base, other, at(base, over)))
    };
    printed.iter().filter_map(pair).collect()
}

/// The labels of a line but for some axes.
fn at(line: &Line, but: impl Fn(&String) -> bool) -> BTreeMap<&str, &str> {
    let kept = line.at.iter().filter(|(axis, _)| !but(axis));
    kept.map(|(axis, label)| (axis.as_str(), label.as_str())).collect()
}

impl<'a> Contrast<'a> {
    fn new(
        (axis, labels, share): (&'a str, [String; 2], Option<f64>),
        base: &'a Line,
        other: &'a Line,
        at: BTreeMap<&'a str, &'a str>,
    ) -> Self {
        let theirs: BTreeMap<u32, bool> = base.judged.iter().copied().collect();
        let both = other.judged.iter().filter_map(|(id, ours)| Some((*ours, *theirs.get(id)?)));
        let pairs = Pairs::count(both);
        let margin = share.and_then(|share| paired_difference(pairs, share));
        Self { axis, labels, share, base, other, at, pairs, difference: paired_difference(pairs, 1.0), margin }
    }

    /// The labels of the two, base first.
    pub(crate) const fn labels(&self) -> &[String; 2] {
        &self.labels
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.share.map(|_| Verdict::of(self.margin))
    }

    pub(crate) fn p_value(&self) -> f64 {
        mcnemar(self.pairs)
    }

    /// The tidy rows: `<quantity>_difference` and, where something is claimed, `<quantity>_share_margin`. The numerator
    /// counts the images on which the two differ, the denominator those that both count.
    pub(crate) fn rows(&self, params: &Params) -> Vec<ReportRow> {
        let mut parameters: Map<String, Value> =
            self.at.iter().map(|(&axis, &label)| (axis.to_owned(), json!(label))).collect();
        parameters.extend([
            ("rule".to_owned(), json!(self.other.rule.name.name())),
            ("selection".to_owned(), json!(self.other.selection.map(Selection::name))),
            ("compare.axis".to_owned(), json!(self.axis)),
            ("compare.base".to_owned(), json!(self.labels[0])),
            ("compare.other".to_owned(), json!(self.labels[1])),
            ("both".to_owned(), json!(self.pairs.both)),
            ("base_only".to_owned(), json!(self.pairs.second)),
            ("other_only".to_owned(), json!(self.pairs.first)),
            ("neither".to_owned(), json!(self.pairs.neither)),
            ("p_value".to_owned(), json!(self.p_value())),
        ]);
        let paper = |share: f64| Some(self.other.paper? - share * self.base.paper?);
        let mut rows = vec![self.row(params, "difference", self.difference, &parameters, paper(1.0))];
        if let (Some(share), Some(verdict)) = (self.share, self.verdict()) {
            parameters.insert("compare.share".to_owned(), json!(share));
            parameters.insert("verdict".to_owned(), json!(verdict.name()));
            rows.push(self.row(params, "share_margin", self.margin, &parameters, paper(share)));
        }
        rows
    }

    fn row(
        &self,
        params: &Params,
        what: &str,
        estimate: Option<Estimate>,
        parameters: &Map<String, Value>,
        paper: Option<f64>,
    ) -> ReportRow {
        ReportRow {
            pipeline: params.pipeline.clone(),
            scale: params.scale.clone(),
            protocol: self.other.protocol.name().to_owned(),
            quantity: format!("{}_{what}", self.other.quantity.name()),
            parameters: Value::Object(parameters.clone()).to_string(),
            value: estimate.map(|(value, _)| value),
            low: estimate.map(|(_, (low, _))| low),
            high: estimate.map(|(_, (_, high))| high),
            numerator: Some(self.pairs.first + self.pairs.second),
            denominator: Some(self.pairs.images()),
            baseline_zero: None,
            baseline_noise: None,
            forward_queries: None,
            backward_queries: None,
            paper,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_the_whole_interval_on_one_side() {
        let verdict = |low: f64, high: f64| Verdict::of(Some((f64::midpoint(low, high), (low, high))));
        assert_eq!(verdict(0.0, 0.1), Verdict::Holds);
        assert_eq!(verdict(-0.01, 0.1), Verdict::Undecided);
        assert_eq!(verdict(-0.2, 0.0), Verdict::Undecided);
        assert_eq!(verdict(-0.2, -0.01), Verdict::Fails);
        assert_eq!(Verdict::of(None), Verdict::Undecided);
    }
}

//! From the report's lines to the places of a figure.

use std::collections::{BTreeMap, BTreeSet};

use stage::{Unfit, Usage};

use super::{Figure, MORE_AXES};
use crate::{
    Cell, Params, Quantity,
    data::Store,
    document::{title as named, unique},
    line::{Line, Selection},
};

/// A figure to draw, and what it may draw.
pub(super) struct Request<'a> {
    pub figure: &'a Figure,
    pub params: &'a Params,
    pub store: &'a Store,
    pub lines: &'a [Line],
}

/// Labels of a few axes: one place.
pub(super) type Key = Vec<String>;

/// Whatever has labels of axes.
pub(super) trait Labelled {
    fn label(&self, axis: &str) -> Option<&str>;
}

impl Labelled for Line {
    fn label(&self, axis: &str) -> Option<&str> {
        self.at.get(axis).map(String::as_str).or(match axis {
            "quantity" => Some(self.quantity.name()),
            "selection" => self.selection.map(Selection::name),
            "protocol" => Some(self.protocol.name()),
            _ => None,
        })
    }
}

impl Labelled for Cell {
    fn label(&self, axis: &str) -> Option<&str> {
        self.at.get(axis).map(String::as_str).or((axis == "protocol").then_some(self.protocol.name()))
    }
}

/// The labels of these axes; empty where there is none.
pub(super) fn key(item: &impl Labelled, axes: &[String]) -> Key {
    axes.iter().map(|axis| item.label(axis).unwrap_or_default().to_owned()).collect()
}

/// A label for readers; a bare number is told what it is of.
pub(super) fn shown(axis: &str, label: &str) -> String {
    let quantity = || Quantity::ALL.into_iter().find(|quantity| quantity.name() == label);
    match axis {
        "quantity" => quantity().map_or(label, |quantity| named(quantity)).to_owned(),
        "selection" if label == Selection::Test.name() => "best on these images".to_owned(),
        "selection" if label == Selection::HeldOut.name() => "best, cross-fitted".to_owned(),
        _ if number(label).is_some() => format!("{} = {label}", axis.replace('_', " ")),
        _ => label.to_owned(),
    }
}

/// Several labels for readers.
pub(super) fn title(axes: &[String], key: &Key) -> String {
    let parts: Vec<String> = axes.iter().zip(key).map(|(axis, label)| shown(axis, label)).collect();
    parts.join(", ")
}

/// The names of axes for readers.
pub(super) fn names(axes: &[String]) -> String {
    axes.iter().map(|axis| axis.replace('_', " ")).collect::<Vec<_>>().join(", ")
}

/// The number that a label is: `0.25`, `-3`, `8/255`.
pub(super) fn number(label: &str) -> Option<f64> {
    let plain = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    match label.split_once('/') {
        Some((above, below)) => Some(plain(above)? / plain(below).filter(|&below| below != 0.0)?),
        None => plain(label),
    }
}

impl<'a> Request<'a> {
    /// Fails where the figure names an axis that there is not.
    pub(super) fn check(&self) -> Result<(), Usage> {
        let axes = unique(self.params.cells.iter().flat_map(|cell| cell.at.keys().map(String::as_str)));
        let mut named = self.figure.places().into_iter().chain(self.figure.only.keys().map(String::as_str));
        match named.find(|axis| !axes.contains(axis) && !MORE_AXES.contains(axis)) {
            Some(axis) if !self.params.cells.is_empty() => {
                Err(self.refuse(&format!("there is no axis `{axis}`; there are {axes:?} and {MORE_AXES:?}")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn refuse(&self, why: &str) -> Usage {
        Usage(format!("{}: figure `{}`: {why}", self.params.pipeline, self.figure.name))
    }

    fn keeps(&self, item: &impl Labelled) -> bool {
        // The best of all points is no less the best where a few of them are shown.
        let best = |axis: &String| item.label("selection").is_some() && self.params.layout.best_over.contains(axis);
        let kept = |(axis, labels): (&String, &Vec<String>)| {
            best(axis) || item.label(axis).is_none_or(|label| labels.iter().any(|kept| kept == label))
        };
        self.figure.only.iter().all(kept)
    }

    /// The cells that the figure is about.
    pub(super) fn cells(&self) -> Vec<&'a Cell> {
        self.params.cells.iter().filter(|cell| self.keeps(*cell)).collect()
    }

    /// The ids of all images of these cells, ascending.
    pub(super) fn images(&self, cells: &[&Cell]) -> Result<Vec<u32>, Unfit> {
        let mut ids = BTreeSet::new();
        for cell in cells {
            ids.extend(self.store.folder(&cell.attack)?.rows.iter().map(|row| row.id));
        }
        Ok(ids.into_iter().collect())
    }

    /// Whether the figure shows the points of the report's `best_over` one by one.
    fn one_by_one(&self) -> bool {
        let over = &self.params.layout.best_over;
        let places = self.figure.places();
        over.is_empty()
            || over.iter().any(|axis| places.contains(&axis.as_str()) || self.figure.only.contains_key(axis))
    }

    /// The printed rule's numbers of these quantities: of the points one by one or of the best, as the figure asks.
    pub(super) fn numbers(&self, quantities: &[Quantity]) -> Vec<&'a Line> {
        let one_by_one = self.one_by_one();
        self.lines(quantities).filter(|line| line.own && line.selection.is_none() == one_by_one).collect()
    }

    /// The numbers of the best over the report's `best_over`.
    pub(super) fn best(&self, quantity: Quantity) -> Vec<&'a Line> {
        let keeps = |line: &&Line| line.own && line.selection.is_some();
        self.lines(&[quantity]).filter(keeps).collect()
    }

    /// The numbers of a quantity at every snapshot, by the rule that is printed of their cell.
    pub(super) fn snapshots(&self, quantity: Quantity) -> Vec<&'a Line> {
        let rules: BTreeMap<_, _> = self.params.cells.iter().map(|cell| (&cell.at, &cell.reading.rule)).collect();
        let printed = |line: &&Line| line.selection.is_none() && rules.get(&line.at) == Some(&&line.rule);
        self.lines(&[quantity]).filter(printed).collect()
    }

    /// Everything about these quantities of the cells that the figure is about.
    fn lines(&self, quantities: &[Quantity]) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(|line| quantities.contains(&line.quantity) && self.keeps(*line))
    }

    /// The one of these that stands in a place; fails where there are several.
    pub(super) fn single<T: Labelled>(&self, mut here: impl Iterator<Item = T>) -> Result<Option<T>, Usage> {
        let first = here.next();
        match (&first, here.next()) {
            (Some(one), Some(other)) => Err(self.crowded(one, &other)),
            _ => Ok(first),
        }
    }

    /// The message for two numbers in one place.
    pub(super) fn crowded(&self, one: &impl Labelled, other: &impl Labelled) -> Usage {
        let axes = self.params.cells.iter().flat_map(|cell| cell.at.keys().map(String::as_str)).chain(MORE_AXES);
        let differ: Vec<String> = unique(axes.filter(|axis| one.label(axis) != other.label(axis)))
            .into_iter()
            .map(|axis| {
                let label = |label: Option<&str>| label.unwrap_or("–").to_owned();
                format!("`{axis}` ({} and {})", label(one.label(axis)), label(other.label(axis)))
            })
            .collect();
        let differ = if differ.is_empty() { "no axis".to_owned() } else { differ.join(", ") };
        self.refuse(&format!(
            "two numbers would stand in one place; they differ in {differ}: give that a place, or fix it with `only`"
        ))
    }
}

impl<T: Labelled> Labelled for &T {
    fn label(&self, axis: &str) -> Option<&str> {
        (**self).label(axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_numbers_or_words() {
        assert_eq!((number("0.25"), number("8/255"), number("-3")), (Some(0.25), Some(8.0 / 255.0), Some(-3.0)));
        assert_eq!((number("PGD-50"), number("1/0"), number("inf"), number("a/b")), (None, None, None, None));
        assert_eq!(shown("step_size", "1/255"), "step size = 1/255");
        assert_eq!(shown("goal", "untargeted"), "untargeted");
        assert_eq!(shown("selection", "held-out"), "best, cross-fitted");
    }
}

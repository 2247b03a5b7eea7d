//! Figures of a pipeline file, checked before anything is computed for them.

use serde_json::Value;
use stage_report::{Cell, Figure, FigureKind, HeatMap, MORE_AXES, Protocol, Quantity};

use crate::file::{Point, unknown};

/// Fails where a figure's name makes no file, or where it names an axis or a label that the pipeline does not have.
///
/// # Errors
/// With the figure, what is wrong, and what would be accepted.
pub fn check(figures: &[Figure], axes: &[(String, Vec<Point>)], best_over: &[String]) -> Result<(), String> {
    for (index, figure) in figures.iter().enumerate() {
        let wrong = |reason: String| Err(format!("figure `{}`: {reason}", figure.name));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if figure.name.is_empty() || !figure.name.chars().all(plain) {
            return wrong("name it with lower-case letters, digits and `-`: it becomes a file".to_owned());
        }
        if figures[..index].iter().any(|other| other.name == figure.name) {
            return wrong("a second figure of this name".to_owned());
        }
        check_axes(figure, axes).or_else(wrong)?;
        if let FigureKind::HeatMap(HeatMap { best: true, .. }) = figure.kind
            && best_over.is_empty()
        {
            return wrong("`best` needs axes in the report's best_over".to_owned());
        }
    }
    Ok(())
}

/// Fails where a figure shows what the cells will not keep.
///
/// # Errors
/// With the figure, and what to set.
pub fn check_cells(figures: &[Figure], cells: &[Cell]) -> Result<(), String> {
    for figure in figures.iter().filter(|figure| matches!(figure.kind, FigureKind::Perturbations(_))) {
        let shown = |cell: &&Cell| {
            let kept = |(axis, labels): (&String, &Vec<String>)| cell.at.get(axis).is_none_or(|at| labels.contains(at));
            figure.only.iter().all(kept)
        };
        if cells.iter().filter(shown).any(|cell| cell.parameters.get("keep_delta") != Some(&Value::Bool(true))) {
            return Err(format!(
                "report: figure `{}`: perturbations are not kept; set `keep_delta = true` for its cells",
                figure.name
            ));
        }
    }
    Ok(())
}

fn check_axes(figure: &Figure, axes: &[(String, Vec<Point>)]) -> Result<(), String> {
    let names: Vec<&str> = axes.iter().map(|(name, _)| name.as_str()).chain(MORE_AXES).collect();
    let places = figure.places();
    for (index, axis) in places.iter().enumerate() {
        if !names.contains(axis) {
            return Err(unknown("axis", axis, &names));
        }
        if places[..index].contains(axis) {
            return Err(format!("the axis `{axis}` stands in two places"));
        }
    }
    for (axis, kept) in &figure.only {
        let labels = labels(axis, axes).ok_or_else(|| unknown("axis", axis, &names))?;
        if let Some(label) = kept.iter().find(|label| !labels.contains(&label.as_str())) {
            return Err(format!("only.{axis}: {}", unknown("label", label, &labels)));
        }
    }
    Ok(())
}

/// The labels of an axis, of the cells' first; none if there is no such axis.
fn labels<'a>(axis: &str, axes: &'a [(String, Vec<Point>)]) -> Option<Vec<&'a str>> {
    if let Some((_, points)) = axes.iter().find(|(name, _)| name == axis) {
        return Some(points.iter().map(|point| point.label.as_str()).collect());
    }
    let protocols = [Protocol::PaperText, Protocol::AuthorsCode, Protocol::Corrected];
    match axis {
        "quantity" => Some(Quantity::ALL.map(Quantity::name).to_vec()),
        "selection" => Some(vec!["test", "held-out"]),
        "protocol" => Some(protocols.map(Protocol::name).to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::file::Table;

    fn figures(text: &str) -> Result<Vec<Figure>, String> {
        let file: BTreeMap<String, Vec<Figure>> = toml::from_str(text).map_err(|error| error.to_string())?;
        Ok(file["figure"].clone())
    }

    fn axes() -> Vec<(String, Vec<Point>)> {
        let axis = |name: &str, labels: &[&str]| {
            let point = |label: &&str| Point { label: (*label).to_owned(), changes: Table::new() };
            (name.to_owned(), labels.iter().map(point).collect())
        };
        vec![axis("m", &["1", "10"]), axis("k", &["10", "100"]), axis("step_size", &["1/255"])]
    }

    const MAP: &str = r#"
        [[figure]]
        name = "grid"
        title = "Steps against draws"
        kind = "heat-map"
        rows = ["m"]
        columns = ["k"]
        panels = ["step_size"]
        best = true
        only = { k = ["10"], selection = ["test"] }
    "#;

    #[test]
    fn a_figure_that_fits_is_accepted() {
        let figure = figures(MAP).unwrap();
        assert_eq!(figure[0].places(), ["m", "k", "step_size"]);
        check(&figure, &axes(), &["step_size".to_owned()]).unwrap();
        // As the report reads it.
        assert_eq!(serde_json::from_value::<Figure>(json!(figure[0])).unwrap(), figure[0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_accepted_names() {
        let best_over = ["step_size".to_owned()];
        let refused = |from: &str, to: &str| {
            assert!(MAP.contains(from), "{from}");
            figures(&MAP.replace(from, to)).and_then(|figures| check(&figures, &axes(), &best_over)).unwrap_err()
        };
        let unknown = refused("rows = [\"m\"]", "rows = [\"mm\"]");
        assert!(
            unknown.contains("figure `grid`: unknown axis `mm`, expected one of `m`, `k`, `step_size`"),
            "{unknown}"
        );
        assert!(refused("rows = [\"m\"]", "rows = [\"k\"]").contains("`k` stands in two places"));
        assert!(refused("k = [\"10\"]", "k = [\"7\"]").contains("only.k: unknown label `7`, expected one of `10`"));
        assert!(refused("[\"test\"]", "[\"best\"]").contains("expected one of `test`, `held-out`"));
        assert!(refused("\"grid\"", "\"Grid 1\"").contains("it becomes a file"));
        let typo = refused("panels =", "panel =");
        assert!(typo.contains("unknown field `panel`") && typo.contains("`panels`"), "{typo}");
        assert!(refused("heat-map", "heatmap").contains("unknown variant `heatmap`"));
        assert!(check(&figures(MAP).unwrap(), &axes(), &[]).unwrap_err().contains("best_over"));
        let twice = figures(&format!("{MAP}{MAP}")).unwrap();
        assert!(check(&twice, &axes(), &best_over).unwrap_err().contains("a second figure of this name"));
    }

    #[test]
    fn perturbations_must_be_kept() {
        let figure = figures(
            "[[figure]]\nname = \"d\"\ntitle = \"t\"\nkind = \"perturbations\"\nimages = [0]\nonly = { m = [\"1\"] }",
        )
        .unwrap();
        let cell = |m: &str, kept: bool| -> Cell {
            let text = json!({"at": {"m": m}, "parameters": {"keep_delta": kept}, "protocol": "corrected", "attack": "a",
                              "none": "n", "noise": "u", "finetune": "f"});
            serde_json::from_value(text).unwrap()
        };
        check_cells(&figure, &[cell("1", true), cell("10", false)]).unwrap();
        assert!(check_cells(&figure, &[cell("1", false)]).unwrap_err().contains("set `keep_delta = true`"));
    }
}

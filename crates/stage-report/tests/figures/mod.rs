//! Figures of the made-up study: three networks, one of them dead, under attacks of several strengths.

use std::{collections::BTreeSet, fs};

use super::*;

const NETWORKS: [&str; 3] = ["whole", "dead", "again"];
const SIZES: [&str; 2] = ["1/255", "2/255"];
const EPS: f32 = 8.0 / 255.0;

/// How many of the 8 images fall, the first ones, by draws, steps and step size.
fn fallen(m: u32, k: u32, size: &str) -> u32 {
    match (m, k, size) {
        (1, 10, "1/255") => 1,
        (1, 100, "1/255") => 4,
        (1, 10, _) => 2,
        (1, 100, _) => 3,
        (5, 10, "1/255") => 3,
        (5, 100, "1/255") => 6,
        (5, 10, _) => 5,
        _ => 8,
    }
}

fn right(wrong: u32) -> Right {
    std::array::from_fn(|id| if (id as u32) < wrong { 0 } else { 3 })
}

/// A perturbation of 4 x 4 pixels: even at first, a chequerboard later; images from 4 on keep none.
fn delta(id: u32, step: u32) -> Option<Vec<f32>> {
    let sign = |i: usize| if step == 100 && (i / 4 + i % 4) % 2 == 1 { -1.0 } else { 1.0 };
    (id < 4).then(|| (0..16).map(|i| EPS * sign(i)).collect())
}

fn study(name: &str, figures: Value) -> (Params, Context) {
    let parameters = |attack: &str, network: &str| {
        let mut parameters = parameters(attack, false);
        parameters["attack"]["eps"] = json!("8/255");
        parameters["network"] = json!(network);
        parameters
    };
    let rows = |phase: &str, step: u32, right: Right| -> Vec<AttackRow> {
        (0..IMAGES)
            .map(|id| AttackRow { delta: delta(id, step), ..votes(id, phase, step, None, right[id as usize]) })
            .collect()
    };
    let (mut inputs, mut cells) = (Vec::new(), Vec::new());
    for network in NETWORKS {
        let folder = |attack: &str| format!("{name}/attack/{attack}--{network}");
        let before = if network == "dead" { right(8) } else { right(0) };
        let none = [rows("before", 0, before), rows("after", 0, before)].concat();
        inputs.extend(write(&folder("none"), &parameters("none", network), &[none]));
        inputs.extend(write(&folder("noise"), &parameters("uniform-noise", network), &[rows("after", 0, before)]));
        for (m, size) in [1, 5].into_iter().flat_map(|m| SIZES.map(|size| (m, size))) {
            let pgd = folder(&format!("pgd-{m}-{}", &size[..1]));
            let snapshots = [10, 100].map(|k| rows("after", k, right(fallen(m, k, size)))).concat();
            inputs.extend(write(&pgd, &parameters("pgd", network), &[snapshots]));
            cells.extend([10, 100].map(|k| {
                json!({
                    "at": {"network": network, "m": m.to_string(), "k": k.to_string(), "step_size": size},
                    "parameters": {"attack.eot.draws": m}, "protocol": "corrected", "attack": pgd, "step": k,
                    "none": folder("none"), "noise": folder("noise"), "finetune": "finetune/x",
                })
            }));
        }
    }
    let params = json!({
        "pipeline": "study", "scale": "demo", "title": "Study", "analysis": "",
        "layout": {"rows": ["network", "m"], "columns": ["k"], "best_over": ["step_size"]},
        "cells": cells, "figures": figures,
        "paper": [{"at": {"network": "whole", "m": "1", "k": "100", "step_size": "1/255"}, "value": 0.75}],
    });
    let mut ctx = Context::new(format!("{name}/report/study.parquet"));
    ctx.inputs = inputs;
    (serde_json::from_value(params).unwrap(), ctx)
}

fn every_kind() -> Value {
    let one = json!({"m": ["1"], "step_size": ["1/255"]});
    json!([
        {"name": "map", "title": "Steps & draws", "kind": "heat-map", "rows": ["m"], "columns": ["k"],
         "panels": ["network", "step_size"], "best": true, "only": {"network": ["whole"]}},
        {"name": "gaps", "title": "Gaps", "kind": "heat-map", "rows": ["network"], "columns": ["k"],
         "panels": ["selection"], "only": {"m": ["1"]}},
        {"name": "lines", "title": "Lines", "kind": "lines", "x": "network", "only": one, "dash": ["k"],
         "quantities": ["benign_accuracy", "attack_success_rate"], "baselines": true},
        {"name": "steps", "title": "Steps", "kind": "lines", "x": "k", "log": true, "colour": ["m"],
         "panels": ["network"], "intervals": "bands", "only": {"selection": ["held-out"]}},
        {"name": "scatter", "title": "Scatter", "kind": "scatter", "x": "benign_accuracy", "y": "attack_success_rate",
         "colour": ["network"], "labels": ["k"], "only": one},
        {"name": "classes", "title": "Classes", "kind": "histogram", "rows": ["network"]},
        {"name": "curves", "title": "Curves", "kind": "curves", "x": ["steps", "draws", "forward-queries"],
         "quantity": "attacked_accuracy", "colour": ["m"], "dash": ["step_size"], "only": {"network": ["whole"]}},
        {"name": "looks", "title": "Looks", "kind": "perturbations", "images": [0, 3], "rows": ["k"], "columns": ["m"],
         "only": {"network": ["whole"], "step_size": ["1/255"]}},
    ])
}

fn text(ctx: &Context, name: &str) -> String {
    fs::read_to_string(ctx.out.with_file_name(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The rows of a CSV file by the names of their columns; no cell of these tests holds a comma.
fn table(text: &str) -> Vec<BTreeMap<String, String>> {
    assert!(!text.contains('"'), "quoted cells are not read here");
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned));
    let header: Vec<String> = lines.next().unwrap().collect();
    lines.map(|line| header.iter().cloned().zip(line).filter(|(_, cell)| !cell.is_empty()).collect()).collect()
}

#[test]
fn every_kind_of_figure_is_written_and_named() {
    let (params, ctx) = study("kinds", every_kind());
    stage::run::<Report>(&params, &ctx).unwrap();
    let bytes = || -> Vec<Vec<u8>> {
        let files = params.figures.iter().flat_map(|figure| {
            ["svg", "png", "csv"].map(|extension| ctx.out.with_file_name(format!("study-{}.{extension}", figure.name)))
        });
        files.map(|file| fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))).collect()
    };
    let (first, markdown) = (bytes(), text(&ctx, "study.md"));
    for (figure, files) in params.figures.iter().zip(first.chunks(3)) {
        let svg = std::str::from_utf8(&files[0]).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{}", figure.name);
        assert!(files[1].starts_with(b"\x89PNG\r\n\x1a\n"), "{}", figure.name);
        assert!(markdown.contains(&format!("](study-{0}.svg)", figure.name)), "{}", figure.name);
        assert!(markdown.contains(&format!("[study-{0}.csv](study-{0}.csv)", figure.name)), "{}", figure.name);
    }
    assert!(markdown.find("## Figures") < markdown.find("## Beside it"), "figures follow the table");
    assert!(text(&ctx, "study-map.svg").contains(">Steps &amp; draws</text>"));
    // Once more: the same bytes.
    fs::remove_file(&ctx.out).unwrap();
    stage::run::<Report>(&params, &ctx).unwrap();
    assert!(bytes() == first, "another run draws other bytes");
}

#[test]
fn the_values_beside_a_figure_are_the_reports() {
    let (params, ctx) = study("values", every_kind());
    stage::run::<Report>(&params, &ctx).unwrap();
    let report = table(&text(&ctx, "study.csv"));
    // The map has four panels of 2 x 2: two step sizes, and two ways to choose the best.
    let drawn = [("map", 16), ("gaps", 12), ("lines", 12), ("steps", 12), ("scatter", 8), ("curves", 8)];
    for (name, count) in drawn {
        let rows = table(&text(&ctx, &format!("study-{name}.csv")));
        assert_eq!(rows.len(), count, "{name}");
        assert!(rows.iter().all(|row| report.contains(row)), "{name} shows what the report does not say");
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), count, "{name} says something twice");
    }
    // What only figures measure is in the report's data files as well.
    for (name, count) in [("classes", 60), ("looks", 40)] {
        let rows = table(&text(&ctx, &format!("study-{name}.csv")));
        assert_eq!(rows.len(), count, "{name}");
        assert!(rows.iter().all(|row| report.contains(row)), "{name}");
    }
    let map = text(&ctx, "study-map.svg");
    // Of 8 images, with the small step 1, 4, 3 and 6 fall, with the large one 2, 3, 5 and 8; the larger of each are best on
    // these images, and cross-fitted all but the first, where even images favour the small step by a tie: 1.
    for (value, times) in [("12.5", 2), ("25.0", 2), ("37.5", 2), ("50.0", 3), ("62.5", 3), ("75.0", 1)] {
        assert_eq!(map.matches(&format!(">{value}</text>")).count(), times, "{value}% in the heat map");
    }
    assert!(map.contains(">whole, best on these images</text>") && map.contains(">whole, step size = 2/255</text>"));
}

#[test]
fn the_best_is_of_all_points_whichever_are_shown() {
    let mut figures = every_kind();
    figures[0]["only"]["step_size"] = json!(["1/255"]);
    let (params, ctx) = study("shown", figures);
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = table(&text(&ctx, "study-map.csv"));
    assert_eq!(rows.len(), 12, "one step size, and two ways to choose among both");
    let best = rows
        .iter()
        .find(|row| row.get("selection").is_some_and(|s| s == "test") && row["m"] == "5" && row["k"] == "10");
    assert_eq!((best.unwrap()["step_size"].as_str(), best.unwrap()["numerator"].as_str()), ("2/255", "5"));
}

#[test]
fn where_nothing_can_be_counted_there_is_a_gap() {
    let (params, ctx) = study("gaps", every_kind());
    stage::run::<Report>(&params, &ctx).unwrap();
    let dead: Vec<_> =
        table(&text(&ctx, "study-gaps.csv")).into_iter().filter(|row| row["network"] == "dead").collect();
    assert!(dead.iter().all(|row| row["denominator"] == "0" && !row.contains_key("value")), "{dead:?}");
    assert_eq!((dead.len(), text(&ctx, "study-gaps.svg").matches(">–</text>").count()), (4, 4));
    // Two networks are right without an attack, the dead one never is; attacked, it has no rate at all. A line with a gap
    // is two dots, which are lines from a point to itself.
    let svg = text(&ctx, "study-lines.svg");
    let lines = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains("stroke-width=\"1.5\""));
    let points = |line: &str| line.split('"').nth(1).unwrap_or_default().split(' ').count();
    let lengths: Vec<usize> = lines.map(points).collect();
    assert_eq!(
        lengths.iter().filter(|&&length| length == 3).count(),
        2,
        "accuracy, for each number of steps: {lengths:?}"
    );
    // The key has two lines for colours and two for dashes.
    assert_eq!(lengths.iter().filter(|&&length| length == 2).count(), 4 + 4, "success, in two parts each: {lengths:?}");
    // A point needs both numbers: the dead network has none.
    let scattered = table(&text(&ctx, "study-scatter.csv"));
    assert!(scattered.iter().all(|row| row["network"] != "dead"));
}

#[test]
fn histograms_count_the_majority_votes_before_the_attack() {
    let (params, ctx) = study("classes", every_kind());
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = table(&text(&ctx, "study-classes.csv"));
    let count = |network: &str, quantity: &str, class: &str| {
        let row =
            rows.iter().find(|row| row["network"] == network && row["quantity"] == quantity && row["class"] == class);
        (row.unwrap()["numerator"].clone(), row.unwrap()["denominator"].clone())
    };
    let all = |right: &str| (right.to_owned(), "8".to_owned());
    // Labels are 1; a network that is never right answers 9.
    assert_eq!(count("dead", "predicted_class_share", "9"), all("8"));
    assert_eq!(count("dead", "predicted_class_share", "1"), all("0"));
    assert_eq!(count("dead", "true_class_share", "1"), all("8"));
    assert_eq!(count("whole", "predicted_class_share", "1"), all("8"));
    assert_eq!(text(&ctx, "study-classes.svg").matches(">1 classes, most 100%</text>").count(), 3);
}

#[test]
fn perturbations_are_measured() {
    let (params, ctx) = study("looks", every_kind());
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = table(&text(&ctx, "study-looks.csv"));
    let value = |quantity: &str, step: &str| -> BTreeSet<Option<String>> {
        let ours = rows.iter().filter(|row| row["quantity"] == quantity && row["step"] == step);
        ours.map(|row| row.get("value").cloned()).collect()
    };
    let only = |value: &str| BTreeSet::from([Some(value.to_owned())]);
    let near = |values: BTreeSet<Option<String>>, expected: f64| {
        let values: Vec<f64> = values.iter().map(|value| value.as_ref().unwrap().parse().unwrap()).collect();
        assert!(values.iter().all(|value| (value - expected).abs() < 1e-6), "{values:?}, not {expected}");
    };
    // Even: no variation, no high frequencies, and no snapshot before. Chequered: full steps, half of the signs turned.
    near(value("total_variation", "10"), 0.0);
    near(value("high_frequency_share", "10"), 0.0);
    assert_eq!(value("sign_flip_rate", "10"), BTreeSet::from([None]));
    near(value("total_variation", "100"), 1.0);
    assert_eq!(value("sign_flip_rate", "100"), only("0.5"));
    // 1 - (scipy.fft.dctn(chequerboard, norm="ortho")[:2, :2] ** 2).sum() / 16
    near(value("high_frequency_share", "100"), 0.978_553_390_593_273_7);
    let previous = rows.iter().filter(|row| row.contains_key("previous_step")).map(|row| row["previous_step"].as_str());
    assert_eq!(previous.collect::<BTreeSet<_>>(), BTreeSet::from(["10"]));
    // Four pictures of each image, and every image in its own row.
    assert_eq!(text(&ctx, "study-looks.svg").matches("<image ").count(), 8);
    assert!(text(&ctx, "study-looks.svg").contains(">image = 3</text>"));
}

#[test]
fn figures_that_cannot_be_drawn_are_refused_with_the_mend() {
    let refused = |name: &str, figure: Value| {
        let (params, ctx) = study(name, json!([figure]));
        error(&params, &ctx)
    };
    let map = |rows: &str| json!({"name": "map", "title": "t", "kind": "heat-map", "rows": [rows], "columns": ["k"]});
    let text = refused("crowded", map("m"));
    assert!(text.contains("study: figure `map`: two numbers would stand in one place; they differ in"), "{text}");
    assert!(text.contains("`selection` (test and held-out)"), "{text}");
    let text = refused("axis", map("n"));
    assert!(text.contains("there is no axis `n`; there are [\"k\", \"m\", \"network\", \"step_size\"]"), "{text}");
    let only = json!({"step_size": ["1/255"], "m": ["1"], "k": ["10"]});
    let lines = json!({"name": "l", "title": "t", "kind": "lines", "x": "network", "log": true, "only": only});
    assert!(refused("words", lines).contains("`log` needs positive numbers along `network`, not [\"whole\""));
    let looks = |image: u32| json!({"name": "l", "title": "t", "kind": "perturbations", "images": [image], "rows": ["network"], "only": only});
    assert!(refused("kept", looks(5)).contains("no perturbations were kept; set `keep_delta = true`"));
    assert!(refused("image", looks(99)).contains("image 99 is not among its images"));
    let classes = json!({"name": "c", "title": "t", "kind": "histogram"});
    assert!(refused("networks", classes).contains("they differ in `network` (whole and dead)"));
    let typo: Result<Params, _> = serde_json::from_value(json!({
        "pipeline": "p", "scale": "demo", "title": "", "analysis": "", "layout": {}, "cells": [],
        "figures": [{"name": "c", "title": "t", "kind": "histogram", "row": []}],
    }));
    assert!(typo.unwrap_err().to_string().contains("unknown field `row`"));
}

#[test]
fn a_figure_of_points_that_a_scale_drops_says_so() {
    let mut figures = every_kind();
    for figure in figures.as_array_mut().unwrap() {
        figure["only"] = json!({"network": ["elsewhere"]});
    }
    let (params, ctx) = study("dropped", figures);
    stage::run::<Report>(&params, &ctx).unwrap();
    for figure in &params.figures {
        assert!(
            text(&ctx, &format!("study-{}.svg", figure.name)).contains("no numbers for this figure"),
            "{}",
            figure.name
        );
        assert_eq!(table(&text(&ctx, &format!("study-{}.csv", figure.name))).len(), 0, "{}", figure.name);
    }
}

//! The whole stage on made-up tables.

mod figures;

use std::{collections::BTreeMap, env, fs, path::Path, sync::LazyLock};

use artifact::{AttackRow, Provenance, ReportRow, Row, Shard, TheoryRow, Writer};
use serde_json::{Value, json};
use stage::{Context, Input};
use stage_report::{Params, Report, splice};
use tempfile::TempDir;

/// A scratch folder that every test works below, so that paths in reports are short and always the same.
static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a scratch folder");
    env::set_current_dir(&folder).expect("the scratch folder can be entered");
    folder
});

const IMAGES: u32 = 8;

/// What the images answer after an attack: for each the number of its 3 draws that are the label's.
type Right = [u16; IMAGES as usize];

fn write<R: Row>(folder: &str, parameters: &Value, parts: &[Vec<R>]) -> Vec<Input> {
    LazyLock::force(&SCRATCH);
    let part = |(index, rows): (usize, &Vec<R>)| {
        let path = format!("{folder}/part-{index}-of-{}.parquet", parts.len());
        let provenance = Provenance {
            kind: R::KIND.to_owned(),
            stage: R::KIND.to_owned(),
            revision: 1,
            parameters: parameters.clone(),
            shard: Shard { index: index as u32, count: parts.len() as u32 },
            inputs: BTreeMap::from([("network".to_owned(), parameters["network"].to_string())]),
            facts: BTreeMap::new(),
            environment: BTreeMap::new(),
        };
        let mut out = Writer::create(Path::new(&path), provenance).unwrap();
        out.push(rows).unwrap();
        out.finish().unwrap();
        Input::open(Path::new(&path)).unwrap()
    };
    parts.iter().enumerate().map(part).collect()
}

/// Labels are 1; draws that are not the label's are class 9, the target.
fn votes(id: u32, phase: &str, step: u32, target: Option<u32>, right: u16) -> AttackRow {
    AttackRow {
        id,
        label: 1,
        target,
        phase: phase.to_owned(),
        step,
        votes: (0..3).map(|draw| if draw < right { 1 } else { 9 }).collect(),
        flags: None,
        mean_logits: None,
        mean_probabilities: None,
        loss: None,
        linf: 0.0,
        l2: 0.0,
        zero_gradient: (step > 0).then_some(0.25),
        non_finite: 0,
        forward_queries: u64::from(step),
        backward_queries: u64::from(step),
        delta: None,
    }
}

fn parameters(attack: &str, targeted: bool) -> Value {
    let goal = if targeted { json!({"name": "targeted", "class": 9}) } else { json!({"name": "untargeted"}) };
    json!({"attack": {"name": attack}, "goal": goal, "votes": {"draws": 3, "stop": "never"}, "defense": {"name": "rotation"}})
}

/// Attack rows in two shards, in reverse order of ids: the report must not care.
fn attack(folder: &str, name: &str, targeted: bool, phases: &[(&str, u32, Right)]) -> Vec<Input> {
    let target = targeted.then_some(9);
    let rows = |shard: u32| {
        let images = (0..IMAGES).rev().filter(move |id| id % 2 == shard);
        let of = |id: u32| {
            phases.iter().map(move |(phase, step, right)| votes(id, phase, *step, target, right[id as usize]))
        };
        images.flat_map(of).collect::<Vec<_>>()
    };
    write(folder, &parameters(name, targeted), &[rows(0), rows(1)])
}

/// Two goals, two step sizes of which the best is taken, 8 images. Image 7 is wrong before any attack (as the target).
fn made_up(name: &str) -> (Params, Context) {
    let before: Right = [3, 3, 3, 3, 2, 2, 2, 1];
    let mut inputs = Vec::new();
    let mut cells = Vec::new();
    for targeted in [false, true] {
        let goal = if targeted { "targeted" } else { "untargeted" };
        let folder = |attack: &str| format!("{name}/attack/{attack}--{goal}");
        let zero: Right = [3, 3, 3, 3, 2, 2, 1, 3];
        inputs.extend(attack(&folder("none"), "none", targeted, &[("before", 0, before), ("after", 0, zero)]));
        let noise: Right = [3, 3, 3, 1, 2, 2, 1, 1];
        inputs.extend(attack(&folder("noise"), "uniform-noise", targeted, &[("after", 0, noise)]));
        for (size, right) in [("1/255", [0, 0, 3, 0, 3, 0, 3, 0]), ("2/255", [0, 3, 0, 0, 0, 3, 0, 0])] {
            let pgd = folder(&format!("pgd-{}", &size[..1]));
            let halfway: Right = [1, 3, 3, 3, 3, 3, 3, 3];
            inputs.extend(attack(&pgd, "pgd", targeted, &[("after", 10, halfway), ("after", 50, right)]));
            cells.push(json!({
                "at": {"goal": goal, "attack": "pgd-50_eot-1", "step_size": size},
                "parameters": {"attack.name": "pgd", "attack.step_size": size, "attack.eot": 1, "seed": 0},
                "protocol": "corrected",
                "reading": {"more_rules": [{"name": "all"}, {"name": "majority", "n": 1}]},
                "attack": pgd, "none": folder("none"), "noise": folder("noise"),
                "finetune": "finetune/x",
            }));
        }
    }
    let params = json!({
        "pipeline": "made-up", "scale": "demo", "title": "Made-up rows", "analysis": "Eight images, three votes.\n",
        "layout": {"rows": ["attack"], "columns": ["goal"], "best_over": ["step_size"]},
        "cells": cells,
        "paper": [{"at": {"goal": "targeted"}, "value": 0.99, "note": "table 1"},
                  {"at": {"goal": "elsewhere"}, "value": 1.0}],
    });
    let mut ctx = Context::new(format!("{name}/report/made-up.parquet"));
    ctx.inputs = inputs;
    (serde_json::from_value(params).unwrap(), ctx)
}

/// Two defenses, two attacks, and two protocols that read the same 3 votes of the same 8 images in their own ways. Image 7
/// is wrong before any attack.
fn collection(name: &str) -> (Params, Context) {
    let before: Right = [3, 3, 3, 3, 3, 3, 3, 1];
    let (mut inputs, mut cells) = (Vec::new(), Vec::new());
    for (defense, without) in [("crop", [0, 0, 0, 3, 0, 1, 0, 0]), ("sap", [0; 8])] {
        let folder = |attack: &str| format!("{name}/attack/{defense}--{attack}");
        inputs.extend(attack(&folder("none"), "none", false, &[("before", 0, before), ("after", 0, before)]));
        inputs.extend(attack(&folder("noise"), "uniform-noise", false, &[("after", 0, before)]));
        inputs.extend(attack(&folder("eot-30"), "pgd", false, &[("after", 30, [0; 8])]));
        inputs.extend(attack(&folder("eot-1"), "pgd", false, &[("after", 10, without)]));
        for protocol in ["authors-code", "corrected"] {
            let reading = match protocol {
                "authors-code" => json!({"value": "attacked_error", "rule": {"name": "majority", "n": 1}}),
                _ => json!({"value": "attack_success_rate", "more_rules": [{"name": "any"}]}),
            };
            for (label, attack) in [("with EOT", "eot-30"), ("without EOT", "eot-1")] {
                cells.push(json!({
                    "at": {"defense": defense, "protocol": protocol, "attack": label}, "parameters": {"seed": 0},
                    "protocol": protocol, "reading": reading, "attack": folder(attack), "none": folder("none"),
                    "noise": folder("noise"), "finetune": "finetune/x",
                }));
            }
        }
    }
    let params = json!({
        "pipeline": "both", "scale": "demo", "title": "Two defenses", "analysis": "Eight images, three votes.",
        "layout": {"rows": ["defense"], "columns": ["protocol", "attack"]},
        "compare": {"axis": "attack", "base": "with EOT", "other": "without EOT", "share": 0.95},
        "notes": ["`authors-code`: one vote,\n  and all images count", "8 images instead of 1,000"],
        "cells": cells,
        "paper": [{"at": {"defense": "crop", "attack": "with EOT"}, "value": 1.0},
                  {"at": {"defense": "crop", "attack": "without EOT"}, "value": 0.99},
                  {"at": {"defense": "crop", "attack": "with EOT"}, "quantity": "backward_queries", "value": 30000.0}],
    });
    let mut ctx = Context::new(format!("{name}/report/both.parquet"));
    ctx.inputs = inputs;
    (serde_json::from_value(params).unwrap(), ctx)
}

fn error(params: &Params, ctx: &Context) -> String {
    let error = stage::run::<Report>(params, ctx).unwrap_err();
    assert!(!ctx.out.exists(), "a failed report leaves no table");
    format!("{error:#}")
}

fn rows(ctx: &Context) -> Vec<ReportRow> {
    artifact::read(&ctx.out).unwrap().1
}

/// Rows of a quantity whose parameters include these.
fn find(rows: &[ReportRow], quantity: &str, parameters: &Value) -> Vec<ReportRow> {
    let has = |row: &&ReportRow| {
        let ours: Value = serde_json::from_str(&row.parameters).unwrap();
        row.quantity == quantity
            && parameters.as_object().unwrap().iter().all(|(name, value)| ours.get(name) == Some(value))
    };
    rows.iter().filter(has).cloned().collect()
}

#[track_caller]
fn counts(rows: &[ReportRow], quantity: &str, parameters: &Value) -> (u64, u64) {
    let found = find(rows, quantity, parameters);
    assert_eq!(found.len(), 1, "{quantity} at {parameters}: {found:?}");
    (found[0].numerator.unwrap(), found[0].denominator.unwrap())
}

#[test]
fn made_up_rows_give_the_rates_counted_by_hand() {
    let (params, ctx) = made_up("rates");
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = rows(&ctx);
    let at = |step: u32, size: &str, rule: &str, votes: u32| json!({"goal": "untargeted", "step": step, "attack.step_size": size, "rule": rule, "votes": votes, "selection": null});
    let majority = at(50, "1/255", "majority", 3);
    assert_eq!(counts(&rows, "benign_accuracy", &majority), (7, 8));
    // Of images 0 to 6, right before, the attack turns 0, 1, 3, 5.
    assert_eq!(counts(&rows, "attack_success_rate", &majority), (4, 7));
    assert_eq!(counts(&rows, "soft_attack_success_rate", &majority), (12, 21));
    assert_eq!(counts(&rows, "robust_accuracy", &majority), (3, 8));
    // Halfway only image 0 fell.
    assert_eq!(counts(&rows, "attack_success_rate", &at(10, "1/255", "majority", 3)), (1, 7));
    let row = &find(&rows, "attack_success_rate", &majority)[0];
    // Fresh draws alone turn image 6, uniform noise 3 and 6.
    assert_eq!((row.baseline_zero, row.baseline_noise), (Some(1.0 / 7.0), Some(2.0 / 7.0)));
    assert_eq!((row.forward_queries, row.backward_queries), (Some(50.0), Some(50.0)));
    assert_eq!((row.protocol.as_str(), row.paper), ("corrected", None));
    // scipy.stats.binomtest(4, 7).proportion_ci(method="wilson")
    assert!(
        (row.low.unwrap() - 0.250458364528).abs() < 1e-9 && (row.high.unwrap() - 0.841780144749).abs() < 1e-9,
        "{row:?}"
    );
    // The objective under `all`: every draw wrong. Before, no image is (image 7 has one right draw); after, 0, 1, 3, 5, 7.
    assert_eq!(counts(&rows, "attack_success_rate", &at(50, "1/255", "all", 3)), (5, 8));
    assert_eq!(counts(&rows, "benign_accuracy", &at(50, "1/255", "all", 3)), (4, 8));
    // One vote: image 7 is right before as well.
    assert_eq!(counts(&rows, "benign_accuracy", &at(50, "1/255", "majority", 1)), (8, 8));
}

#[test]
fn the_best_step_size_is_chosen_on_these_images_and_cross_fitted() {
    let (params, ctx) = made_up("best");
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = rows(&ctx);
    let of = |selection: &str| json!({"goal": "targeted", "rule": "majority", "votes": 3, "selection": selection});
    // 1/255 turns 0, 1, 3, 5 and 2/255 turns 0, 2, 3, 4, 6: five are best.
    assert_eq!(counts(&rows, "attack_success_rate", &of("test")), (5, 7));
    let test = &find(&rows, "attack_success_rate", &of("test"))[0];
    assert!(test.parameters.contains(r#""step_size":"2/255""#), "{}", test.parameters);
    assert_eq!(test.paper, Some(0.99));
    // Even positions favour 2/255 (0, 2, 4, 6), odd ones 1/255 (1, 3, 5). Judged on the others: 1/255 turns 0 of the even
    // ones, 2/255 turns 3 of the odd ones.
    assert_eq!(counts(&rows, "attack_success_rate", &of("held-out")), (2, 7));
    let held_out = &find(&rows, "attack_success_rate", &of("held-out"))[0];
    assert!(held_out.parameters.contains(r#""step_size":"2/255 | 1/255""#), "{}", held_out.parameters);
    assert!(!held_out.parameters.contains("attack.step_size"), "{}", held_out.parameters);
}

#[test]
fn every_protocol_is_read_its_own_way() {
    let (params, ctx) = collection("protocols");
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = rows(&ctx);
    let at = |protocol: &str, attack: &str| json!({"defense": "crop", "protocol": protocol, "attack": attack});
    let with = |mut at: Value, rule: &str, votes: u32| {
        at["rule"] = json!(rule);
        at["votes"] = json!(votes);
        at
    };
    // One vote, all images: 3 and 5 stand, and 7 counts though it was wrong before.
    let code = with(at("authors-code", "without EOT"), "majority", 1);
    assert_eq!(counts(&rows, "attacked_error", &code), (6, 8));
    let row = &find(&rows, "attacked_error", &code)[0];
    // Before, its first vote is right: no image is lost without an attack.
    assert_eq!((row.baseline_zero, row.baseline_noise, row.paper), (Some(0.0), Some(0.0), Some(0.99)));
    // Three votes, images that were right: 3 stands.
    let corrected = with(at("corrected", "without EOT"), "majority", 3);
    assert_eq!(counts(&rows, "attack_success_rate", &corrected), (6, 7));
    assert_eq!(counts(&rows, "attacked_error", &corrected), (7, 8));
    assert_eq!(find(&rows, "attacked_error", &corrected)[0].baseline_zero, Some(0.125));
    assert_eq!(find(&rows, "attack_success_rate", &corrected)[0].paper, Some(0.99));
    assert_eq!(find(&rows, "attacked_error", &corrected)[0].paper, None, "a claim is about the printed number");
    // Rules are each protocol's own.
    assert!(find(&rows, "attack_success_rate", &with(at("authors-code", "with EOT"), "any", 3)).is_empty());
    assert!(find(&rows, "attack_success_rate", &with(at("authors-code", "with EOT"), "majority", 3)).is_empty());
    assert_eq!(find(&rows, "attack_success_rate", &with(at("corrected", "with EOT"), "any", 3)).len(), 1);
    let queries = find(&rows, "backward_queries", &at("corrected", "with EOT"));
    assert_eq!((queries.len(), queries[0].value, queries[0].paper), (1, Some(30.0), Some(30000.0)));
    assert!(find(&rows, "backward_queries", &at("corrected", "without EOT")).is_empty(), "the paper claims none");
}

#[test]
fn pairs_are_compared_over_the_images_both_count() {
    let (params, ctx) = collection("pairs");
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = rows(&ctx);
    let one = |quantity: &str, defense: &str, protocol: &str| {
        let found = find(&rows, quantity, &json!({"defense": defense, "protocol": protocol}));
        assert_eq!(found.len(), 1, "{quantity} {defense} {protocol}");
        (found[0].clone(), serde_json::from_str::<Value>(&found[0].parameters).unwrap())
    };
    let near = |row: &ReportRow, expected: [f64; 3]| {
        let ours = [row.value, row.low, row.high].map(Option::unwrap);
        assert!(ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{ours:?}");
    };
    // 7 images: with EOT all fall, without it all but one. Intervals by crates/game/tests/golden/paired.py.
    let (row, parameters) = one("attack_success_rate_difference", "crop", "corrected");
    near(&row, [-1.0 / 7.0, -0.5131278292743189, 0.23034605656546608]);
    assert_eq!((row.numerator, row.denominator), (Some(1), Some(7)));
    assert!((row.paper.unwrap() + 0.01).abs() < 1e-12);
    for (name, value) in [("both", json!(6)), ("base_only", json!(1)), ("other_only", json!(0)), ("neither", json!(0))]
    {
        assert_eq!(parameters[name], value, "{name}");
    }
    assert_eq!((&parameters["p_value"], &parameters["compare.other"]), (&json!(1.0), &json!("without EOT")));
    let (row, parameters) = one("attack_success_rate_share_margin", "crop", "corrected");
    near(&row, [6.0 / 7.0 - 0.95, -0.46312782927431884, 0.2635688627609282]);
    assert_eq!((&parameters["verdict"], &parameters["compare.share"]), (&json!("undecided"), &json!(0.95)));
    // 8 images under the other protocol.
    let (row, parameters) = one("attacked_error_difference", "crop", "authors-code");
    near(&row, [-0.25, -0.5907245696898311, 0.12028359352460605]);
    assert_eq!((&parameters["p_value"], row.protocol.as_str()), (&json!(0.5), "authors-code"));
    assert_eq!((row.value, row.denominator), (Some(-0.25), Some(8)));
}

#[test]
fn the_best_is_compared_with_the_best() {
    let (mut params, ctx) = made_up("contrast");
    let by = json!({"axis": "goal", "base": "untargeted", "other": "targeted"});
    params.compare = serde_json::from_value(by).unwrap();
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = rows(&ctx);
    let found = find(&rows, "attack_success_rate_difference", &json!({"compare.axis": "goal"}));
    let selections: Vec<_> = found.iter().map(|row| row.parameters.contains(r#""selection":"held-out""#)).collect();
    assert_eq!(selections, [false, true], "{found:?}");
    assert!(found.iter().all(|row| row.value == Some(0.0) && row.numerator == Some(0)));
    assert!(find(&rows, "attack_success_rate_share_margin", &json!({})).is_empty(), "nothing is claimed");
}

/// Cells of one attack folder each, by the labels of one axis or two.
fn cells_of(name: &str, cells: &[(Value, Right, Right)], layout: &Value) -> (Params, Context) {
    let mut inputs = Vec::new();
    let mut made = Vec::new();
    for (index, (at, before, after)) in cells.iter().enumerate() {
        let folder = |attack: &str| format!("{name}/attack/{attack}-{index}");
        inputs.extend(attack(&folder("none"), "none", false, &[("before", 0, *before), ("after", 0, *before)]));
        inputs.extend(attack(&folder("noise"), "uniform-noise", false, &[("after", 0, *before)]));
        inputs.extend(attack(&folder("pgd"), "pgd", false, &[("after", 10, *after)]));
        made.push(json!({
            "at": at, "parameters": {}, "protocol": "corrected",
            "attack": folder("pgd"), "none": folder("none"), "noise": folder("noise"), "finetune": "finetune/x",
        }));
    }
    let params = json!({
        "pipeline": name, "scale": "demo", "title": "Made-up rows", "analysis": "Eight images, three votes.\n",
        "layout": layout, "cells": made,
    });
    let mut ctx = Context::new(format!("{name}/report/table.parquet"));
    ctx.inputs = inputs;
    (serde_json::from_value(params).unwrap(), ctx)
}

#[test]
fn a_common_denominator_holds_the_images_that_all_count() {
    let stage = |stage: &str| json!({"stage": stage});
    let cells = [
        (stage("before"), [3, 3, 3, 3, 3, 3, 0, 0], [0, 0, 3, 3, 3, 0, 0, 0]),
        (stage("after"), [3, 3, 3, 3, 3, 0, 3, 0], [0, 0, 0, 3, 3, 0, 0, 0]),
    ];
    let (params, ctx) = cells_of("common", &cells, &json!({"rows": ["stage"], "columns": [], "common": ["stage"]}));
    stage::run::<Report>(&params, &ctx).unwrap();
    let rows = rows(&ctx);
    let counts = |quantity: &str, label: &str| {
        let found = find(&rows, quantity, &stage(label));
        assert_eq!(found.len(), 1);
        (found[0].numerator, found[0].denominator)
    };
    assert_eq!(counts("attack_success_rate", "before"), (Some(3), Some(6)));
    assert_eq!(counts("attack_success_rate", "after"), (Some(4), Some(6)));
    assert_eq!(counts("common_attack_success_rate", "before"), (Some(2), Some(5)), "images 0 to 4 are right in both");
    assert_eq!(counts("common_attack_success_rate", "after"), (Some(3), Some(5)));
    let (params, ctx) = cells_of("uncommon", &cells, &json!({"rows": ["stage"], "columns": []}));
    stage::run::<Report>(&params, &ctx).unwrap();
    assert!(find(&self::rows(&ctx), "common_attack_success_rate", &json!({})).is_empty());
}

#[test]
fn several_draws_are_compared_with_one_at_as_many_gradients() {
    let grid = |k: &str, m: &str| json!({"k": k, "m": m});
    let right = [3; 8];
    let cells = [
        (grid("10", "1"), right, [0, 3, 3, 3, 3, 3, 3, 3]),
        (grid("100", "1"), right, [0, 0, 0, 0, 0, 0, 3, 3]),
        (grid("10", "10"), right, [0, 0, 0, 0, 3, 3, 3, 0]),
        (grid("100", "10"), right, [0; 8]),
    ];
    let (mut params, ctx) = cells_of("strength", &cells, &json!({"rows": ["m"], "columns": ["k"]}));
    params.equal_strength = serde_json::from_value(json!({"steps": "k", "draws": "m", "share": 0.95})).unwrap();
    stage::run::<Report>(&params, &ctx).unwrap();
    let found = rows(&ctx).into_iter().filter(|row| row.quantity == "attack_success_rate_difference");
    let found: Vec<_> = found.collect();
    let [row] = &found[..] else { panic!("100 steps of 10 draws have no equal: {found:?}") };
    // One draw turns 6 of 8, ten draws 5: they differ on three images.
    assert_eq!((row.value, row.numerator, row.denominator), (Some(0.125), Some(3), Some(8)));
    let parameters: Value = serde_json::from_str(&row.parameters).unwrap();
    assert_eq!((&parameters["compare.base"], &parameters["compare.other"]), (&json!("10 x 10"), &json!("100 x 1")));
    let text = fs::read_to_string(ctx.out.with_extension("md")).unwrap();
    assert!(text.contains("One draw per step against several"), "{text}");
    assert!(text.contains("| 10 x 10 | 100 x 1 |"), "{text}");
}

#[test]
fn the_best_of_cells_that_are_read_unlike_is_refused() {
    let (mut params, ctx) = made_up("unlike");
    params.cells[0].reading.value = stage_report::Quantity::AttackedError;
    assert!(error(&params, &ctx).contains("cells that are read alike"));
}

fn without_digests(text: &str) -> String {
    let line = |line: &str| line.split("  # sha256 ").next().unwrap_or_default().to_owned();
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_collection_is_one_table_with_its_comparison_and_notes() {
    let (params, ctx) = collection("collection");
    stage::run::<Report>(&params, &ctx).unwrap();
    let text = |extension: &str| fs::read_to_string(ctx.out.with_extension(extension)).unwrap();
    insta::assert_snapshot!("collection-markdown", without_digests(&text("md")));
    insta::assert_snapshot!("collection-latex", text("tex"));
}

#[test]
fn documents_are_as_they_were() {
    let (params, ctx) = made_up("documents");
    stage::run::<Report>(&params, &ctx).unwrap();
    let text = |extension: &str| fs::read_to_string(ctx.out.with_extension(extension)).unwrap();
    insta::assert_snapshot!("markdown", without_digests(&text("md")));
    insta::assert_snapshot!("latex", text("tex"));
    let json: Vec<serde_json::Map<String, Value>> = serde_json::from_str(&text("json")).unwrap();
    let csv = text("csv");
    assert_eq!((json.len(), csv.lines().count()), (rows(&ctx).len(), json.len() + 1));
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    assert_eq!(header, json[0].keys().collect::<Vec<_>>());
    // Once more: the same bytes.
    let before = ["md", "tex", "json", "csv"].map(text);
    stage::run::<Report>(&params, &ctx).unwrap();
    assert_eq!(["md", "tex", "json", "csv"].map(text), before);
}

#[test]
fn a_missing_or_wrong_companion_is_named() {
    let (params, mut ctx) = made_up("companion");
    let all = ctx.inputs.clone();
    ctx.inputs.retain(|input| !input.path.starts_with("companion/attack/noise--untargeted"));
    let text = error(&params, &ctx);
    assert!(text.contains("companion/attack/noise--untargeted: no part of this attack"), "{text}");
    ctx.inputs = all;
    let mut wrong = params.clone();
    wrong.cells[0].none = wrong.cells[0].noise.clone();
    assert!(error(&wrong, &ctx).contains("the companion must be `none`"));
    let mut crossed = params;
    crossed.cells[0].none = crossed.cells[2].none.clone();
    assert!(error(&crossed, &ctx).contains("disagree about the label or the target"), "one with another target");
}

#[test]
fn companions_need_no_goal_of_their_own() {
    let (params, ctx) = made_up("goals");
    let made = |params: &Params| {
        stage::run::<Report>(params, &ctx).unwrap();
        let rows = rows(&ctx).into_iter().filter(|row| row.parameters.contains(r#""goal":"targeted""#));
        rows.map(|row| (row.quantity, row.value, row.denominator, row.baseline_zero, row.baseline_noise))
            .collect::<Vec<_>>()
    };
    let own = made(&params);
    let mut shared = params.clone();
    for index in 0..2 {
        let [none, noise] = [&params.cells[index].none, &params.cells[index].noise].map(Clone::clone);
        (shared.cells[index + 2].none, shared.cells[index + 2].noise) = (none, noise);
    }
    assert_eq!(made(&shared), own, "the votes are held against the targets of the cell's own attack");
    assert!(!own.is_empty());
}

#[test]
fn a_companion_of_another_network_is_refused() {
    let (params, mut ctx) = made_up("network");
    let folder = "network/attack/noise--untargeted";
    ctx.inputs.retain(|input| !input.path.starts_with(folder));
    fs::remove_dir_all(folder).unwrap();
    let mut parameters = parameters("uniform-noise", false);
    parameters["network"] = json!("retrained");
    let rows = (0..IMAGES).map(|id| votes(id, "after", 0, None, 3)).collect();
    ctx.inputs.extend(write(folder, &parameters, &[rows]));
    assert!(error(&params, &ctx).contains("were made from other images or another network"));
}

#[test]
fn different_images_are_refused() {
    let (params, mut ctx) = made_up("images");
    let folder = "images/attack/noise--untargeted";
    ctx.inputs.retain(|input| !input.path.starts_with(folder));
    let rows = (0..IMAGES - 1).map(|id| votes(id, "after", 0, None, 3)).collect();
    fs::remove_dir_all(folder).unwrap();
    ctx.inputs.extend(write(folder, &parameters("uniform-noise", false), &[rows]));
    let text = error(&params, &ctx);
    assert!(text.contains("hold different images: 7 is in one of them only"), "{text}");
}

#[test]
fn rules_the_votes_do_not_support_are_refused() {
    let (mut params, mut ctx) = made_up("stopped");
    let folder = "stopped/attack/pgd-1--untargeted";
    ctx.inputs.retain(|input| !input.path.starts_with(folder));
    fs::remove_dir_all(folder).unwrap();
    let stopped = |id| AttackRow { votes: vec![9, 9], ..votes(id, "after", 50, None, 0) };
    let parameters = parameters("pgd", false);
    ctx.inputs.extend(write(folder, &parameters, &[(0..IMAGES).map(stopped).collect()]));
    assert!(error(&params, &ctx).contains("image 0: its vote stopped early after 2 draws"));
    params.cells.iter_mut().for_each(|cell| cell.reading.more_rules.clear());
    stage::run::<Report>(&params, &ctx).unwrap();
    let at = json!({"goal": "untargeted", "attack.step_size": "1/255", "selection": null});
    assert_eq!(counts(&rows(&ctx), "attack_success_rate", &at), (7, 7));
    assert!(find(&rows(&ctx), "soft_attack_success_rate", &at).is_empty());
}

#[test]
fn one_rule_under_two_names_is_counted_once() {
    let (mut params, ctx) = made_up("twice");
    stage::run::<Report>(&params, &ctx).unwrap();
    let once = rows(&ctx).len();
    let again: stage_report::Rule = serde_json::from_value(json!({"name": "majority", "n": 3})).unwrap();
    params.cells.iter_mut().for_each(|cell| cell.reading.more_rules.push(again.clone()));
    stage::run::<Report>(&params, &ctx).unwrap();
    assert_eq!(rows(&ctx).len(), once);
}

#[test]
fn a_layout_with_an_unknown_axis_is_refused() {
    let (mut params, ctx) = made_up("axis");
    params.layout.columns = vec!["gaol".to_owned()];
    let text = error(&params, &ctx);
    assert!(text.contains("names the axis `gaol`; its axes are {\"attack\", \"goal\", \"step_size\"}"), "{text}");
}

#[test]
fn a_document_takes_the_table_of_a_report() {
    let (params, ctx) = made_up("splice");
    stage::run::<Report>(&params, &ctx).unwrap();
    let document = Path::new("splice/README.md");
    fs::write(document, "Before.\n<!-- BEGIN report: splice/report/made-up.md -->\n<!-- END report -->\nAfter.\n")
        .unwrap();
    splice(document).unwrap();
    let text = fs::read_to_string(document).unwrap();
    assert!(
        text.contains("| attack ") && text.starts_with("Before.\n") && text.ends_with("<!-- END report -->\nAfter.\n")
    );
    fs::write(document, "<!-- BEGIN report: nowhere.md -->\n<!-- END report -->\n").unwrap();
    let text = format!("{:#}", splice(document).unwrap_err());
    assert!(text.contains("nowhere.md: cannot read the report"), "{text}");
}

/// A point of the binary Gaussian example.
fn theory(quantity: &str, k: Option<f64>, votes: Option<u32>, value: f64) -> TheoryRow {
    TheoryRow {
        quantity: quantity.to_owned(),
        k,
        sigma: if k.is_some() { 1.0 } else { 0.0 },
        epsilon: 1.0,
        votes,
        method: "closed-form".to_owned(),
        value,
        low: None,
        high: None,
        samples: None,
    }
}

#[test]
fn the_theory_report_computes_its_findings_from_the_rows() {
    let limit = 1.0 / (0.5 + 0.977_249_868_051_820_8);
    let map =
        |quantity, sigma, epsilon, value| TheoryRow { sigma, epsilon, ..theory(quantity, Some(1.0), Some(1), value) };
    let overlay =
        TheoryRow { method: "monte-carlo".to_owned(), samples: Some(100), ..theory("joint", Some(0.0), Some(1), 0.6) };
    let rows = vec![
        theory("robustness", None, None, 0.594_287),
        theory("robustness", Some(0.0), Some(1), 0.703_556),
        theory("robustness", Some(0.0), None, limit),
        theory("robustness", Some(1.0), Some(1), 0.657_678),
        theory("accuracy", None, None, 0.841_345),
        theory("accuracy", Some(0.0), Some(1), 0.710_675),
        theory("accuracy", Some(1.0), Some(1), 0.760_250),
        theory("joint", Some(0.0), Some(1), 0.5),
        theory("joint", Some(1.0), None, 0.5 + 3e-13),
        overlay,
        map("robustness_threshold", 0.5, 0.25, 0.25),
        map("robustness_rise", 0.5, 0.1, 2e-5),
        map("robustness_rise", 1.0, 0.1, 0.0),
        map("robustness_gain", 0.5, 0.1, -0.001),
        map("robustness_gain", 1.0, 0.1, -0.002),
    ];
    let inputs = write("theory/theory/x", &json!({}), &[rows]);
    let params: Params = serde_json::from_value(json!({
        "pipeline": "theory", "scale": "demo", "title": "Closed forms", "analysis": "", "layout": {}, "cells": [],
        "theory": {"table": "theory/theory/x"},
        "paper": [
            {"at": {"epsilon": "1"}, "quantity": "robustness", "value": 0.594},
            {"at": {"k": "0", "sigma": "1", "epsilon": "1"}, "quantity": "robustness", "value": 0.677, "note": "Obs. 1"},
            {"at": {"k": "0", "sigma": "1", "epsilon": "1"}, "quantity": "robustness", "value": 0.704, "note": "Obs. 2"},
        ],
    }))
    .unwrap();
    let mut ctx = Context::new("theory/report/theory.parquet");
    ctx.inputs = inputs;
    stage::run::<Report>(&params, &ctx).unwrap();
    let text = fs::read_to_string("theory/report/theory.md").unwrap();
    for finding in [
        "The paper gives 67.7% for the robustness at k = 0, sigma = 1, epsilon = 1, a single draw; the closed form gives 70.4%. \
         The paper's number is the value at k = 0, sigma = 1, epsilon = 1, infinitely many votes: 0.6769, which is \
         1/(Φ(0) + Φ(2)).",
        "is one half everywhere: ",
        "(largest deviation 3.0e-13 over 2 points",
        "holds at 1 of 2 points; it does not at (sigma, epsilon) = (0.5, 0.1) (largest rise 2.0e-5).",
        "fails at 2 of 2 points.",
        "fails for 1 of 1 budgets on the map: epsilon = 0.1.",
        "more robust than the undefended one for budgets above 0.2500 at sigma = 0.5; below",
        "is within 2.00 standard errors of the closed forms; 0 values are beyond four.",
    ] {
        assert!(text.contains(finding), "no `{finding}` in:\n{text}");
    }
    assert_eq!(text.matches("The paper gives").count(), 1, "claims that agree are no findings");
    let figure = fs::read_to_string("theory/report/theory.svg").unwrap();
    assert!(fs::read("theory/report/theory.png").unwrap().starts_with(b"\x89PNG"));
    for panel in ["84.1%, robustness 59.4%", "71.1%, robustness 70.4%", "76.0%, robustness 65.8%"] {
        assert!(figure.contains(panel), "no `{panel}` in the figure");
    }
    let paper = |row: &ReportRow| row.paper;
    let claimed: Vec<f64> = artifact::read::<ReportRow>(&ctx.out).unwrap().1.iter().filter_map(paper).collect();
    assert_eq!(claimed, [0.594, 0.677]);
    ctx.inputs.clear();
    fs::remove_file(&ctx.out).unwrap();
    assert!(error(&params, &ctx).contains("theory/theory/x: no part of this table"));
}

/// The network's own answers: class 1 for the images below 6, class 9 for the others.
fn undefended(folder: &str, changes: &Value) -> Vec<Input> {
    let mut parameters = parameters("none", false);
    parameters["defense"] = json!({"name": "none"});
    parameters["votes"]["draws"] = json!(1);
    parameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let row = |id| AttackRow { votes: vec![if id < 6 { 1 } else { 9 }], ..votes(id, "before", 0, None, 0) };
    write(folder, &parameters, &[(0..IMAGES).map(row).collect()])
}

#[test]
fn invariance_is_the_share_of_draws_answered_as_without_the_defense() {
    let measured = |name: &str, stop: &str| {
        let (mut params, mut ctx) = made_up(name);
        for cell in &mut params.cells {
            cell.undefended = Some(format!("{name}/attack/undefended"));
        }
        ctx.inputs.extend(undefended(&format!("{name}/attack/undefended"), &json!({})));
        for input in &mut ctx.inputs {
            if input.provenance.parameters["defense"]["name"] != "none" {
                input.provenance.parameters["votes"]["stop"] = json!(stop);
            }
        }
        stage::run::<Report>(&params, &ctx).unwrap();
        rows(&ctx)
    };
    let never = measured("invariant", "never");
    let at = |rule: &str, votes: u32| json!({"goal": "targeted", "step_size": "1/255", "step": 50, "selection": null, "rule": rule, "votes": votes});
    // Of 3 draws: 3 of 3 four times, 2 of 3 twice, and 1 and 2 of 3 where the network says 9.
    assert_eq!(counts(&never, "invariance_rate", &at("majority", 3)), (19, 24));
    assert_eq!(counts(&never, "invariance_rate", &at("majority", 1)), (6, 8));
    let row = &find(&never, "invariance_rate", &at("majority", 3))[0];
    assert!(row.baseline_zero.is_none() && row.forward_queries.is_none());
    assert_eq!((row.low, row.high), {
        let (low, high) = game::wilson_rate(19.0 / 24.0, 8.0);
        (Some(low), Some(high))
    });
    // Votes that may stop have 2 draws for sure: further ones are there because of those before.
    let early = measured("invariant-stopped", "majority");
    assert_eq!(counts(&early, "invariance_rate", &at("majority", 3)), (13, 16));
    let (params, ctx) = made_up("invariant-unasked");
    stage::run::<Report>(&params, &ctx).unwrap();
    assert!(find(&rows(&ctx), "invariance_rate", &json!({})).is_empty(), "nothing to compare with");
}

#[test]
fn what_is_no_undefended_network_is_refused() {
    for (name, changes, word) in [
        ("defended", json!({"defense": {"name": "rotation"}}), "without a defense"),
        ("attacked", json!({"attack": {"name": "pgd"}}), "without a defense"),
        ("inside", json!({"inside": {"name": "activation-pruning"}}), "without a defense"),
        ("epoch", json!({"epoch": 3}), "other weights"),
        ("network", json!({"network": "another"}), "other weights"),
    ] {
        let name = format!("un-{name}");
        let (mut params, mut ctx) = made_up(&name);
        params.cells[0].undefended = Some(format!("{name}/undefended"));
        ctx.inputs.extend(undefended(&format!("{name}/undefended"), &changes));
        let error = error(&params, &ctx);
        assert!(error.contains(word) && error.contains("undefended"), "{error}");
    }
}

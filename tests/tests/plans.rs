//! Pipeline files to plans: every file at every scale, addresses, and what a typo is told.

use std::{fs, path::PathBuf};

use pipeline_tests::{Project, pipelines, root};
use plan::{Options, Plan, Rates, Scale, Sources, costs, make};

fn options(scale: Scale) -> Options {
    Options { scale, shards: 1, data_root: None }
}

fn sources() -> Sources {
    Sources::read(&root().join("pipelines/sources")).unwrap()
}

/// The plan of the pipeline `name` after `changes` to its text.
fn changed(name: &str, scale: Scale, changes: &[(&str, &str)]) -> plan::Result<Plan> {
    let folder = tempfile::tempdir().unwrap();
    let mut text = fs::read_to_string(root().join(format!("pipelines/{name}.toml"))).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}.toml no longer holds `{from}`");
        text = text.replace(from, to);
    }
    let path = folder.path().join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    Plan::new(&[path], &sources(), &options(scale))
}

fn addresses(plan: &Plan) -> Vec<String> {
    plan.jobs.all().iter().map(|job| job.address.clone()).collect()
}

#[test]
fn every_pipeline_plans_at_every_scale_without_local_data() {
    let mut table1 = 0;
    for scale in Scale::ALL {
        let plan = Plan::new(&pipelines(), &sources(), &options(scale)).unwrap();
        for report in &plan.reports {
            let work = report.work.as_ref().unwrap_or_else(|reason| panic!("{} {scale:?}: {reason}", report.name));
            assert!(!work.inputs.is_empty(), "{}", report.name);
            table1 += usize::from(report.name == "table1" && work.params.cells.len() == 16);
        }
        make::files(&plan, &options(scale)).unwrap();
    }
    assert_eq!(table1, 3, "table 1 is 2 goals, 2 attacks, 2 rotations, 2 step sizes at every scale");
}

#[test]
fn the_smoke_plan_reads_as_it_did() {
    let files = [root().join("pipelines/smoke.toml")];
    let options = Options { shards: 2, ..options(Scale::Demo) };
    let plan = Plan::new(&files, &sources(), &options).unwrap();
    insta::assert_snapshot!("smoke-rules", make::fragment(&plan, &options).unwrap());
    insta::assert_snapshot!("smoke-list", make::list(&plan, "smoke", &options).unwrap());
    let rates = Rates::read(&[root().join("data/record/2026-11-22/bench/engine.json")]).unwrap();
    insta::assert_snapshot!("smoke-costs", costs::tables(&plan, &rates, None));
    let attack = plan.jobs.all().iter().find(|job| job.address.contains("rotation--pgd")).unwrap();
    insta::assert_json_snapshot!("smoke-attack", attack.params);
    let finetune = plan.jobs.all().iter().find(|job| job.stage == "finetune").unwrap();
    insta::assert_json_snapshot!("smoke-finetune", finetune.params);
    insta::assert_json_snapshot!("smoke-report", plan.report("smoke").unwrap().params);
}

#[test]
fn weights_keep_the_classes_that_a_pipeline_asks_for() {
    let planned = |classes: &str| {
        let model = r#"model = { name = "cifar-resnet", depth = 8, width = 4 }"#;
        let weights = format!(r#"weights = {{ source = "imagenet-resnet50", classes = {classes} }}"#);
        let sample = r#"sample = { source = "imagenette-val", limit = 16 }"#;
        changed(
            "smoke",
            Scale::Demo,
            &[(model, &weights), (r#"sample = { source = "embedded-test", limit = 16 }"#, sample)],
        )
    };
    let plan = planned("\"imagenette\"").unwrap();
    let finetune = plan.jobs.all().iter().find(|job| job.stage == "finetune").unwrap();
    assert_eq!(
        (&finetune.params["classes"], &finetune.params["keep_classes"]),
        (&"imagenet".into(), &"imagenette".into())
    );
    assert_eq!(finetune.params["model"]["classes"], 10);
    for (classes, words) in [("10", "a number does not say which"), ("[\"tench\", \"troll\"]", "`troll`")] {
        let text = planned(classes).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn what_two_pipelines_share_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let smoke = root().join("pipelines/smoke.toml");
    let text = fs::read_to_string(&smoke).unwrap();
    let other = folder.path().join("other.toml");
    // One point of another degree: one attack and its two companions are new, samples and network are shared.
    fs::write(&other, text.replace("title = \"", "title = \"Other: ").replace("degrees = 45", "degrees = 30")).unwrap();
    let alone = Plan::new(std::slice::from_ref(&smoke), &sources(), &options(Scale::Demo)).unwrap();
    let both = Plan::new(&[smoke, other], &sources(), &options(Scale::Demo)).unwrap();
    assert_eq!(both.jobs.all().len(), alone.jobs.all().len() + 3);
    let rules = make::fragment(&both, &options(Scale::Demo)).unwrap();
    let mut targets: Vec<&str> =
        rules.lines().filter_map(|line| line.split_once(".parquet: ")).map(|(t, _)| t).collect();
    let all = targets.len();
    targets.sort_unstable();
    targets.dedup();
    assert_eq!(targets.len(), all, "no rule is written twice");
}

#[test]
fn an_address_moves_with_what_moves_numbers_and_with_nothing_else() {
    let before = addresses(&changed("smoke", Scale::Demo, &[]).unwrap());
    let same = |changes: &[(&str, &str)]| addresses(&changed("smoke", Scale::Demo, changes).unwrap()) == before;
    assert!(same(&[("degrees = 45", "degrees = 45.0")]), "a number has many spellings");
    assert!(same(&[("votes = { draws = 8 }", "votes = { draws = 8, stop = \"majority\" }")]), "a default spelled out");
    assert!(same(&[("title = \"", "title = \"Another: ")]));
    assert!(!same(&[("votes = { draws = 8 }", "votes = { draws = 9 }")]));
    let moved = addresses(&changed("smoke", Scale::Demo, &[("epochs = 2", "epochs = 3")]).unwrap());
    let kept: Vec<&String> = moved.iter().filter(|address| before.contains(address)).collect();
    assert!(kept.iter().all(|address| address.starts_with("sample/")), "what rests on other weights is other work");
    assert_eq!(kept.len(), 2);
    let rooted = Options { data_root: Some(PathBuf::from("elsewhere")), shards: 5, ..options(Scale::Demo) };
    let files = [root().join("pipelines/smoke.toml")];
    assert_eq!(
        addresses(&Plan::new(&files, &sources(), &rooted).unwrap()),
        before,
        "where and how wide is no parameter"
    );
}

#[test]
fn snapshots_of_one_run_are_one_job() {
    let plan = changed("smoke", Scale::Demo, &[]).unwrap();
    let cells = &plan.report("smoke").unwrap().params.cells;
    let of = |label: &str| -> Vec<_> { cells.iter().filter(|cell| cell.at["defense"] == label).collect() };
    let [one, two] = of("rotation")[..] else { panic!("two steps") };
    assert_eq!((one.step, two.step), (Some(1), Some(2)));
    assert_eq!((&one.attack, &one.none, &one.noise), (&two.attack, &two.none, &two.noise));
    assert!(one.attack.contains("pgd") && one.none.contains("none") && one.noise.contains("uniform-noise"));
}

/// The report of `smoke`, and two ways to read its votes.
const REPORT: &str = "[report]\nrows = [\"defense\"]\ncolumns = [\"steps\"]\n";
const PROTOCOLS: &str = r#"
[[axis]]
name = "protocol"
points = [{ protocol = "authors-code" }, { protocol = "corrected" }]
[report]
rows = ["defense"]
columns = ["steps", "protocol"]
value = "robust_accuracy"
more_rules = [{ name = "majority", n = 3 }]
[report.protocols.authors-code]
value = "attacked_error"
rule = { name = "majority", n = 1 }
note = "one vote"
[report.protocols.paper-text]
note = "no cell follows this"
[report.compare]
axis = "steps"
base = "1"
other = "2"
share = 0.95
"#;

#[test]
fn protocols_read_the_same_votes_in_their_own_ways() {
    let alone = changed("smoke", Scale::Demo, &[]).unwrap();
    let read = changed("smoke", Scale::Demo, &[(REPORT, PROTOCOLS)]).unwrap();
    assert_eq!(addresses(&alone), addresses(&read), "a protocol decides no vote");
    let params = &read.report("smoke").unwrap().params;
    assert_eq!(params.cells.len(), 8);
    for cell in &params.cells {
        let expected = match cell.protocol.name() {
            "authors-code" => ("attacked_error", Some(1)),
            _ => ("robust_accuracy", None),
        };
        assert_eq!(cell.at["protocol"], cell.protocol.name());
        let reading = &cell.reading;
        assert_eq!((reading.value.name(), reading.rule.n), expected);
        assert_eq!(reading.more_rules.len(), 1);
        assert!(!cell.parameters.contains_key("protocol"));
    }
    assert_eq!(params.notes, ["`authors-code`: one vote"]);
    assert_eq!(params.compare.as_ref().unwrap().share, Some(0.95));
}

#[test]
fn what_the_report_cannot_show_is_refused() {
    let refused = |from: &str, to: &str| {
        let protocols = PROTOCOLS.replace(from, to);
        assert_ne!(protocols, PROTOCOLS, "{from}");
        let plan = changed("smoke", Scale::Demo, &[(REPORT, &protocols)]);
        plan.err().unwrap_or_else(|| panic!("`{to}` was accepted")).to_string()
    };
    for (from, to, expected) in [
        ("protocols.authors-code", "protocols.authors", "expected one of `paper-text`, `authors-code`, `corrected`"),
        (
            "axis = \"steps\"",
            "axis = \"step\"",
            "report.compare: unknown axis `step`, expected one of `defense`, `steps`",
        ),
        ("other = \"2\"", "other = \"3\"", "report.compare: unknown label `3`, expected one of `1`, `2`"),
        ("other = \"2\"", "other = \"1\"", "base and other are both `1`"),
        ("share = 0.95", "share = 0.0", "share: give a number above 0"),
        (
            "columns = [\"steps\", \"protocol\"]",
            "columns = [\"protocol\"]\nbest_over = [\"steps\"]",
            "the best is taken over `steps`",
        ),
        ("\"attacked_error\"", "\"soft_attack_success_rate\"", "counts draws"),
        ("n = 1 }\nnote", "n = 9 }\nnote", "the report's rule asks for 9 votes of 8"),
        ("name = \"majority\", n = 1", "name = \"mean-softmax\"", "keep_logits: the report's rule `mean-softmax`"),
        ("note = \"one vote\"", "notes = \"one vote\"", "unknown field `notes`"),
        (
            "[[axis]]",
            "[[part]]\npipeline = \"x\"\nlabel = \"X\"\n[[axis]]",
            "belong to a pipeline of kind `collection`",
        ),
        (
            "[[axis]]",
            "[[paper]]\nat = {}\nquantity = \"gradients\"\nvalue = 5\n[[axis]]",
            "unknown quantity `gradients`",
        ),
        ("[[axis]]", "[[paper]]\nat = {}\nvalue = 5\n[[axis]]", "the rate 5 is not between 0 and 1"),
        ("[[axis]]", "[[paper]]\nat = {}\nquantity = \"forward_queries\"\nvalue = -5\n[[axis]]", "cannot be"),
    ] {
        let error = refused(from, to);
        assert!(error.contains(expected), "`{to}` should be told `{expected}`, not:\n{error}");
    }
    let queries = "[[paper]]\nat = {}\nquantity = \"backward_queries\"\nvalue = 30000\n[[axis]]\nname = \"defense\"";
    let plan = changed("smoke", Scale::Demo, &[("[[axis]]\nname = \"defense\"", queries)]).unwrap();
    assert_eq!(plan.report("smoke").unwrap().params.paper[0].value, 30000.0);
}

#[test]
fn a_scale_adds_notes_or_says_others() {
    let notes = |scale, overlay: &str| {
        let report = format!("[scale.demo]\n{overlay}\n[report]\n");
        let changes = [("title = \"Smoke", "notes = [\"always\"]\ntitle = \"Smoke"), ("[report]\n", report.as_str())];
        changed("smoke", scale, &changes).unwrap().report("smoke").unwrap().params.notes.clone()
    };
    assert_eq!(notes(Scale::Demo, "notes = [\"small\"]"), ["always", "small"]);
    assert_eq!(notes(Scale::Demo, "notes = { only = [\"small\"] }"), ["small"]);
    assert_eq!(notes(Scale::Paper, "notes = [\"small\"]"), ["always"]);
}

/// A folder with two parts made from `smoke`, and a collection of them after `changes`; its plan at demo scale.
fn collected(changes: &[(&str, &str)]) -> plan::Result<Plan> {
    let folder = tempfile::tempdir().unwrap();
    let smoke = fs::read_to_string(root().join("pipelines/smoke.toml")).unwrap();
    let claim = "[[paper]]\nat = { steps = \"2\" }\nvalue = 1.0\n[report]\n";
    let write = |name: &str, text: String| {
        let path = folder.path().join(format!("{name}.toml"));
        fs::write(&path, text).unwrap();
        path
    };
    let note = |note: &str| format!("notes = [\"{note}\", \"the same\"]\ntitle = \"Smoke");
    let one = write("one", smoke.replace("[report]\n", claim).replace("title = \"Smoke", &note("first")));
    let other = smoke.replace("degrees = 45", "degrees = 30").replace("title = \"Smoke", &note("second"));
    let other = write("other", other);
    let mut text = r#"
        kind = "collection"
        title = "Both"
        analysis = "Two pipelines"
        notes = ["of both"]
        part_axis = "part"
        part = [{ pipeline = "one", label = "One" }, { pipeline = "other", label = "Other" }]
        [report]
        rows = ["part", "defense"]
        columns = ["steps"]
        compare = { axis = "steps", base = "1", other = "2" }
    "#
    .to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let both = write("both", text);
    Plan::new(&[both, one, other], &sources(), &options(Scale::Demo))
}

#[test]
fn a_collection_is_its_parts_in_one_table_and_adds_no_job() {
    let plan = collected(&[]).unwrap();
    let [both, one, other] = ["both", "one", "other"].map(|name| plan.report(name).unwrap());
    let parts: Vec<_> = one.params.cells.iter().chain(&other.params.cells).collect();
    assert_eq!(both.params.cells.len(), parts.len());
    for (cell, part) in both.params.cells.iter().zip(parts) {
        let mut at = cell.at.clone();
        at.remove("part");
        assert_eq!((&at, &cell.attack, &cell.parameters), (&part.at, &part.attack, &part.parameters));
    }
    let labels: Vec<&str> = both.params.cells.iter().map(|cell| cell.at["part"].as_str()).collect();
    assert_eq!(labels, ["One", "One", "One", "One", "Other", "Other", "Other", "Other"]);
    let [claim] = &both.params.paper[..] else { panic!("the claim of one part") };
    assert_eq!((claim.at["part"].as_str(), claim.at["steps"].as_str(), claim.value), ("One", "2", 1.0));
    assert_eq!(both.params.notes, ["of both", "One: first", "the same", "Other: second"]);
    let inputs: std::collections::BTreeSet<_> = one.inputs.iter().chain(&other.inputs).collect();
    assert_eq!(both.inputs.iter().collect::<std::collections::BTreeSet<_>>(), inputs);
    assert_eq!(both.inputs.len(), inputs.len(), "each input once");
    let jobs = plan.jobs.closure(&both.inputs).len();
    assert_eq!(jobs, plan.jobs.all().len());
    make::files(&plan, &options(Scale::Demo)).unwrap();
}

#[test]
fn a_collection_that_cannot_be_is_told_why() {
    for (from, to, expected) in [
        ("pipeline = \"other\"", "pipeline = \"another\"", "part `Other`: there is no file"),
        ("pipeline = \"other\"", "pipeline = \"both\"", "only pipelines of kind `attack`"),
        ("label = \"Other\"", "label = \"One\"", "two parts are labelled `One`"),
        ("part_axis = \"part\"", "", "name the axis of the parts"),
        ("part_axis = \"part\"", "part_axis = \"defense\"", "part `One`: it has an axis `defense` of its own"),
        ("[\"part\", \"defense\"]", "[\"part\"]", "the axis `defense` must stand in"),
        ("[\"part\", \"defense\"]", "[\"part\", \"defenses\"]", "part `One`: it has no axis `defenses`"),
        ("[report]", "[report]\nvalue = \"attacked_error\"", "say how their votes are read"),
        ("[report]", "[base]\nseed = 1\n[report]", "no base, axis, paper or theory of its own"),
        ("[report]", "[scale.demo]\nbase.seed = 1\n[report]", "no base of its own"),
        ("other = \"2\"", "other = \"4\"", "unknown label `4`, expected one of `1`, `2`"),
    ] {
        let error = collected(&[(from, to)]).err().unwrap_or_else(|| panic!("`{to}` was accepted")).to_string();
        assert!(
            error.contains(expected) && error.contains("both.toml"),
            "`{to}` should be told `{expected}`, not:\n{error}"
        );
    }
}

#[test]
fn a_detector_is_fitted_once_to_the_cells_network_and_judges_all_its_attacks() {
    let plan = changed("table2-roth", Scale::Demo, &[]).unwrap();
    let of = |stage: &str| -> Vec<_> { plan.jobs.all().iter().filter(|job| job.stage == stage).collect() };
    let [fit] = of("fit")[..] else { panic!("one network, one detector") };
    assert_eq!(fit.params["detector"]["draws"], 256);
    assert!(fit.params.get("false_positive_rate").is_none(), "how it is used does not change what it knows");
    assert_eq!(fit.inputs[1], of("finetune")[0].address);
    assert_eq!((fit.cost.detector, fit.cost.votes), (257 * 1000, 0));
    let attacks = of("attack");
    assert!(attacks.len() > 4 && attacks.iter().any(|job| job.address.contains("odds--uniform-noise--")));
    for attack in attacks {
        assert_eq!(attack.inputs[1..], [fit.inputs[1].clone(), fit.address.clone()]);
        assert_eq!(attack.params["detector"]["false_positive_rate"], 0.001);
        assert_eq!(attack.cost.detector, 256 * attack.cost.votes);
    }
    let cell = &plan.report("table2-roth").unwrap().params.cells[0];
    assert_eq!(
        (&cell.parameters["detector.draws"], &cell.parameters["detector.sigma"]),
        (&256.into(), &"30/255".into())
    );
    let stricter = [("false_positive_rate = 0.001", "false_positive_rate = 0.01")];
    let stricter = changed("table2-roth", Scale::Demo, &stricter).unwrap();
    assert_eq!(stricter.jobs.all().iter().filter(|job| job.address == fit.address).count(), 1);

    let told = |from: &str, to: &str| match changed("table2-roth", Scale::Demo, &[(from, to)]) {
        Ok(_) => panic!("`{to}` was accepted"),
        Err(error) => error.to_string(),
    };
    let expect = |from: &str, to: &str, words: &[&str]| {
        let error = told(from, to);
        assert!(words.iter().all(|word| error.contains(word)), "`{to}` should be told of {words:?}, not:\n{error}");
    };
    expect("draws = 256", "draw = 256", &["table2-roth.toml", "detector", "unknown field `draw`", "`draws`"]);
    expect("draws = 256", "draws = 0", &["detector", "draws = 0"]);
    expect("name = \"odds\"", "name = \"odd\"", &["detector", "unknown variant `odd`", "`odds`"]);
    expect("false_positive_rate = 0.001", "false_positive_rate = 1.5", &["detector.false_positive_rate", "1.5"]);
    expect("train\", limit = 1000", "trian\", limit = 1000", &["detector.sample.source", "`embedded-train`"]);
    expect("defense = { name = \"none\"", "defense = { name = \"rotation\"", &["detector", "`rotation`"]);
}

#[test]
fn randomness_inside_a_network_is_the_attacks_and_is_left_out_where_there_is_none() {
    let plan = changed("table2-dhillon", Scale::Demo, &[]).unwrap();
    for attack in plan.jobs.all().iter().filter(|job| job.stage == "attack") {
        assert_eq!(attack.params["inside"]["name"], "activation-pruning");
        assert!(attack.address.starts_with("attack/activation-pruning--"), "{}", attack.address);
    }
    let cell = &plan.report("table2-dhillon").unwrap().params.cells[0];
    assert_eq!(cell.parameters["inside.samples"], 2.0);
    let plain = changed("smoke", Scale::Demo, &[]).unwrap();
    let attack = plain.jobs.all().iter().find(|job| job.stage == "attack").unwrap();
    assert!(attack.params.get("inside").is_none() && attack.params.get("detector").is_none());
    let error = changed("table2-dhillon", Scale::Demo, &[("samples = 2.0", "samples = 0")]).unwrap_err().to_string();
    assert!(error.contains("inside") && error.contains("samples"), "{error}");
}

#[test]
fn fine_tuned_networks_start_from_the_trained_one_and_see_the_cells_defense() {
    let tuning = "[base.finetuning]\nsample = { source = \"embedded-train\", limit = 64 }\nepochs = 1\nbatch = 32\n[base.training]";
    let plan =
        changed("smoke", Scale::Demo, &[("[base.training]", tuning), ("seed = 1\n", "seed = 1\nfinetuned = true\n")])
            .unwrap();
    let networks: Vec<_> = plan.jobs.all().iter().filter(|job| job.stage == "finetune").collect();
    assert_eq!(networks.len(), 3, "one trained, one fine-tuned per defense");
    let base = networks.iter().find(|job| job.params["init"]["name"] == "fresh").unwrap();
    for tuned in networks.iter().filter(|job| job.params["init"]["name"] == "finetuned") {
        assert!(tuned.inputs.contains(&base.address));
        assert_ne!(tuned.params["defense"]["name"], "none");
    }
}

#[test]
fn networks_are_asked_without_their_defense_where_invariance_is_wanted() {
    let with = |line: &str| {
        let plan = changed("smoke", Scale::Demo, &[("[report]\n", &format!("[report]\n{line}\n"))]).unwrap();
        let cells = plan.report("smoke").unwrap().params.cells.clone();
        (plan, cells)
    };
    let (plain, cells) = with("");
    assert!(cells.iter().all(|cell| cell.undefended.is_none()));
    for line in ["invariance = true", "value = \"invariance_rate\""] {
        let (plan, cells) = with(line);
        assert_eq!(plan.jobs.all().len(), plain.jobs.all().len() + 1, "one for all cells of a network");
        let folder = cells[0].undefended.as_ref().unwrap();
        assert!(cells.iter().all(|cell| cell.undefended.as_ref() == Some(folder)));
        let job = plan.jobs.all().iter().find(|job| folder.ends_with(&job.address)).unwrap();
        assert_eq!((&job.params["defense"]["name"], &job.params["attack"]["name"]), (&"none".into(), &"none".into()));
        assert_eq!(job.params["votes"]["draws"], 1);
        assert!(plan.report("smoke").unwrap().inputs.contains(&job.address));
    }
}

#[test]
fn adversarial_training_is_planned_checked_and_counted() {
    let with = |attack: &str| {
        let recipe = format!("[base.training]\nadversarial = {attack}");
        changed("smoke", Scale::Demo, &[("[base.training]", &recipe)])
    };
    let gradients = |plan: &Plan| plan.jobs.all().iter().map(|job| job.cost.gradient_queries).sum::<u64>();
    let pgd = with("{ name = \"pgd\", eps = \"0.031\", step_size = \"0.007\", steps = [10] }").unwrap();
    let network = pgd.jobs.all().iter().find(|job| job.stage == "finetune").unwrap();
    assert_eq!(network.params["training"]["adversarial"]["steps"], serde_json::json!([10]));
    // 2 epochs of 1,000 images, 10 steps each.
    assert_eq!(gradients(&pgd) - gradients(&changed("smoke", Scale::Demo, &[]).unwrap()), 20_000);
    for (attack, word) in [
        ("{ name = \"pdg\" }", "`pgd`"),
        ("{ name = \"pgd\", steps = [1, 2] }", "[1, 2]"),
        ("{ name = \"logit-matching\" }", "logit-matching"),
    ] {
        let error = with(attack).unwrap_err().to_string();
        assert!(error.contains("training.adversarial") && error.contains(word), "{error}");
    }
}

#[test]
fn typos_and_impossible_cells_are_told_the_file_the_cell_and_the_accepted_names() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "defense.degrees = 90",
            "defense.degree = 90",
            &[
                "table1.toml",
                "cell",
                "rotation=\"+-90 degrees (text)\"",
                "defense",
                "unknown field `degree`",
                "`degrees`",
            ],
        ),
        (
            "name = \"rotation\", degrees",
            "name = \"rotaton\", degrees",
            &["defense", "unknown variant `rotaton`", "`gaussian-noise`", "`rotation`"],
        ),
        ("name = \"pgd\"", "name = \"pdg\"", &["attack", "unknown variant `pdg`", "`pgd`"]),
        ("eps = \"8/255\"", "epsilon = \"8/255\"", &["attack", "unknown field `epsilon`", "`eps`"]),
        ("eps = \"8/255\"", "eps = \"8/0\"", &["attack", "8/0"]),
        ("eps = \"8/255\"", "eps = 8", &["cell", "attack: pgd: eps = 8 must be at most 1", "\"8/255\""]),
        (
            "norm = \"linf\", eps = \"8/255\"",
            "norm = \"l2\", eps = 128",
            &["cell", "attack: pgd: eps = 128 must be at most 55.4"],
        ),
        (
            "name = \"cifar-resnet\"\ndepth = 8",
            "name = \"cifar-resnet\"\nmean = [123.675, 116.28, 103.53]\ndepth = 8",
            &["cell", "model", "`mean` is [123.675, 116.28, 103.53]", "\"123.675/255\""],
        ),
        ("votes = { draws = 50", "votes = { draw = 50", &["votes", "unknown field `draw`", "`draws`"]),
        ("votes = { draws = 50", "vote = { draws = 50", &["unknown field `vote`", "`votes`"]),
        (
            "protocol = \"paper-text\"",
            "protocol = \"paper\"",
            &["protocol", "unknown variant `paper`", "`paper-text`", "`authors-code`", "`corrected`"],
        ),
        ("epochs = 12", "epoch = 12", &["training", "unknown field `epoch`", "`epochs`"]),
        ("batch = 64", "batch = 0", &["training.batch"]),
        ("epoch = \"best\"", "epoch = \"bset\"", &["epoch", "best, last or a number"]),
        (
            "source = \"embedded-test\"",
            "source = \"embeded\"",
            &["sample.source", "unknown images `embeded`", "`embedded-test`", "`cifar10-test`"],
        ),
        ("limit = 100", "limits = 100", &["sample", "unknown field `limits`", "`limit`"]),
        ("name = \"cifar-resnet\"\ndepth = 8", "name = \"cifar-resnet\"\ndepth = 9", &["model", "depth"]),
        (
            "name = \"cifar-resnet\"\ndepth = 8",
            "name = \"resnext\"\ndepth = 8",
            &["model", "unknown variant `resnext`", "`cifar-resnet`"],
        ),
        ("class = 9", "class = 10", &["goal.class", "0 to 9"]),
        (
            "name = \"targeted\"",
            "name = \"target\"",
            &["goal", "unknown variant `target`", "`untargeted`", "`targeted`"],
        ),
        ("rule = { name = \"majority\" }", "rule = { name = \"median\" }", &["unknown variant `median`", "`majority`"]),
        ("rule = { name = \"majority\" }", "rule = { name = \"majority\", n = 51 }", &["votes.draws", "51"]),
        ("rule = { name = \"majority\" }", "rule = { name = \"mean-logits\" }", &["keep_logits"]),
        ("value = \"attack_success_rate\"", "value = \"asr\"", &["unknown variant `asr`", "`attack_success_rate`"]),
        ("[base.training]\nsample", "[base.finetuning]\nsample", &["training", "[base.training]"]),
    ];
    for (from, to, expected) in cases {
        let error = match changed("table1", Scale::Demo, &[(from, to)]) {
            Ok(_) => panic!("`{to}` was accepted"),
            Err(error) => error.to_string(),
        };
        for part in *expected {
            assert!(error.contains(part), "`{to}` should be told of `{part}`, not:\n{error}");
        }
        assert!(error.contains("table1.toml"), "{error}");
    }
    let weights =
        changed("table1", Scale::Cifar10, &[("cifar10-resnet20\", otherwise", "cifar10-resnet21\", otherwise")]);
    assert!(weights.unwrap_err().to_string().contains("unknown weights `cifar10-resnet21`"));
    let model = changed("table1", Scale::Paper, &[("name = \"resnet\", depth = 50", "name = \"resnet\", depth = 34")]);
    assert!(model.unwrap_err().to_string().contains("the weights belong to"));
    let epoch = |epoch: &str| {
        let epoch = format!("epoch = {epoch}");
        changed("table1", Scale::Demo, &[("epoch = \"best\"", &epoch)]).unwrap_err().to_string()
    };
    assert!(epoch("13").contains("epoch: 13 is after the last epoch, 12"));
    assert!(epoch("3").contains("keep = \"every\""));
    let imported = changed("table1", Scale::Paper, &[("epoch = \"best\"", "epoch = 12")]);
    assert!(imported.unwrap_err().to_string().contains("imported weights are epoch 0"));
    let step = changed("smoke", Scale::Demo, &[("{ step = 2 }", "{ step = 3 }")]);
    assert!(step.unwrap_err().to_string().contains("none after 3"));
}

#[test]
fn what_a_machine_lacks_stops_only_the_pipeline_that_needs_it() {
    let project = Project::new();
    let smoke = fs::read_to_string(root().join("pipelines/smoke.toml")).unwrap();
    project.write("pipelines/mine.toml", smoke.replace("embedded-test", "mine"));
    project.write(
        "pipelines/sources/mine.toml",
        "[[images.mine.from]]\nname = \"parquet\"\nfiles = [\"mine.parquet\"]\nimage = \"image\"\nlabel = \"label\"\n",
    );
    assert_eq!(project.missing(&["smoke"]).len(), 10, "2 samples, 1 network, 6 attacks, 1 report");
    let told = project.failure(&["mine"]);
    assert!(
        told.contains("images `mine` are not at hand: set DATA_ROOT to a folder that holds mine.parquet"),
        "{told}"
    );
    let told = project.failure(&["mine", "DATA_ROOT=here"]);
    assert!(told.contains("put mine.parquet below DATA_ROOT=here"), "{told}");
    project.write("here/mine.parquet", "");
    let missing = project.missing(&["mine", "DATA_ROOT=here"]);
    assert_eq!(missing.len(), 10);
    assert!(project.output(&["-n", "mine", "DATA_ROOT=here"]).contains(" --data-root here "));
    let collection = "kind = \"collection\"\ntitle = \"Both\"\nanalysis = \"Two\"\npart_axis = \"part\"\n\
                      part = [{ pipeline = \"smoke\", label = \"A\" }, { pipeline = \"mine\", label = \"B\" }]\n\
                      [report]\nrows = [\"part\"]\ncolumns = [\"defense\", \"steps\"]\n";
    project.write("pipelines/both.toml", collection);
    let told = project.failure(&["both"]);
    assert!(told.contains("both: its part mine: images `mine` are not at hand"), "{told}");
    assert_eq!(project.missing(&["smoke"]).len(), 10, "its jobs do not linger");
    let missing = project.missing(&["both", "DATA_ROOT=here"]);
    assert_eq!(missing.len(), 17, "3 samples, the one network, 12 attacks, 1 report: {missing:?}");
}

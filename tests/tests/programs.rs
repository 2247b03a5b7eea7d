//! A program as victim, as a user meets it: a file, a pipeline, and make.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use pipeline_tests::{Project, root};

/// The example in plain Rust, compiled into a project's folder.
fn plain(project: &Project) -> PathBuf {
    let out = project.path().join("plain");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let source = root().join("crates/victim/examples/plain/main.rs");
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "-O", "-o"]).arg(&out).arg(source);
    assert!(command.status().unwrap().success());
    out
}

fn pipeline(model: &str, defense: &str) -> String {
    format!(
        r#"
title = "A program as victim"
analysis = """
{}
"""

[base]
seed = 1
sample = {{ source = "embedded-test", limit = 6 }}
model = {model}
attack = {{ name = "pgd", eps = "8/255", step_size = "4/255", steps = [2] }}
goal = {{ name = "untargeted" }}
votes = {{ draws = 4 }}
defense = {defense}

[report]
rows = []
columns = []
"#,
        "Prose. ".repeat(20)
    )
}

#[test]
fn a_changed_program_is_another_experiment() {
    let project = Project::new();
    let binary = plain(&project);
    let model = r#"{ name = "program", command = ["./plain", "network"] }"#;
    let noise = r#"{ name = "gaussian-noise", sigma = 0.1 }"#;
    project.write("pipelines/mine.toml", pipeline(model, noise));
    project.make(&["mine"]);
    let (finetune, attacks) = (project.parts("finetune"), project.parts("attack"));
    assert_eq!((finetune.len(), attacks.len()), (1, 3));
    assert!(finetune[0].to_string_lossy().contains("program-plain--"), "{finetune:?}");
    assert_eq!(project.missing(&["mine"]), [] as [&str; 0]);
    project.make(&["verify"]);
    // The same bytes are the same program; others another.
    let bytes = fs::read(&binary).unwrap();
    fs::write(&binary, [&bytes[..], b"\n"].concat()).unwrap();
    let missing = project.missing(&["mine"]);
    assert_eq!(missing.len(), 5, "the network, three attacks and the report: {missing:?}");
    let told = project.failure(&["verify"]);
    assert!(told.contains("plain: changed since"), "{told}");
    project.make(&["mine"]);
    assert_eq!(project.parts("attack").len(), 6);
}

#[test]
fn what_a_program_cannot_be_is_refused_before_anything_runs() {
    let project = Project::new();
    let model = r#"{ name = "program", command = ["./plain"] }"#;
    let refused = |text: String, part: &str| {
        project.write("pipelines/mine.toml", text);
        let told = project.failure(&["mine"]);
        assert!(told.contains("mine.toml") && told.contains(part), "{part}: {told}");
    };
    let none = r#"{ name = "none" }"#;
    let base = pipeline(model, none);
    refused(base.replace("seed = 1", "seed = 1\nweights = { source = \"cifar10-resnet20\" }"), "leave `weights` out");
    refused(base.replace("seed = 1", "seed = 1\nfinetuned = true"), "leave `finetuned` out");
    refused(base.replace("columns = []", "columns = []\ninvariance = true"), "invariance");
    refused(pipeline(r#"{ name = "program", command = [] }"#, none), "command = [] starts nothing");
    refused(pipeline(r#"{ name = "program", comand = ["x"] }"#, none), "comand");
    refused(pipeline(model, r#"{ name = "program", command = "python3 mine.py" }"#), "expected a sequence");
    // Files that are listed and not there are missing on this machine, and elsewhere may be there.
    project.write("pipelines/mine.toml", pipeline(r#"{ name = "program", command = ["x"], files = ["w.pt"] }"#, none));
    let told = project.failure(&["mine"]);
    assert!(told.contains("there is no file w.pt"), "{told}");
    assert!(project.output(&["help"]).contains("mine"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
#[expect(clippy::print_stderr, reason = "why part of a test is skipped")]
fn a_new_defense_runs_and_is_never_written_over() {
    let project = Project::new();
    copy(&root().join("crates/victim"), &project.path().join("crates/victim"));
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let torch = Command::new(&python).args(["-c", "import torch, numpy"]).output();
    let has_torch = torch.is_ok_and(|output| output.status.success());
    let python = format!("PYTHON={python}");
    let told = project.output(&["new-defense", "NAME=my-noise", "LANG=python", &python]);
    assert!(told.contains("pipelines/my-noise.py"), "{told}");
    for (arguments, part) in [
        (&["new-defense", "NAME=my-noise"][..], "pipelines/my-noise.py is there already"),
        (&["new-defense", "NAME=smoke"], "pipelines/smoke.toml is there already"),
        (&["new-defense", "NAME=test"], "is a target"),
        (&["new-defense", "NAME=../mine"], "a-z, 0-9 and -"),
        (&["new-defense"], "a-z, 0-9 and -"),
        (&["new-defense", "NAME=other", "LANG=cobol"], "PROTOCOL.md"),
    ] {
        let told = project.failure(arguments);
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
    assert!(!project.path().join("pipelines/smoke.py").exists());
    let text = String::from_utf8(project.bytes("pipelines/my-noise.toml")).unwrap();
    assert!(!text.contains("NAME") && !text.contains("\"PYTHON\""), "{text}");
    let listed = project.output(&["list", "P=my-noise"]);
    assert!(listed.contains("program-my-noise"), "{listed}");
    if !has_torch {
        eprintln!("skipped in part: no Python with torch and numpy (set PYTHON)");
        return;
    }
    // Smaller, for a test.
    let text = text.replace("limit = 50", "limit = 4").replace("epochs = 12", "epochs = 1");
    let text = text.replace("{ source = \"embedded-train\" }", "{ source = \"embedded-train\", limit = 300 }");
    let text = text
        .replace("steps = [20]", "steps = [2]")
        .replace("draws = 10", "draws = 2")
        .replace("draws = 30", "draws = 4");
    project.write("pipelines/my-noise.toml", text);
    project.make(&["my-noise"]);
}

/// The cells of [`a_published_network_in_another_framework_is_attacked_as_ours_is`], by their place in the pipeline's axis.
const CELLS: [&str; 4] = ["ours", "defended", "noise", "network"];

#[test]
#[expect(clippy::print_stderr, reason = "why a test is skipped, and what it has counted")]
fn a_published_network_in_another_framework_is_attacked_as_ours_is() {
    let Some(data) = pipeline_tests::data_root() else { return };
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !Command::new(&python).args(["-c", "import torch, numpy"]).output().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: no Python with torch and numpy (set PYTHON)");
    }
    let weights = data.join("weights/cifar10-resnet20.safetensors");
    if !weights.exists() {
        return eprintln!("skipped: no {}", weights.display());
    }
    let project = Project::new();
    copy(&root().join("crates/victim"), &project.path().join("crates/victim"));
    let (weights, noise) = (weights.display(), r#"{ name = "gaussian-noise", sigma = 0.1 }"#);
    let program = |part: &str| {
        let script = "crates/victim/examples/resnet20.py";
        format!(r#"{{ name = "program", command = ["{python}", "{script}", "{weights}", "{part}"] }}"#)
    };
    for cell in CELLS {
        let ours = "{ name = \"cifar-resnet\", depth = 20 }\nweights = { source = \"cifar10-resnet20\" }".to_owned();
        let (model, defense) = match cell {
            "ours" => (ours, noise.to_owned()),
            "defended" => (program(cell), r#"{ name = "none" }"#.to_owned()),
            "noise" => (ours, program(cell)),
            _ => (program(cell), noise.to_owned()),
        };
        let text = pipeline(&model, &defense).replace("embedded-test\", limit = 6", "cifar10-test\", limit = 100");
        let text = text.replace("step_size = \"4/255\", steps = [2]", "step_size = \"2/255\", steps = [10]");
        let text = text.replace("eps = \"8/255\"", "eps = \"4/255\"");
        project.write(
            &format!("pipelines/{cell}.toml"),
            text.replace("{ draws = 4 }", "{ draws = 20, stop = \"never\" }"),
        );
    }
    let cells: Vec<&str> = CELLS.to_vec();
    project.make(&[&cells[..], &[&format!("DATA_ROOT={}", data.display())]].concat());
    let rows = |cell: &str, attack: &str| -> Vec<artifact::AttackRow> {
        let start = format!("report--{cell}--r");
        let plans = pipeline_tests::files(&project.path().join("data/plan/demo"), "json");
        let named = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&start);
        let report = fs::read_to_string(plans.iter().find(named).unwrap()).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let folder = report["cells"][0][attack].as_str().unwrap();
        artifact::read(&project.path().join(folder).join("part-0-of-1.parquet")).unwrap().1
    };
    let rate = |cell: &str, attack: &str| {
        let wrong = |row: &artifact::AttackRow| row.votes.iter().filter(|vote| u32::from(**vote) != row.label).count();
        let rows: Vec<_> = rows(cell, attack).into_iter().filter(|row| row.phase == "after").collect();
        rows.iter().map(wrong).sum::<usize>() as f64 / rows.len() as f64 / 20.0
    };
    for attack in ["none", "attack"] {
        let ours = rate("ours", attack);
        // Images, not draws, are independent.
        let error = (2.0 * ours * (1.0 - ours) / 100.0).sqrt();
        for cell in &CELLS[1..] {
            let theirs = rate(cell, attack);
            eprintln!(
                "{attack}: share of wrong votes {ours:.4} of ours, {theirs:.4} of {cell}; standard error {error:.4}"
            );
            assert!((ours - theirs).abs() < 3.0 * error, "{cell} {attack}");
        }
    }
    // The same keys before any attack: where the draws are the same, votes differ by the rounding of a network.
    for (cell, most) in [("noise", 0), ("network", 20)] {
        let pairs = rows("ours", "none").into_iter().zip(rows(cell, "none"));
        let differ: usize = pairs.map(|(a, b)| a.votes.iter().zip(&b.votes).filter(|(a, b)| a != b).count()).sum();
        eprintln!("{cell}: {differ} of 4000 votes differ");
        assert!(differ <= most, "{cell}: {differ} votes differ");
    }
}

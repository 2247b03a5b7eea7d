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
    refused(pipeline(model, r#"{ name = "program", command = "python3 mine.py" }"#), "command");
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
    let text = text.replace("steps = [20]", "steps = [2]").replace("draws = 10", "draws = 2").replace("draws = 30", "draws = 4");
    project.write("pipelines/my-noise.toml", text);
    project.make(&["my-noise"]);
}

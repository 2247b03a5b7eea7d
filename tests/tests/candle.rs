//! Networks of candle's library from weights in a file to votes under attack, by the real binaries.

use std::collections::BTreeMap;

use artifact::{AttackRow, FinetuneRow};
use game::{Key, Phase};
use pipeline_tests::Project;

const SOURCES: &str = r#"
[weights.tiny]
model = { name = "candle", architecture = "ARCHITECTURE", side = 32, classes = 10, width = 0.125, depth = 0.25 }

[[weights.tiny.from]]
name = "file"
path = "tiny.safetensors"
"#;

const PIPELINE: &str = r#"
title = "A network of candle's library under attack"
analysis = "A network with random weights, attacked by few and by many steps: its loss rises, for its gradient reaches the image."

[base]
seed = 1
sample = { source = "embedded-test", limit = 12 }
weights = { source = "tiny" }
defense = { name = "none" }
attack = { name = "pgd", eps = "16/255", step_size = "4/255", steps = [1, 8] }
goal = { name = "untargeted" }
votes = { draws = 1 }

[[axis]]
name = "steps"
points = [{ step = 1 }, { step = 8 }]

[report]
rows = ["steps"]
"#;

/// A project with a pipeline `tiny`, and random weights of an architecture.
fn project(architecture: &str) -> Project {
    let project = Project::new();
    let spec =
        format!(r#"{{"architecture": "{architecture}", "side": 32, "classes": 10, "width": 0.125, "depth": 0.25}}"#);
    let spec: zoo::Spec = serde_json::from_str(&spec).unwrap();
    let weights = zoo::initialise(&spec, Key::root(3).phase(Phase::Init)).unwrap();
    nets::weights::save(&project.path().join("tiny.safetensors"), &weights, &BTreeMap::new()).unwrap();
    project.write("pipelines/sources/tiny.toml", SOURCES.replace("ARCHITECTURE", architecture));
    project.write("pipelines/tiny.toml", PIPELINE);
    project
}

fn root(project: &Project) -> String {
    format!("DATA_ROOT={}", project.path().display())
}

#[test]
fn a_network_with_an_input_gradient_loses_to_pgd() {
    for architecture in ["deit-tiny-patch16-224", "convnext-atto", "efficientnet-b0"] {
        let project = project(architecture);
        project.make(&["tiny", &root(&project)]);
        let tables = project.parts("finetune");
        let (provenance, rows) = artifact::read::<FinetuneRow>(&project.path().join(&tables[0])).unwrap();
        assert_eq!(
            (rows.len(), rows[0].epoch, provenance.facts["model"]["architecture"].as_str()),
            (1, 0, Some(architecture))
        );
        let of_pgd = |path: &&std::path::PathBuf| path.to_string_lossy().contains("--pgd-");
        let parts = project.parts("attack");
        let part = parts.iter().find(of_pgd).unwrap();
        let rows = artifact::read::<AttackRow>(&project.path().join(part)).unwrap().1;
        let losses = |step: u32| -> Vec<f64> {
            rows.iter().filter(|row| row.step == step).map(|row| row.loss.unwrap()).collect()
        };
        let (few, many) = (losses(1), losses(8));
        assert_eq!((few.len(), many.len()), (12, 12));
        let risen = few.iter().zip(&many).filter(|(few, many)| many > few).count();
        assert!(risen >= 11, "{architecture}: the loss rose for {risen} of 12 images: {few:?}, {many:?}");
        assert!(rows.iter().all(|row| row.zero_gradient == Some(0.0) && row.non_finite == 0), "{architecture}");
    }
}

#[test]
fn what_such_a_network_cannot_do_is_refused_before_anything_runs() {
    let project = project("deit-tiny-patch16-224");
    let root = root(&project);
    let plan = |text: String| {
        project.write("pipelines/tiny.toml", text);
        project.failure(&["-n", "tiny", &root])
    };
    let smaller = PIPELINE.replace("limit = 12 }", "limit = 12, resize = 24 }");
    assert!(plan(smaller).contains("takes images of 32x32 pixels, not of 24x24"));
    let inside = PIPELINE.replace("votes =", "inside = { name = \"activation-pruning\" }\nvotes =");
    assert!(plan(inside).contains("inside: nothing can be put into a network of candle's library"));
    let trained = PIPELINE.replace(
        "[[axis]]",
        "[base.training]\nsample = { source = \"embedded-train\", limit = 100 }\nbatch = 10\n\n[[axis]]",
    );
    let fresh = trained
        .replace("weights = { source = \"tiny\" }", "model = { name = \"candle\", architecture = \"convnext-atto\" }");
    assert!(plan(fresh).contains("`convnext-atto` is attacked as it is imported, and not trained here"));
    let unknown = PIPELINE
        .replace("weights = { source = \"tiny\" }", "model = { name = \"candle\", architecture = \"vit_tiny\" }");
    assert!(plan(unknown).contains("vit-tiny-patch16-224"));
}

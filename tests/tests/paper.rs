//! `make table2 SCALE=paper` on a handful of real images: the paper's architectures and image sizes with random or
//! stand-in weights, and so few steps and draws that a processor can take them.

use std::{fs, os::unix::fs::symlink, path::Path};

use artifact::{AttackRow, SampleRow};
use game::Key;
use pipeline_tests::{Project, data_root};

/// Images of ImageNet's classes that are attacked.
const IMAGES: usize = 3;

/// What is made smaller in each file; each text stands in it.
const SMALLER: [(&str, &[(&str, &str)]); 5] = [
    (
        "table2-guo",
        &[("every = 50", "every = 1"), ("steps = [1000], eps", "steps = [1], eps"), ("draws = 30", "draws = 2")],
    ),
    (
        "table2-xie",
        &[
            ("every = 50", "every = 1"),
            ("attack.steps = [1000]", "attack.steps = [1]"),
            ("steps = [200]", "steps = [1]"),
            ("draws = 30", "draws = 2"),
        ],
    ),
    (
        "table2-dhillon",
        &[
            ("limit = 1000", "limit = 3"),
            ("depth = 32, width = 10", "depth = 8, width = 1"),
            ("attack.steps = [500]", "attack.steps = [1]"),
            ("draws = 30", "draws = 2"),
            ("epochs = 100", "epochs = 1"),
            ("\"cifar10-train\" }", "\"cifar10-train-4000\", limit = 300 }"),
        ],
    ),
    (
        "table2-xiao",
        &[
            ("limit = 1000", "limit = 3"),
            ("attack = { steps = [100], ", "attack = { steps = [1], "),
            ("attack = { steps = [40000], ", "attack = { steps = [1], "),
            ("epochs = 100", "epochs = 1"),
            ("adversarial.steps = [10]", "adversarial.steps = [1]"),
            ("\"cifar10-train\" }", "\"cifar10-train-4000\", limit = 300 }"),
        ],
    ),
    (
        "table2-roth",
        &[
            ("limit = 1000 }\nmodel", "limit = 3 }\nmodel"),
            ("depth = 32, width = 10", "depth = 8, width = 1"),
            ("steps = [100]", "steps = [1]"),
            ("attack.steps = [4000]", "attack.steps = [1]"),
            ("draws = 256", "draws = 2"),
            ("epochs = 100", "epochs = 1"),
            ("\"cifar10-train\" }", "\"cifar10-train-4000\", limit = 300 }"),
            ("\"cifar10-train\", limit = 1000", "\"cifar10-train-4000\", limit = 100"),
        ],
    ),
];

/// The folder that the paper's scale asks for, as far as it goes: an image folder, and weights drawn at random.
fn furnish(project: &Project, data: &Path) {
    let (_, images) = artifact::read::<SampleRow>(&sampled(project, data)).unwrap();
    for row in images {
        project.write(&format!("root/imagenet/val/{:04}/{}.png", row.label, row.id), row.png);
    }
    symlink(data.join("images"), project.path().join("root/images")).unwrap();
    let inception: nets::Spec = serde_json::from_str(r#"{"name": "inception-v3"}"#).unwrap();
    let weights = nets::weights::initialise(&inception.graph().unwrap(), Key::root(1)).unwrap();
    fs::create_dir_all(project.path().join("root/weights")).unwrap();
    let path = project.path().join("root/weights/imagenet-inception-v3.safetensors");
    nets::weights::save(&path, &weights, &Default::default()).unwrap();
}

/// The first real images, by the stage `sample`.
fn sampled(project: &Project, data: &Path) -> std::path::PathBuf {
    let source = data.join("images/nips17-500.parquet");
    let params = serde_json::json!({
        "source": {"name": "parquet", "files": [source], "image": "image", "label": "label"},
        "classes": 1000, "limit": IMAGES,
    });
    project.write("images.json", params.to_string());
    let out = project.path().join("images.parquet");
    let status = project.stage("sample", &["--params", "images.json", "--out", "images.parquet"]);
    assert!(status.success());
    out
}

#[test]
fn table2_at_the_paper_scale_runs_on_real_images() {
    let Some(data) = data_root() else { return };
    let project = Project::new();
    for (name, changes) in SMALLER {
        let path = format!("pipelines/{name}.toml");
        let mut text = String::from_utf8(project.bytes(&path)).unwrap();
        for (from, to) in changes {
            assert!(text.contains(from), "{path} no longer holds `{from}`");
            text = text.replace(from, to);
        }
        project.write(&path, text);
    }
    furnish(&project, &data);
    let root = format!("DATA_ROOT={}", project.path().join("root").display());
    project.make(&["table2", "SCALE=paper", &root]);
    let report = String::from_utf8(project.bytes("data/report/paper/table2.md")).unwrap();
    for row in ["random cropping", "rescaling", "activation pruning", "k-winners-take-all", "odds test"] {
        assert!(report.contains(&format!("| {row}")), "{report}");
    }
    for part in project.parts("attack") {
        let (provenance, rows) = artifact::read::<AttackRow>(&project.path().join(&part)).unwrap();
        assert!(!rows.is_empty() && rows.iter().all(|row| row.non_finite == 0), "{part:?}: {provenance:?}");
    }
}

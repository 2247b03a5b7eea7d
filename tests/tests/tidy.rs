//! The rules of the house that a program can check.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use pipeline_tests::{files, pipelines, root};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The crates of the table in ARCHITECTURE.md, and whom each may import.
fn allowed() -> BTreeMap<String, String> {
    let text = read("ARCHITECTURE.md");
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        match cells[..] {
            [name, _, imports] if name.starts_with('`') => {
                Some((name.trim_matches('`').to_owned(), imports.to_owned()))
            }
            _ => None,
        }
    };
    text.lines().filter_map(row).collect()
}

/// Our crates, and those of ours that each imports outside its tests.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let output = command
        .current_dir(root())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let normal = package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"].is_null());
            (name(package), normal.map(name).collect())
        })
        .collect()
}

#[test]
fn crates_import_only_whom_they_may() {
    let (allowed, imports) = (allowed(), imports());
    let ours: BTreeSet<&String> = imports.keys().collect();
    for (name, imported) in imports.iter().filter(|(name, _)| *name != "pipeline-tests") {
        let Some(may) = allowed.get(name) else { panic!("ARCHITECTURE.md does not list the crate `{name}`") };
        for other in imported.iter().filter(|other| ours.contains(other)) {
            // The planner's row says "the stages" and "catalogues" rather than name them all.
            let named = may.split([',', ' ']).any(|word| word == other) || name == "plan";
            assert!(named, "`{name}` imports `{other}`, but ARCHITECTURE.md lets it import: {may}");
        }
    }
    for stage in imports.keys().filter(|name| name.starts_with("stage-")) {
        let readers: Vec<&String> = imports.iter().filter(|(_, of)| of.contains(stage)).map(|(name, _)| name).collect();
        let all = |name: &&String| *name == "plan" || *name == "stages";
        assert!(readers.iter().all(all), "only `plan` and `stages` import `{stage}`, not {readers:?}");
    }
    for name in ["artifact", "stage-report"] {
        let tensors: Vec<&String> = imports[name].iter().filter(|other| other.starts_with("candle")).collect();
        assert!(tensors.is_empty(), "`{name}` knows no tensors, but imports {tensors:?}");
    }
    assert!(!imports["attacks"].contains("defenses") && !imports["defenses"].contains("attacks"));
}

#[test]
fn every_crate_is_described() {
    let text = read("crates/README.md");
    for name in imports().keys().filter(|name| *name != "pipeline-tests") {
        assert!(text.contains(&format!("| `{name}` |")), "crates/README.md does not list `{name}`");
        assert!(root().join("crates").join(name).is_dir(), "the crate `{name}` is not in crates/{name}");
    }
}

#[test]
fn all_chance_comes_from_a_key() {
    // Clippy forbids these too (clippy.toml), but not in macros, and not where a lint is switched off.
    let forbidden =
        ["::randn(", "::rand(", "rand_like(", "randn_like(", "thread_rng", "SystemTime::now", "Dropout::new"];
    let mut seen = 0;
    for path in sources(&root().join("crates")).into_iter().filter(|path| !path.to_string_lossy().contains("/tests/")) {
        seen += 1;
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in forbidden {
                assert!(!line.contains(word), "{}:{}: `{word}`: take a game::Key", path.display(), number + 1);
            }
        }
    }
    assert!(seen > 30, "only {seen} files were found");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = files(folder, "rs");
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        found.extend(sources(&entry));
    }
    found
}

#[test]
fn every_pipeline_says_what_it_shows_and_what_the_paper_claims() {
    for path in pipelines() {
        let file: toml::Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(file["title"].as_str().is_some_and(|title| title.len() > 10), "{name}: title");
        assert!(file["analysis"].as_str().is_some_and(|analysis| analysis.len() > 100), "{name}: analysis");
        // Tables, figures and the theory are the paper's; whatever else is ours claims nothing.
        let reported = name == "theory" || name.starts_with("table") || name.starts_with("figure");
        // Curves and pictures that the paper prints without a number.
        let reported = reported && !["figure8", "figure10", "figure11"].contains(&name.as_str());
        // The claims of a collection are its parts'.
        if file.get("kind").and_then(toml::Value::as_str) == Some("collection") {
            continue;
        }
        let claims = file.get("paper").and_then(toml::Value::as_array).map_or(0, Vec::len);
        assert_eq!(reported, claims > 0, "{name}: {claims} claims of the paper");
    }
}

#[test]
fn table_1_claims_what_the_paper_prints() {
    let file: toml::Table = toml::from_str(&read("pipelines/table1.toml")).unwrap();
    let claim =
        |claim: &toml::Value| (claim["at"]["goal"].as_str().unwrap().to_owned(), claim["value"].as_float().unwrap());
    let claims: Vec<_> = file["paper"].as_array().unwrap().iter().map(claim).collect();
    let expected = [("untargeted", 1.0), ("untargeted", 1.0), ("targeted", 0.99), ("targeted", 0.99)];
    assert_eq!(claims, expected.map(|(goal, value)| (goal.to_owned(), value)));
}

#[test]
fn documents_name_targets_that_exist() {
    let makefile = read("Makefile");
    let mut targets: BTreeSet<String> = makefile
        .lines()
        .filter_map(|line| line.split_once(": ").or(line.split_once(":")))
        .map(|(t, _)| t.to_owned())
        .collect();
    targets.extend(pipelines().iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()));
    let mut named = BTreeSet::new();
    for path in files(&root(), "md") {
        let text = fs::read_to_string(&path).unwrap();
        for code in text.split('`').skip(1).step_by(2).flat_map(str::lines) {
            let words = code.split_whitespace().skip_while(|word| *word != "make").skip(1);
            let target =
                words.take_while(|w| *w != "#").find(|w| !w.contains('=') && !w.starts_with('-') && !w.contains('"'));
            if let Some(target) = target.filter(|target| target.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
            {
                let invented = target.starts_with("your-") || target.starts_with("my-");
                assert!(invented || targets.contains(target), "{}: `make {target}` does not exist", path.display());
                named.insert(target.to_owned());
            }
        }
    }
    for target in ["test", "smoke", "table1", "theory", "help", "cost", "inspect"] {
        assert!(named.contains(target), "no document mentions `make {target}`");
    }
}

#[test]
fn schemas_are_documented_column_by_column() {
    use artifact::Row as _;
    let text = read("data/README.md");
    let schemas = [
        (artifact::SampleRow::KIND, artifact::SampleRow::schema()),
        (artifact::FinetuneRow::KIND, artifact::FinetuneRow::schema()),
        (artifact::AttackRow::KIND, artifact::AttackRow::schema()),
        (artifact::DetectorRow::KIND, artifact::DetectorRow::schema()),
        (artifact::TheoryRow::KIND, artifact::TheoryRow::schema()),
        (artifact::ReportRow::KIND, artifact::ReportRow::schema()),
        (artifact::BenchRow::KIND, artifact::BenchRow::schema()),
        (artifact::TimingRow::KIND, artifact::TimingRow::schema()),
    ];
    for (kind, schema) in schemas {
        let (_, rest) =
            text.split_once(&format!("## {kind}\n")).unwrap_or_else(|| panic!("data/README.md: no `## {kind}`"));
        let section = rest.split("\n## ").next().unwrap();
        let documented: Vec<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(documented, columns, "data/README.md, {kind}");
    }
}

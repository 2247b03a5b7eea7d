//! `make smoke` as a user runs it: once, again, after deletions, in other shards, at other scales, killed.

use std::{
    collections::BTreeMap, fs, os::unix::process::CommandExt as _, path::PathBuf, process::Stdio, time::Duration,
};

use artifact::{AttackRow, FinetuneRow, ReportRow};
use pipeline_tests::{Project, files, pipelines};

/// All rows of the attack tables, by folder and id.
fn rows(project: &Project, parts: &str) -> BTreeMap<(PathBuf, u32, String, u32), AttackRow> {
    let mut rows = BTreeMap::new();
    for part in project.parts("attack").into_iter().filter(|part| part.to_string_lossy().ends_with(parts)) {
        let (_, read) = artifact::read::<AttackRow>(&project.path().join(&part)).unwrap();
        for row in read {
            let key = (part.parent().unwrap().to_owned(), row.id, row.phase.clone(), row.step);
            assert!(rows.insert(key, row).is_none(), "{}: a row is there twice", part.display());
        }
    }
    rows
}

#[test]
fn the_first_run_makes_every_table_and_the_second_nothing() {
    let project = Project::finished();
    for extension in ["parquet", "md", "csv", "json", "tex"] {
        assert!(!project.bytes(format!("data/report/demo/smoke.{extension}")).is_empty(), "{extension}");
    }
    for file in ["map.svg", "map.png", "map.csv", "classes.svg", "classes.png", "classes.csv"] {
        assert!(!project.bytes(format!("data/report/demo/smoke-{file}")).is_empty(), "{file}");
    }
    let (provenance, report) =
        artifact::read::<ReportRow>(&project.path().join("data/report/demo/smoke.parquet")).unwrap();
    assert_eq!(provenance.stage, "report");
    let rates: Vec<&ReportRow> = report.iter().filter(|row| row.quantity == "attack_success_rate").collect();
    assert!(rates.len() >= 4, "two defenses, two steps");
    for row in rates {
        if let (Some(low), Some(value), Some(high)) = (row.low, row.value, row.high) {
            assert!(0.0 <= low && low <= value && value <= high && high <= 1.0, "{row:?}");
        }
        assert!(row.denominator.is_some_and(|images| images <= 16), "{row:?}");
    }
    let again = project.output(&["smoke"]);
    assert!(again.contains("Nothing to be done for 'smoke'"), "{again}");
    assert_eq!(project.missing(&["smoke"]), Vec::<String>::new());
}

#[test]
fn a_deleted_part_is_made_again_with_the_report_and_nothing_else() {
    let project = Project::finished();
    let parts = project.parts("attack");
    let part = parts.iter().find(|part| part.to_string_lossy().contains("rotation--pgd")).unwrap();
    let (bytes, report) = (project.bytes(part), project.bytes("data/report/demo/smoke.json"));
    project.delete(part);
    let name = part.to_string_lossy().into_owned();
    assert_eq!(project.missing(&["smoke"]), [name, "data/report/demo/smoke.parquet".to_owned()]);
    project.make(&["smoke"]);
    assert_eq!(project.bytes(part), bytes, "equal work gives equal bytes");
    assert_eq!(project.bytes("data/report/demo/smoke.json"), report);
    assert!(project.output(&["smoke"]).contains("Nothing to be done"));
}

#[test]
fn a_gpu_is_asked_for_by_the_stages_that_compute_alone() {
    let project = Project::finished();
    project.delete("data/report/demo/smoke.parquet");
    project.make(&["smoke", "DEVICE=cuda"]);
    let parts = project.parts("attack");
    project.delete(&parts[0]);
    assert!(project.failure(&["smoke", "DEVICE=cuda"]).contains("--device cuda: "));
}

#[test]
fn lost_parameters_come_back_without_any_work() {
    let project = Project::finished();
    fs::remove_dir_all(project.path().join("data/plan")).unwrap();
    assert_eq!(
        project.missing(&["smoke"]),
        ["data/report/demo/smoke.parquet"],
        "parameters are order-only but a report's"
    );
}

#[test]
fn one_shard_and_three_give_the_same_rows_and_gc_removes_the_old_ones() {
    let project = Project::finished();
    let one = rows(&project, "part-0-of-1.parquet");
    project.make(&["smoke", "SHARDS=3"]);
    let three = rows(&project, "-of-3.parquet");
    assert!(one.len() >= 16 * 6);
    assert_eq!(one, three);
    let removed = project.output(&["gc"]);
    assert!(
        removed.contains("part-0-of-1.parquet") && !removed.contains("of-3") && !removed.contains("finetune"),
        "{removed}"
    );
    assert!(project.output(&["smoke", "SHARDS=3"]).contains("Nothing to be done"));
    assert_eq!(project.missing(&["smoke", "SHARDS=1"]).len(), 7, "six attacks and the report");
}

#[test]
fn scales_share_what_is_equal_and_keep_their_reports_apart() {
    let project = Project::finished();
    assert_eq!(project.missing(&["smoke", "SCALE=paper"]), ["data/report/paper/smoke.parquet"]);
    project.make(&["smoke", "SCALE=paper"]);
    assert!(project.output(&["smoke", "SCALE=paper"]).contains("Nothing to be done"));
    assert!(project.output(&["smoke", "SCALE=demo"]).contains("Nothing to be done"));
    let told = project.failure(&["smoke", "SCALE=huge"]);
    assert!(told.contains("demo, cifar10, paper"), "{told}");
}

#[test]
fn a_killed_run_leaves_whole_files_and_the_next_one_finishes() {
    let project = Project::finished();
    let parts = project.parts("attack");
    let bytes: Vec<Vec<u8>> = parts.iter().map(|part| project.bytes(part)).collect();
    parts.iter().for_each(|part| project.delete(part));
    let mut make = project.command(&["smoke"]);
    let mut make = make.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !parts.iter().any(|part| project.path().join(part).exists()) {
        assert!(make.try_wait().unwrap().is_none(), "make ended without a part");
        std::thread::sleep(Duration::from_millis(2));
    }
    let group = format!("-{}", make.id());
    assert!(std::process::Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
    make.wait().unwrap();
    for part in project.parts("attack") {
        artifact::read::<AttackRow>(&project.path().join(&part)).unwrap_or_else(|error| panic!("{error}"));
    }
    project.make(&["smoke"]);
    for (part, bytes) in parts.iter().zip(&bytes) {
        assert!(project.bytes(part) == *bytes, "{} differs after a kill", part.display());
    }
}

#[test]
fn a_detector_watches_networks_with_and_without_randomness_inside() {
    let project = Project::finished();
    let smoke = String::from_utf8(project.bytes("pipelines/smoke.toml")).unwrap();
    let (start, end) = (smoke.find("points = [\n").unwrap(), smoke.find("[[axis]]\nname = \"steps\"").unwrap());
    let points =
        "points = [{ label = \"plain\" }, { label = \"pruned\", inside = { name = \"activation-pruning\" } }]\n\n";
    let detector = "[base.detector]\nname = \"odds\"\ndraws = 4\nfalse_positive_rate = 0.3\n\
                    sample = { source = \"embedded-train\", limit = 40 }\n\n";
    let text = format!("{}{points}{}", &smoke[..start], &smoke[end..]);
    project.write("pipelines/watched.toml", text.replace("[base.training]", &format!("{detector}[base.training]")));
    let missing = project.missing(&["watched"]);
    assert_eq!(missing.len(), 10, "one sample, two fits, six attacks, one report: {missing:?}");
    project.make(&["watched"]);
    assert!(project.output(&["watched"]).contains("Nothing to be done"));
    assert_eq!(project.parts("fit").len(), 2);
    let (mut flagged, mut all) = (0, 0);
    for part in project.parts("attack").iter().filter(|part| part.to_string_lossy().contains("odds--")) {
        for row in artifact::read::<AttackRow>(&project.path().join(part)).unwrap().1 {
            let flags = row.flags.unwrap();
            assert_eq!((row.votes.len(), flags.len()), (8, 8));
            flagged += flags.iter().filter(|&&flag| flag).count();
            all += flags.len();
        }
    }
    assert!(flagged > 0 && flagged < all, "{flagged} of {all}");
    assert!(!project.output(&["gc"]).contains("fit"), "a planned detector is no garbage");
    project.make(&["verify"]);
}

#[test]
fn local_images_and_weights_are_a_toml_file_away() {
    let project = Project::finished();
    let table = project.parts("finetune").remove(0);
    let (_, epochs) = artifact::read::<FinetuneRow>(&project.path().join(&table)).unwrap();
    let weights = epochs.iter().rev().find_map(|row| row.weights.clone()).unwrap();
    let sample = project.parts("sample").into_iter().find(|part| part.to_string_lossy().contains("test")).unwrap();
    project.write("mine/net.safetensors", project.bytes(table.with_file_name(weights)));
    project.write("mine/images.parquet", project.bytes(sample));
    project.write(
        "pipelines/sources/mine.toml",
        "[[images.mine.from]]\nname = \"parquet\"\nfiles = [\"images.parquet\"]\nimage = \"image\"\nlabel = \"label\"\n\
         [weights.mine]\nmodel = { name = \"cifar-resnet\", depth = 8, width = 4 }\n\
         [[weights.mine.from]]\nname = \"file\"\npath = \"net.safetensors\"\n",
    );
    let smoke = String::from_utf8(project.bytes("pipelines/smoke.toml")).unwrap();
    let text = smoke
        .replace("source = \"embedded-test\"", "source = \"mine\"")
        .replace("seed = 1\n", "seed = 1\nweights = { source = \"mine\" }\n");
    project.write("pipelines/mine.toml", text);
    project.make(&["mine", "DATA_ROOT=mine"]);
    assert!(project.output(&["mine", "DATA_ROOT=mine"]).contains("Nothing to be done"));
    // The same images through the same network under the same keys.
    let rates = |name: &str| -> Vec<_> {
        let path = project.path().join(format!("data/report/demo/{name}.parquet"));
        let (_, rows) = artifact::read::<ReportRow>(&path).unwrap();
        rows.into_iter().map(|row| (row.quantity, row.numerator, row.denominator)).collect()
    };
    assert_eq!(rates("mine"), rates("smoke"));
    let later = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    fs::File::options()
        .append(true)
        .open(project.path().join("mine/images.parquet"))
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert!(!project.missing(&["mine", "DATA_ROOT=mine"]).is_empty(), "a newer local file is read again");
    assert!(project.output(&["smoke"]).contains("Nothing to be done"));
}

#[test]
fn help_lists_targets_variables_and_pipelines_without_building() {
    let project = Project::new();
    let help = project.output(&["BUILD=false"]);
    for word in ["build", "test", "lint", "inspect", "verify", "cost", "gc", "clean", "all"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{word} "))), "{word}:\n{help}");
    }
    for word in
        ["SCALE", "DATA_ROOT", "SHARDS", "RUN", "DEVICE", "BIN", "CARGOFLAGS", "demo", "table1", "theory", "smoke"]
    {
        assert!(help.contains(word), "{word}:\n{help}");
    }
    assert!(!project.path().join("data").exists());
}

#[test]
fn help_gives_each_pipeline_one_line_with_its_own_title() {
    let help = Project::new().output(&["help"]);
    let (_, listed) = help.split_once("Pipelines, each a target:\n").unwrap();
    let listed: Vec<(&str, &str)> = listed.lines().map(|line| line.trim().split_once(' ').unwrap()).collect();
    let title = |path: &PathBuf| {
        let file: toml::Table = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        file["title"].as_str().unwrap().to_owned()
    };
    let files = pipelines();
    let expected: Vec<_> =
        files.iter().map(|path| (path.file_stem().unwrap().to_string_lossy(), title(path))).collect();
    assert_eq!(listed.len(), expected.len(), "{listed:?}");
    for ((name, title), (file, expected)) in listed.into_iter().zip(expected) {
        assert_eq!((name, title.trim()), (&*file, expected.as_str()));
    }
}

#[test]
fn what_is_missing_and_how_long_it_takes_is_said_once_before_anything_runs() {
    let project = Project::new();
    let outlook = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("smoke: ")).map(str::to_owned).collect()
    };
    let told = outlook(&project.output(&["-n", "smoke"]));
    assert_eq!(told.len(), 1, "rules are new, and Make begins again: {told:?}");
    assert!(told[0].starts_with("smoke: 9 of 9 jobs to run, about ") && told[0].ends_with(" cores"), "{told:?}");
    assert_eq!(outlook(&project.output(&["-n", "smoke"])), told, "what was measured is kept");
    assert_eq!(outlook(&Project::finished().output(&["smoke"])), Vec::<String>::new());
}

#[test]
fn costs_are_told_in_time_on_this_machine_which_is_measured_once() {
    let project = Project::new();
    for other in pipelines().iter().filter(|path| !path.ends_with("smoke.toml")) {
        project.delete(PathBuf::from("pipelines").join(other.file_name().unwrap()));
    }
    let told = project.output(&["cost"]);
    assert!(told.contains(", as measured here") && told.contains("wall clock"), "{told}");
    let row = told.lines().filter(|line| line.starts_with("smoke ")).nth(1).unwrap();
    assert!(!row.contains('-') && !row.contains('+'), "nothing is left out, training neither: {row}");
    let kept = || files(&project.path().join("data/cost"), "json");
    let bytes = project.bytes(&kept()[0]);
    assert_eq!(kept().len(), 1);
    assert_eq!(project.output(&["cost"]), told);
    assert_eq!(project.bytes(&kept()[0]), bytes);
}

#[test]
fn clean_spares_what_is_tracked() {
    let project = Project::new();
    project.write("data/README.md", "kept");
    project.write("data/record/2026/a.parquet", "kept");
    project.write("data/attack/a--1/part-0-of-1.parquet", "gone");
    project.make(&["clean"]);
    let mut left: Vec<_> = fs::read_dir(project.path().join("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["README.md", "record"]);
    assert!(project.path().join("data/record/2026/a.parquet").exists());
}

//! A folder of images in whole runs: other images are noticed by Make and by `verify`, and nothing else is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use artifact::SampleRow;
use pipeline_tests::Project;

/// A project whose pipeline `mine` reads the class folders of `mine/set`, and attacks the network of `smoke`.
fn project() -> Project {
    let project = Project::finished();
    let sample = project.parts("sample").into_iter().find(|part| part.to_string_lossy().contains("test")).unwrap();
    let (provenance, rows) = artifact::read::<SampleRow>(&project.path().join(sample)).unwrap();
    for class in 0..provenance.facts["classes"].as_array().unwrap().len() {
        fs::create_dir_all(project.path().join(format!("mine/set/{class}"))).unwrap();
    }
    for row in &rows {
        project.write(&format!("mine/set/{}/{}.png", row.label, row.id), &row.png);
    }
    // Every class needs an image.
    for class in 0..10 {
        project.write(&format!("mine/set/{class}/z.png"), &rows[0].png);
    }
    project.write(
        "pipelines/sources/mine.toml",
        "[[images.mine.from]]\nname = \"folder\"\npath = \"set\"\n[images.mine]\nside = 32\n",
    );
    let smoke = String::from_utf8(project.bytes("pipelines/smoke.toml")).unwrap();
    project.write("pipelines/mine.toml", smoke.replace("source = \"embedded-test\", limit = 16", "source = \"mine\""));
    project
}

/// The first image of the folder, and one of another class.
fn two_images(project: &Project) -> (PathBuf, PathBuf) {
    let set = project.path().join("mine/set");
    (set.join("0/z.png"), set.join("9/z.png"))
}

const MINE: [&str; 2] = ["mine", "DATA_ROOT=mine"];

fn stages(missing: &[String]) -> Vec<&str> {
    let mut stages: Vec<&str> = missing.iter().filter_map(|path| path.split('/').nth(1)).collect();
    stages.dedup();
    stages
}

fn touch(file: &Path) {
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    fs::File::options().append(true).open(file).unwrap().set_modified(later).unwrap();
}

#[test]
fn other_images_are_noticed_and_nothing_else_is() {
    let project = project();
    project.make(&MINE);
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"));
    let (one, other) = two_images(&project);
    touch(&one);
    touch(one.parent().unwrap());
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"), "a touch is no change");

    // Another image under the name, and as old as the one before.
    let (before, time) = (fs::read(&other).unwrap(), fs::metadata(&other).unwrap().modified().unwrap());
    let image = fs::read_dir(project.path().join("mine/set/3")).unwrap().map(|entry| entry.unwrap().path());
    let image = image.filter(|path| !path.ends_with("z.png")).min().unwrap();
    fs::copy(&image, &other).unwrap();
    fs::File::options().append(true).open(&other).unwrap().set_modified(time).unwrap();
    assert_ne!(fs::read(&other).unwrap(), before);
    let missing = project.missing(&MINE);
    assert_eq!(stages(&missing), ["sample", "attack", "report"], "{missing:?}");
    assert!(project.output(&["-n", MINE[0], MINE[1]]).contains("made again: set: changed: 9/z.png"));
    let told = project.failure(&["verify", MINE[1]]);
    assert!(told.contains("mine/set/9/z.png: changed since data/sample/mine--") && told.contains("1 not as"), "{told}");
    assert!(project.output(&["smoke"]).contains("Nothing to be done"), "no other pipeline is concerned");
    fs::write(&other, &before).unwrap();
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"), "put back is as before");
    project.make(&["verify", MINE[1]]);

    // One more image is another sample; so is one less.
    let more = project.path().join("mine/set/3/zz.png");
    fs::copy(&image, &more).unwrap();
    assert!(project.output(&MINE).contains("made again: set: new: 3/zz.png"));
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"));
    project.make(&["verify", MINE[1]]);
    fs::remove_file(&more).unwrap();
    let told = project.failure(&["verify", MINE[1]]);
    assert!(told.contains("mine/set/3/zz.png: missing; put it back, or make the table again"), "{told}");
    project.make(&MINE);
    project.make(&["verify", MINE[1]]);
    let told = project.failure(&["verify"]);
    assert!(told.contains("set: no such file or folder; set DATA_ROOT"), "{told}");
}

#[test]
fn an_interrupted_run_is_finished_by_the_next() {
    let project = project();
    project.make(&MINE);
    let (_, other) = two_images(&project);
    fs::write(&other, "no image").unwrap();
    let told = project.failure(&MINE);
    assert!(told.contains("9/z.png: no whole PNG or JPEG"), "{told}");
    assert_eq!(stages(&project.missing(&MINE)), ["sample", "attack", "report"], "the old table does not pass for new");
}

//! A folder of images in whole runs: other images are noticed by Make and by `verify`, and nothing else is.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use artifact::SampleRow;
use pipeline_tests::Project;

/// A project whose pipeline `mine` reads the class folders of `mine/set`, and attacks the network of `smoke`; and the names
/// of the classes, which all hold an image `z.png`.
fn project() -> (Project, Vec<String>) {
    let project = Project::finished();
    let sample = project.parts("sample").into_iter().find(|part| part.to_string_lossy().contains("test")).unwrap();
    let (provenance, rows) = artifact::read::<SampleRow>(&project.path().join(sample)).unwrap();
    let classes: Vec<String> = serde_json::from_value(provenance.facts["classes"].clone()).unwrap();
    for row in &rows {
        project.write(&format!("mine/set/{}/{}.png", classes[row.label as usize], row.id), &row.png);
    }
    for class in &classes {
        project.write(&format!("mine/set/{class}/z.png"), &rows[0].png);
    }
    project.write("pipelines/sources/mine.toml", "[[images.mine.from]]\nname = \"folder\"\npath = \"set\"\n");
    let smoke = String::from_utf8(project.bytes("pipelines/smoke.toml")).unwrap();
    project.write("pipelines/mine.toml", smoke.replace("source = \"embedded-test\", limit = 16", "source = \"mine\""));
    (project, classes)
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
    let (project, classes) = project();
    let set = project.path().join("mine/set");
    let (one, last) = (set.join(&classes[0]).join("z.png"), format!("{}/z.png", classes[9]));
    let other = set.join(&last);
    project.make(&MINE);
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"));
    touch(&one);
    let notes = set.join("notes.txt");
    fs::write(&notes, "no image").unwrap();
    fs::remove_file(notes).unwrap();
    assert!(
        project.output(&MINE).contains("Nothing to be done for 'mine'"),
        "a touch is no change, nor what is no image"
    );

    // Another image under the name, and as old as the one before.
    let (before, time) = (fs::read(&other).unwrap(), fs::metadata(&other).unwrap().modified().unwrap());
    let image = fs::read_dir(set.join(&classes[3])).unwrap().map(|entry| entry.unwrap().path());
    let image = image.filter(|path| !path.ends_with("z.png")).min().unwrap();
    fs::copy(&image, &other).unwrap();
    fs::File::options().append(true).open(&other).unwrap().set_modified(time).unwrap();
    assert_ne!(fs::read(&other).unwrap(), before);
    let missing = project.missing(&MINE);
    assert_eq!(stages(&missing), ["sample", "attack", "report"], "{missing:?}");
    assert!(project.output(&["-n", MINE[0], MINE[1]]).contains(&format!("made again: set: changed: {last}")));
    let told = project.failure(&["verify", MINE[1]]);
    assert!(
        told.contains(&format!("mine/set/{last}: changed since data/sample/mine--")) && told.contains("1 not as"),
        "{told}"
    );
    assert!(project.output(&["smoke"]).contains("Nothing to be done"), "no other pipeline is concerned");
    fs::write(&other, &before).unwrap();
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"), "put back is as before");
    project.make(&["verify", MINE[1]]);

    // One more image is another sample; so is one less.
    let more = set.join(&classes[3]).join("zz.png");
    fs::copy(&image, &more).unwrap();
    assert!(project.output(&MINE).contains(&format!("made again: set: new: {}/zz.png", classes[3])));
    assert!(project.output(&MINE).contains("Nothing to be done for 'mine'"));
    project.make(&["verify", MINE[1]]);
    fs::remove_file(&more).unwrap();
    let told = project.failure(&["verify", MINE[1]]);
    assert!(told.contains("/zz.png: missing; put it back, or make the table again"), "{told}");
    project.make(&MINE);
    project.make(&["verify", MINE[1]]);
    let told = project.failure(&["verify"]);
    assert!(told.contains("set: no such file or folder; set DATA_ROOT"), "{told}");
}

#[test]
fn an_interrupted_run_is_finished_by_the_next() {
    let (project, classes) = project();
    project.make(&MINE);
    let other = project.path().join("mine/set").join(&classes[9]).join("z.png");
    fs::write(&other, "no image").unwrap();
    let told = project.failure(&MINE);
    assert!(told.contains("/z.png: no whole PNG or JPEG"), "{told}");
    assert_eq!(stages(&project.missing(&MINE)), ["sample", "attack", "report"], "the old table does not pass for new");
}

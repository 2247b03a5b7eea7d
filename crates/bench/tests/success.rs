//! Attacks succeed as often through the engine as through autograd, on published weights and real images, where
//! `DATA_ROOT` (or `shared/data` beside the repository) has them.

#![expect(clippy::print_stderr, reason = "a test says what it found, or that it was skipped")]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use attacks::{Attack, Pgd, Victim};
use candle_core::{Device, Tensor};
use defenses::{GaussianNoise, Rotation};
use engine::Plan;
use game::{Classifier, Defense, Goal, Key, Phase, vote::majority, wilson};
use nets::{Network, Spec, weights};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};

const IMAGES: usize = 100;
const DRAWS: u64 = 15;

fn data(file: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let path = std::env::var_os("DATA_ROOT").map_or_else(beside, PathBuf::from).join(file);
    if !path.exists() {
        eprintln!("skipped: no {} (set DATA_ROOT)", path.display());
        return None;
    }
    Some(path)
}

/// An image's bytes, channel by channel, and its label.
fn example(row: &Row) -> (Vec<f32>, u32) {
    let field = |row: &Row, name: &str| row.get_column_iter().find(|(column, _)| *column == name).unwrap().1.clone();
    let Field::Group(image) = field(row, "image") else { panic!("an image is a struct") };
    let Field::Bytes(bytes) = field(&image, "bytes") else { panic!("bytes are bytes") };
    let Field::Long(label) = field(row, "label") else { panic!("a label is an integer") };
    let image = image::load_from_memory(bytes.data()).unwrap().to_rgb8();
    let planes = (0..3).flat_map(|c| image.pixels().map(move |pixel| f32::from(pixel[c]) / 255.0)).collect();
    (planes, label as u32)
}

fn images(table: &Path) -> (Tensor, Vec<u32>) {
    let reader = SerializedFileReader::new(File::open(table).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap().step_by(10).take(IMAGES).map(|row| example(&row.unwrap()));
    let (pixels, labels): (Vec<_>, Vec<_>) = rows.unzip();
    (Tensor::from_vec(pixels.concat(), (IMAGES, 3, 32, 32), &Device::Cpu).unwrap(), labels)
}

/// The majority of every image's draws.
fn vote(victim: &Victim<'_>, x: &Tensor, phase: Phase) -> Vec<u32> {
    let mut votes = vec![Vec::new(); IMAGES];
    for draw in 0..DRAWS {
        let keys: Vec<Key> = (0..IMAGES as u64).map(|i| Key::root(3).phase(phase).at(i).at(draw)).collect();
        let classes = victim.predict(x, &keys).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
        votes.iter_mut().zip(classes).for_each(|(votes, class)| votes.push(class as u16));
    }
    votes.iter().map(|votes| majority(votes).unwrap().into()).collect()
}

/// For every image that is classified right before: whether PGD-10 succeeds.
fn outcomes(net: &dyn Classifier, defense: &dyn Defense, x: &Tensor, labels: &[u32]) -> Vec<Option<bool>> {
    let victim = Victim { net, defense, batch: 50 };
    let keys: Vec<Key> = (0..IMAGES as u64).map(|i| Key::root(3).phase(Phase::Attack).at(i)).collect();
    let pgd = Pgd { eps: "4/255".parse().unwrap(), ..Pgd::default() };
    let mut attacked = None;
    let goal = Goal::Untargeted(labels.to_vec());
    pgd.run(&victim, x, &goal, &keys, None, &mut |snapshot| {
        attacked = Some(snapshot.x);
        Ok(())
    })
    .unwrap();
    let (before, after) = (vote(&victim, x, Phase::Before), vote(&victim, &attacked.unwrap(), Phase::After));
    let outcome = |((before, after), label)| (before == label).then_some(after != label);
    before.iter().zip(&after).zip(labels).map(outcome).collect()
}

/// The success rate's Wilson interval, and the rate.
fn rate(name: &str, outcomes: &[Option<bool>]) -> ((f64, f64), f64) {
    let of = outcomes.iter().flatten().count() as u64;
    let count = outcomes.iter().flatten().filter(|&&success| success).count() as u64;
    eprintln!("{name}: {count} of {of}");
    (wilson(count, of), count as f64 / of as f64)
}

#[test]
fn attacks_succeed_as_often_through_the_engine_as_through_autograd() {
    let (Some(path), Some(table)) =
        (data("weights/cifar10-resnet20.safetensors"), data("images/cifar10-test-1000.parquet"))
    else {
        return;
    };
    let spec: Spec = serde_json::from_str(r#"{"name": "cifar-resnet", "depth": 20}"#).unwrap();
    let graph = spec.graph().unwrap();
    let weights = weights::prepare(&graph, weights::load(&path).unwrap(), &path).unwrap();
    let (plan, network) = (Plan::new(&graph, &weights).unwrap(), Network::new(&graph, &weights, &Device::Cpu).unwrap());
    let (x, labels) = images(&table);
    let noise = GaussianNoise { sigma: 0.05, clip: true, ..GaussianNoise::default() };
    let rotation: Rotation = serde_json::from_str(r#"{"degrees": 30}"#).unwrap();
    for defense in [&noise as &dyn Defense, &rotation] {
        let engine = outcomes(&plan, defense, &x, &labels);
        let autograd = outcomes(&network, defense, &x, &labels);
        let (((low, high), ours), ((other_low, other_high), theirs)) =
            (rate("engine", &engine), rate("autograd", &autograd));
        assert!(other_low <= ours && ours <= other_high, "{defense:?}: {ours} is not in {other_low} to {other_high}");
        assert!(low <= theirs && theirs <= high, "{defense:?}: {theirs} is not in {low} to {high}");
        // The draws are the same too, so few images may differ: those near a boundary, by rounding.
        let differing = engine.iter().zip(&autograd).filter(|(a, b)| a != b).count();
        eprintln!("{differing} of {IMAGES} images differ");
        assert!(differing <= IMAGES / 20, "{defense:?}: {differing} images differ");
        assert!(ours > 0.1 && ours < 0.99, "{defense:?}: a rate of {ours} would hide differences");
    }
}

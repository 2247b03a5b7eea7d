//! Trajectories of independent programs (`make.py`) on a small deterministic network.

use attacks::{Adam, Apgd, Attack, Bookkeeping, Gradient, Loss, Schedule, Start, Victim};
use candle_core::{DType, Device, Result, Tensor};
use game::{Classifier, Goal, Key, Norm};
use serde::Deserialize;

use crate::{
    keys, run,
    small::{Net, Open, rows},
};

type Rows = Vec<Vec<f64>>;

#[derive(Deserialize)]
struct Golden {
    eps: f64,
    first: Vec<f64>,
    second: Vec<f64>,
    x: Rows,
    labels: Vec<u32>,
    targets: Vec<u32>,
    adam: Vec<AdamPath>,
    apgd: Vec<ApgdPath>,
    art: Vec<ArtAnswer>,
}

#[derive(Deserialize)]
struct AdamPath {
    targeted: bool,
    gradient: Gradient,
    loss: Loss,
    learning_rate: f64,
    steps: Vec<usize>,
    path: Vec<Rows>,
}

#[derive(Deserialize)]
struct ApgdPath {
    targeted: bool,
    norm: Norm,
    eps: f64,
    /// Those whose decisions no rounding can change.
    images: Vec<usize>,
    steps: Vec<usize>,
    path: Vec<Rows>,
}

#[derive(Deserialize)]
struct ArtAnswer {
    targeted: bool,
    steps: usize,
    step_size: f64,
    x: Rows,
}

/// A network that computes in f64 whatever it is given, so that near ties are broken as in the golden programs.
struct Precise(Net);

impl Classifier for Precise {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn device(&self) -> &Device {
        self.0.device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.0.logits(&x.to_dtype(DType::F64)?, keys)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.0.input_gradient(&x.to_dtype(DType::F64)?, keys, upstream)
    }
}

impl Golden {
    fn read() -> Self {
        serde_json::from_str(include_str!("golden.json")).unwrap()
    }

    /// The iterates of an attack on the golden images, snapshot by snapshot.
    fn path(&self, attack: &dyn Attack, targeted: bool) -> Vec<Rows> {
        let net = Precise(Net::of(Some(self.first.clone()), self.second.clone()));
        let victim = Victim { net: &net, defense: &Open, batch: 4 };
        let pixels: Vec<f32> = self.x.concat().iter().map(|&x| x as f32).collect();
        let x = Tensor::from_vec(pixels, (self.x.len(), 3, 2, 2), &Device::Cpu).unwrap();
        let goal = if targeted { Goal::Targeted(self.targets.clone()) } else { Goal::Untargeted(self.labels.clone()) };
        let snapshots = run(attack, &victim, &x, &goal, &keys(1, 0..self.x.len() as u64));
        snapshots.iter().map(|snapshot| rows(&snapshot.x)).collect()
    }
}

/// Fails unless the iterates are the golden ones, up to rounding in f32.
fn assert_close(found: &[Rows], golden: &[Rows], about: &str) {
    assert_eq!(found.len(), golden.len());
    for (step, (found, golden)) in found.iter().zip(golden).enumerate() {
        for (image, (found, golden)) in found.iter().zip(golden).enumerate() {
            let far = found.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-5, "{about}: image {image} is off by {far} at snapshot {step}");
        }
    }
}

#[test]
fn adam_is_that_of_torch() {
    let golden = Golden::read();
    for of in &golden.adam {
        let adam = Adam {
            eps: golden.eps.into(),
            learning_rate: of.learning_rate.into(),
            gradient: of.gradient,
            loss: of.loss,
            steps: of.steps.clone(),
            ..Adam::default()
        };
        assert_close(&golden.path(&adam, of.targeted), &of.path, &format!("{adam:?}"));
    }
}

#[test]
fn apgd_is_that_of_its_paper() {
    let golden = Golden::read();
    for of in &golden.apgd {
        let apgd = Apgd {
            norm: of.norm,
            eps: of.eps.into(),
            step_size: (2.0 * of.eps).into(),
            steps: of.steps.clone(),
            start: Start::Image,
            ..Apgd::default()
        };
        let chosen = |path: &[Rows]| -> Vec<Rows> {
            path.iter().map(|rows| of.images.iter().map(|&image| rows[image].clone()).collect()).collect()
        };
        assert!(of.images.len() > 1);
        assert_close(&chosen(&golden.path(&apgd, of.targeted)), &chosen(&of.path), &format!("{apgd:?}"));
    }
}

#[test]
fn apgd_as_art_is_that_of_the_toolbox() {
    let golden = Golden::read();
    for of in &golden.art {
        let apgd = Apgd {
            eps: golden.eps.into(),
            step_size: of.step_size.into(),
            steps: vec![of.steps],
            start: Start::Image,
            schedule: Schedule::Art,
            rating_draws: 1,
            bookkeeping: Bookkeeping::SingleDraw,
            ..Apgd::default()
        };
        assert_close(&golden.path(&apgd, of.targeted), std::slice::from_ref(&of.x), &format!("{apgd:?}"));
    }
}

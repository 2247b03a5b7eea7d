//! Our side: the engine and the trainer.

use std::path::Path;

use candle_core::{Device, Tensor};
use engine::{Multiplications, Plan};
use game::{Classifier, Key, Phase};
use nets::{AdamW, Graph, Spec, Trainee, Weights, train::Settings, weights};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    clock::Clock,
    work::{Kind, Work},
};

/// A work's network and data, the same for both sides.
pub struct Case {
    pub work: Work,
    graph: Graph,
    weights: Weights,
    images: Tensor,
    labels: Vec<u32>,
    upstream: Tensor,
    pool: ThreadPool,
}

/// How a work is done.
pub enum Runner {
    Frozen { plan: Box<Plan>, gradient: bool },
    Train(Box<(Trainee, AdamW)>),
}

impl Case {
    /// Untrained weights and noise for images: numbers do not matter to speed.
    pub fn new(work: Work) -> anyhow::Result<Self> {
        let graph = serde_json::from_value::<Spec>(work.spec())?.graph()?;
        let key = Key::root(0);
        let weights = weights::initialise(&graph, key.phase(Phase::Init))?;
        let (n, side) = (work.batch, work.side);
        let mut pixels = vec![0.0; n * 3 * side * side];
        key.phase(Phase::Data).at(0).fill_uniform(&mut pixels);
        let mut upstream = vec![0.0; n * graph.classes];
        key.phase(Phase::Data).at(1).fill_normal(&mut upstream);
        let classes = graph.classes as u64;
        let labels = (0..n as u64).map(|i| key.phase(Phase::Data).at(2).at(i).below(classes) as u32).collect();
        Ok(Self {
            images: Tensor::from_vec(pixels, (n, 3, side, side), &Device::Cpu)?,
            upstream: Tensor::from_vec(upstream, (n, graph.classes), &Device::Cpu)?,
            pool: ThreadPoolBuilder::new().num_threads(work.threads).build()?,
            work,
            graph,
            weights,
            labels,
        })
    }

    /// Writes what the other side needs.
    pub fn save(&self, weights: &Path, data: &Path) -> anyhow::Result<()> {
        weights::save(weights, &self.weights, &Default::default())?;
        let labels = Tensor::from_vec(self.labels.clone(), self.labels.len(), &Device::Cpu)?;
        let tensors = [("images", self.images.clone()), ("upstream", self.upstream.clone()), ("labels", labels)];
        candle_core::safetensors::save(&tensors.into(), data)?;
        Ok(())
    }

    /// The images, `(n, 3, side, side)`.
    pub fn images(&self) -> Tensor {
        self.images.clone()
    }

    /// Their labels.
    pub fn labels(&self) -> Vec<u32> {
        self.labels.clone()
    }

    /// Does something on the work's threads.
    pub fn alone<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Compiles; `direct` leaves Winograd's algorithm out.
    pub fn runner(&self, direct: bool) -> anyhow::Result<Runner> {
        if self.work.kind == Kind::Train {
            let trainee = Trainee::new(&self.graph, &self.weights, &Device::Cpu)?;
            return Ok(Runner::Train(Box::new((trainee, AdamW::new(Settings::default())))));
        }
        let plan = if direct { Plan::direct } else { Plan::new }(&self.graph, &self.weights)?;
        plan.prepare(self.work.side, self.work.side)?;
        Ok(Runner::Frozen { plan: Box::new(plan), gradient: self.work.kind == Kind::Gradient })
    }

    /// One evaluation of the batch: logits and gradients, row-major, or the loss of a training step.
    pub fn answer(&self, runner: &mut Runner) -> anyhow::Result<Vec<Vec<f32>>> {
        self.pool.install(|| self.query(runner))
    }

    fn query(&self, runner: &mut Runner) -> anyhow::Result<Vec<Vec<f32>>> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        match runner {
            Runner::Frozen { plan, gradient: false } => Ok(vec![flat(&plan.logits(&self.images, &[])?)?]),
            Runner::Frozen { plan, gradient: true } => {
                let mut logits = Vec::new();
                let gradient = plan.input_gradient(&self.images, &[], &mut |seen| {
                    logits = flat(seen)?;
                    Ok(self.upstream.clone())
                })?;
                Ok(vec![logits, flat(&gradient)?])
            }
            Runner::Train(both) => {
                let (trainee, optimiser) = &mut **both;
                let query = trainee.query(&self.images, &self.labels)?;
                optimiser.step(trainee, &query.gradients, 1e-3)?;
                Ok(vec![vec![query.loss as f32]])
            }
        }
    }

    /// Images per second.
    pub fn rate(&self, runner: &mut Runner, seconds: f64) -> anyhow::Result<f64> {
        let clock = Clock::new(self.work.threads);
        self.pool.install(|| {
            // The last query of a slow network was long ago, but a second one would cost too much.
            let rate = clock.rate(0.0, || self.query(runner).map(drop))?;
            let rate =
                if rate * seconds < 1.0 { rate } else { clock.rate(seconds, || self.query(runner).map(drop))? };
            Ok(rate * self.work.batch as f64)
        })
    }
}

impl Runner {
    /// Multiplications per image.
    pub fn multiplications(&self, side: usize) -> anyhow::Result<Option<Multiplications>> {
        match self {
            Self::Frozen { plan, gradient } => Ok(Some(plan.multiplications(side, side, *gradient)?)),
            Self::Train(_) => Ok(None),
        }
    }
}

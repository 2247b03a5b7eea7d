//! How long this machine takes for what jobs are made of: `attack calibrate` reads a list of [`Work`] from its standard input
//! and answers with as many [`Time`]s.
//!
//! Weights are drawn and images are noise: numbers do not matter to speed. It is meant to be short rather than exact, for it
//! runs where a user waits for an estimate.

use std::io;

use attacks::{Eot, Loss, Victim};
use candle_core::{DType, Device, Tensor};
use defenses::Identity;
use game::{Classifier, Goal, Key, Phase, pullback};
use nets::{AdamW, Graph, Inside, Spec, Trainee, Weights, train::Settings, weights};
use serde::{Deserialize, Serialize};
use stage::Stopwatch;

/// Processor seconds that a work is repeated for.
const ENOUGH: f64 = 0.1;

/// A kind of work on square images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Work {
    /// A forward evaluation of a frozen network.
    Logits {
        /// Which, and at what size.
        network: Network,
    },
    /// A forward evaluation, and the gradient with respect to the image.
    Gradient {
        /// Which, and at what size.
        network: Network,
    },
    /// What a frozen network costs before its first evaluation.
    Compile {
        /// Which, and at what size.
        network: Network,
    },
    /// An image's share of a training step.
    Train {
        /// Which, and at what size.
        network: Network,
        /// Images of a step.
        batch: usize,
    },
    /// A defense of one image.
    Defend {
        /// Which.
        defense: defenses::Spec,
        /// Rows and columns of the image.
        side: u32,
    },
    /// A defense of one image, and what carries a gradient back through it.
    Pullback {
        /// Which.
        defense: defenses::Spec,
        /// Rows and columns of the image.
        side: u32,
    },
}

/// A network and the images it is asked about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The architecture.
    pub model: Spec,
    /// Randomness inside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
    /// Rows and columns of the images.
    pub side: u32,
}

/// How long one image takes, or one compilation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// Seconds on the wall.
    pub wall: f64,
    /// Processor seconds of all threads together.
    pub processor: f64,
}

/// Answers the list on `from` with times on `to`, in its order.
///
/// # Errors
/// If the list cannot be read, names a network or size that cannot be, or the answer cannot be written.
pub fn run(from: impl io::Read, mut to: impl io::Write) -> anyhow::Result<()> {
    let works: Vec<Work> = serde_json::from_reader(from)?;
    let times = works.iter().map(Work::time).collect::<anyhow::Result<Vec<_>>>()?;
    serde_json::to_writer(&mut to, &times)?;
    Ok(writeln!(to)?)
}

impl Work {
    /// Measures it on all threads.
    fn time(&self) -> anyhow::Result<Time> {
        match self {
            Self::Logits { network } => network.case(usize::MAX)?.query(false),
            Self::Gradient { network } => network.case(usize::MAX)?.query(true),
            Self::Compile { network } => network.case(FEW)?.compile(),
            Self::Train { network, batch } => network.case(*batch)?.train(),
            Self::Defend { defense, side } => defend(defense, *side, false),
            Self::Pullback { defense, side } => defend(defense, *side, true),
        }
    }
}

impl Network {
    /// Untrained weights and as many images as fit into one evaluation, `most` at most.
    fn case(&self, most: usize) -> anyhow::Result<Case> {
        let graph = self.model.graph()?;
        let weights = weights::initialise(&graph, Key::root(0).phase(Phase::Init))?;
        let images = Images::noise(most, self.side)?;
        let labels = (0..images.keys.len()).map(|i| (i % graph.classes) as u32).collect();
        Ok(Case { inside: self.inside.clone(), graph, weights, images, labels })
    }
}

/// Images to work on.
struct Images {
    x: Tensor,
    keys: Vec<Key>,
}

impl Images {
    fn noise(most: usize, side: u32) -> anyhow::Result<Self> {
        let side = side as usize;
        let n = most.min(trained::batch_of(side * side)).max(FEW);
        let key = Key::root(0).phase(Phase::Data);
        let mut pixels = vec![0.0; n * 3 * side * side];
        key.fill_uniform(&mut pixels);
        let x = Tensor::from_vec(pixels, (n, 3, side, side), &Device::Cpu)?;
        Ok(Self { x, keys: (0..n as u64).map(|image| key.image(image)).collect() })
    }

    /// The first `n` of them.
    fn some(&self, n: usize) -> anyhow::Result<(Tensor, &[Key])> {
        Ok((self.x.narrow(0, 0, n)?, &self.keys[..n]))
    }

    /// The time of one image, where `work` does the images that it is given.
    fn time(&self, mut work: impl FnMut(&Tensor, &[Key]) -> anyhow::Result<()>) -> anyhow::Result<Time> {
        let (x, keys) = self.some(FEW)?;
        // The first time, memory is new and networks are not compiled.
        work(&x, keys)?;
        let watch = Stopwatch::start();
        work(&x, keys)?;
        // As many as a stage asks together, unless that takes long: they leave the caches.
        let n = (FEW as f64 * ENOUGH / watch.processor().max(1e-9)) as usize;
        let n = n.clamp(FEW, self.keys.len());
        let (x, keys) = self.some(n)?;
        work(&x, keys)?;
        repeat(n, || work(&x, keys))
    }
}

/// Images that are enough to compile a network for, and to see how fast it is.
const FEW: usize = 2;

/// The time of one of the `size` things that `work` does, over as many repeats as are [`ENOUGH`].
fn repeat(size: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Time> {
    let (watch, mut count) = (Stopwatch::start(), 0);
    while count == 0 || watch.processor() < ENOUGH {
        work()?;
        count += size;
    }
    Ok(Time { wall: watch.wall() / count as f64, processor: watch.processor() / count as f64 })
}

/// A network with weights and images.
struct Case {
    inside: Option<Inside>,
    graph: Graph,
    weights: Weights,
    images: Images,
    labels: Vec<u32>,
}

impl Case {
    fn executor(&self) -> anyhow::Result<Box<dyn Classifier>> {
        let inside = self.inside.as_ref().map(|inside| inside.apply(&self.graph));
        Ok(trained::executor(inside.as_ref().unwrap_or(&self.graph), &self.weights, &Device::Cpu)?)
    }

    /// Asks as attacks and votes do.
    fn query(&self, gradient: bool) -> anyhow::Result<Time> {
        let net = self.executor()?;
        let victim = Victim { net: net.as_ref(), defense: &Identity {}, batch: self.labels.len() };
        self.images.time(|x, keys| {
            if gradient {
                let goal = Goal::Untargeted(self.labels[..keys.len()].to_vec());
                victim.gradient(x, &goal, Loss::default(), Eot::default(), keys)?;
            } else {
                victim.predict(x, keys)?.to_dtype(DType::F64)?;
            }
            Ok(())
        })
    }

    fn compile(&self) -> anyhow::Result<Time> {
        let Images { x, keys } = &self.images;
        repeat(1, || Ok(self.executor()?.logits(x, keys).map(drop)?))
    }

    fn train(&self) -> anyhow::Result<Time> {
        let mut trainee = Trainee::new(&self.graph, &self.weights, &Device::Cpu)?;
        let settings = Settings::default();
        let mut optimiser = AdamW::new(settings);
        self.images.time(|x, keys| {
            let query = trainee.query(x, &self.labels[..keys.len()])?;
            Ok(optimiser.step(&mut trainee, &query.gradients, 1e-3)?)
        })
    }
}

fn defend(defense: &defenses::Spec, side: u32, back: bool) -> anyhow::Result<Time> {
    let (images, defense) = (Images::noise(usize::MAX, side)?, defense.build());
    let upstream = defense.apply(&images.x, &images.keys)?;
    images.time(|x, keys| {
        defense.apply(x, keys)?;
        if back {
            pullback(defense, x, keys, &upstream.narrow(0, 0, keys.len())?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(works: &serde_json::Value) -> anyhow::Result<Vec<Time>> {
        let mut answer = Vec::new();
        run(works.to_string().as_bytes(), &mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }

    #[test]
    fn every_kind_of_work_takes_time_and_more_work_takes_more() {
        let network = |depth: u32, inside: bool| {
            let mut network = json!({"model": {"name": "cifar-resnet", "depth": depth}, "side": 32});
            if inside {
                network["inside"] = json!({"name": "activation-pruning"});
            }
            network
        };
        let blur = json!({"name": "median-blur"});
        let times = answer(&json!([
            {"work": "logits", "network": network(8, false)},
            {"work": "logits", "network": network(44, false)},
            {"work": "gradient", "network": network(44, true)},
            {"work": "compile", "network": network(8, false)},
            {"work": "train", "network": network(8, false), "batch": 16},
            {"work": "defend", "defense": {"name": "none"}, "side": 32},
            {"work": "pullback", "defense": blur, "side": 32},
        ]))
        .unwrap();
        assert_eq!(times.len(), 7);
        assert!(times.iter().all(|time| time.wall > 0.0 && time.processor > 0.0), "{times:?}");
        // 8 and 44 layers of the same kind; a margin for what others do on the machine.
        assert!(times[1].processor > 1.5 * times[0].processor, "{times:?}");
        assert!(times[2].processor > times[1].processor, "{times:?}");
        assert!(times[6].processor > times[5].processor, "{times:?}");
    }

    #[test]
    fn what_is_no_list_of_works_is_refused() {
        assert!(answer(&json!([{"work": "nothing"}])).unwrap_err().to_string().contains("`nothing`"));
        let depth = json!([{"work": "logits", "network": {"model": {"name": "cifar-resnet", "depth": 9}, "side": 32}}]);
        assert!(answer(&depth).is_err());
    }
}

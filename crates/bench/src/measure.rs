//! One work, measured alone or beside PyTorch.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use engine::Multiplications;
use serde::Serialize;

use crate::{
    clock::median,
    ours::{Case, Runner},
    program::Program,
    stages::{Stages, Votes},
    torch::Torch,
    work::{DRAWS, Kind, Work},
};

/// How to measure.
pub struct Plan<'a> {
    pub rounds: u32,
    /// Seconds of measurement a round and side.
    pub seconds: f64,
    /// Whether slow variants are dropped after the first round.
    pub quick: bool,
    /// Why `torch.compile` is left out, if it is.
    pub compile: Result<(), &'static str>,
    pub stages: Stages<'a>,
    /// The Python that has PyTorch.
    pub python: Option<&'a str>,
}

/// The file of the weights that both sides use.
const WEIGHTS: &str = "weights.safetensors";

/// Variants slower than this share of the best are dropped in a quick run.
const CLOSE: f64 = 0.8;

/// Our side of a work.
enum Ours {
    /// The runner, and the one without Winograd's algorithm.
    Engine {
        runner: Runner,
        direct: Option<Runner>,
    },
    Votes {
        tables: [PathBuf; 2],
        evaluations: f64,
    },
    Program(Program),
}

impl Ours {
    fn new(plan: &Plan<'_>, case: &Case) -> anyhow::Result<Self> {
        let images = if plan.quick { 6 } else { 20 };
        Ok(match case.work.kind {
            Kind::Votes => Self::Votes { tables: plan.stages.ballot(images)?, evaluations: f64::NAN },
            Kind::Program => {
                let Some(python) = plan.python else { anyhow::bail!("{}: there is no Python to run it", case.work) };
                let folder = plan.stages.folder;
                Self::Program(Program::start(python, folder, &folder.join(WEIGHTS), case.images(), case.labels())?)
            }
            Kind::Train => Self::Engine { runner: case.runner(false)?, direct: None },
            _ => Self::Engine { runner: case.runner(false)?, direct: Some(case.runner(true)?) },
        })
    }

    /// Images per second.
    fn rate(&mut self, plan: &Plan<'_>, case: &Case) -> anyhow::Result<f64> {
        match self {
            Self::Engine { runner, .. } => case.rate(runner, plan.seconds),
            Self::Program(program) => case.alone(|| program.rate(plan.seconds)),
            Self::Votes { tables, evaluations: mean } => {
                let Votes { images, evaluations, seconds } = plan.stages.votes(tables, case.work.threads)?;
                *mean = evaluations as f64 / images as f64;
                Ok(images as f64 / seconds)
            }
        }
    }

    /// Images per second without Winograd's algorithm.
    fn direct(&mut self, plan: &Plan<'_>, case: &Case) -> anyhow::Result<Option<f64>> {
        match self {
            Self::Engine { direct: Some(runner), .. } => case.rate(runner, plan.seconds).map(Some),
            _ => Ok(None),
        }
    }

    /// Multiplications per image, with Winograd's algorithm and without.
    fn multiplications(&self, side: usize) -> anyhow::Result<Option<[Multiplications; 2]>> {
        match self {
            Self::Engine { runner, direct: Some(direct) } => {
                Ok(runner.multiplications(side)?.zip(direct.multiplications(side)?).map(|(a, b)| [a, b]))
            }
            _ => Ok(None),
        }
    }
}

/// A work without PyTorch.
pub struct Alone {
    work: Work,
    rates: Vec<f64>,
}

impl Alone {
    pub fn measure(plan: &Plan<'_>, work: Work) -> anyhow::Result<Self> {
        let case = Case::new(work)?;
        let mut ours = Ours::new(plan, &case)?;
        let rates = (0..plan.rounds).map(|_| ours.rate(plan, &case)).collect::<anyhow::Result<_>>()?;
        Ok(Self { work, rates })
    }
}

impl fmt::Display for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = range(&self.rates);
        write!(f, "{:36} {:10.1} images/s ({low:.1} to {high:.1})", self.work.to_string(), median(&self.rates))
    }
}

/// The least and the greatest.
pub fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

/// How far two programs' answers are apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Distance {
    /// The largest difference of a logit (or of the loss), as a share of the largest.
    pub logits: f64,
    /// The largest difference of an image's gradient, as a share of its largest entry: the median over images.
    pub gradient: Option<f64>,
    /// The same of the worst image: a ReLU within rounding of zero took the other branch there.
    pub worst_gradient: Option<f64>,
}

/// Distances above these are other work: a layer, a weight or a normalisation that differs changes everything. Of the
/// millions of ReLUs of an untrained ResNet-50 some take the other branch in every image, which alone makes 1e-2; what
/// the engine's gradients must keep to, its own tests say.
const LOGITS: f64 = 1e-3;
const GRADIENT: f64 = 5e-2;

impl Distance {
    fn between(ours: &[Vec<f32>], theirs: &[f32], images: usize) -> Self {
        let apart = |a: &[f32], b: &[f32]| {
            let most = a.iter().fold(0f64, |most, &a| most.max(f64::from(a).abs()));
            let apart = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
            // A NaN must not pass for agreement.
            apart.fold(0.0, |most, d| if d <= most || most.is_nan() { most } else { d }) / most
        };
        let length: usize = ours.iter().map(Vec::len).sum();
        if length != theirs.len() {
            return Self { logits: f64::INFINITY, gradient: None, worst_gradient: None };
        }
        let (logits, gradient) = theirs.split_at(ours[0].len());
        let per_image = ours.get(1).map(|ours| {
            let size = ours.len() / images;
            ours.chunks(size).zip(gradient.chunks(size)).map(|(a, b)| apart(a, b)).collect::<Vec<_>>()
        });
        Self {
            logits: apart(&ours[0], logits),
            gradient: per_image.as_deref().map(median),
            worst_gradient: per_image.as_deref().map(|all| range(all).1),
        }
    }

    /// Whether both do the same work.
    pub fn same(&self) -> bool {
        self.logits < LOGITS && self.gradient.is_none_or(|gradient| gradient < GRADIENT)
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0e}", self.logits)?;
        match (self.gradient, self.worst_gradient) {
            (Some(median), Some(worst)) => write!(f, "; {median:.0e}, at worst {worst:.0e}"),
            _ => Ok(()),
        }
    }
}

/// A work beside PyTorch.
#[derive(Debug, Serialize)]
pub struct Beside {
    pub work: Work,
    /// Images per second, a round each.
    pub ours: Vec<f64>,
    /// The same without Winograd's algorithm.
    pub direct: Vec<f64>,
    /// PyTorch's variants; in a quick run slow ones have one round only.
    pub torch: BTreeMap<String, Vec<f64>>,
    /// Why others did not run.
    pub skipped: BTreeMap<String, String>,
    /// How far each variant's answers are from ours.
    pub apart: BTreeMap<String, Distance>,
    /// Of the definition, done, and done without Winograd's algorithm, per image.
    pub multiplications: Option<[u64; 3]>,
    /// Mean draws of a vote until it was decided.
    pub draws: Option<f64>,
    /// The machine's load average at the end.
    pub load: Option<f64>,
}

impl Beside {
    pub fn measure(plan: &Plan<'_>, work: Work, torch: &mut Torch) -> anyhow::Result<Self> {
        let case = Case::new(work)?;
        let (weights, data) = (plan.stages.folder.join(WEIGHTS), plan.stages.folder.join("data.safetensors"));
        case.save(&weights, &data)?;
        let mut ours = Ours::new(plan, &case)?;
        let variants = torch.open(&work, &weights, &data, plan.compile)?;
        anyhow::ensure!(!variants.variants.is_empty(), "{work}: PyTorch ran no variant: {:?}", variants.skipped);
        let mut apart = BTreeMap::new();
        // Both of these draw noise of their own.
        if !matches!(work.kind, Kind::Votes | Kind::Program) {
            let answer = case.answer(&mut case.runner(false)?)?;
            for name in &variants.variants {
                let theirs = torch.first(name, plan.stages.folder)?;
                apart.insert(name.clone(), Distance::between(&answer, &theirs, work.batch));
            }
        }
        let mut new = Self {
            work,
            ours: vec![],
            direct: vec![],
            torch: variants.variants.iter().map(|name| (name.clone(), vec![])).collect(),
            skipped: variants.skipped,
            apart,
            multiplications: ours.multiplications(work.side)?.map(|[a, b]| [a.definition, a.done, b.done]),
            draws: None,
            load: None,
        };
        for round in 0..plan.rounds {
            new.ours.push(ours.rate(plan, &case)?);
            new.direct.extend(ours.direct(plan, &case)?);
            let best = new.best().1;
            for (name, rates) in &mut new.torch {
                if !plan.quick || round == 0 || median(rates) >= CLOSE * best {
                    rates.push(torch.rate(name, plan.seconds)?);
                }
            }
        }
        if let Ours::Votes { evaluations, .. } = ours {
            new.draws = Some(evaluations);
        }
        new.load = load();
        Ok(new)
    }

    /// PyTorch's best variant and its median.
    pub fn best(&self) -> (&str, f64) {
        let medians = self.torch.iter().filter(|(_, rates)| !rates.is_empty()).map(|(n, r)| (n.as_str(), median(r)));
        medians.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("none", f64::NAN))
    }

    /// Our median over PyTorch's best.
    pub fn ratio(&self) -> f64 {
        median(&self.ours) / self.best().1
    }

    /// Of a vote's ratio: the part of early stopping, and that of the engine.
    pub fn shares(&self) -> Option<[f64; 2]> {
        let stopping = f64::from(DRAWS) / self.draws?;
        Some([stopping, self.ratio() / stopping])
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, best) = self.best();
        let work = self.work.to_string();
        write!(f, "{work:36} {:10.1}, PyTorch {best:10.1} ({name}): {:.2}x", median(&self.ours), self.ratio())?;
        match self.apart.get(name) {
            Some(apart) => write!(f, "; apart by {apart}"),
            None => Ok(()),
        }
    }
}

/// The machine's load average over the last minute, where the system tells it.
pub fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_image_by_image() {
        let ours = [vec![1.0, -2.0], vec![4.0, 0.0, 1.0, 0.0, 1.0, 0.0]];
        let near = Distance::between(&ours, &[1.0, -2.0002, 4.0, 0.0, 1.0, 0.0, 1.0, 0.5], 3);
        assert!((near.logits - 1e-4).abs() < 1e-6 && near.same(), "{near:?}");
        assert_eq!((near.gradient, near.worst_gradient), (Some(0.0), Some(0.5)));
        assert!(!Distance::between(&ours, &[f32::NAN, -2.0, 4.0, 0.0, 1.0, 0.0, 1.0, 0.0], 3).same());
        assert!(!Distance::between(&ours, &[1.0], 3).same());
    }
}

//! What the evaluations of a job pass through: the network, and what stands around it.

use defenses::{GaussianNoise, Identity};
use nets::Inside;
use stage_attack::calibrate::{Network, Work};

use crate::Net;

/// A network with what is asked of it, apart from how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The network.
    pub net: Net,
    /// Randomness inside it.
    pub inside: Option<Inside>,
    /// What every image passes before it.
    pub defense: defenses::Spec,
    /// Images of a training step; 0 where nothing is trained.
    pub batch: usize,
}

impl Load {
    /// A network alone.
    #[must_use]
    pub fn bare(net: Net) -> Self {
        Self { net, inside: None, defense: Identity {}.into(), batch: 0 }
    }

    /// The network, where it is a graph of ours: others are no program's to measure beforehand.
    fn network(&self) -> Option<Network> {
        let trained::Model::Graph(model) = &self.net.model else { return None };
        Some(Network { model: model.clone(), inside: self.inside.clone(), side: self.net.side? })
    }

    /// One forward evaluation.
    #[must_use]
    pub fn forward(&self) -> Vec<Work> {
        let defense = self.defend(|defense, side| Work::Defend { defense, side });
        self.network().map(|network| Work::Logits { network }).into_iter().chain(defense).collect()
    }

    /// One gradient query.
    #[must_use]
    pub fn gradient(&self) -> Vec<Work> {
        let defense = self.defend(|defense, side| Work::Pullback { defense, side });
        self.network().map(|network| Work::Gradient { network }).into_iter().chain(defense).collect()
    }

    /// One image's share of a training step.
    #[must_use]
    pub fn train(&self) -> Vec<Work> {
        let defense = self.defend(|defense, side| Work::Defend { defense, side });
        self.network().map(|network| Work::Train { network, batch: self.batch }).into_iter().chain(defense).collect()
    }

    /// The network's compilation.
    #[must_use]
    pub fn compile(&self) -> Vec<Work> {
        self.network().map(|network| Work::Compile { network }).into_iter().collect()
    }

    /// Normal noise on one image, which attacks and detectors draw for themselves.
    #[must_use]
    pub fn noise(&self) -> Vec<Work> {
        let noise = |side| Work::Defend { defense: GaussianNoise::default().into(), side };
        self.net.side.map(noise).into_iter().collect()
    }

    /// What the defense does, if there is one.
    fn defend(&self, work: impl FnOnce(defenses::Spec, u32) -> Work) -> Option<Work> {
        let side = self.net.side.filter(|_| self.defense.name() != "none")?;
        Some(work(self.defense.clone(), side))
    }
}

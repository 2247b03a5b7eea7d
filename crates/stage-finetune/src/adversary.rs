//! Adversarial training: the attack that every training image undergoes.

use attacks::{Cost, Spec, Victim};
use candle_core::{Device, Result, Tensor};
use defenses::Identity;
use game::{Defense, Goal, Key};
use nets::{Graph, Weights};

/// An attack on the network as it stands (Madry et al. 2018, section 2.1): away from the true class, through the defense.
///
/// The network it sees is frozen, with batch normalisation by the running statistics, as Xiao et al. 2020 train
/// (`model.eval()` around the attack, whose images then train in `model.train()`): what an image becomes depends on the
/// weights, the image and its key, not on the images beside it. Their attack differs in that it leaves `[0, 1]`.
pub(crate) struct Adversary<'a> {
    attack: &'a Spec,
    defense: &'a dyn Defense,
    graph: &'a Graph,
    device: &'a Device,
}

impl<'a> Adversary<'a> {
    /// An adversary of networks of this graph.
    pub fn new(attack: &'a Spec, defense: Option<&'a dyn Defense>, graph: &'a Graph, device: &'a Device) -> Self {
        Self { attack, defense: defense.unwrap_or(&Identity {}), graph, device }
    }

    /// The attack's name.
    pub const fn name(&self) -> &'static str {
        self.attack.name()
    }

    /// Evaluations of the network per image.
    pub fn cost(&self) -> Cost {
        self.attack.cost()
    }

    /// The images `x` `(n, 3, h, w)` in `[0, 1]` as the attack on these weights leaves them, and the forward evaluations
    /// it took; `keys` holds one key per image.
    ///
    /// Compiling the network anew costs about one percent of ten steps of PGD.
    pub fn attack(&self, weights: &Weights, x: &Tensor, labels: &[u32], keys: &[Key]) -> Result<(Tensor, u64)> {
        let network = trained::executor(self.graph, weights, self.device)?;
        let batch = trained::batch_of(x.dim(2)? * x.dim(3)?);
        let victim = Victim { net: network.as_ref(), defense: self.defense, batch };
        let goal = Goal::Untargeted(labels.to_vec());
        let mut last = (x.clone(), 0);
        self.attack.build().run(&victim, x, &goal, keys, None, &mut |snapshot| {
            last = (snapshot.x, snapshot.forward_queries.iter().sum());
            Ok(())
        })?;
        Ok(last)
    }
}

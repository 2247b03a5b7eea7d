//! Several defenses, one after another.

use candle_core::{Device, Result, Tensor, bail};
use game::{Defense, Entry, Gradient, Key, pullback};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{GaussianNoise, Rotation, Spec};

/// In what order a stack applies the transformations it has picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As listed.
    #[default]
    Fixed,
    /// Drawn uniformly for every image and draw.
    Random,
    /// Drawn uniformly for every draw, the same for all images: as the code of Gao et al. 2022 attacks and votes (one
    /// order per call, of a batch of gradients or of all votes). Training gives every image its own, as theirs does.
    Shared,
}

/// Applies several defenses one after another: a random few of them, in a random order, as BaRT does.
///
/// Reference: Raff et al. 2019, "Barrage of random transforms". Each transformation draws from its own key, by its place
/// in `of`, so the same image under the same key meets the same noise in whatever order it comes. A gradient passes the
/// stack backwards, through each transformation as that one declares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stack {
    /// The transformations to pick from.
    pub of: Vec<Spec>,
    /// Only this many of them, the first; 0 for all (BaRT's kappa, as Gao et al. 2022 vary it).
    #[serde(skip_serializing_if = "is_zero")]
    pub first: usize,
    /// How many to pick, uniformly and without repetition, whenever an order is drawn (for every image and draw where the
    /// order is fixed); 0 picks all.
    pub pick: usize,
    /// The order of the picked ones.
    pub order: Order,
}

impl Default for Stack {
    fn default() -> Self {
        let of = vec![Rotation::default().into(), GaussianNoise::default().into()];
        Self { of, first: 0, pick: 0, order: Order::Fixed }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Entry for Stack {
    const ABOUT: &'static str = "several defenses one after another, in fixed or random choice and order";

    fn check(&self) -> std::result::Result<(), String> {
        if self.of.is_empty() {
            return Err("of = [] picks from nothing: name its transformations, or use `none`".into());
        }
        if self.first > self.of.len() {
            return Err(format!("first = {} must be at most the {} transformations listed", self.first, self.of.len()));
        }
        if self.pick > self.used().len() {
            return Err(format!(
                "pick = {} must be at most the {} transformations of the stack",
                self.pick,
                self.used().len()
            ));
        }
        self.of.iter().try_for_each(Spec::check)
    }

    fn examples() -> Vec<Self> {
        let noise = |clip, gradient| GaussianNoise { sigma: 0.3, clip, gradient }.into();
        let rotation = || Rotation { degrees: 30.0 }.into();
        vec![
            Self { of: vec![rotation(), noise(true, Gradient::Exact)], first: 0, pick: 0, order: Order::Fixed },
            Self { of: vec![rotation(), noise(true, Gradient::Exact)], first: 0, pick: 1, order: Order::Fixed },
            Self {
                of: vec![noise(true, Gradient::Identity), rotation(), noise(false, Gradient::Identity)],
                first: 2,
                pick: 0,
                order: Order::Random,
            },
            Self {
                of: vec![noise(true, Gradient::Identity), rotation(), noise(false, Gradient::Identity)],
                first: 0,
                pick: 2,
                order: Order::Random,
            },
            Self { of: vec![rotation(), noise(true, Gradient::Exact)], first: 0, pick: 0, order: Order::Shared },
        ]
    }

    fn slug(&self, name: &str) -> String {
        match self.used() {
            few if few.len() <= 3 => {
                few.iter().map(Spec::slug).fold(name.to_owned(), |slug, child| slug + "-" + &child)
            }
            many => format!("{name}-{}-of-{}", self.picked(), many.len()),
        }
    }
}

impl Stack {
    /// The transformations to pick from: the first few, or all.
    fn used(&self) -> &[Spec] {
        if self.first == 0 { &self.of } else { &self.of[..self.first.min(self.of.len())] }
    }

    /// How many transformations each image meets.
    fn picked(&self) -> usize {
        if self.pick == 0 { self.used().len() } else { self.pick }
    }

    /// Whether every image meets the same transformations in the same order.
    fn is_uniform(&self) -> bool {
        self.order == Order::Fixed && self.picked() == self.used().len()
    }

    /// The places in `of` of the transformations drawn by `key`, in the order they are applied.
    fn plan(&self, key: Key) -> Vec<usize> {
        let key = if self.order == Order::Shared { key.shared() } else { key };
        let mut order = key.at(0).permutation(self.used().len());
        order.truncate(self.picked());
        if self.order == Order::Fixed {
            order.sort_unstable();
        }
        order
    }

    /// The keys of the transformation at `place`.
    fn keys(place: usize, keys: &[Key]) -> Vec<Key> {
        keys.iter().map(|key| key.at(1 + place as u64)).collect()
    }

    /// Runs `each` with the plan on the whole batch where it is the same for every image, and else image by image.
    fn planned(
        &self,
        n: usize,
        keys: &[Key],
        each: impl Fn(&[usize], std::ops::Range<usize>) -> Result<Tensor> + Sync,
    ) -> Result<Tensor> {
        if n != keys.len() {
            bail!("{n} images with {} keys: a defense needs one key per image", keys.len())
        }
        if self.is_uniform() || n == 0 {
            let all: Vec<usize> = (0..self.used().len()).collect();
            return each(&all, 0..n);
        }
        let images: Vec<Tensor> =
            keys.par_iter().enumerate().map(|(i, &key)| each(&self.plan(key), i..i + 1)).collect::<Result<_>>()?;
        if let Some(odd) = images.iter().find(|image| image.dims() != images[0].dims()) {
            bail!(
                "{self:?} makes images of {:?} and {:?}: choice and order must not change the size",
                images[0].dims(),
                odd.dims()
            )
        }
        Tensor::cat(&images, 0)
    }

    /// Applies the transformations of `plan`.
    fn compose(&self, plan: &[usize], x: Tensor, keys: &[Key]) -> Result<Tensor> {
        plan.iter().try_fold(x, |x, &place| self.of[place].build().apply(&x, &Self::keys(place, keys)))
    }

    /// Carries `upstream` back through the transformations of `plan`.
    fn compose_pullback(&self, plan: &[usize], x: &Tensor, keys: &[Key], upstream: Tensor) -> Result<Tensor> {
        // What follows the last transformation with a true derivative passes the gradient on as it is.
        let exact = |&place: &usize| self.of[place].build().gradient() == Gradient::Exact;
        let plan = &plan[..plan.iter().rposition(exact).map_or(0, |last| last + 1)];
        let mut inputs = vec![x.clone()];
        for &place in plan.split_last().map_or(&[][..], |(_, before)| before) {
            inputs.push(self.of[place].build().apply(&inputs[inputs.len() - 1], &Self::keys(place, keys))?);
        }
        let back = plan.iter().zip(&inputs).rev().try_fold(upstream, |upstream, (&place, x)| {
            pullback(self.of[place].build(), x, &Self::keys(place, keys), &upstream)
        })?;
        if back.dims() != x.dims() {
            bail!("{self:?} maps {:?} to {:?} and takes that for the identity", x.dims(), back.dims())
        }
        Ok(back)
    }
}

impl Defense for Stack {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let host = x.to_device(&Device::Cpu)?;
        let out = self.planned(x.dim(0)?, keys, |plan, images| {
            let keys = &keys[images.clone()];
            self.compose(plan, host.narrow(0, images.start, images.len())?, keys)
        });
        out?.to_device(x.device())
    }

    fn gradient(&self) -> Gradient {
        Gradient::Exact
    }

    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        let (host, above) = (x.to_device(&Device::Cpu)?, upstream.to_device(&Device::Cpu)?);
        if x.dim(0)? != upstream.dim(0)? {
            bail!("a gradient {:?} does not fit an input {:?}", upstream.dims(), x.dims())
        }
        let back = self.planned(x.dim(0)?, keys, |plan, images| {
            let (start, n) = (images.start, images.len());
            self.compose_pullback(plan, &host.narrow(0, start, n)?, &keys[images], above.narrow(0, start, n)?)
        });
        back?.to_device(x.device())
    }
}

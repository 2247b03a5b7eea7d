//! Several defenses, one after another.

use candle_core::{Result, Tensor, bail};
use game::{Defense, Entry, Gradient, Key, pullback};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::kernel::to_host;
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
        if self.is_uniform() || n == 0 {
            let all: Vec<usize> = (0..self.used().len()).collect();
            return each(&all, 0..n);
        }
        let images: Vec<Tensor> =
            keys.par_iter().enumerate().map(|(i, &key)| each(&self.plan(key), i..i + 1)).collect::<Result<_>>()?;
        if let Some(odd) = images.iter().find(|image| image.dims() != images[0].dims()) {
            return self.odd_sizes(&images[0].dims()[1..], &odd.dims()[1..]);
        }
        Tensor::cat(&images, 0)
    }

    fn odd_sizes<T>(&self, one: &[usize], other: &[usize]) -> Result<T> {
        bail!("{self:?} makes images of {one:?} and {other:?}: choice and order must not change the size")
    }

    /// Applies the transformations of `plan`.
    fn compose(&self, plan: &[usize], x: Tensor, keys: &[Key]) -> Result<Tensor> {
        plan.iter().try_fold(x, |x, &place| self.of[place].build().apply(&x, &Self::keys(place, keys)))
    }

    /// The transformations of `plan` that change a gradient: what follows the last one with a true derivative passes it
    /// on as it is.
    fn differentiated<'a>(&self, plan: &'a [usize]) -> &'a [usize] {
        let exact = |&place: &usize| self.of[place].build().gradient() == Gradient::Exact;
        &plan[..plan.iter().rposition(exact).map_or(0, |last| last + 1)]
    }

    /// Carries `upstream` back through the transformations of `plan`.
    fn compose_pullback(&self, plan: &[usize], x: &Tensor, keys: &[Key], upstream: Tensor) -> Result<Tensor> {
        let plan = self.differentiated(plan);
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

/// Refuses another number of images than of keys.
fn fits(x: &Tensor, keys: &[Key]) -> Result<()> {
    let n = x.dim(0)?;
    if n != keys.len() {
        bail!("{n} images with {} keys: a defense needs one key per image", keys.len())
    }
    Ok(())
}

/// Images of one size on a device, by number, in the order of the rows of a tensor.
struct Pool {
    images: Vec<usize>,
    rows: Tensor,
}

/// What every image of a batch has become.
struct Pools(Vec<Pool>);

impl Pools {
    /// The images `0..n` in order.
    fn whole(x: &Tensor) -> Result<Self> {
        Ok(Self(vec![Pool { images: (0..x.dim(0)?).collect(), rows: x.clone() }]))
    }

    /// One pool for each size.
    fn merged(self) -> Result<Self> {
        let mut merged: Vec<(Vec<usize>, Vec<Tensor>)> = vec![];
        for Pool { images, rows } in self.0 {
            match merged.iter_mut().find(|(_, tensors)| tensors[0].dims()[1..] == rows.dims()[1..]) {
                Some((all, tensors)) => {
                    all.extend(images);
                    tensors.push(rows);
                }
                None => merged.push((images, vec![rows])),
            }
        }
        let pool = |(images, tensors): (Vec<usize>, Vec<Tensor>)| {
            let rows = if tensors.len() == 1 { tensors[0].clone() } else { Tensor::cat(&tensors, 0)? };
            Ok(Pool { images, rows })
        };
        Ok(Self(merged.into_iter().map(pool).collect::<Result<_>>()?))
    }

    /// The rows of some images, all of one size, in this order.
    fn gather(&self, images: &[usize]) -> Result<Tensor> {
        let Some(pool) = self.0.iter().find(|pool| images.first().is_some_and(|first| pool.images.contains(first)))
        else {
            bail!("no tensor holds the images {images:?}")
        };
        if pool.images == images {
            return Ok(pool.rows.clone());
        }
        let mut places = vec![None; pool.images.iter().max().map_or(0, |last| last + 1)];
        pool.images.iter().zip(0u32..).for_each(|(&image, row)| places[image] = Some(row));
        let place = |&image: &usize| places.get(image).copied().flatten();
        let Some(rows) = images.iter().map(place).collect::<Option<Vec<u32>>>() else {
            bail!("images of one size have gradients of several")
        };
        pool.rows.contiguous()?.index_select(&Tensor::new(rows, pool.rows.device())?, 0)
    }
}

/// Some images that meet the same transformation, and what of them it meets.
struct Meeting {
    place: usize,
    images: Vec<usize>,
    x: Tensor,
}

impl Stack {
    /// What each key draws: [`plan`](Self::plan), or all.
    fn plans(&self, keys: &[Key]) -> Vec<Vec<usize>> {
        let all = || (0..self.used().len()).collect();
        keys.iter().map(|&key| if self.is_uniform() { all() } else { self.plan(key) }).collect()
    }

    /// The keys of these images for the transformation at `place`.
    fn keys_of(place: usize, images: &[usize], keys: &[Key]) -> Vec<Key> {
        images.iter().map(|&image| keys[image].at(1 + place as u64)).collect()
    }

    /// Step `step` of the plans: images of one size that meet the same transformation meet it together. The others are
    /// left where they are.
    fn meetings(step: usize, pools: &Pools, plans: &[Vec<usize>]) -> Result<(Vec<Meeting>, Vec<Pool>)> {
        let (mut meetings, mut left) = (vec![], vec![]);
        for pool in &pools.0 {
            let mut images = pool.images.clone();
            // The order of pools and rows is no result: it is undone at the end.
            images.sort_by_key(|&image| plans[image].get(step));
            for images in images.chunk_by(|&one, &other| plans[one].get(step) == plans[other].get(step)) {
                let (images, x) = (images.to_vec(), pools.gather(images)?);
                match plans[images[0]].get(step) {
                    Some(&place) => meetings.push(Meeting { place, images, x }),
                    None => left.push(Pool { images, rows: x }),
                }
            }
        }
        Ok((meetings, left))
    }

    /// Applies the transformations of every image's plan on its device, but none after which `goes_on` says no, and says who
    /// met what, step by step.
    fn meet(
        &self,
        x: &Tensor,
        keys: &[Key],
        plans: &[Vec<usize>],
        goes_on: impl Fn(usize, usize) -> bool,
    ) -> Result<(Pools, Vec<Vec<Meeting>>)> {
        let (mut pools, mut met) = (Pools::whole(x)?, vec![]);
        for step in 0..plans.iter().map(Vec::len).max().unwrap_or(0) {
            let (meetings, mut after) = Self::meetings(step, &pools, plans)?;
            for Meeting { place, images, x } in &meetings {
                if images.iter().any(|&image| goes_on(image, step)) {
                    let rows = self.of[*place].build().apply(x, &Self::keys_of(*place, images, keys))?;
                    after.push(Pool { images: images.clone(), rows });
                }
            }
            pools = Pools(after).merged()?;
            met.push(meetings);
        }
        Ok((pools, met))
    }

    /// The images in their order.
    fn in_order(&self, pools: &Pools, n: usize) -> Result<Tensor> {
        if let [one, other, ..] = &pools.0[..] {
            return self.odd_sizes(&one.rows.dims()[1..], &other.rows.dims()[1..]);
        }
        pools.gather(&(0..n).collect::<Vec<_>>())
    }

    /// [`apply`](Defense::apply) without leaving the device.
    fn launch(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        if keys.is_empty() {
            return self.compose(&(0..self.used().len()).collect::<Vec<_>>(), x.clone(), keys);
        }
        let (pools, _) = self.meet(x, keys, &self.plans(keys), |_, _| true)?;
        self.in_order(&pools, keys.len())
    }

    /// [`exact_pullback`](Defense::exact_pullback) without leaving the device.
    fn launch_back(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        if keys.is_empty() {
            return self.compose_pullback(&(0..self.used().len()).collect::<Vec<_>>(), x, keys, upstream.clone());
        }
        let mut plans = self.plans(keys);
        plans.iter_mut().for_each(|plan| plan.truncate(self.differentiated(plan).len()));
        let (_, met) = self.meet(x, keys, &plans, |image, step| step + 1 < plans[image].len())?;
        let mut pools = Pools::whole(upstream)?;
        for (step, meetings) in met.into_iter().enumerate().rev() {
            let mut after = vec![];
            for Meeting { place, images, x } in meetings {
                let (defense, above) = (self.of[place].build(), pools.gather(&images)?);
                let rows = pullback(defense, &x, &Self::keys_of(place, &images, keys), &above)?;
                after.push(Pool { images, rows });
            }
            // Those that have met less still have the gradient they came with.
            for pool in &pools.0 {
                let images: Vec<usize> = pool.images.iter().copied().filter(|&i| plans[i].len() <= step).collect();
                if !images.is_empty() {
                    after.push(Pool { rows: pools.gather(&images)?, images });
                }
            }
            pools = Pools(after).merged()?;
        }
        let back = self.in_order(&pools, keys.len())?;
        if back.dims() != x.dims() {
            bail!("{self:?} maps {:?} to {:?} and takes that for the identity", x.dims(), upstream.dims())
        }
        Ok(back)
    }
}

impl Defense for Stack {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        fits(x, keys)?;
        if gpu::kernels::takes(x) {
            return self.launch(x, keys);
        }
        let host = to_host(x)?;
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
        if x.dim(0)? != upstream.dim(0)? {
            bail!("a gradient {:?} does not fit an input {:?}", upstream.dims(), x.dims())
        }
        fits(x, keys)?;
        if gpu::kernels::takes(x) {
            return self.launch_back(x, keys, upstream);
        }
        let (host, above) = (to_host(x)?, to_host(upstream)?);
        let back = self.planned(x.dim(0)?, keys, |plan, images| {
            let (start, n) = (images.start, images.len());
            self.compose_pullback(plan, &host.narrow(0, start, n)?, &keys[images], above.narrow(0, start, n)?)
        });
        back?.to_device(x.device())
    }
}

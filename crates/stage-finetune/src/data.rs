//! Batches of training and validation images.

use candle_core::{Device, Result, Tensor};
use game::{Defense, Key};
use stage::images::Images;

use crate::{Augment, schedule::Draws};

/// Images in 8 bits, and what happens to them on their way to the network.
pub(crate) struct Data<'a> {
    pub images: &'a Images,
    pub augment: Augment,
    pub defense: Option<&'a dyn Defense>,
    pub seed: u64,
}

impl Data<'_> {
    /// The images at `positions` as they train in one epoch, `(n, 3, h, w)` in host memory, and their labels.
    ///
    /// `attack` moves them, given their labels and keys, on their way from augmentation to the defense.
    pub fn training(
        &self,
        epoch: u32,
        positions: &[usize],
        attack: impl FnOnce(Tensor, &[u32], &[Key]) -> Result<Tensor>,
    ) -> Result<(Tensor, Vec<u32>)> {
        let draws: Vec<Draws> = self.draws(epoch, positions);
        let x =
            self.batch(positions, |i, pixels, out| self.augment.draw(pixels, self.size(), draws[i].augment(), out))?;
        let labels = self.labels(positions);
        let keys: Vec<Key> = draws.iter().map(|draws| draws.attack()).collect();
        let x = attack(x, &labels, &keys)?;
        Ok((defend(self.defense, x, &draws)?, labels))
    }

    /// The images at `positions` as they validate: cut at the centre, defended if asked for.
    pub fn validation(&self, epoch: u32, positions: &[usize], defended: bool) -> Result<(Tensor, Vec<u32>)> {
        let x = self.batch(positions, |_, pixels, out| self.augment.centre(pixels, self.size(), out))?;
        let x = defend(self.defense.filter(|_| defended), x, &self.draws(epoch, positions))?;
        Ok((x, self.labels(positions)))
    }

    fn labels(&self, positions: &[usize]) -> Vec<u32> {
        positions.iter().map(|&position| self.images.labels[position]).collect()
    }

    fn size(&self) -> (usize, usize) {
        (self.images.height, self.images.width)
    }

    fn draws(&self, epoch: u32, positions: &[usize]) -> Vec<Draws> {
        positions.iter().map(|&position| Draws::of(self.seed, epoch, self.images.ids[position])).collect()
    }

    /// Fills one tensor, given each image's place in the batch, its pixels, and where its values go.
    fn batch(&self, positions: &[usize], fill: impl Fn(usize, &[u8], &mut [f32])) -> Result<Tensor> {
        let (rows, columns) = self.augment.size(self.images.height, self.images.width);
        let size = 3 * rows * columns;
        let mut values = vec![0.0; positions.len() * size];
        for (i, (&position, out)) in positions.iter().zip(values.chunks_exact_mut(size)).enumerate() {
            fill(i, self.images.image(position), out);
        }
        Tensor::from_vec(values, (positions.len(), 3, rows, columns), &Device::Cpu)
    }
}

fn defend(defense: Option<&dyn Defense>, x: Tensor, draws: &[Draws]) -> Result<Tensor> {
    let Some(defense) = defense else { return Ok(x) };
    let keys: Vec<Key> = draws.iter().map(|draws| draws.defense()).collect();
    defense.apply(&x, &keys)
}

/// How many of the rows `(n, k)` of logits have their largest entry (the first of equals) at their label.
pub(crate) fn correct(logits: &Tensor, labels: &[u32]) -> Result<u32> {
    let rows = logits.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
    let right = |(row, &label): (&Vec<f32>, &u32)| {
        let best = (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        u32::from(best == label as usize)
    };
    Ok(rows.iter().zip(labels).map(right).sum())
}

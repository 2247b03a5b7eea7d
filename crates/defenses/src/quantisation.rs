//! Quantisation to a random number of levels.

use candle_core::{DType, Tensor};
use game::{Defense, Entry, Gradient, Key, vectorised};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::device::Batch;
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};

const SOURCE: Source = crate::device::source!("quantisation");

/// Rounds every channel to the multiples of `1/s`, `s` drawn per image and channel: `s + 1` levels in `[0, 1]`.
///
/// BaRT's colour precision reduction (Raff et al. 2019) as Gao et al. 2022 released it; halves go to the even multiple,
/// as numpy rounds. The true derivative is 0 almost everywhere, so only the identity is offered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quantisation {
    /// The smallest `s`; at least 1.
    pub scale_min: u64,
    /// The largest `s`.
    pub scale_max: u64,
}

impl Default for Quantisation {
    fn default() -> Self {
        Self { scale_min: 8, scale_max: 199 }
    }
}

impl Entry for Quantisation {
    const ABOUT: &'static str = "quantisation to a random number of levels per channel";

    fn check(&self) -> Result<(), String> {
        match (self.scale_min, self.scale_max) {
            (0, _) => Err("scale_min = 0 must be at least 1".into()),
            (_, high) if high > 1 << 16 => Err(format!("scale_max = {high} must be at most 65536")),
            (low, high) => kernel::ordered(("scale_min", low), ("scale_max", high)),
        }
    }
}

impl Quantisation {
    /// The scale drawn by `key` for a channel.
    fn scale(&self, key: Key, channel: usize) -> usize {
        kernel::integer(key.at(channel as u64), self.scale_min, self.scale_max)
    }
}

vectorised! {
    fn quantise<F: Pixel>(x: &[F], scale: F, out: &mut [F]) {
        let reciprocal = 1.0 / scale.widen();
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (x * scale).round_even().over(scale, reciprocal);
        }
    }
}

impl Kernel for Quantisation {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        for (c, x) in x.chunks_exact(shape.area()).enumerate() {
            let scale = F::narrow(self.scale(key, c) as f64);
            x.chunks(kernel::CHUNK).for_each(|x| quantise(x, scale, out.next(x.len())));
        }
    }

    fn backward<F: Pixel>(&self, _: &[F], _: Shape, _: Key, _: &[F], _: &mut [F]) {}

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        let mut call = batch.call();
        let to = batch.images(&call, batch.shape)?;
        let channels = batch.shape.channels;
        let scales = batch.keys.iter().flat_map(|&key| (0..channels).map(move |c| self.scale(key, c)));
        let scales: Vec<usize> = scales.collect();
        let rounding = Rounding {
            from: call.read(batch.x, DType::F32)?,
            to: to.address,
            reciprocals: call.upload(&scales.iter().map(|&scale| 1.0 / scale as f64).collect::<Vec<_>>())?,
            scales: call.upload(&scales.iter().map(|&scale| scale as f32).collect::<Vec<_>>())?,
            area: batch.shape.area() as u64,
        };
        // SAFETY: there are a scale and its reciprocal for each plane.
        unsafe { call.launch(&SOURCE, "quantise", batch.len(batch.shape), &rounding)? };
        Ok(to.tensor())
    }
}

/// As `Quantisation` in quantisation.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Rounding {
    from: u64,
    to: u64,
    reciprocals: u64,
    scales: u64,
    area: u64,
}
// SAFETY: the fields are the kernel's.
unsafe impl Parameters for Rounding {}

impl Defense for Quantisation {
    fn apply(&self, x: &candle_core::Tensor, keys: &[Key]) -> candle_core::Result<candle_core::Tensor> {
        kernel::forward(self, x, keys)
    }

    fn gradient(&self) -> Gradient {
        Gradient::Identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_are_numpys() {
        for case in golden::cases("quantisation") {
            for (c, scale) in case.params["scale"].iter().enumerate() {
                let range = c * case.shape().area()..(c + 1) * case.shape().area();
                let mut out = vec![0.0; range.len()];
                quantise(&case.image[range.clone()], *scale, &mut out);
                golden::assert_close(&out, &case.output[range], 1e-15);
            }
        }
    }

    #[test]
    fn halves_go_to_even_multiples() {
        let mut out = [0.0f32; 5];
        quantise(&[0.05, 0.15, 0.25, 0.35, 0.75], 10.0, &mut out);
        assert_eq!(out[2..], [0.2, 0.4, 0.8]);
        assert_eq!(out[0], 0.0);
    }

    #[test]
    fn products_in_double_precision_are_quotients_in_single() {
        for scale in 1..=400u16 {
            for count in -300..=1200i16 {
                let (count, scale) = (f32::from(count), f32::from(scale));
                assert_eq!(count.over(scale, 1.0 / f64::from(scale)), count / scale);
            }
        }
    }

    #[test]
    fn scales_fill_their_range_and_differ_between_channels() {
        let (quantisation, mut counts) = (Quantisation::default(), [0u32; 256]);
        let mut equal = 0;
        for i in 0..19_200 {
            let key = Key::root(4).at(i);
            counts[quantisation.scale(key, 0)] += 1;
            equal += u32::from(quantisation.scale(key, 0) == quantisation.scale(key, 1));
        }
        assert!(counts.iter().enumerate().all(|(s, &count)| (8..200).contains(&s) == (count > 0)), "{counts:?}");
        assert!(counts[8..200].iter().all(|&count| (f64::from(count) - 100.0).abs() < 50.0), "{counts:?}");
        assert!(equal < 170, "{equal}"); // 100 expected
    }
}

//! The odds test: noise erodes the margins of adversarial images more than those of clean ones.

use candle_core::{DType, Device, Result, Tensor, bail};
use game::{Classifier, Defense as _, Fraction, Gradient, Key};
use serde::{Deserialize, Serialize};
use statrs::function::erf::erfc_inv;

use crate::GaussianNoise;

/// Fewer clean images than these of one prediction give no test, as in the authors' code.
pub const MIN_IMAGES: u32 = 3;

/// A detector and its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name")]
pub enum Detector {
    /// `odds`
    #[serde(rename = "odds")]
    Odds(Odds),
}

impl Detector {
    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Odds(_) => "odds",
        }
    }

    /// Forward evaluations of the network per image, beside the one it judges.
    #[must_use]
    pub const fn draws(&self) -> u32 {
        match self {
            Self::Odds(odds) => odds.draws,
        }
    }

    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the detector, the parameter, its value, and what it must be.
    pub fn check(&self) -> std::result::Result<(), String> {
        let Self::Odds(odds) = self;
        odds.check().map_err(|error| format!("{}: {error}", self.name()))
    }
}

/// The statistical test of Roth et al. 2019 ("The Odds are Odd", section 3), with one kind of noise.
///
/// Their statistic projects the change of the penultimate features under noise on differences of the last layer's
/// weights. That is a change of differences of logits (the biases cancel), so any classifier will do: with `p` the class
/// predicted without noise, the margin over class `z` loses
/// `a_z(x) = (l_p - l_z)(x) - mean over draws of (l_p - l_z)(clip(x + noise))`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Odds {
    /// Noisy copies of an image, at least 1.
    pub draws: u32,
    /// Standard deviation of the noise, in pixel units of `[0, 1]`, greater than 0; noisy pixels are clipped to `[0, 1]`.
    pub sigma: Fraction,
}

impl Default for Odds {
    /// The released code's: 256 draws of 30 of 255.
    fn default() -> Self {
        Self { draws: 256, sigma: "30/255".parse().expect("a number") }
    }
}

/// What noise does to one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Erosion {
    /// The class predicted without noise, the smallest on ties.
    pub predicted: usize,
    /// By class, how much of the predicted class's margin over it is lost, in units of logits; 0 for the predicted class.
    pub margins: Vec<f64>,
}

impl Erosion {
    /// Whether the network answered with numbers.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.margins.iter().all(|margin| margin.is_finite())
    }
}

impl Odds {
    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the parameter, its value, and what it must be.
    pub fn check(&self) -> std::result::Result<(), String> {
        if self.draws == 0 {
            return Err("draws = 0 must be at least 1".to_owned());
        }
        if self.sigma.value() <= 0.0 {
            return Err(format!("sigma = {} must be greater than 0", self.sigma));
        }
        game::within_pixels("sigma", self.sigma.value(), &self.sigma, 1.0)?;
        Ok(())
    }

    /// The erosion of every image of `x` `(n, c, h, w)`, whose logits without noise are `logits` `(n, k)`.
    ///
    /// Draw `d` of image `i` takes its noise from `keys[i].at(d)` and its network's randomness from that key's child 1.
    /// At most `batch` images (at least 1) are evaluated together; that changes no result.
    ///
    /// # Errors
    /// If shapes and keys do not fit, or the network fails.
    pub fn erosion(
        &self,
        net: &dyn Classifier,
        x: &Tensor,
        logits: &Tensor,
        keys: &[Key],
        batch: usize,
    ) -> Result<Vec<Erosion>> {
        let clean = rows(logits)?;
        if x.dim(0)? != keys.len() || clean.len() != keys.len() {
            bail!("{} images and {} logits with {} keys", x.dim(0)?, clean.len(), keys.len())
        }
        let noise = GaussianNoise { sigma: self.sigma.value(), clip: true, gradient: Gradient::Identity };
        let mut sums: Vec<Vec<f64>> = clean.iter().map(|row| vec![0.0; row.len()]).collect();
        let draws: Vec<(u32, Key)> = keys.iter().zip(0u32..).flat_map(|(key, i)| self.keys(*key, i)).collect();
        for draws in draws.chunks(batch) {
            let (images, keys): (Vec<u32>, Vec<Key>) = draws.iter().copied().unzip();
            let noisy = noise.apply(&x.index_select(&Tensor::new(images, x.device())?, 0)?, &keys)?;
            let keys: Vec<Key> = keys.iter().map(|key| key.at(1)).collect();
            let noisy = net.logits(&noisy.to_device(net.device())?, &keys)?;
            for (&(image, _), logits) in draws.iter().zip(rows(&noisy)?) {
                sums[image as usize].iter_mut().zip(logits).for_each(|(sum, logit)| *sum += logit);
            }
        }
        Ok(clean.iter().zip(&sums).map(|(clean, sum)| self.compare(clean, sum)).collect())
    }

    /// The draws of one image, each with the image's position.
    fn keys(&self, key: Key, image: u32) -> impl Iterator<Item = (u32, Key)> {
        (0..u64::from(self.draws)).map(move |draw| (image, key.at(draw)))
    }

    /// The erosion between an image's logits and the sum of its noisy copies'.
    fn compare(&self, clean: &[f64], sum: &[f64]) -> Erosion {
        let predicted = (1..clean.len()).fold(0, |best, class| if clean[class] > clean[best] { class } else { best });
        let noisy = |class: usize| sum[class] / f64::from(self.draws);
        let margin = |class: usize| (clean[predicted] - clean[class]) - (noisy(predicted) - noisy(class));
        Erosion { predicted, margins: (0..clean.len()).map(margin).collect() }
    }
}

fn rows(logits: &Tensor) -> Result<Vec<Vec<f64>>> {
    logits.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()
}

/// The erosion of one margin over the clean images of one prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair {
    /// Images of that prediction.
    pub images: u32,
    /// Mean; 0 without images.
    pub mean: f64,
    /// The population's standard deviation; 0 without images.
    pub deviation: f64,
}

impl Pair {
    /// Whether there is anything to compare with: [`MIN_IMAGES`] images that differ.
    #[must_use]
    pub fn is_testable(&self) -> bool {
        self.images >= MIN_IMAGES && self.deviation > 0.0
    }
}

/// What noise does to clean images: one [`Pair`] for each predicted and each other class.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    classes: usize,
    pairs: Vec<Pair>,
}

impl Statistics {
    /// Statistics of `classes` classes of which nothing is known.
    #[must_use]
    pub fn empty(classes: usize) -> Self {
        Self { classes, pairs: vec![Pair::default(); classes * classes] }
    }

    /// The statistics of clean images, right or wrong: a detector knows no labels.
    ///
    /// # Panics
    /// If an image has another number of classes.
    #[must_use]
    pub fn fit(classes: usize, images: &[Erosion]) -> Self {
        let mut statistics = Self::empty(classes);
        for predicted in 0..classes {
            let of: Vec<&Erosion> = images.iter().filter(|image| image.predicted == predicted).collect();
            for other in (0..classes).filter(|other| *other != predicted && !of.is_empty()) {
                let over = |value: &dyn Fn(f64) -> f64| {
                    of.iter().map(|image| value(image.margins[other])).sum::<f64>() / of.len() as f64
                };
                let mean = over(&|margin| margin);
                let deviation = over(&|margin| (margin - mean).powi(2)).sqrt();
                *statistics.pair_mut(predicted, other) = Pair { images: of.len() as u32, mean, deviation };
            }
        }
        statistics
    }

    /// The number of classes.
    #[must_use]
    pub const fn classes(&self) -> usize {
        self.classes
    }

    /// The images predicted as one class, and what noise does to their margin over another.
    ///
    /// # Panics
    /// If there are no such classes.
    #[must_use]
    pub fn pair(&self, predicted: usize, other: usize) -> &Pair {
        assert!(predicted < self.classes && other < self.classes);
        &self.pairs[predicted * self.classes + other]
    }

    /// The same, to be filled in.
    ///
    /// # Panics
    /// If there are no such classes.
    pub fn pair_mut(&mut self, predicted: usize, other: usize) -> &mut Pair {
        assert!(predicted < self.classes && other < self.classes);
        &mut self.pairs[predicted * self.classes + other]
    }

    /// The predictions that are never flagged, because no margin of theirs can be tested.
    #[must_use]
    pub fn untestable(&self) -> Vec<usize> {
        let tests = |predicted| (0..self.classes).any(|other| self.pair(predicted, other).is_testable());
        (0..self.classes).filter(|&predicted| !tests(predicted)).collect()
    }

    /// The largest deviation of a margin's erosion from that of clean images, in their standard deviations; `None` where
    /// nothing can be tested.
    ///
    /// # Panics
    /// If the image has another number of classes.
    #[must_use]
    pub fn score(&self, image: &Erosion) -> Option<f64> {
        assert_eq!(image.margins.len(), self.classes, "an image has one margin per class");
        let others = (0..self.classes).filter(|&other| other != image.predicted);
        let deviation = |other| {
            let pair = self.pair(image.predicted, other);
            pair.is_testable().then(|| (image.margins[other] - pair.mean) / pair.deviation)
        };
        others.filter_map(deviation).reduce(f64::max)
    }

    /// Whether the image is taken for adversarial: its score exceeds the `quantile`. Never where nothing can be tested.
    ///
    /// # Panics
    /// If the image has another number of classes.
    #[must_use]
    pub fn flags(&self, image: &Erosion, quantile: f64) -> bool {
        self.score(image).is_some_and(|score| score > quantile)
    }
}

/// The quantile of the standard normal that a clean margin exceeds with this probability, in `(0, 1)`.
///
/// The test takes the largest of several margins, so clean images are flagged somewhat more often.
#[must_use]
pub fn quantile(false_positive_rate: f64) -> f64 {
    std::f64::consts::SQRT_2 * erfc_inv(2.0 * false_positive_rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        // scipy.stats.norm.isf
        for (rate, expected) in
            [(0.001, 3.090232306167813), (0.05, 1.6448536269514729), (0.5, 0.0), (0.9, -1.2815515655446004)]
        {
            assert!((quantile(rate) - expected).abs() < 1e-9, "{rate}: {}", quantile(rate));
        }
    }

    fn image(predicted: usize, margins: &[f64]) -> Erosion {
        Erosion { predicted, margins: margins.to_vec() }
    }

    #[test]
    fn one_margin_out_of_line_is_enough_and_too_few_images_are_no_test() {
        let clean = [1.0, 2.0, 3.0].map(|a| image(0, &[0.0, a, 10.0 * a]));
        let few = [image(1, &[1.0, 0.0, 1.0]), image(1, &[2.0, 0.0, 1.0])];
        let statistics = Statistics::fit(3, &[&clean[..], &few].concat());
        let pair = statistics.pair(0, 1);
        assert_eq!((pair.images, pair.mean), (3, 2.0));
        assert!((pair.deviation - (2.0f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(*statistics.pair(2, 0), Pair::default());
        let score = |predicted, margins: &[f64]| statistics.score(&image(predicted, margins));
        assert!((score(0, &[0.0, 2.0, 28.0]).unwrap() - 8.0 / (200.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((score(0, &[0.0, 4.0, -90.0]).unwrap() - 2.0 / (2.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!((score(1, &[99.0, 0.0, 99.0]), score(2, &[99.0, 99.0, 0.0])), (None, None));
        assert_eq!(statistics.untestable(), [1, 2]);
        assert!(
            statistics.flags(&image(0, &[0.0, 4.0, 20.0]), 2.4) && !statistics.flags(&image(0, &[0.0, 4.0, 20.0]), 2.5)
        );
        assert!(!statistics.flags(&image(1, &[99.0, 0.0, 99.0]), 0.0));
    }

    /// What an independent program computed (`tests/golden/odds.py`).
    #[derive(Deserialize)]
    struct Golden {
        seed: u64,
        draws: u32,
        sigma: Fraction,
        rate: f64,
        classes: usize,
        side: usize,
        train: usize,
        predicted: Vec<usize>,
        margins: Vec<Vec<f64>>,
        pairs: Vec<GoldenPair>,
        scores: Vec<Option<f64>>,
        flags: Vec<bool>,
    }

    /// Predicted and other class, images, mean, standard deviation.
    #[derive(Deserialize)]
    struct GoldenPair(usize, usize, u32, Option<f64>, Option<f64>);

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../tests/golden/odds.json")).unwrap()
    }

    fn wave(count: usize, speed: f64, shift: f64) -> Vec<f64> {
        (0..count).map(|i| (speed * i as f64 + shift).sin()).collect()
    }

    /// The images of the golden values, `(n, 3, side, side)`, f64.
    fn images(golden: &Golden) -> Tensor {
        let size = 3 * golden.side * golden.side;
        let image = |i: usize| {
            let contrast = 0.3 + 0.7 * (i % 5) as f64 / 4.0;
            wave(size, 0.05 + 0.37 * i as f64, 0.9 * i as f64).into_iter().map(move |x| 0.5 + 0.5 * x * contrast)
        };
        let pixels: Vec<f64> = (0..golden.margins.len()).flat_map(image).collect();
        Tensor::from_vec(pixels, (golden.margins.len(), 3, golden.side, golden.side), &Device::Cpu).unwrap()
    }

    /// The network of the golden values: a convolution, ReLU, the mean over pixels, and a linear layer.
    struct Tiny {
        kernel: Tensor,
        weight: Tensor,
        bias: Tensor,
    }

    impl Tiny {
        fn new() -> Self {
            let tensor = |values: Vec<f64>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            Self {
                kernel: (tensor(wave(8 * 3 * 9, 1.3, 0.1), &[8, 3, 3, 3]) * 0.7).unwrap(),
                weight: (tensor(wave(4 * 8, 2.1, 0.4), &[4, 8]) * 3.0).unwrap(),
                bias: tensor(vec![-0.1748, 0.1173, 0.0667, -0.1838], &[4]),
            }
        }
    }

    impl Classifier for Tiny {
        fn classes(&self) -> usize {
            4
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
        fn logits(&self, x: &Tensor, _: &[Key]) -> Result<Tensor> {
            // Image by image: candle's products of matrices round otherwise in other batches.
            let logits = |i| {
                let features = x.narrow(0, i, 1)?.conv2d(&self.kernel, 1, 1, 1, 1)?.relu()?.mean((2, 3))?;
                features.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
            };
            Tensor::cat(&(0..x.dim(0)?).map(logits).collect::<Result<Vec<_>>>()?, 0)
        }
    }

    fn erosions(golden: &Golden, batch: usize) -> Vec<Erosion> {
        let odds = Odds { draws: golden.draws, sigma: golden.sigma.clone() };
        let (net, x) = (Tiny::new(), images(golden));
        let keys: Vec<Key> = (0..golden.margins.len() as u64).map(|i| Key::root(golden.seed).at(i)).collect();
        odds.erosion(&net, &x, &net.logits(&x, &keys).unwrap(), &keys, batch).unwrap()
    }

    #[test]
    fn margins_statistics_scores_and_flags_are_those_of_the_papers_formula() {
        let golden = golden();
        let every = erosions(&golden, 7);
        for ((image, predicted), margins) in every.iter().zip(&golden.predicted).zip(&golden.margins) {
            assert_eq!(image.predicted, *predicted);
            let apart = image.margins.iter().zip(margins).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 2e-6, "{apart:e}");
        }
        let (train, test) = every.split_at(golden.train);
        let statistics = Statistics::fit(golden.classes, train);
        for &GoldenPair(predicted, other, images, mean, deviation) in &golden.pairs {
            let pair = statistics.pair(predicted, other);
            assert_eq!(pair.images, images);
            assert!((pair.mean - mean.unwrap_or(0.0)).abs() < 2e-6);
            assert!((pair.deviation - deviation.unwrap_or(0.0)).abs() < 2e-6);
        }
        assert_eq!(statistics.untestable(), [3], "two images are too few");
        for (image, expected) in test.iter().zip(&golden.scores) {
            let score = statistics.score(image);
            assert_eq!(score.is_some(), expected.is_some());
            assert!((score.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 2e-3, "{score:?} {expected:?}");
        }
        let flags: Vec<bool> = test.iter().map(|image| statistics.flags(image, quantile(golden.rate))).collect();
        assert_eq!(flags, golden.flags);
        assert!(flags.contains(&true) && flags.contains(&false));
    }

    #[test]
    fn neither_batch_nor_neighbours_change_a_bit() {
        let golden = golden();
        let every = erosions(&golden, 7);
        assert_eq!(erosions(&golden, 1), every);
        assert_eq!(erosions(&golden, 1000), every);
    }

    #[test]
    fn the_networks_own_randomness_has_a_key_for_every_draw() {
        /// One logit per image: the key's number.
        struct Noisy;
        impl Classifier for Noisy {
            fn classes(&self) -> usize {
                2
            }
            fn device(&self) -> &Device {
                &Device::Cpu
            }
            fn logits(&self, _: &Tensor, keys: &[Key]) -> Result<Tensor> {
                let rows: Vec<f64> = keys.iter().flat_map(|key| [0.0, key.unit()]).collect();
                Tensor::from_vec(rows, (keys.len(), 2), &Device::Cpu)
            }
        }
        let odds = Odds { draws: 3, sigma: 0.1.into() };
        let x = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let clean = Tensor::new(&[[0.25f64, 0.0]], &Device::Cpu).unwrap();
        let key = Key::root(3);
        let found = odds.erosion(&Noisy, &x, &clean, &[key], 2).unwrap().remove(0);
        let mean = (0..3).map(|draw| key.at(draw).at(1).unit()).sum::<f64>() / 3.0;
        assert_eq!((found.predicted, found.margins[0]), (0, 0.0));
        assert!((found.margins[1] - (0.25 + mean)).abs() < 1e-12);
    }

    #[test]
    fn parameters_are_read_as_written_and_nonsense_is_refused() {
        let read = |text: &str| serde_json::from_str::<Detector>(text).map_err(|error| error.to_string());
        let written = Detector::Odds(Odds::default());
        assert_eq!(read(r#"{"name": "odds"}"#).unwrap(), written);
        assert_eq!(serde_json::to_string(&written).unwrap(), r#"{"name":"odds","draws":256,"sigma":"30/255"}"#);
        assert!(read(r#"{"name": "odd"}"#).unwrap_err().contains("`odds`"));
        assert!(read(r#"{"name": "odds", "draw": 3}"#).unwrap_err().contains("`draws`"));
        assert!(read(r#"{"name": "odds", "draws": 0}"#).unwrap().check().unwrap_err().contains("odds: draws = 0"));
        assert!(read(r#"{"name": "odds", "sigma": 0}"#).unwrap().check().unwrap_err().contains("sigma = 0"));
    }

    #[test]
    fn images_that_do_not_differ_are_no_test() {
        let statistics = Statistics::fit(2, &vec![image(0, &[0.0, 1.5]); 5]);
        assert_eq!((statistics.pair(0, 1).images, statistics.pair(0, 1).is_testable()), (5, false));
        assert_eq!(statistics.score(&image(0, &[0.0, 9.0])), None);
    }
}

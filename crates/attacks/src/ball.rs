//! The set of images an adversary may choose from.

use std::fmt;

use game::{Key, Norm};

/// Keeps a step of a vanishing gradient finite (the guard of the Adversarial Robustness Toolbox).
const GUARD: f64 = 1e-7;

/// All images with pixels in `[0, 1]` whose distance from a given one is at most `eps`.
///
/// Works on one image at a time, as a slice of pixels in `[0, 1]`. Bounds are computed in f64 and rounded towards the
/// given image, so an f32 image that a method has written is inside exactly, not up to a rounding error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ball {
    /// How distance is measured.
    pub norm: Norm,
    /// The largest distance, in pixel units of `[0, 1]`, at least 0.
    pub eps: f64,
}

/// An image that is not in its ball: evidence of a bug or of invalid numbers, never of a strong attack.
#[derive(Clone, Debug, PartialEq)]
pub struct OutsideBall {
    /// Position of the image in the batch.
    pub image: usize,
    /// Its distance from the given image, not a number where a pixel is not.
    pub distance: f64,
    /// The ball.
    pub ball: Ball,
}

impl fmt::Display for OutsideBall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, distance, ball: Ball { norm, eps } } = self;
        write!(f, "image {image} of the batch left its ball: {norm:?} distance {distance}, at most {eps} within [0, 1]")
    }
}

impl std::error::Error for OutsideBall {}

impl Ball {
    /// Moves `x` up the gradient by a step of length `step` in the ball's norm (down where `step` is negative).
    ///
    /// l-inf: `step` times the sign of every entry, 0 for 0. l2: `step * g / (||g||_2 + 1e-7)`; scale a tiny gradient
    /// up first.
    pub fn ascend(&self, gradient: &[f32], step: f64, x: &mut [f32]) {
        let direction: &dyn Fn(f64) -> f64 = match self.norm {
            Norm::Linf => &|g| if g == 0.0 { 0.0 } else { g.signum() },
            Norm::L2 => {
                let length = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt() + GUARD;
                &move |g| g / length
            }
        };
        for (x, &g) in x.iter_mut().zip(gradient) {
            *x = (f64::from(*x) + step * direction(f64::from(g))) as f32;
        }
    }

    /// Brings `x` back: first into `[0, 1]`, then into the ball around `origin`, by clipping (l-inf) or by shortening
    /// the perturbation (l2). This is the order of the Adversarial Robustness Toolbox.
    pub fn project(&self, origin: &[f32], x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = x.clamp(0.0, 1.0);
        }
        match self.norm {
            Norm::Linf => {
                for (x, &o) in x.iter_mut().zip(origin) {
                    let change = f64::from(*x) - f64::from(o);
                    if change.abs() > self.eps {
                        *x = inward(o, f64::from(o) + self.eps.copysign(change));
                    }
                }
            }
            Norm::L2 => {
                let length = distance(self.norm, origin, x);
                if length > self.eps {
                    let share = self.eps / length;
                    for (x, &o) in x.iter_mut().zip(origin) {
                        *x = inward(o, f64::from(o) + share * (f64::from(*x) - f64::from(o)));
                    }
                }
            }
        }
    }

    /// Writes to `x` a point uniform in the ball around `origin`, clipped to `[0, 1]`.
    pub fn random_start(&self, origin: &[f32], key: Key, x: &mut [f32]) {
        match self.norm {
            Norm::Linf => {
                key.at(0).fill_uniform(x);
                for (x, &o) in x.iter_mut().zip(origin) {
                    *x = (f64::from(o) + self.eps * (2.0 * f64::from(*x) - 1.0)) as f32;
                }
            }
            Norm::L2 => {
                key.at(0).fill_normal(x);
                let length = x.iter().map(|&z| f64::from(z).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                // The distance of a uniform point is the d-th root of a uniform number.
                let distance = self.eps * key.at(1).unit().powf(1.0 / x.len() as f64);
                for (x, &o) in x.iter_mut().zip(origin) {
                    *x = (f64::from(o) + distance * f64::from(*x) / length) as f32;
                }
            }
        }
        self.project(origin, x);
    }

    /// Whether every image of a batch is in the ball around its origin; both hold `size` pixels per image.
    ///
    /// # Errors
    /// With the first image that is not.
    pub fn check(&self, origins: &[f32], images: &[f32], size: usize) -> Result<(), OutsideBall> {
        for (image, (o, x)) in origins.chunks(size.max(1)).zip(images.chunks(size.max(1))).enumerate() {
            let distance = distance(self.norm, o, x);
            let boxed = x.iter().all(|x| (0.0..=1.0).contains(x));
            // Shortening and then measuring a length each round at the last bit of f64.
            if !(boxed && distance <= self.eps * (1.0 + 1e-12)) {
                return Err(OutsideBall { image, distance, ball: *self });
            }
        }
        Ok(())
    }
}

/// The distance between two images.
fn distance(norm: Norm, origin: &[f32], x: &[f32]) -> f64 {
    let changes = x.iter().zip(origin).map(|(&x, &o)| f64::from(x) - f64::from(o));
    match norm {
        Norm::Linf => changes.map(f64::abs).fold(0.0, f64::max),
        Norm::L2 => changes.map(|change| change * change).sum::<f64>().sqrt(),
    }
}

/// `target`, or the nearest f32 between it and `origin`.
fn inward(origin: f32, target: f64) -> f32 {
    let (rounded, origin) = (target as f32, f64::from(origin));
    if (f64::from(rounded) - origin).abs() <= (target - origin).abs() {
        rounded
    } else if target > origin {
        rounded.next_down()
    } else {
        rounded.next_up()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(seed: u64, size: usize) -> Vec<f32> {
        let mut x = vec![0.0; size];
        Key::root(seed).fill_uniform(&mut x);
        x
    }

    #[test]
    fn what_is_written_is_inside_to_the_last_bit() {
        for (norm, eps) in
            [(Norm::Linf, 8.0 / 255.0), (Norm::Linf, 0.0), (Norm::L2, 0.5), (Norm::L2, 0.0), (Norm::L2, 300.0)]
        {
            let ball = Ball { norm, eps };
            for seed in 0..50 {
                let (origin, gradient) = (image(seed, 300), image(seed + 100, 300));
                let mut x = origin.clone();
                ball.random_start(&origin, Key::root(seed), &mut x);
                ball.check(&origin, &x, 300).unwrap();
                let gradient: Vec<f32> = gradient.iter().map(|g| g - 0.5).collect();
                ball.ascend(&gradient, 2.0 * eps, &mut x);
                ball.project(&origin, &mut x);
                ball.check(&origin, &x, 300).unwrap();
            }
        }
    }

    #[test]
    fn outsiders_are_found() {
        let ball = Ball { norm: Norm::L2, eps: 0.1 };
        let outside = ball.check(&[0.5; 4], &[0.5, 0.5, 0.5, 0.7], 2).unwrap_err();
        assert_eq!(outside.image, 1);
        assert!(outside.to_string().contains("left its ball"));
        assert!(ball.check(&[0.0], &[-0.01], 1).is_err(), "in the ball, not in the box");
        assert!(ball.check(&[0.0], &[f32::NAN], 1).is_err());
    }

    #[test]
    fn steps_have_the_length_they_are_given() {
        let mut x = [0.5f32; 3];
        Ball { norm: Norm::Linf, eps: 1.0 }.ascend(&[-2.0, 0.0, 1e-30], 0.25, &mut x);
        assert_eq!(x, [0.25, 0.5, 0.75]);
        let mut x = [0.0f32; 2];
        Ball { norm: Norm::L2, eps: 1.0 }.ascend(&[3.0, 4.0], -0.5, &mut x);
        assert!((x[0] + 0.3).abs() < 1e-6 && (x[1] + 0.4).abs() < 1e-6);
        let mut x = [0.5f32; 2];
        Ball { norm: Norm::L2, eps: 1.0 }.ascend(&[0.0, 0.0], 0.5, &mut x);
        assert_eq!(x, [0.5, 0.5], "no gradient, no step");
    }

    #[test]
    fn random_points_are_uniform_in_the_ball() {
        // Far from the box's faces: the r-th power of the share of the radius is uniform.
        let (origin, size, n) = (vec![0.5f32; 5], 5, 20_000);
        for (norm, eps) in [(Norm::Linf, 0.1), (Norm::L2, 0.1)] {
            let mut x = vec![0.0; size];
            let (mut first, mut second) = (0.0, 0.0);
            for i in 0..n {
                Ball { norm, eps }.random_start(&origin, Key::root(i), &mut x);
                let share = (distance(norm, &origin, &x) / eps).powi(size as i32);
                first += share / n as f64;
                second += share * share / n as f64;
            }
            assert!((first - 0.5).abs() < 5.0 * (1.0 / 12.0 / n as f64).sqrt(), "{norm:?} {first}");
            assert!((second - 1.0 / 3.0).abs() < 5.0 * (4.0 / 45.0 / n as f64).sqrt(), "{norm:?} {second}");
        }
    }
}

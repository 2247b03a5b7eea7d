//! Rounding, as the hardware's number formats do it.

use half::{bf16, f16};

/// Where a result goes that the format does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A number as the lanes of a register hold it: in the low bits.
pub trait Bits: Copy + Send + Sync + 'static {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! bits_of_integers {
    ($($T:ty),*) => {$(
        impl Bits for $T {
            #[inline(always)]
            fn of(bits: u64) -> Self { bits as $T }
            #[inline(always)]
            fn bits(self) -> u64 { self as u64 }
        }
    )*};
}
bits_of_integers!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! bits_of_reals {
    ($($T:ty as $U:ty),*) => {$(
        impl Bits for $T {
            #[inline(always)]
            fn of(bits: u64) -> Self { <$T>::from_bits(bits as $U) }
            #[inline(always)]
            fn bits(self) -> u64 { self.to_bits() as u64 }
        }
    )*};
}
bits_of_reals!(f32 as u32, f64 as u64, f16 as u16, bf16 as u16);

/// The arithmetic of one format.
pub trait Real: Bits + PartialOrd {
    fn wide(self) -> f64;
    /// `value + error`, where `error` is less than half a unit in the last place of `value`, rounded once.
    fn narrow(value: f64, error: f64, round: Round) -> Self;
    fn add(self, other: Self, round: Round) -> Self {
        let (sum, error) = two_sum(self.wide(), other.wide());
        Self::narrow(sum, error, round)
    }
    fn mul(self, other: Self, round: Round) -> Self {
        // Exact: none of the formats for which this stands has more than 24 bits of mantissa.
        Self::narrow(self.wide() * other.wide(), 0.0, round)
    }
    fn fma(self, other: Self, third: Self, round: Round) -> Self {
        let (sum, error) = two_sum(self.wide() * other.wide(), third.wide());
        Self::narrow(sum, error, round)
    }
    fn div(self, other: Self, round: Round) -> Self {
        let (x, y) = (self.wide(), other.wide());
        let quotient = x / y;
        Self::narrow(quotient, rest_sign((-quotient).mul_add(y, x)) * y.signum(), round)
    }
    fn sqrt(self, round: Round) -> Self {
        let (x, root) = (self.wide(), self.wide().sqrt());
        Self::narrow(root, rest_sign((-root).mul_add(root, x)), round)
    }
    /// Zero, of the same sign, for what is below the least normal number.
    fn flush(self) -> Self;
}

/// A rest so small that only its sign counts.
fn rest_sign(rest: f64) -> f64 {
    if rest == 0.0 || rest.is_nan() { 0.0 } else { f64::MIN_POSITIVE * rest.signum() }
}

/// The sum of two numbers and what its rounding lost (Knuth); nothing is lost where it is not finite.
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let back = sum - a;
    let error = (a - (sum - back)) + (b - back);
    (sum, if error.is_finite() { error } else { 0.0 })
}

/// The number next to `value` towards `error`, unless there is no error: rounded to odd, so that rounding once more to a
/// format of fewer bits is as rounding once.
fn odd(value: f64, error: f64) -> f64 {
    match error {
        0.0 => value,
        _ if value.to_bits() & 1 == 1 || !value.is_finite() => value,
        error if error > 0.0 => value.next_up(),
        _ => value.next_down(),
    }
}

/// Takes a number that was rounded to the nearest to the side that is asked for; `exact` compares it with what it stands for.
fn direct<T: Copy>(
    near: T,
    exact: std::cmp::Ordering,
    negative: bool,
    round: Round,
    down: fn(T) -> T,
    up: fn(T) -> T,
) -> T {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let up_wanted = round == Round::Up || round == Round::Zero && negative;
    match exact {
        Equal => near,
        Less if round != Round::Nearest && up_wanted => up(near),
        Greater if round != Round::Nearest && !up_wanted => down(near),
        _ => near,
    }
}

impl Real for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self.into()
    }
    fn narrow(value: f64, error: f64, round: Round) -> Self {
        let odd = odd(value, error);
        let near = odd as f32;
        if round == Round::Nearest || !odd.is_finite() {
            return near;
        }
        let exact = f64::from(near).total_cmp(&odd);
        direct(near, exact, odd < 0.0, round, f32::next_down, f32::next_up)
    }
    #[inline(always)]
    fn add(self, other: Self, round: Round) -> Self {
        if round == Round::Nearest {
            return self + other;
        }
        let (sum, error) = two_sum(self.wide(), other.wide());
        Self::narrow(sum, error, round)
    }
    #[inline(always)]
    fn mul(self, other: Self, round: Round) -> Self {
        if round == Round::Nearest { self * other } else { Self::narrow(self.wide() * other.wide(), 0.0, round) }
    }
    #[inline(always)]
    fn fma(self, other: Self, third: Self, round: Round) -> Self {
        if round == Round::Nearest {
            return self.mul_add(other, third);
        }
        let (sum, error) = two_sum(self.wide() * other.wide(), third.wide());
        Self::narrow(sum, error, round)
    }
    #[inline(always)]
    fn flush(self) -> Self {
        if self.is_subnormal() { 0.0f32.copysign(self) } else { self }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    fn narrow(value: f64, error: f64, round: Round) -> Self {
        if round == Round::Nearest || !value.is_finite() {
            return value;
        }
        let exact = 0.0.partial_cmp(&error).unwrap_or(std::cmp::Ordering::Equal);
        direct(value, exact, value < 0.0, round, f64::next_down, f64::next_up)
    }
    fn mul(self, other: Self, round: Round) -> Self {
        let product = self * other;
        let error = self.mul_add(other, -product);
        Self::narrow(product, if error.is_finite() { error } else { 0.0 }, round)
    }
    fn fma(self, other: Self, third: Self, round: Round) -> Self {
        let near = self.mul_add(other, third);
        if round == Round::Nearest {
            return near;
        }
        let product = self * other;
        let (sum, error) = two_sum(product, third);
        let rest = (sum - near) + (error + self.mul_add(other, -product));
        Self::narrow(near, if rest.is_finite() { rest } else { 0.0 }, round)
    }
    #[inline(always)]
    fn flush(self) -> Self {
        self
    }
}

macro_rules! real_of_halves {
    ($($T:ty, $narrow:expr);*) => {$(
        impl Real for $T {
            #[inline(always)]
            fn wide(self) -> f64 { self.to_f64() }
            fn narrow(value: f64, error: f64, round: Round) -> Self {
                let odd = odd(value, error);
                // To odd once more: the conversion looks at the upper bits alone.
                let bits = odd.to_bits();
                let near: $T = $narrow(f64::from_bits(if bits as u32 != 0 { bits | 1 << 32 } else { bits }));
                if round == Round::Nearest || !odd.is_finite() {
                    return near;
                }
                let step = |up: bool| move |x: $T| -> $T {
                    let away = (x.to_f64() > 0.0) == up;
                    if x.to_f64() == 0.0 {
                        return <$T>::from_bits(if up { 1 } else { 0x8001 });
                    }
                    <$T>::from_bits(if away { x.to_bits() + 1 } else { x.to_bits() - 1 })
                };
                let up_wanted = round == Round::Up || round == Round::Zero && odd < 0.0;
                if near.to_f64() < odd && up_wanted { step(true)(near) }
                else if near.to_f64() > odd && !up_wanted { step(false)(near) }
                else { near }
            }
            fn flush(self) -> Self {
                if self.to_bits() & 0x7FFF < <$T>::MIN_POSITIVE.to_bits() {
                    <$T>::from_bits(self.to_bits() & 0x8000)
                } else { self }
            }
        }
    )*};
}
real_of_halves!(f16, f16::from_f64; bf16, bf16::from_f64);

/// A factor as TF32 has it: 10 bits of mantissa, to the nearest, ties to even.
pub fn tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x0FFF + (bits >> 13 & 1)) & !0x1FFF)
}

/// An integer in a format of reals.
pub fn of_integer<T: Real>(x: i128, round: Round) -> T {
    let near = x as f64;
    let error = x - near as i128;
    T::narrow(near, error as f64, round)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directed_sums_bracket_the_exact_one() {
        let numbers = [1.0f32, 3e-9, -1e-20, 7.25, 1e30, -2.5e7, f32::MIN_POSITIVE, 0.1];
        for a in numbers {
            for b in numbers {
                let exact = |x: f32| two_sum(f64::from(a), f64::from(b)).0.total_cmp(&f64::from(x));
                let (down, up) = (Real::add(a, b, Round::Down), Real::add(a, b, Round::Up));
                assert!(down <= a + b && a + b <= up && (up == down || up == down.next_up()), "{a} {b}");
                assert!(exact(down).is_ge() && exact(up).is_le(), "{a} {b}");
                let zero = Real::add(a, b, Round::Zero);
                assert_eq!(zero, if a + b > 0.0 { down } else { up }, "{a} {b}");
            }
        }
        assert_eq!(Real::add(1.0f32, 1e-20, Round::Up), 1.0f32.next_up());
        assert_eq!(Real::add(1.0f64, 1e-30, Round::Down), 1.0);
        assert_eq!(Real::add(1.0f64, -1e-30, Round::Zero), 1.0f64.next_down());
        assert_eq!(Real::fma(1.0f32 + f32::EPSILON, 1.0 + f32::EPSILON, -1.0, Round::Down), 2.0 * f32::EPSILON);
    }

    #[test]
    fn halves_are_rounded_once() {
        // Half a unit above 1, and a little: up; exactly half a unit: to even.
        let half_unit = 2f64.powi(-11);
        assert_eq!(f16::narrow(1.0 + half_unit, 0.0, Round::Nearest), f16::ONE);
        assert_eq!(f16::narrow(1.0 + half_unit, 1e-20, Round::Nearest).to_bits(), f16::ONE.to_bits() + 1);
        assert_eq!(
            f16::narrow(1.0 + half_unit + 2f64.powi(-50), 0.0, Round::Nearest).to_bits(),
            f16::ONE.to_bits() + 1
        );
        assert_eq!(bf16::narrow(-1.0 - 1e-9, 0.0, Round::Zero), -bf16::ONE);
        assert_eq!(bf16::narrow(-1.0 - 1e-9, 0.0, Round::Down).to_bits(), (-bf16::ONE).to_bits() + 1);
        for bits in (0..=u16::MAX).step_by(7) {
            let (x, y) = (bf16::from_bits(bits), bf16::from_bits(bits.wrapping_mul(31)));
            let sum = bf16::from_f32(x.to_f32() + y.to_f32());
            let ours = Real::add(x, y, Round::Nearest);
            assert!(
                ours == sum || ours.is_nan() && sum.is_nan() || (x.to_f64() / y.to_f64()).abs().log2().abs() > 15.0
            );
        }
    }

    #[test]
    fn quotients_and_roots_are_nearest() {
        let mut x = 1.1f32;
        for _ in 0..1000 {
            x = x * 1.37 % 1e6 + 1e-3;
            assert_eq!(Real::div(x, 3.7, Round::Nearest), x / 3.7);
            assert_eq!(Real::sqrt(x, Round::Nearest), x.sqrt());
            assert_eq!(Real::div(f64::from(x), 3.7, Round::Nearest), f64::from(x) / 3.7);
        }
        assert!(Real::div(0.0f32, 0.0, Round::Nearest).is_nan());
        assert_eq!(Real::div(1.0f32, 0.0, Round::Nearest), f32::INFINITY);
    }

    #[test]
    fn integers_and_tf32() {
        assert_eq!(of_integer::<f32>(16_777_217, Round::Nearest), 16_777_216.0);
        assert_eq!(of_integer::<f32>(16_777_217, Round::Up), 16_777_218.0);
        assert_eq!(of_integer::<f32>(-16_777_217, Round::Down), -16_777_218.0);
        assert_eq!(of_integer::<f64>((1 << 53) + 1, Round::Up), 9_007_199_254_740_994.0);
        assert_eq!(tf32(1.0 + 2f32.powi(-11)), 1.0);
        assert_eq!(tf32(1.0 + 3.0 * 2f32.powi(-11)), 1.0 + 2f32.powi(-9));
        assert_eq!(tf32(-1.0 - 2f32.powi(-10)), -1.0 - 2f32.powi(-10));
    }
}

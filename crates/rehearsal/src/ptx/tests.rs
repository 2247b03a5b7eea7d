use half::{bf16, f16};

use super::*;
use crate::{
    failure::{ILLEGAL_ADDRESS, INVALID_PTX, INVALID_VALUE, LAUNCH_FAILED, MISALIGNED_ADDRESS, NOT_FOUND, Outcome},
    memory,
    numbers::{Real, Round},
};

/// The hand-written kernels.
fn kernels() -> Module {
    Module::load(include_str!("fixtures/kernels.ptx")).unwrap()
}

/// Memory of the device with these words in it.
fn put(words: &[u32]) -> u64 {
    let address = memory::allocate(4 * words.len()).unwrap();
    // SAFETY: just allocated.
    unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), address as *mut u32, words.len()) };
    address
}

/// The words at an address.
fn get(address: u64, words: usize) -> Vec<u32> {
    memory::check(address, 4 * words, "a test").unwrap();
    // SAFETY: live.
    unsafe { std::slice::from_raw_parts(address as *const u32, words) }.to_vec()
}

fn run(name: &str, blocks: u32, threads: u32, shared: usize, parameters: &[u64]) -> Outcome {
    let module = kernels();
    let kernel = module.kernel(name)?;
    let mut bytes = vec![0; kernel.parameters.last().map_or(0, |&(offset, bytes)| offset + bytes)];
    for (&(offset, size), value) in kernel.parameters.iter().zip(parameters) {
        bytes[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    launch(&kernel, Grid { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared }, 0, &bytes)
}

/// Words of all sizes.
fn words(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| (i + seed).wrapping_mul(0x9E37_79B9).rotate_left(i % 7) >> (i * 5 % 32)).collect()
}

#[test]
fn integers_are_as_rust_computes_them() {
    let (n, mut a, mut b) = (300, words(1, 300), words(77, 300));
    (a[3], b[3]) = (i32::MIN as u32, 40);
    b.iter_mut().for_each(|b| *b = (*b).max(1));
    let out = put(&vec![0; 24 * n]);
    run("integers", 3, 128, 0, &[put(&a), put(&b), out, n as u64]).unwrap();
    for (i, found) in get(out, 24 * n).chunks(24).enumerate() {
        let (x, y) = (a[i], b[i]);
        let (s, t) = (x as i32, y as i32);
        let zeros = x.leading_zeros();
        let product = i64::from(s) * i64::from(t);
        let sum = u64::from(x) + (u64::from(y) << 32) + u64::from(y);
        let narrow = i32::from(x as i16);
        let wrapped = (u64::from(y) << 32 | u64::from(x)) << (zeros & 31) >> 32;
        let expected = [
            x.wrapping_add(y),
            x.wrapping_sub(y),
            x.wrapping_mul(y),
            (product >> 32) as u32,
            ((u64::from(x) * u64::from(y)) >> 32) as u32,
            0,
            product as u32,
            (product >> 32) as u32,
            s.wrapping_div(t) as u32,
            x % y,
            x.checked_shl(y).unwrap_or(0),
            s.checked_shr(y).unwrap_or(s >> 31) as u32,
            x >> 7,
            (s << 18 >> 23) as u32,
            x & !(0xFFF << 3) | (y & 0xFFF) << 3,
            x & 0xFFFF | y << 16,
            wrapped as u32,
            y.count_ones(),
            x ^ y ^ zeros,
            s.min(t) as u32,
            sum as u32,
            (sum >> 32) as u32,
            if narrow < 0 { narrow as u32 } else { y },
            s.clamp(0, 255) as u32 | (x & 0xFF) << 8 | y << 16,
        ];
        assert_eq!(found, expected, "{x:#x} and {y:#x}");
    }
}

#[test]
fn reals_are_as_rust_computes_them() {
    let special = [
        0.0,
        -0.0,
        1.5,
        -2.5,
        0.1,
        3e38,
        -3e38,
        1e-40,
        f32::INFINITY,
        f32::NAN,
        65_519.9,
        -0.3,
        1e10,
        7.0,
        1.0 / 3.0,
        2.0,
    ];
    let pairs: Vec<(f32, f32)> = special.iter().flat_map(|&x| special.iter().map(move |&y| (x, y))).collect();
    let bits = |f: fn(&(f32, f32)) -> f32| pairs.iter().map(|pair| f(pair).to_bits()).collect::<Vec<_>>();
    let out = put(&vec![0; 16 * pairs.len()]);
    run("reals", 1, 512, 0, &[put(&bits(|p| p.0)), put(&bits(|p| p.1)), out, pairs.len() as u64]).unwrap();
    for (found, &(x, y)) in get(out, 16 * pairs.len()).chunks(16).zip(&pairs) {
        let flag = |holds: bool| f32::from(u8::from(holds)).to_bits();
        let or_nan = |z: f32| if x.is_nan() || y.is_nan() { f32::NAN } else { z };
        let expected = [
            (x + y).to_bits(),
            x.mul_add(y, -1.0).to_bits(),
            (x / y).to_bits(),
            x.abs().sqrt().to_bits(),
            x.min(y).to_bits(),
            or_nan(x.max(y)).to_bits(),
            x.round_ties_even() as i32 as u32,
            x as u32,
            f16::from_f32(x).to_f32().to_bits(),
            bf16::from_f32(x).to_f32().to_bits(),
            ((f64::from(x) * f64::from(x)) as f32).to_bits(),
            flag(x < y || x.is_nan() || y.is_nan()),
            flag(x > y),
            if x.is_nan() { 0 } else { x.clamp(0.0, 1.0).to_bits() },
            Real::fma(x, y, x, Round::Down).to_bits(),
            x.floor().to_bits(),
        ];
        for (place, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let (f, e) = (f32::from_bits(found), f32::from_bits(expected));
            let integers = place == 6 || place == 7;
            // NaN is NaN, and a minimum or maximum of zeros is either.
            let same = !integers && (f.is_nan() && e.is_nan() || f == e && f == 0.0);
            assert!(found == expected || same, "{x} and {y}, result {place}: {f} instead of {e}");
        }
    }
}

#[test]
fn barriers_order_what_threads_share() {
    for (blocks, threads) in [(1, 1), (3, 256), (50, 64)] {
        let numbers = words(5, blocks * threads);
        let (from, to) = (put(&numbers), put(&[0]));
        run("total", blocks, threads, 4 * threads as usize, &[from, to]).unwrap();
        assert_eq!(get(to, 1)[0], numbers.iter().fold(0, |sum: u32, x| sum.wrapping_add(*x)));
    }
    // Shared memory that the launch has not asked for.
    let from = put(&[0; 64]);
    assert_eq!(run("total", 1, 64, 128, &[from, put(&[0])]).unwrap_err().code, ILLEGAL_ADDRESS);
}

#[test]
fn lanes_part_and_meet_again() {
    let out = put(&[0; 64]);
    run("parted", 1, 32, 0, &[out]).unwrap();
    let table = [1, 10, 100, 1000];
    let expected: Vec<u32> = (0..32)
        .map(|lane| match lane % 4 {
            0 => 7,
            1 => 2 * lane + 10,
            kind => lane + table[kind as usize],
        })
        .collect();
    let total: u32 = expected.iter().sum();
    for (pair, expected) in get(out, 64).chunks(2).zip(expected) {
        assert_eq!(pair, [expected, total]);
    }
}

#[test]
fn an_access_outside_every_allocation_is_found() {
    let out = put(&[1; 40]);
    run("beyond", 1, 40, 0, &[out, 9]).unwrap();
    assert_eq!(get(out, 40), [9; 40]);
    let failure = run("beyond", 1, 41, 0, &[out, 9]).unwrap_err();
    assert_eq!(failure.code, ILLEGAL_ADDRESS);
    assert!(
        failure.message.contains("kernel beyond") && failure.message.contains("st.global.u32"),
        "{}",
        failure.message
    );
    assert_eq!(run("beyond", 1, 1, 0, &[out + 2, 9]).unwrap_err().code, MISALIGNED_ADDRESS);
    memory::free(out).unwrap();
    assert_eq!(run("beyond", 1, 1, 0, &[out, 9]).unwrap_err().code, ILLEGAL_ADDRESS);
}

#[test]
fn threads_that_miss_each_other_are_found() {
    let failure = run("missed", 1, 128, 0, &[]).unwrap_err();
    assert!(failure.code == LAUNCH_FAILED && failure.message.contains("different barriers"), "{failure:?}");
    let failure = run("alone", 1, 32, 0, &[]).unwrap_err();
    assert!(failure.code == LAUNCH_FAILED && failure.message.contains("never"), "{failure:?}");
}

#[test]
fn what_a_driver_would_refuse_is_refused() {
    for (blocks, threads, shared) in [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 49_153)] {
        assert_eq!(run("missed", blocks, threads, shared, &[]).unwrap_err().code, INVALID_VALUE, "{threads} {shared}");
    }
    assert_eq!(run("absent", 1, 32, 0, &[]).unwrap_err().code, NOT_FOUND);
    let failure = run("unknown", 1, 32, 0, &[]).unwrap_err();
    assert!(failure.code == INVALID_PTX && failure.message.contains("tex.2d"), "{failure:?}");
    assert_eq!(Module::load("not PTX at all").unwrap_err().code, INVALID_PTX);
}

use super::*;
use crate::kernels::on_host;

fn keys() -> Vec<Key> {
    let images = (0..3).map(|image| Key::root(u64::MAX - 7).image(image).at(2).at(0));
    images.chain([Key::root(0), Key::root(5).at(77)]).collect()
}

fn pixels(n: usize) -> Vec<f32> {
    let mut pixels = vec![0.0; n];
    Key::root(31).fill_uniform(&mut pixels);
    // Corners of the clipping.
    pixels[..5].copy_from_slice(&[0.0, 1.0, f32::NAN, -0.0, 2.0]);
    pixels
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
#[expect(clippy::print_stderr, reason = "why a test is skipped")]
fn the_kernels_draw_the_bits_of_a_key() {
    let keys = keys();
    // Images that end within a block, and one long enough for the rarest numbers.
    for len in [1, 7, 96, 150_527] {
        let x = Tensor::from_vec(pixels(keys.len() * len), (keys.len(), len), &Device::Cpu).unwrap();
        let above = (3.0 - &x).unwrap();
        let draw = || {
            [
                uniform_like(&x, &keys).unwrap(),
                add_normal(&x, &keys, 0.37, false).unwrap(),
                add_normal(&x, &keys, 0.37, true).unwrap(),
                keep_inside(&x, &keys, 0.37, &above).unwrap(),
            ]
        };
        let Some(found) = on_host(draw) else { return eprintln!("skipped: no C++ compiler to run the kernels with") };
        for (kernel, (found, expected)) in found.iter().zip(draw()).enumerate() {
            for (i, (found, expected)) in numbers(found).into_iter().zip(numbers(&expected)).enumerate() {
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "kernel {kernel} of {len}, number {i}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn an_image_draws_the_same_beside_any_other() {
    let x = Tensor::from_vec(pixels(5 * 12), (5, 3, 2, 2), &Device::Cpu).unwrap();
    let all = add_normal(&x, &keys(), 0.5, false).unwrap();
    let one = add_normal(&x.narrow(0, 3, 1).unwrap(), &keys()[3..4], 0.5, false).unwrap();
    assert_eq!(numbers(&all.narrow(0, 3, 1).unwrap()), numbers(&one));
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Tensor::zeros((5, 4), DType::F32, &Device::Cpu).unwrap();
    let few = uniform_like(&x, &keys()[1..]).unwrap_err().to_string();
    assert!(few.contains("one key per image"), "{few}");
    assert!(keep_inside(&x, &keys(), 0.5, &x.t().unwrap()).is_err());
    assert!(uniform_like(&x.to_dtype(DType::F64).unwrap(), &keys()).is_err());
}

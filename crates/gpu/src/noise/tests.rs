use std::{
    fs,
    process::{Command, Stdio},
};

use candle_core::Device;

use super::*;

/// Runs the kernels' source as C++ for the host: `main` reads its arguments' bytes and writes the kernel's.
const DRIVER: &str = r#"
#include "noise.cu"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int, char **argument) {
    const u64 images = strtoull(argument[2], 0, 10), len = strtoull(argument[3], 0, 10), all = images * len;
    const float sigma = of_bits((u32)strtoul(argument[4], 0, 10));
    u32 *words = (u32 *)malloc(16 * images);
    float *x = (float *)malloc(4 * all), *above = (float *)malloc(4 * all), *out = (float *)malloc(4 * all);
    if (fread(words, 16, images, stdin) != images || fread(x, 4, all, stdin) != all) return 1;
    if (fread(above, 4, all, stdin) != all) return 1;
    switch (argument[1][0]) {
    case 'u': uniform(words, images, len, out); break;
    case 'a': add_normal(words, images, len, sigma, 0, x, out); break;
    case 'c': add_normal(words, images, len, sigma, 1, x, out); break;
    case 'k': keep_inside(words, images, len, sigma, x, above, out); break;
    default: return 1;
    }
    return fwrite(out, 4, all, stdout) != all;
}
"#;

/// The kernels as a program; nothing where there is no C++ compiler.
#[expect(clippy::print_stderr, reason = "why a test is skipped")]
fn program(folder: &tempfile::TempDir) -> Option<std::path::PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let (source, program) = (folder.path().join("driver.cpp"), folder.path().join("driver"));
    fs::write(&source, DRIVER).unwrap();
    let mut command = Command::new(&compiler);
    command.args(["-O2", "-ffp-contract=off", "-I", concat!(env!("CARGO_MANIFEST_DIR"), "/src/noise"), "-o"]);
    match command.arg(&program).arg(&source).status() {
        Ok(status) => assert!(status.success(), "{compiler} does not compile the kernels"),
        Err(error) => {
            eprintln!("skipped: no C++ compiler to run the kernels with ({compiler}: {error})");
            return None;
        }
    }
    Some(program)
}

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

#[test]
fn the_kernels_draw_the_bits_of_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = program(&folder) else { return };
    let keys = keys();
    // Images that end within a block, and one long enough for the rarest numbers.
    for len in [1, 7, 96, 150_527] {
        let x = pixels(keys.len() * len);
        let above: Vec<f32> = x.iter().map(|x| 3.0 - x).collect();
        let words: Vec<u32> = keys.iter().flat_map(|key| key.words()).collect();
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
        let input = [words.iter().flat_map(|word| word.to_ne_bytes()).collect(), bytes(&x), bytes(&above)].concat();
        let tensor = |numbers: &[f32]| Tensor::from_slice(numbers, (keys.len(), len), &Device::Cpu).unwrap();
        let (images, upstream) = (tensor(&x), tensor(&above));
        let sigma = 0.37f32;
        let cases = [
            ("uniform", uniform_like(&images, &keys).unwrap()),
            ("add", add_normal(&images, &keys, sigma, false).unwrap()),
            ("clipped", add_normal(&images, &keys, sigma, true).unwrap()),
            ("keep", keep_inside(&images, &keys, sigma, &upstream).unwrap()),
        ];
        for (kernel, expected) in cases {
            let mut command = Command::new(&program);
            command.args([kernel, &keys.len().to_string(), &len.to_string(), &sigma.to_bits().to_string()]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let input = input.clone();
            let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input).unwrap());
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap();
            assert!(output.status.success(), "{kernel}");
            let found: Vec<u32> = output.stdout.chunks(4).map(|x| u32::from_ne_bytes(x.try_into().unwrap())).collect();
            let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(found.len(), expected.len());
            for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
                let same = found == expected.to_bits() || f32::from_bits(found).is_nan() && expected.is_nan();
                assert!(same, "{kernel} of {len}, number {i}: {} is not {expected}", f32::from_bits(found));
            }
        }
    }
}

#[test]
fn an_image_draws_the_same_beside_any_other() {
    let x = Tensor::from_vec(pixels(5 * 12), (5, 3, 2, 2), &Device::Cpu).unwrap();
    let all = add_normal(&x, &keys(), 0.5, false).unwrap();
    let one = add_normal(&x.narrow(0, 3, 1).unwrap(), &keys()[3..4], 0.5, false).unwrap();
    let bits = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(bits(all.narrow(0, 3, 1).unwrap()), bits(one));
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Tensor::zeros((5, 4), DType::F32, &Device::Cpu).unwrap();
    let few = uniform_like(&x, &keys()[1..]).unwrap_err().to_string();
    assert!(few.contains("one key per image"), "{few}");
    assert!(keep_inside(&x, &keys(), 0.5, &x.t().unwrap()).is_err());
    assert!(uniform_like(&x.to_dtype(DType::F64).unwrap(), &keys()).is_err());
}

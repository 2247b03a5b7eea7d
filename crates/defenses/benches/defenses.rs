//! Milliseconds of CPU per image of every defense on one thread, beside those of the authors' code.
//!
//! `cargo bench -p defenses [-- NAME...]`: the mean over images and draws (small and large kernels, every type of noise) of
//! the least of several runs, since a shared machine only ever adds time. The authors' figures (milliseconds of CPU of
//! their released code on one thread: kornia, scikit-image, scipy) were measured once, on another machine: read the ratio
//! as an order of magnitude.

use std::time::Instant;

use candle_core::{Device, Tensor};
use defenses::{Crop, CropResize, GaussianNoise, ResizePad, Spec};
use game::Key;

/// Name, milliseconds of the authors' code at 32 and at 224 pixels.
const AUTHORS: [(&str, f64, f64); 9] = [
    ("noise-injection", 0.13, 9.9),
    ("gaussian-blur", 1.33, 3.4),
    ("median-blur", 5.54, 362.0),
    ("swirl", 0.39, 11.2),
    ("quantisation", 0.03, 0.17),
    ("fft", 0.20, 3.3),
    ("gaussian-noise", 0.02, 0.66),
    ("jpeg", 0.31, 1.4),
    ("block-dct", 0.19, 2.2),
];

/// Images `(n, 3, size, size)` with more distinct values than bytes have, as attacked ones do.
fn images(n: usize, size: usize) -> Tensor {
    let mut pixels = vec![0.0; n * 3 * size * size];
    Key::root(1).fill_uniform(&mut pixels);
    // Smooth across, noisy up and down by an eighth: neither flat nor white.
    for (i, pixel) in pixels.iter_mut().enumerate() {
        *pixel = 0.125 * *pixel + 0.8 * ((i % size) as f32 / size as f32);
    }
    Tensor::from_vec(pixels, (n, 3, size, size), &Device::Cpu).expect("a shape that fits")
}

/// Seconds that this thread has computed for.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(answer, 0, "the system has no clock of a thread's time");
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// The mean over `n` images and draws of the least milliseconds that each takes.
fn milliseconds(spec: &Spec, size: usize, n: usize) -> f64 {
    let x = images(n, size);
    let one = |i: usize| {
        let (x, key) = (x.narrow(0, i, 1).expect("one of n"), Key::root(7).at(i as u64));
        let run = || {
            let before = cpu_seconds();
            let out = spec.build().apply(&x, &[key]).expect("an image that fits");
            std::hint::black_box(out);
            cpu_seconds() - before
        };
        let start = Instant::now();
        let mut least = (0..4).map(|_| run()).fold(f64::MAX, f64::min);
        while start.elapsed().as_secs_f64() < 0.02 {
            least = least.min(run());
        }
        least
    };
    1e3 * (0..n).map(one).sum::<f64>() / n as f64
}

/// Every defense as the authors set it; what is in pixels of a 224-pixel image is scaled with the image.
fn specs(size: usize) -> Vec<Spec> {
    let scaled = |pixels: usize| (pixels * size / 224) as u64;
    let spec = |&name: &&str| serde_json::from_value(serde_json::json!({ "name": name })).expect("defaults");
    let adapt = |spec: Spec| match spec {
        Spec::GaussianNoise(noise) => GaussianNoise { clip: true, ..noise }.into(),
        Spec::Crop(_) => Crop { size: scaled(128) }.into(),
        Spec::CropResize(_) => CropResize { size: scaled(68), ..CropResize::default() }.into(),
        Spec::ResizePad(pad) => {
            ResizePad { smallest: scaled(224), largest: scaled(255), padded: scaled(256), ..pad }.into()
        }
        other => other,
    };
    // What a program takes is its own affair.
    Spec::NAMES.iter().filter(|name| **name != "program").map(spec).map(adapt).collect()
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    println!("| defense | ms at 32 | authors | ratio | ms at 224 | authors | ratio |\n|---|---|---|---|---|---|---|");
    for (small, large) in specs(32).into_iter().zip(specs(224)) {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == small.name()) {
            continue;
        }
        let authors = AUTHORS.iter().find(|(name, ..)| *name == small.name());
        let cells = [(&small, 32, 48, authors.map(|row| row.1)), (&large, 224, 48, authors.map(|row| row.2))].map(
            |(spec, size, n, authors)| {
                let ours = pool.install(|| milliseconds(spec, size, n));
                match authors {
                    Some(authors) => format!("{ours:.4} | {authors} | {:.1}", authors / ours),
                    None => format!("{ours:.4} | | "),
                }
            },
        );
        println!("| {} | {} | {} |", small.name(), cells[0], cells[1]);
    }
}

//! What the program computes: forwards, and back.

use std::collections::BTreeMap;

use crate::wire::{Message, Tensor};

/// How far noise moves a pixel at most.
const NOISE: f32 = 0.1;

pub struct Player {
    transforms: bool,
    classes: usize,
    /// Requests whose gradient may be asked for.
    kept: BTreeMap<String, Message>,
}

impl Player {
    pub fn new(transforms: bool, classes: usize) -> Self {
        Self { transforms, classes, kept: BTreeMap::new() }
    }

    pub fn answer(&mut self, request: &Message) -> Message {
        match (request.fact("op"), self.transforms) {
            ("hello", _) => {
                let operations = if self.transforms { "apply,pull" } else { "logits,pull" };
                let reply = request.reply().with("protocol", "1.0").with("operations", operations);
                let reply = reply.with("random", "true").with("batch", "64");
                if self.transforms { reply } else { reply.with("classes", &self.classes.to_string()) }
            }
            ("logits", false) | ("apply", true) => {
                if request.fact("keep") == "true" {
                    self.kept.insert(request.fact("id").to_owned(), request.clone());
                }
                self.forward(request)
            }
            ("pull", _) => match self.kept.get(request.fact("of")) {
                Some(of) => self.backward(request, of),
                None => request.reply().with("op", "error").with("text", "that request was not kept"),
            },
            ("forget", _) => {
                self.kept.remove(request.fact("of"));
                request.reply()
            }
            _ => request.reply().with("op", "error").with("text", "an unknown operation"),
        }
    }

    fn forward(&self, request: &Message) -> Message {
        let (x, draws) = (&request.tensors["x"], request.tensors["keys"].shape[1]);
        let rows = noisy(request);
        let mut shape = vec![x.shape[0], draws];
        if self.transforms {
            shape.extend(&x.shape[1..]);
            let squares: Vec<f32> = rows.iter().flatten().map(|x| x * x).collect();
            return request.reply().tensor("images", Tensor::new(&shape, &squares));
        }
        shape.push(self.classes);
        let logits = rows.iter().flat_map(|x| (0..self.classes).map(|k| sum(x, k)).map(|z| z + 0.1 * z * z));
        request.reply().tensor("logits", Tensor::new(&shape, &logits.collect::<Vec<_>>()))
    }

    fn backward(&self, request: &Message, of: &Message) -> Message {
        let (above, x) = (request.tensors["cotangent"].numbers(), &of.tensors["x"]);
        let (draws, size) = (of.tensors["keys"].shape[1], x.shape[1..].iter().product::<usize>());
        let mut each = Vec::with_capacity(x.shape[0] * draws);
        for (row, above) in noisy(of).iter().zip(above.chunks(if self.transforms { size } else { self.classes })) {
            let mut below = vec![0.0; size];
            if self.transforms {
                below.iter_mut().zip(row).zip(above).for_each(|((below, x), above)| *below = 2.0 * x * above);
            } else {
                for (k, above) in above.iter().enumerate() {
                    let slope = above * (1.0 + 0.2 * sum(row, k));
                    below.iter_mut().enumerate().for_each(|(i, below)| *below += slope * weight(i, k));
                }
            }
            each.push(below);
        }
        if request.fact("reduce") == "each" {
            let shape: Vec<usize> = [x.shape[0], draws].iter().chain(&x.shape[1..]).copied().collect();
            return request.reply().tensor("gradient", Tensor::new(&shape, &each.concat()));
        }
        let mean = |draws: &[Vec<f32>]| -> Vec<f32> {
            (0..size).map(|i| draws.iter().map(|draw| draw[i]).sum::<f32>() / draws.len() as f32).collect()
        };
        let mean: Vec<f32> = each.chunks(draws).flat_map(mean).collect();
        request.reply().tensor("gradient", Tensor::new(&x.shape, &mean))
    }
}

/// The images of a request with each draw's noise.
fn noisy(request: &Message) -> Vec<Vec<f32>> {
    let (x, keys) = (&request.tensors["x"], &request.tensors["keys"]);
    let (pixels, size) = (x.numbers(), x.shape[1..].iter().product::<usize>());
    let draws = keys.words.chunks(4).enumerate();
    let row = |(draw, key): (usize, &[u32])| {
        let pixels = &pixels[draw / keys.shape[1] * size..][..size];
        pixels.iter().enumerate().map(|(i, x)| x + NOISE * (2.0 * uniform(key, i) - 1.0)).collect()
    };
    draws.map(row).collect()
}

/// The weight of element `i` for class `k`.
fn weight(i: usize, k: usize) -> f32 {
    // Some numbers in [-1/8, 1/8): the upper bits of products.
    let bits =
        ((i as u32 + 1).wrapping_mul(0x9E37_79B9) ^ (k as u32 + 1).wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35);
    (bits >> 8) as f32 / (1 << 26) as f32 - 0.125
}

fn sum(x: &[f32], k: usize) -> f32 {
    x.iter().enumerate().map(|(i, x)| x * weight(i, k)).sum()
}

/// Element `i` of the uniform numbers of a key: word `i % 4` of block `i / 4` of Philox4x32-10.
fn uniform(key: &[u32], i: usize) -> f32 {
    let mut c = [(i / 4) as u32, 0, key[2], key[3]];
    let mut k = [key[0], key[1]];
    for _ in 0..10 {
        let (a, b) = (0xD251_1F53 * u64::from(c[0]), 0xCD9E_8D57 * u64::from(c[2]));
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    (c[i % 4] >> 8) as f32 / (1 << 24) as f32
}

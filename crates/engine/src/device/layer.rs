//! One launch of layers.cu.

use gpu::kernels::{Parameters, Source};

/// The kernels on f32.
pub const F32: Source = Source { name: "layers-f32", text: gpu::f32_text!("layers.cu") };
/// The kernels on bf16.
pub const BF16: Source = Source { name: "layers-bf16", text: gpu::bf16_text!("layers.cu") };

/// Numbers that a thread works on, where it works on several.
pub const RUN: usize = 8;
/// Threads that share an image's sum, and the f64 that they need for each image.
pub const PARTS: usize = 256;
pub const SUMS: usize = 2 + 2 * PARTS;
/// f64 of room for an image's counts of ranks, and the 32-bit words in it.
pub const RANKS: usize = 129;
pub const RANK_WORDS: usize = 258;

/// No address.
pub const NOWHERE: u64 = u64::MAX;

/// As its namesake in layers.cu. Until [`Layer::placed`], all addresses but those of weights are offsets in the arena.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub x: u64,
    pub y: u64,
    pub out: u64,
    pub bits: u64,
    pub weight: u64,
    pub bias: u64,
    pub words: u64,
    pub sums: u64,
    pub samples: f64,
    pub count: u64,
    pub c: u32,
    pub h: u32,
    pub w: u32,
    pub oc: u32,
    pub oh: u32,
    pub ow: u32,
    pub rows: u32,
    pub columns: u32,
    pub stride: u32,
    pub top: u32,
    pub left: u32,
    pub before: u32,
    pub nhwc: u32,
    pub accumulate: u32,
    pub act: u32,
    pub keep: u32,
    pub slope: f32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Layer {}

impl Default for Layer {
    fn default() -> Self {
        Self {
            x: NOWHERE,
            y: NOWHERE,
            out: NOWHERE,
            bits: NOWHERE,
            weight: 0,
            bias: 0,
            words: NOWHERE,
            sums: NOWHERE,
            samples: 0.0,
            count: 0,
            c: 0,
            h: 0,
            w: 0,
            oc: 0,
            oh: 0,
            ow: 0,
            rows: 1,
            columns: 1,
            stride: 1,
            top: 0,
            left: 0,
            before: 0,
            nhwc: 0,
            accumulate: 0,
            act: 0,
            keep: 0,
            slope: 0.0,
        }
    }
}

impl Layer {
    /// With an input image of this shape.
    pub fn from(self, [c, h, w]: [usize; 3]) -> Self {
        Self { c: c as u32, h: h as u32, w: w as u32, ..self }
    }

    /// With a resulting image of this shape.
    pub fn to(self, [c, h, w]: [usize; 3]) -> Self {
        Self { oc: c as u32, oh: h as u32, ow: w as u32, ..self }
    }

    /// With addresses in an arena that begins at `base`.
    pub fn placed(self, base: u64) -> Self {
        let place = |offset: u64| if offset == NOWHERE { 0 } else { base + offset };
        Self {
            x: place(self.x),
            y: place(self.y),
            out: place(self.out),
            bits: place(self.bits),
            words: place(self.words),
            sums: place(self.sums),
            ..self
        }
    }
}

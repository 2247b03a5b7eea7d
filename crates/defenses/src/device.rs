//! Batches on a device, and the kernels launched on them there.
//!
//! What is drawn for an image, a few numbers, is drawn on the host as for the CPU and sent along; dense noise is drawn by the
//! kernels, from the words of a key. Nothing here waits for the device or copies an image from it.

use candle_core::{DType, Result, Tensor};
use game::Key;
use gpu::kernels::{Call, Output, Parameters, Plain};

use crate::kernel::Shape;

/// The kernels in the file of this name, behind those that defenses share.
macro_rules! source {
    ($name:literal) => {
        gpu::kernels::Source {
            name: concat!("defenses-", $name),
            text: concat!(include_str!("common.cu"), include_str!(concat!($name, ".cu"))),
        }
    };
}
pub(crate) use source;

/// [`Shape`] as common.cu has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Dims {
    channels: u32,
    height: u32,
    width: u32,
}

impl From<Shape> for Dims {
    fn from(shape: Shape) -> Self {
        let [channels, height, width] = [shape.channels, shape.height, shape.width].map(|side| side as u32);
        Self { channels, height, width }
    }
}

/// As `Fill` in common.cu: the kernel `fill` of every source writes `value` to as many words as it has threads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    pub to: u64,
    pub value: u32,
}
// SAFETY: the fields are the kernel's.
unsafe impl Parameters for Fill {}

/// Images `(n, c, h, w)`, f32, where kernels run, with one key each, and the shape of what is made of each.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub x: &'a Tensor,
    pub keys: &'a [Key],
    pub shape: Shape,
    pub output: Shape,
}

impl Batch<'_> {
    /// A call on the images' device.
    pub fn call(&self) -> Call {
        Call::new(self.x.device())
    }

    /// The address of what `of` says of the keys.
    pub fn upload<T: Plain>(&self, call: &mut Call, of: impl Fn(Key) -> T) -> Result<u64> {
        call.upload(&self.keys.iter().map(|&key| of(key)).collect::<Vec<T>>())
    }

    /// Memory for an image of this shape for each key.
    pub fn images(&self, call: &Call, shape: Shape) -> Result<Output> {
        call.output((self.keys.len(), shape.channels, shape.height, shape.width), DType::F32)
    }

    /// Memory for `len` words for each key.
    pub fn words(&self, call: &Call, len: usize) -> Result<Output> {
        call.output(self.keys.len() * len, DType::U32)
    }

    /// The number of elements that images of this shape have.
    pub const fn len(&self, shape: Shape) -> usize {
        self.keys.len() * shape.len()
    }

    /// The number of planes.
    pub const fn planes(&self) -> usize {
        self.keys.len() * self.shape.channels
    }
}

#[cfg(test)]
mod tests;

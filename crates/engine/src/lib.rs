//! A compiled executor of frozen networks: gradient queries and votes on the CPU.
//!
//! The whole cost of an attack is gradient queries (the logits, and the gradient of a loss with respect to the image)
//! and votes (logits), with frozen weights and batch-norm in evaluation mode. A [`Plan`] answers both, in f32, several
//! times as fast as autograd; `nets::Network` is the reference it is tested against.
//!
//! # What a plan does
//!
//! - Lowering (`lower`): batch-norm is folded into the convolution before it, in f64; a residual sum and a ReLU after it
//!   become its epilogue.
//! - Compilation for one size of image (`compile`, `passes`, `places`): activations are NHWC with a border of zeros, in buffers that are
//!   used again; weights are packed in the order in which they are read. A 3x3 convolution of stride 1 is done by
//!   Winograd's F(4x4, 3x3) (Lavin and Gray 2016), which needs a quarter of the multiplications, anything else by its
//!   definition. The rule looks at shapes alone, so numbers do not depend on the host's timing.
//! - Where only an image's largest values stay (k-winners-take-all), a sample of the values and one pass over them find
//!   the smallest that does, and the others are cleared in place.
//! - Stochastic pruning takes its decisions in f64 from f32 values, and draws an image's numbers from the image's key; its
//!   backward pass reads the values that were pruned.
//! - The gradient with respect to the input is again a convolution, with the kernel turned round; at stride `s` it is `s
//!   x s` of them, one for each parity of row and column, so that no multiplication is by a zero. The forward pass keeps
//!   one bit a ReLU (or a value that may stay) and one byte a max-pool's output, which is all that the backward pass needs
//!   to know of it.
//! - Images are worked on in groups, few at a time where images are large (so that they stay in the cache) and more where
//!   weights are; groups are shared out to rayon's threads.
//!
//! # What answers depend on
//!
//! Every output of every layer is one sum in one fixed order. So an image's answer has the same bits in any batch, at
//! any place in it and with any number of threads, and AVX-512 and AVX2 agree in every bit too. The portable path has no
//! fused multiply-add and differs in the last bits: answers are reproducible among hosts that both have AVX2, and among
//! hosts that both lack it.
//!
//! # How far from the truth
//!
//! The logits are within 1e-5 of f64's (as a share of the largest; 5e-6 was seen), and most images' gradients within 1e-5
//! (as a share of the image's largest; 3e-6 is usual). But one image in some tens differs by 1e-3 to 3e-2, and it is no
//! bug: a network of ReLUs and max-pools is piecewise linear, and where a pre-activation is within rounding of zero, f32
//! and f64 (or two f32 programs that sum in different orders) may take different branches of the ReLU. Then the
//! gradients differ by all that this one unit carries, though both are exact gradients of functions that agree to 1e-6.
//! PyTorch's f32 differs from its own f64 in the same way.
//!
//! The tests settle it by reading the branches that the engine took. At *those* branches the f64 gradient agrees to 1e-5
//! for every image, without exception; every unit that took another branch than in f64 is within 5e-6 of its kink, as a
//! share of its layer's largest value (5e-7 was seen); and such units are fewer than two in a million. On 60 real images
//! through the published CIFAR ResNet-20, three units of 11 million took the other branch, in three images, which then
//! differ by up to 1.6e-2; all 60 agree to 4.4e-6 at the engine's branches. So a gradient's tolerance is 1e-5 where the
//! branches agree, and there is none where they do not.
//!
//! Where values stay or fall (k-winners-take-all, pruning), the network itself jumps at a kink, and the logits, too, are
//! those of f64 at the engine's branches only. There, the tolerances are the same.

mod compile;
mod count;
mod device;
mod execute;
mod kernels;
mod lower;
mod memory;
mod passes;
mod places;
mod plan;
#[cfg(test)]
mod tests;

pub use count::Multiplications;
pub use device::{DevicePlan, Settings};
pub use plan::Plan;
pub use simd::Isa;

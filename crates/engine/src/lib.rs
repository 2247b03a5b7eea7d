//! A compiled executor of frozen networks: gradient queries and votes on the CPU.

mod compile;
mod execute;
mod kernels;
mod lower;
mod memory;
mod plan;
mod simd;
#[cfg(test)]
mod tests;

pub use plan::Plan;
pub use simd::Isa;

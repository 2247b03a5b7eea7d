//! cuRAND's functions: candle makes a generator for every device; all chance of ours comes from keys, so none is asked.

use crate::failure::{complain, trace};

/// A handle that nothing is behind.
static GENERATOR: u8 = 0;
/// `CURAND_STATUS_INTERNAL_ERROR`.
const FAILED: u32 = 999;

#[unsafe(no_mangle)]
unsafe extern "C" fn curandCreateGenerator(to: *mut usize, _kind: u32) -> u32 {
    trace("curandCreateGenerator");
    // SAFETY: the caller's room.
    unsafe { to.write(&raw const GENERATOR as usize) };
    0
}

macro_rules! nothing {
    ($($name:ident($($T:ty),*)),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($(_: $T),*) -> u32 {
            trace(stringify!($name));
            0
        }
    )*};
}
nothing!(
    curandDestroyGenerator(usize),
    curandSetStream(usize, usize),
    curandSetPseudoRandomGeneratorSeed(usize, u64),
    curandSetGeneratorOffset(usize, u64)
);

macro_rules! refused {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() -> u32 {
            complain(concat!(stringify!($name), ": numbers that no key has drawn"));
            FAILED
        }
    )*};
}
refused!(
    curandGenerate,
    curandGenerateUniform,
    curandGenerateUniformDouble,
    curandGenerateNormal,
    curandGenerateNormalDouble,
    curandGenerateLongLong,
    curandGenerateLogNormal,
    curandGenerateLogNormalDouble,
    curandGeneratePoisson
);

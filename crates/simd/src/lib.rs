//! Vectors of f32, one trait for every instruction set, chosen at run time.
//!
//! A [`Kernel`] is written once over [`Simd`] and compiled for each instruction set: everything it calls is inlined
//! into a function with the right target features, so one binary carries all paths. AVX-512 and AVX2 use fused
//! multiply-add and the portable path does not, so the last bits of a result depend on the path, and on nothing else
//! about the machine.

#![expect(missing_docs, clippy::missing_safety_doc, reason = "operations and fields that say what they are")]
#![expect(
    clippy::needless_range_loop,
    reason = "loops of constant length over indices become registers; iterators may not"
)]

pub mod dense;
pub mod view;
pub mod winograd;

pub use view::{Finish, Spot, View};

/// The instruction sets there are code paths for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL: 16 lanes, 32 registers.
    Avx512,
    /// AVX2 and FMA: 8 lanes, 16 registers.
    Avx2,
    /// No intrinsics, 8 lanes: whatever the compiler makes of it.
    Portable,
}

impl Isa {
    /// The instruction sets this processor has, the fastest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Self::Avx512, Self::Avx2, Self::Portable].into_iter().filter(|isa| isa.detected()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn detected(self) -> bool {
        match self {
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Self::Avx2.detected()
            }
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("popcnt")
            }
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected(self) -> bool {
        self == Self::Portable
    }

    /// Floats in a vector.
    pub fn lanes(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Avx2 | Self::Portable => 8,
        }
    }

    /// The widest register tile in vectors of output channels.
    pub fn widest(self) -> usize {
        match self {
            Self::Avx512 | Self::Avx2 => 3,
            Self::Portable => 1,
        }
    }

    /// Runs a kernel with this instruction set.
    ///
    /// # Safety
    /// The processor must have the instruction set, and the kernel's pointers must be valid for what it does.
    pub unsafe fn run<K: Kernel>(self, kernel: &K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { x86::avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::avx2(kernel) },
            _ => unsafe { kernel.run::<Portable>() },
        }
    }
}

/// Work over vectors of any width. `run` must be `#[inline(always)]`, as must all it calls with a vector in hand.
pub trait Kernel {
    unsafe fn run<S: Simd>(&self);
}

/// A vector of f32.
pub trait Simd: Copy + 'static {
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Pixels in the register tile of the matrix kernels.
    const PIXELS: usize;
    /// Whether [`fma`](Self::fma) is rounded once, and `f64::mul_add` one instruction.
    const FUSED: bool;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`.
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `max(v, 0)`, and NaN for NaN.
    unsafe fn relu(v: Self::V) -> Self::V;
    /// `min(v, top)`, and NaN for NaN.
    unsafe fn cap(v: Self::V, top: Self::V) -> Self::V;
    /// `v` where `a > b`, else `w`.
    unsafe fn if_greater(a: Self::V, b: Self::V, v: Self::V, w: Self::V) -> Self::V;
    /// Stores one bit a lane, the lowest bit first: `0 < v < top`.
    unsafe fn store_inside(to: *mut u8, v: Self::V, top: Self::V);
    /// Stores one bit a lane, the lowest bit first: `v >= low`, and 1 for NaN.
    unsafe fn store_not_below(to: *mut u8, v: Self::V, low: Self::V);
    /// `v` where the lane's stored bit is set, else `w`.
    unsafe fn if_set(bits: *const u8, v: Self::V, w: Self::V) -> Self::V;
    /// Stores those of the first `lanes` lanes that are in `[low, high)` one after the other, and answers how many they are
    /// and how many are below `high`. May write a whole vector.
    unsafe fn gather_between(to: *mut f32, v: Self::V, low: Self::V, high: Self::V, lanes: usize) -> [usize; 2];
    /// Asks for the cache line that will be needed soon.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// The same pointer, of which the compiler knows nothing: else it keeps dozens of derived pointers on the stack.
    #[inline(always)]
    fn opaque<T>(pointer: *mut T) -> *mut T {
        std::hint::black_box(pointer)
    }
}

/// Eight floats and no intrinsics.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 8] {
    let mut v = [0.0; 8];
    for (i, v) in v.iter_mut().enumerate() {
        *v = f(i);
    }
    v
}

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const PIXELS: usize = 4;
    const FUSED: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        each(|i| if v[i] < 0.0 { 0.0 } else { v[i] })
    }
    #[inline(always)]
    unsafe fn cap(v: Self::V, top: Self::V) -> Self::V {
        each(|i| if v[i] > top[i] { top[i] } else { v[i] })
    }
    #[inline(always)]
    unsafe fn if_greater(a: Self::V, b: Self::V, v: Self::V, w: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { v[i] } else { w[i] })
    }
    #[inline(always)]
    unsafe fn store_inside(to: *mut u8, v: Self::V, top: Self::V) {
        let mut bits = 0u8;
        for i in 0..8 {
            bits |= u8::from(v[i] > 0.0 && v[i] < top[i]) << i;
        }
        unsafe { *to = bits };
    }
    #[inline(always)]
    unsafe fn store_not_below(to: *mut u8, v: Self::V, low: Self::V) {
        let mut bits = 0u8;
        for i in 0..8 {
            bits |= u8::from(v[i] >= low[i] || v[i].is_nan()) << i;
        }
        unsafe { *to = bits };
    }
    #[inline(always)]
    unsafe fn if_set(bits: *const u8, v: Self::V, w: Self::V) -> Self::V {
        let bits = unsafe { *bits };
        each(|i| if bits >> i & 1 == 1 { v[i] } else { w[i] })
    }
    #[inline(always)]
    unsafe fn gather_between(to: *mut f32, v: Self::V, low: Self::V, high: Self::V, lanes: usize) -> [usize; 2] {
        let (mut between, mut below) = (0, 0);
        for i in 0..8 {
            unsafe { *to.add(between) = v[i] };
            below += usize::from(i < lanes && v[i] < high[i]);
            between += usize::from(i < lanes && v[i] >= low[i] && v[i] < high[i]);
        }
        [between, below]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{Kernel, Simd};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
    pub(super) unsafe fn avx512<K: Kernel>(kernel: &K) {
        unsafe { kernel.run::<Avx512>() }
    }

    #[target_feature(enable = "avx2,fma,popcnt")]
    pub(super) unsafe fn avx2<K: Kernel>(kernel: &K) {
        unsafe { kernel.run::<Avx2>() }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512;

    impl Simd for Avx512 {
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        type V = __m512;
        const LANES: usize = 16;
        const PIXELS: usize = 8;
        const FUSED: bool = true;

        #[inline(always)]
        fn opaque<T>(mut pointer: *mut T) -> *mut T {
            // SAFETY: does nothing.
            unsafe { asm!("/* {} */", inout(reg) pointer, options(nostack, preserves_flags)) };
            pointer
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, v: Self::V) {
            unsafe { _mm512_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm512_fnmadd_ps(a, b, c) }
        }
        // The second operand is returned when either is NaN.
        #[inline(always)]
        unsafe fn relu(v: Self::V) -> Self::V {
            unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
        }
        #[inline(always)]
        unsafe fn cap(v: Self::V, top: Self::V) -> Self::V {
            unsafe { _mm512_min_ps(top, v) }
        }
        #[inline(always)]
        unsafe fn if_greater(a: Self::V, b: Self::V, v: Self::V, w: Self::V) -> Self::V {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), w, v) }
        }
        #[inline(always)]
        unsafe fn store_inside(to: *mut u8, v: Self::V, top: Self::V) {
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, _mm512_setzero_ps());
                let inside = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(positive, v, top);
                to.cast::<u16>().write_unaligned(inside);
            }
        }
        #[inline(always)]
        unsafe fn store_not_below(to: *mut u8, v: Self::V, low: Self::V) {
            unsafe { to.cast::<u16>().write_unaligned(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(v, low)) };
        }
        #[inline(always)]
        unsafe fn if_set(bits: *const u8, v: Self::V, w: Self::V) -> Self::V {
            unsafe { _mm512_mask_blend_ps(bits.cast::<u16>().read_unaligned(), w, v) }
        }
        #[inline(always)]
        unsafe fn gather_between(to: *mut f32, v: Self::V, low: Self::V, high: Self::V, lanes: usize) -> [usize; 2] {
            unsafe {
                let below = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(u16::MAX >> (16 - lanes), v, high);
                let between = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(below, v, low);
                _mm512_storeu_ps(to, _mm512_maskz_compress_ps(between, v));
                [between, below].map(|lanes| lanes.count_ones() as usize)
            }
        }
    }

    /// For every set of lanes, its members in order.
    static FRONT: [[u8; 8]; 256] = {
        let mut front = [[0; 8]; 256];
        let mut set = 0;
        while set < 256 {
            let (mut lane, mut count) = (0, 0);
            while lane < 8 {
                if set >> lane & 1 == 1 {
                    front[set][count] = lane as u8;
                    count += 1;
                }
                lane += 1;
            }
            set += 1;
        }
        front
    };

    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    impl Simd for Avx2 {
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        type V = __m256;
        const LANES: usize = 8;
        const PIXELS: usize = 4;
        const FUSED: bool = true;

        #[inline(always)]
        fn opaque<T>(mut pointer: *mut T) -> *mut T {
            // SAFETY: does nothing.
            unsafe { asm!("/* {} */", inout(reg) pointer, options(nostack, preserves_flags)) };
            pointer
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, v: Self::V) {
            unsafe { _mm256_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm256_fnmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn relu(v: Self::V) -> Self::V {
            unsafe { _mm256_max_ps(_mm256_setzero_ps(), v) }
        }
        #[inline(always)]
        unsafe fn cap(v: Self::V, top: Self::V) -> Self::V {
            unsafe { _mm256_min_ps(top, v) }
        }
        #[inline(always)]
        unsafe fn if_greater(a: Self::V, b: Self::V, v: Self::V, w: Self::V) -> Self::V {
            unsafe { _mm256_blendv_ps(w, v, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) }
        }
        #[inline(always)]
        unsafe fn store_inside(to: *mut u8, v: Self::V, top: Self::V) {
            unsafe {
                let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(v, _mm256_setzero_ps());
                let below = _mm256_cmp_ps::<_CMP_LT_OQ>(v, top);
                *to = _mm256_movemask_ps(_mm256_and_ps(positive, below)) as u8;
            }
        }
        #[inline(always)]
        unsafe fn store_not_below(to: *mut u8, v: Self::V, low: Self::V) {
            unsafe { *to = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(v, low)) as u8 };
        }
        #[inline(always)]
        unsafe fn if_set(bits: *const u8, v: Self::V, w: Self::V) -> Self::V {
            unsafe {
                let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(*bits)), lanes);
                _mm256_blendv_ps(w, v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes)))
            }
        }
        #[inline(always)]
        unsafe fn gather_between(to: *mut f32, v: Self::V, low: Self::V, high: Self::V, lanes: usize) -> [usize; 2] {
            unsafe {
                let below = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(v, high)) as usize & ((1 << lanes) - 1);
                let between = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(v, low)) as usize & below;
                let order = _mm_loadl_epi64(FRONT[between].as_ptr().cast());
                _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(v, _mm256_cvtepu8_epi32(order)));
                [between, below].map(|lanes| lanes.count_ones() as usize)
            }
        }
    }
}

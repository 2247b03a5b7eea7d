//! One loop, compiled for several instruction sets.

/// Declares a function whose body is compiled for AVX-512, AVX2 and the baseline; the best the host has runs.
///
/// The values are the same in all three: Rust never contracts a multiplication and an addition into one rounding, and a
/// loop over independent elements has no order of summation to change. What the body calls must be `#[inline(always)]`
/// to be compiled along. Arguments are identifiers, and at most one type parameter with one bound is taken.
#[macro_export]
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($argument:ident: $kind:ty),* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$generic: $bound>)? ($($argument: $kind),*) {
            #[inline(always)]
            fn portable $(<$generic: $bound>)? ($($argument: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$generic: $bound>)? ($($argument: $kind),*) {
                    portable($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$generic: $bound>)? ($($argument: $kind),*) {
                    portable($($argument),*)
                }
                match $crate::InstructionSet::detected() {
                    // SAFETY: the host has these instructions.
                    $crate::InstructionSet::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: the host has these instructions.
                    $crate::InstructionSet::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::InstructionSet::Portable => {}
                }
            }
            portable($($argument),*)
        }
    };
}

/// What [`vectorised!`](crate::vectorised) compiles for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2.
    Avx2,
    /// Whatever every host of the architecture has.
    Portable,
}

impl InstructionSet {
    /// What the host has, the best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        match Self::detected() {
            Self::Avx512 => vec![Self::Avx512, Self::Avx2, Self::Portable],
            Self::Avx2 => vec![Self::Avx2, Self::Portable],
            Self::Portable => vec![Self::Portable],
        }
    }

    /// The best the host has.
    #[inline]
    #[must_use]
    pub fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

//! What goes wrong, in the driver's codes.

use std::io::{self, Write as _};

/// A code of the driver (`CUresult`) and what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u32,
    pub message: String,
}

pub type Outcome<T = ()> = Result<T, Failure>;

pub const INVALID_VALUE: u32 = 1;
pub const OUT_OF_MEMORY: u32 = 2;
pub const INVALID_DEVICE: u32 = 101;
pub const INVALID_PTX: u32 = 218;
pub const INVALID_HANDLE: u32 = 400;
pub const NOT_FOUND: u32 = 500;
pub const ILLEGAL_ADDRESS: u32 = 700;
pub const OUT_OF_RESOURCES: u32 = 701;
pub const ASSERT: u32 = 710;
pub const ILLEGAL_INSTRUCTION: u32 = 715;
pub const MISALIGNED_ADDRESS: u32 = 716;
pub const LAUNCH_FAILED: u32 = 719;
pub const NOT_SUPPORTED: u32 = 801;
pub const CAPTURE_UNSUPPORTED: u32 = 900;
pub const CAPTURE_INVALIDATED: u32 = 901;
pub const CAPTURE_UNMATCHED: u32 = 903;
pub const CAPTURE_ISOLATION: u32 = 905;
pub const CAPTURED_EVENT: u32 = 907;

/// The codes with their names.
pub const NAMES: [(u32, &str); 18] = [
    (0, "CUDA_SUCCESS\0"),
    (INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE\0"),
    (OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY\0"),
    (INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE\0"),
    (INVALID_PTX, "CUDA_ERROR_INVALID_PTX\0"),
    (INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE\0"),
    (NOT_FOUND, "CUDA_ERROR_NOT_FOUND\0"),
    (ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS\0"),
    (OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES\0"),
    (ASSERT, "CUDA_ERROR_ASSERT\0"),
    (ILLEGAL_INSTRUCTION, "CUDA_ERROR_ILLEGAL_INSTRUCTION\0"),
    (MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS\0"),
    (LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED\0"),
    (NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED\0"),
    (CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED\0"),
    (CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED\0"),
    (CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED\0"),
    (CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION\0"),
];

pub fn fail<T>(code: u32, message: impl Into<String>) -> Outcome<T> {
    Err(Failure { code, message: message.into() })
}

impl Failure {
    /// The same, seen from further out.
    pub fn within(self, place: &str) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }
}

/// Says what failed on stderr, for the code alone does not tell.
pub fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "rehearsal: {message}");
}

/// Names a call on stderr where `REHEARSAL_TRACE` is set.
pub fn trace(call: &str) {
    static ON: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    if *ON.get_or_init(|| std::env::var_os("REHEARSAL_TRACE").is_some()) {
        complain(call);
    }
}

/// A library's code of an outcome, by `of` from that of the failure; what failed is told.
pub fn code(call: &str, outcome: Outcome, of: fn(u32) -> u32) -> u32 {
    trace(call);
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            complain(&failure.clone().within(call).message);
            of(failure.code)
        }
    }
}

/// Functions that a library exports; `$of` makes its code of a failure's.
macro_rules! exported {
    ($of:path; $(fn $name:ident($($argument:ident: $T:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe, reason = "not every body needs it")]
        unsafe extern "C" fn $name($($argument: $T),*) -> u32 {
            // SAFETY: the pointers are the caller's, as the library wants them.
            let body = || -> $crate::failure::Outcome { unsafe { $body } };
            $crate::failure::code(stringify!($name), body(), $of)
        }
    )*};
}
pub(crate) use exported;

//! How every binary ends: exit codes, and panics as one line.

use std::{
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

/// How every binary ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for any reason that is not below.
    Failed = 1,
    /// The command line or the parameters are wrong.
    Usage = 2,
    /// An input is missing, damaged, changed or of the wrong kind.
    Input = 3,
    /// Numbers are invalid: NaN weights, a perturbation outside its ball.
    Numbers = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A panic, as an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("internal error{0}; this is a bug, please report it")]
pub struct Panic(String);

/// Runs the whole work of a process; a panic becomes an error that says where, and is printed only with
/// `RUST_BACKTRACE`.
///
/// # Errors
/// If the work panics.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    let last = Arc::new(Mutex::new(String::new()));
    let default = panic::take_hook();
    let verbose = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    panic::set_hook(Box::new({
        let last = Arc::clone(&last);
        move |info| {
            if verbose {
                default(info);
            }
            *last.lock().unwrap_or_else(PoisonError::into_inner) = describe(info);
        }
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    drop(panic::take_hook());
    outcome.map_err(|_| Panic(last.lock().unwrap_or_else(PoisonError::into_inner).clone()))
}

/// Where and why, as ` at PLACE: TEXT`.
fn describe(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.map_or_else(|| place.clone(), |text| format!("{place}: {text}"))
}

//! The same kernels on the host, for tests: compiled by a C++ compiler, one thread after the other.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CString, c_void},
    fs,
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

use candle_core::{Result, bail};

use super::{Parameters, Source};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is within [`on_host`].
pub fn is_on() -> bool {
    ON.get()
}

/// Runs `work` with kernels in place of what the CPU has of its own, as on a GPU: for tests of the kernels, and slow.
/// Nothing where there is no C++ compiler (`CXX`, else `c++`).
pub fn on_host<T>(work: impl FnOnce() -> T) -> Option<T> {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            ON.set(self.0);
        }
    }
    Command::new(compiler()).arg("--version").output().ok()?;
    let _reset = Reset(ON.replace(true));
    Some(work())
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

/// A library's handle, as an integer.
type Compiled = std::result::Result<usize, String>;

/// The shared library of a source, compiled at the first call of a process and never closed.
fn library(source: &Source) -> Compiled {
    static LIBRARIES: OnceLock<Mutex<HashMap<&'static str, Compiled>>> = OnceLock::new();
    let mut libraries = LIBRARIES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    libraries.entry(source.name).or_insert_with(|| compile(source)).clone()
}

fn compile(source: &Source) -> Compiled {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (text, object) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
    fs::write(&text, source.whole()).map_err(|error| error.to_string())?;
    let mut command = Command::new(compiler());
    command.args(["-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]);
    command.args(["-Wno-unused-function", "-o"]).arg(&object).arg(&text);
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let path = CString::new(object.to_string_lossy().into_owned()).map_err(|error| error.to_string())?;
    // SAFETY: the library's only code is the kernels'.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() { Err("cannot be loaded".to_owned()) } else { Ok(handle as usize) }
}

/// # Safety
/// As [`super::Call::launch`].
pub unsafe fn launch<P: Parameters>(source: &Source, kernel: &str, threads: u64, parameters: &P) -> Result<()> {
    let handle = match library(source) {
        Ok(handle) => handle as *mut c_void,
        Err(error) => bail!("the kernels `{}` do not compile for the host: {error}", source.name),
    };
    let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
    // SAFETY: the handle is open.
    let function = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if function.is_null() {
        bail!("the kernels `{}` hold no `{kernel}`", source.name)
    }
    // SAFETY: `KERNEL` of prelude.cu declares it like this.
    let function = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*const P, u64)>(function) };
    function(parameters, threads);
    Ok(())
}

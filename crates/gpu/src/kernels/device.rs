//! Kernels on a GPU.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Result, bail,
    cuda_backend::{
        CudaDType, WrapErr as _,
        cudarc::{
            driver::{CudaFunction, CudaSlice, DevicePtr as _, DeviceRepr, LaunchConfig, PushKernelArg as _},
            nvrtc::{CompileOptions, compile_ptx_with_opts},
        },
    },
};

use super::{Parameters, Source, THREADS};

/// A kernel by name; its source is compiled at the first call of a process.
pub fn function(device: &CudaDevice, source: &Source, kernel: &str) -> Result<CudaFunction> {
    type Compiled = std::result::Result<&'static str, String>;
    static TEXTS: OnceLock<Mutex<HashMap<&'static str, Compiled>>> = OnceLock::new();
    let mut texts = TEXTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || {
        // Every operation rounded on its own, as on the CPU.
        let options = CompileOptions {
            fmad: Some(false),
            ftz: Some(false),
            prec_sqrt: Some(true),
            prec_div: Some(true),
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(source.whole(), options).map_err(|error| format!("{error:?}"))?;
        // Once for each source, for as long as the process lives.
        Ok(&*Box::leak(ptx.to_src().into_boxed_str()))
    };
    match texts.entry(source.name).or_insert_with(compile) {
        Ok(ptx) => Ok(device.get_or_load_custom_func(kernel, source.name, ptx)?.into_cuda_function()),
        Err(error) => bail!("the kernels `{}` do not compile (is libnvrtc.so.13 installed?): {error}", source.name),
    }
}

/// Parameters as cudarc passes them: by value.
#[repr(transparent)]
struct Passed<P>(P);
// SAFETY: `Parameters` are what the kernel declares.
unsafe impl<P: Parameters> DeviceRepr for Passed<P> {}

/// # Safety
/// As [`super::Call::launch`].
pub unsafe fn launch<P: Parameters>(
    device: &CudaDevice,
    source: &Source,
    kernel: &str,
    threads: u64,
    parameters: &P,
) -> Result<()> {
    let function = function(device, source, kernel)?;
    // SAFETY: the caller's.
    unsafe { enqueue(device, &function, threads, parameters) }
}

/// The same of a function that was looked up before.
///
/// # Safety
/// As [`super::Call::launch`].
pub unsafe fn enqueue<P: Parameters>(
    device: &CudaDevice,
    function: &CudaFunction,
    threads: u64,
    parameters: &P,
) -> Result<()> {
    let Ok(blocks) = u32::try_from(threads.div_ceil(u64::from(THREADS))) else {
        bail!("{threads} threads are too many for one launch")
    };
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    let (stream, passed) = (device.cuda_stream(), Passed(*parameters));
    let mut arguments = stream.launch_builder(function);
    arguments.arg(&passed).arg(&threads);
    // SAFETY: the caller's.
    unsafe { arguments.launch(config) }.w()?;
    Ok(())
}

/// A copy of bytes on the device.
pub fn upload(device: &CudaDevice, bytes: &[u8]) -> Result<CudaSlice<u8>> {
    if bytes.is_empty() {
        // SAFETY: nothing is read of it.
        return unsafe { device.alloc::<u8>(1) };
    }
    device.clone_htod(bytes)
}

pub fn address<T>(slice: &CudaSlice<T>) -> u64 {
    let stream = slice.stream().clone();
    let (address, _) = slice.device_ptr(&stream);
    address
}

pub fn storage_address(storage: &CudaStorage) -> Result<u64> {
    fn of<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
        Ok(address(T::as_cuda_slice(storage)?))
    }
    match candle_core::backend::BackendStorage::dtype(storage) {
        DType::F32 => of::<f32>(storage),
        DType::F64 => of::<f64>(storage),
        DType::U32 => of::<u32>(storage),
        DType::U8 => of::<u8>(storage),
        other => bail!("kernels read no {other:?}"),
    }
}

/// Memory for numbers that a kernel writes.
pub fn empty(device: &CudaDevice, len: usize, dtype: DType) -> Result<CudaStorage> {
    fn of<T: CudaDType + DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaStorage> {
        // SAFETY: the caller has kernels write before anything reads. An empty allocation is an error.
        Ok(T::wrap_cuda_slice(unsafe { device.alloc::<T>(len.max(1))? }, device.clone()))
    }
    match dtype {
        DType::F32 => of::<f32>(device, len),
        DType::F64 => of::<f64>(device, len),
        DType::U32 => of::<u32>(device, len),
        DType::U8 => of::<u8>(device, len),
        other => bail!("kernels make no {other:?}"),
    }
}

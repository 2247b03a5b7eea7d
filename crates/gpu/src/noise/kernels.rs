//! The kernels' launches.

use std::sync::OnceLock;

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, bail,
    cuda_backend::{
        CudaDType, WrapErr as _,
        cudarc::{
            driver::{CudaFunction, CudaSlice, CudaView, LaunchConfig, PushKernelArg as _},
            nvrtc::{CompileOptions, compile_ptx_with_opts},
        },
    },
};
use game::Key;

const SOURCE: &str = include_str!("noise.cu");
const THREADS: u32 = 256;

/// A kernel by name, compiled at the first call of a process.
fn kernel(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let ptx = PTX.get_or_init(|| {
        // Every operation rounded on its own, as on the CPU.
        let options = CompileOptions {
            fmad: Some(false),
            ftz: Some(false),
            prec_sqrt: Some(true),
            prec_div: Some(true),
            ..CompileOptions::default()
        };
        compile_ptx_with_opts(SOURCE, options).map(|ptx| ptx.to_src()).map_err(|error| format!("{error:?}"))
    });
    match ptx {
        Ok(ptx) => Ok(device.get_or_load_custom_func(name, "keyed-noise", ptx)?.into_cuda_function()),
        Err(error) => bail!("the kernels of noise do not compile (is libnvrtc.so.13 installed?): {error}"),
    }
}

/// One launch: the keys on the device, the numbers of images and of each image's entries, and room for the result.
struct Launch {
    words: CudaSlice<u32>,
    images: u64,
    len: u64,
    out: CudaSlice<f32>,
    config: LaunchConfig,
}

impl Launch {
    fn new(keys: &[Key], len: usize, device: &CudaDevice) -> Result<Self> {
        let threads = keys.len() * len.div_ceil(4);
        let Ok(blocks) = u32::try_from(threads.div_ceil(THREADS as usize)) else {
            bail!("{} images of {len} numbers are too many for one launch", keys.len())
        };
        let words: Vec<u32> = keys.iter().flat_map(|key| key.words()).collect();
        Ok(Self {
            words: device.clone_htod(&words)?,
            images: keys.len() as u64,
            len: len as u64,
            // SAFETY: every kernel writes every entry.
            out: unsafe { device.alloc::<f32>(keys.len() * len)? },
            config: LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 },
        })
    }

    /// Whether there is nothing to compute: a grid without blocks is an error.
    fn is_empty(&self) -> bool {
        self.config.grid_dim.0 == 0
    }
}

/// The numbers of a contiguous tensor.
fn view<'a>((storage, layout): (&'a CudaStorage, &Layout)) -> Result<CudaView<'a, f32>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(f32::as_cuda_slice(storage)?.slice(from..to)),
        None => bail!("noise reads contiguous images"),
    }
}

pub(super) fn uniform(keys: &[Key], len: usize, device: &CudaDevice) -> Result<CudaStorage> {
    let mut launch = Launch::new(keys, len, device)?;
    if !launch.is_empty() {
        let (stream, kernel) = (device.cuda_stream(), kernel(device, "uniform")?);
        let mut arguments = stream.launch_builder(&kernel);
        arguments.arg(&launch.words).arg(&launch.images).arg(&launch.len).arg(&mut launch.out);
        // SAFETY: the arguments are the kernel's, and no thread reaches beyond them.
        unsafe { arguments.launch(launch.config) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(launch.out, device.clone()))
}

pub(super) fn add_normal(
    keys: &[Key],
    len: usize,
    sigma: f32,
    clip: bool,
    x: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (mut launch, x, clip) = (Launch::new(keys, len, device)?, view(x)?, i32::from(clip));
    if !launch.is_empty() {
        let (stream, kernel) = (device.cuda_stream(), kernel(device, "add_normal")?);
        let mut arguments = stream.launch_builder(&kernel);
        arguments.arg(&launch.words).arg(&launch.images).arg(&launch.len);
        arguments.arg(&sigma).arg(&clip).arg(&x).arg(&mut launch.out);
        // SAFETY: the arguments are the kernel's, and no thread reaches beyond them.
        unsafe { arguments.launch(launch.config) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(launch.out, device.clone()))
}

pub(super) fn keep_inside(
    keys: &[Key],
    len: usize,
    sigma: f32,
    x: (&CudaStorage, &Layout),
    upstream: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (mut launch, x, upstream) = (Launch::new(keys, len, device)?, view(x)?, view(upstream)?);
    if !launch.is_empty() {
        let (stream, kernel) = (device.cuda_stream(), kernel(device, "keep_inside")?);
        let mut arguments = stream.launch_builder(&kernel);
        arguments.arg(&launch.words).arg(&launch.images).arg(&launch.len);
        arguments.arg(&sigma).arg(&x).arg(&upstream).arg(&mut launch.out);
        // SAFETY: the arguments are the kernel's, and no thread reaches beyond them.
        unsafe { arguments.launch(launch.config) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(launch.out, device.clone()))
}

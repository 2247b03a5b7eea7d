//! Kernels of our own: C++ for CUDA, compiled by NVRTC at their first use, or for the host by a C++ compiler in tests.
//!
//! A [`Source`] is a text that stands behind `prelude.cu`, which says how a kernel is written. A [`Call`] binds tensors to
//! addresses, launches kernels on them where they lie, and hands back what they made. The device's queue is not waited
//! for.

#[cfg(feature = "cuda")]
mod device;
mod host;
mod tied;

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail, op::BackpropOp};

pub use host::on_host;
pub use tied::Backward;

const PRELUDE: &str = include_str!("prelude.cu");
#[cfg(feature = "cuda")]
pub(crate) use device::address as address_of;

#[cfg(feature = "cuda")]
const THREADS: u32 = 256;

/// The text of some kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Under which it is kept once compiled: no other source's.
    pub name: &'static str,
    /// C++, without the prelude.
    pub text: &'static str,
}

/// The text of a file whose kernels work on `NUMBER`s, for f32: `load` and `store` are between them and `float`.
#[macro_export]
macro_rules! f32_text {
    ($file:literal) => {
        concat!(
            "#define BF16 0\ntypedef float NUMBER;\n",
            "INLINE float load(NUMBER x) { return x; }\nINLINE NUMBER store(float x) { return x; }\n",
            include_str!($file)
        )
    };
}
/// The same text for bf16, rounded to the nearest.
#[macro_export]
macro_rules! bf16_text {
    ($file:literal) => {
        concat!(
            "#define BF16 1\ntypedef u16 NUMBER;\n",
            "INLINE float load(NUMBER x) { return of_bf16(x); }\nINLINE NUMBER store(float x) { return to_bf16(x); }\n",
            include_str!($file)
        )
    };
}
pub use crate::{bf16_text, f32_text};

impl Source {
    fn whole(&self) -> String {
        format!("{PRELUDE}\n#line 1 \"{}.cu\"\n{}", self.name, self.text)
    }
}

/// What a kernel is given: a structure that lies in memory as its namesake in the kernel's source does.
///
/// # Safety
/// It is `#[repr(C)]`, has the fields of the kernel's structure in their order, and holds addresses (as `u64`) that the
/// kernel may use as it does.
pub unsafe trait Parameters: Copy {}

/// Numbers that are the same bytes on every device.
///
/// # Safety
/// Every byte of it is initialised.
pub unsafe trait Plain: Copy {}
// SAFETY: primitive numbers have no padding.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}

/// Whether kernels can be launched where this tensor is: on a GPU of this build, or on the CPU within [`on_host`].
#[must_use]
pub fn run_at(device: &Device) -> bool {
    cfg!(feature = "cuda") && device.is_cuda() || device.is_cpu() && host::is_on()
}

/// Whether kernels of f32 can be launched on this tensor: it is f32, and [they run](run_at) where it is.
#[must_use]
pub fn takes(x: &Tensor) -> bool {
    run_at(x.device()) && x.dtype() == DType::F32
}

/// Kernels launched on tensors: what they read stays until the call is dropped.
#[derive(Debug)]
pub struct Call {
    device: Device,
    kept: Vec<Kept>,
}

/// Memory whose address was given away.
#[derive(Debug)]
enum Kept {
    Tensor(#[expect(dead_code, reason = "kept alive")] Tensor),
    Bytes(#[expect(dead_code, reason = "kept alive")] Box<[u64]>),
    #[cfg(feature = "cuda")]
    Slice(#[expect(dead_code, reason = "kept alive")] candle_core::cuda_backend::cudarc::driver::CudaSlice<u8>),
}

/// A tensor that kernels write: its address, and the tensor once they are launched.
#[derive(Debug)]
pub struct Output {
    /// Where to write.
    pub address: u64,
    storage: Storage,
    shape: Shape,
}

impl Output {
    /// How many numbers it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.elem_count()
    }

    /// The tensor; read it on the same device, whose queue keeps the order.
    #[must_use]
    pub fn tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

impl Call {
    /// On this device.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), kept: Vec::new() }
    }

    /// The address of a tensor's first number; its numbers follow row by row.
    ///
    /// # Errors
    /// If it is on another device, or a copy of one that is not contiguous cannot be made.
    pub fn read(&mut self, x: &Tensor, dtype: DType) -> Result<u64> {
        if x.dtype() != dtype || !x.device().same_device(&self.device) {
            bail!("a kernel for {dtype:?} on {:?} got {:?} on {:?}", self.device, x.dtype(), x.device())
        }
        let x = x.detach().contiguous()?;
        let address = {
            let (storage, layout) = x.storage_and_layout();
            address(&storage)? + (layout.start_offset() * x.dtype().size_in_bytes()) as u64
        };
        self.kept.push(Kept::Tensor(x));
        Ok(address)
    }

    /// The address of a copy of some numbers.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn upload<T: Plain>(&mut self, numbers: &[T]) -> Result<u64> {
        // SAFETY: `Plain` has no uninitialised byte.
        let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) };
        let (kept, address) = match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let slice = device::upload(device, bytes)?;
                let address = device::address(&slice);
                (Kept::Slice(slice), address)
            }
            _ => {
                let mut words = vec![0u64; bytes.len().div_ceil(8)].into_boxed_slice();
                // SAFETY: the words have room for the bytes.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_mut_ptr().cast(), bytes.len()) };
                let address = words.as_ptr() as u64;
                (Kept::Bytes(words), address)
            }
        };
        self.kept.push(kept);
        Ok(address)
    }

    /// A tensor of numbers that are anything until a kernel writes them: f32, f64, u32 or u8.
    ///
    /// # Errors
    /// If the device has no memory for it, or numbers of another type are asked for.
    pub fn output(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Output> {
        let shape = shape.into();
        let len = shape.elem_count();
        let storage = match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Storage::Cuda(device::empty(device, len, dtype)?),
            _ => Storage::Cpu(match dtype {
                DType::F32 => CpuStorage::F32(vec![f32::NAN; len]),
                DType::F64 => CpuStorage::F64(vec![f64::NAN; len]),
                DType::U32 => CpuStorage::U32(vec![u32::MAX; len]),
                DType::U8 => CpuStorage::U8(vec![u8::MAX; len]),
                other => bail!("kernels make no {other:?}"),
            }),
        };
        Ok(Output { address: address(&storage)?, storage, shape })
    }

    /// The address of so many numbers that are anything until a kernel writes them, and that no tensor is made of.
    ///
    /// # Errors
    /// As [`Call::output`].
    pub fn room(&mut self, count: usize, dtype: DType) -> Result<u64> {
        let room = self.output(count, dtype)?;
        let address = room.address;
        self.kept.push(Kept::Tensor(room.tensor()));
        Ok(address)
    }

    /// Launches `kernel` of `source` with so many threads.
    ///
    /// # Errors
    /// If the source does not compile, the kernel is not there, or the device fails; errors of its threads show later.
    ///
    /// # Safety
    /// With these parameters no thread reads or writes but what this call's tensors hold.
    pub unsafe fn launch(
        &self,
        source: &Source,
        kernel: &str,
        threads: usize,
        parameters: &impl Parameters,
    ) -> Result<()> {
        if threads == 0 {
            return Ok(());
        }
        match &self.device {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's.
            Device::Cuda(device) => unsafe { device::launch(device, source, kernel, threads as u64, parameters) },
            // SAFETY: the caller's.
            Device::Cpu => unsafe { host::launch(source, kernel, threads as u64, parameters) },
            device => bail!("there are no kernels for {device:?}"),
        }
    }
}

/// Where a storage's numbers begin.
fn address(storage: &Storage) -> Result<u64> {
    Ok(match storage {
        Storage::Cpu(CpuStorage::F32(numbers)) => numbers.as_ptr() as u64,
        Storage::Cpu(CpuStorage::F64(numbers)) => numbers.as_ptr() as u64,
        Storage::Cpu(CpuStorage::U32(numbers)) => numbers.as_ptr() as u64,
        Storage::Cpu(CpuStorage::U8(numbers)) => numbers.as_ptr() as u64,
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => device::storage_address(storage)?,
        _ => bail!("kernels read f32, f64, u32 and u8"),
    })
}

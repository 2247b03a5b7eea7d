//! Convolutions by cuDNN.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    mem::ManuallyDrop,
    sync::Arc,
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, WithDType, bail,
    cuda_backend::{
        CudaDType, DeviceId,
        cudarc::{
            cudnn::{
                ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType,
                FilterDescriptor, TensorDescriptor,
                sys::{
                    cudnnConvolutionBwdDataAlgo_t as InputAlgorithm,
                    cudnnConvolutionBwdFilterAlgo_t as WeightAlgorithm, cudnnConvolutionFwdAlgo_t as ForwardAlgorithm,
                    cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                    cudnnMathType_t as Math,
                    cudnnTensorFormat_t::{CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC},
                },
            },
            driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop},
        },
    },
};
use half::bf16;

use super::{Order, Problem, Wanted};
use crate::kernels;

/// A convolution with its descriptors and the algorithm that cuDNN proposes for it.
pub(super) enum Prepared {
    F32(Described<f32, f32>),
    F64(Described<f64, f64>),
    /// Sums of bf16 products are in f32.
    Bf16(Described<bf16, f32>),
}

/// Of numbers `T`, with sums in `S`.
pub(super) struct Described<T: CudnnDataType, S: CudnnDataType> {
    x: TensorDescriptor<T>,
    w: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
    conv: ConvDescriptor<S>,
    algorithm: Algorithm,
    workspace: usize,
    shapes: [[usize; 4]; 3],
}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(ForwardAlgorithm),
    Input(InputAlgorithm),
    Weight(WeightAlgorithm),
}

/// A handle for one thread at a time.
pub(super) fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    Ok(Cudnn::new(device.cuda_stream())?)
}

impl Prepared {
    pub fn new(cudnn: &Arc<Cudnn>, problem: &Problem, wanted: Wanted) -> Result<Self> {
        Ok(match problem.dtype {
            DType::F32 => Self::F32(Described::new(cudnn, problem, wanted)?),
            DType::F64 => Self::F64(Described::new(cudnn, problem, wanted)?),
            DType::BF16 => Self::Bf16(Described::new(cudnn, problem, wanted)?),
            other => bail!("convolutions of {other:?} are not supported"),
        })
    }

    /// Bytes of the workspace.
    pub const fn workspace(&self) -> usize {
        match self {
            Self::F32(described) => described.workspace,
            Self::F64(described) => described.workspace,
            Self::Bf16(described) => described.workspace,
        }
    }

    /// Queues it on addresses of the operands, the result and the workspace.
    ///
    /// # Safety
    /// The memory there is of the shapes and numbers described, and as large as the workspace must be.
    pub unsafe fn enqueue(
        &self,
        device: &CudaDevice,
        operands: [u64; 2],
        out: u64,
        accumulate: bool,
        workspace: u64,
    ) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::F32(described) => described.enqueue(device, operands, out, accumulate, workspace),
                Self::F64(described) => described.enqueue(device, operands, out, accumulate, workspace),
                Self::Bf16(described) => described.enqueue(device, operands, out, accumulate, workspace),
            }
        }
    }
}

impl<T: CudnnDataType + WithDType + DeviceRepr, S: CudnnDataType> Described<T, S> {
    fn new(cudnn: &Arc<Cudnn>, problem: &Problem, wanted: Wanted) -> Result<Self> {
        let geometry = problem.geometry;
        let order = match problem.order {
            Order::Nchw => CUDNN_TENSOR_NCHW,
            Order::Nhwc => CUDNN_TENSOR_NHWC,
        };
        let (padding, stride) = (int(geometry.padding)?, int([geometry.stride; 2])?);
        let mut conv = cudnn.create_conv2d::<S>(padding, stride, [1, 1], CUDNN_CROSS_CORRELATION)?;
        conv.set_group_count(int([geometry.groups])?[0])?;
        conv.set_math_type(math(problem))?;
        let x = cudnn.create_4d_tensor::<T>(order, int(geometry.x)?)?;
        let y = cudnn.create_4d_tensor::<T>(order, int(geometry.y())?)?;
        let w = cudnn.create_4d_filter::<T>(order, int(geometry.w)?)?;
        let (algorithm, workspace) = choose(wanted, &conv, &x, &w, &y)?;
        Ok(Self { x, w, y, conv, algorithm, workspace, shapes: [geometry.x, geometry.w, geometry.y()] })
    }

    unsafe fn enqueue(
        &self,
        device: &CudaDevice,
        [a, b]: [u64; 2],
        out: u64,
        accumulate: bool,
        workspace: u64,
    ) -> Result<()> {
        let Self { x, w, y, conv, .. } = self;
        let stream = device.cuda_stream();
        let raw = |address: u64, len: usize| Raw { address, len, stream: stream.clone() };
        let of = |address, shape: [usize; 4]| raw(address, shape.iter().product());
        let mut room = (self.workspace > 0).then(|| raw(workspace, self.workspace));
        let scales = (T::from_f64(1.0), T::from_f64(if accumulate { 1.0 } else { 0.0 }));
        let [x_shape, w_shape, y_shape] = self.shapes;
        // SAFETY: the caller's.
        unsafe {
            match self.algorithm {
                Algorithm::Forward(algorithm) => {
                    let (a, b, mut out) = (of(a, x_shape), of(b, w_shape), of(out, y_shape));
                    ConvForward { conv, x, w, y }.launch(algorithm, room.as_mut(), scales, &a, &b, &mut out)?;
                }
                Algorithm::Input(algorithm) => {
                    let (a, b, mut out) = (of(a, w_shape), of(b, y_shape), of(out, x_shape));
                    let op = ConvBackwardData { conv, dx: x, w, dy: y };
                    op.launch(algorithm, room.as_mut(), scales, &mut out, &a, &b)?;
                }
                Algorithm::Weight(algorithm) => {
                    let (a, b, mut out) = (of(a, x_shape), of(b, y_shape), of(out, w_shape));
                    let op = ConvBackwardFilter { conv, x, dw: w, dy: y };
                    op.launch(algorithm, room.as_mut(), scales, &a, &mut out, &b)?;
                }
            }
        }
        Ok(())
    }
}

/// cuDNN's proposal, which depends on the problem and the device alone, and the bytes of its workspace.
fn choose<T: CudnnDataType, S: CudnnDataType>(
    wanted: Wanted,
    conv: &ConvDescriptor<S>,
    x: &TensorDescriptor<T>,
    w: &FilterDescriptor<T>,
    y: &TensorDescriptor<T>,
) -> Result<(Algorithm, usize)> {
    Ok(match wanted {
        Wanted::Y => {
            let op = ConvForward { conv, x, w, y };
            let algorithm = op.pick_algorithm()?;
            (Algorithm::Forward(algorithm), op.get_workspace_size(algorithm)?)
        }
        Wanted::X => {
            let op = ConvBackwardData { conv, dx: x, w, dy: y };
            let algorithm = match op.pick_algorithm()? {
                // It adds in whatever order its threads come.
                InputAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 => InputAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
                other => other,
            };
            (Algorithm::Input(algorithm), op.get_workspace_size(algorithm)?)
        }
        Wanted::W => {
            let op = ConvBackwardFilter { conv, x, dw: w, dy: y };
            let algorithm = match op.pick_algorithm()? {
                // These add in whatever order their threads come.
                WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0
                | WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3 => {
                    WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
                }
                other => other,
            };
            (Algorithm::Weight(algorithm), op.get_workspace_size(algorithm)?)
        }
    })
}

/// How products are made. cuDNN's default takes TF32 for f32 where the device has it, unasked.
fn math(problem: &Problem) -> Math {
    match problem.dtype {
        DType::F32 if !problem.tf32 => Math::CUDNN_FMA_MATH,
        DType::F32 | DType::BF16 => Math::CUDNN_TENSOR_OP_MATH,
        _ => Math::CUDNN_DEFAULT_MATH,
    }
}

/// Lengths as cuDNN counts them.
fn int<const N: usize>(lengths: [usize; N]) -> Result<[i32; N]> {
    let mut out = [0; N];
    for (out, length) in out.iter_mut().zip(lengths) {
        let Ok(length) = i32::try_from(length) else { bail!("a length of {length} is too large for cuDNN") };
        *out = length;
    }
    Ok(out)
}

/// Memory of which only the address is known.
struct Raw {
    address: u64,
    len: usize,
    stream: Arc<CudaStream>,
}

impl<T> DeviceSlice<T> for Raw {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for Raw {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl<T> DevicePtrMut<T> for Raw {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

/// cuDNN on one device, as one thread uses it.
struct Library {
    cudnn: Arc<Cudnn>,
    prepared: HashMap<(Problem, Wanted), Prepared>,
    /// Shared by all calls, which follow each other on one stream.
    workspace: Option<CudaSlice<u8>>,
}

thread_local! {
    // Handles are no thread's but their own. Never dropped: at exit the driver may be gone before this is.
    static LIBRARIES: ManuallyDrop<RefCell<HashMap<DeviceId, Library>>> = ManuallyDrop::default();
}

/// What is wanted, from the two others in the order x, w, y.
pub(super) fn compute(
    problem: Problem,
    wanted: Wanted,
    a: (&CudaStorage, &Layout),
    b: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let device = &a.0.device;
    LIBRARIES.with(|libraries| {
        let mut libraries = libraries.borrow_mut();
        let library = match libraries.entry(device.id()) {
            Entry::Occupied(library) => library.into_mut(),
            Entry::Vacant(place) => {
                place.insert(Library { cudnn: handle(device)?, prepared: HashMap::new(), workspace: None })
            }
        };
        match problem.dtype {
            DType::F32 => library.compute::<f32>(problem, wanted, device, a, b),
            DType::F64 => library.compute::<f64>(problem, wanted, device, a, b),
            DType::BF16 => library.compute::<bf16>(problem, wanted, device, a, b),
            other => bail!("convolutions of {other:?} are not supported"),
        }
    })
}

impl Library {
    fn compute<T: CudaDType + DeviceRepr>(
        &mut self,
        problem: Problem,
        wanted: Wanted,
        device: &CudaDevice,
        a: (&CudaStorage, &Layout),
        b: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let Self { cudnn, prepared, workspace } = self;
        let op = match prepared.entry((problem, wanted)) {
            Entry::Occupied(op) => op.into_mut(),
            Entry::Vacant(place) => place.insert(Prepared::new(cudnn, &problem, wanted)?),
        };
        let operands = [start::<T>(a)?, start::<T>(b)?];
        let len = problem.geometry.shapes(wanted)[2].iter().product();
        // SAFETY: with a second scale of 0 cuDNN writes every element and reads none.
        let out = unsafe { device.alloc::<T>(len)? };
        let room = room(workspace, op.workspace(), device)?;
        // SAFETY: the operands have the descriptors' shapes and type, as the caller and `start` have checked.
        unsafe { op.enqueue(device, operands, kernels::address_of(&out), false, room)? };
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

/// The address of the workspace, with at least so many bytes; anything where none are needed.
fn room(workspace: &mut Option<CudaSlice<u8>>, bytes: usize, device: &CudaDevice) -> Result<u64> {
    if bytes > 0 && workspace.as_ref().is_none_or(|workspace| workspace.len() < bytes) {
        // Given back first, so that both need not fit.
        *workspace = None;
        // SAFETY: cuDNN writes before it reads.
        *workspace = Some(unsafe { device.alloc::<u8>(bytes)? });
    }
    Ok(workspace.as_ref().map_or(0, kernels::address_of))
}

/// The address of a contiguous tensor's numbers.
fn start<T: CudaDType + DeviceRepr>((storage, layout): (&CudaStorage, &Layout)) -> Result<u64> {
    match layout.contiguous_offsets() {
        Some((from, _)) => Ok(kernels::address_of(storage.as_cuda_slice::<T>()?) + (from * size_of::<T>()) as u64),
        None => bail!("a convolution reads contiguous tensors"),
    }
}

//! Convolutions by cuDNN.

use std::{cell::RefCell, collections::HashMap, mem::ManuallyDrop, sync::Arc};

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, WithDType, bail,
    cuda_backend::{
        CudaDType, DeviceId,
        cudarc::{
            cudnn::{
                ConvBackwardData, ConvBackwardFilter, ConvForward, Cudnn, CudnnDataType,
                sys::{
                    cudnnConvolutionBwdDataAlgo_t as InputAlgorithm,
                    cudnnConvolutionBwdFilterAlgo_t as WeightAlgorithm, cudnnConvolutionFwdAlgo_t as ForwardAlgorithm,
                    cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION, cudnnMathType_t as Math,
                    cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
                },
            },
            driver::{CudaSlice, CudaView, DeviceRepr},
        },
    },
};
use half::bf16;

use super::{Geometry, Wanted};

/// All that an algorithm's choice depends on, but for what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub geometry: Geometry,
    pub dtype: DType,
    pub tf32: bool,
}

/// An algorithm and the bytes of its workspace, by problem.
type Choices<A> = HashMap<Problem, (A, usize)>;

/// cuDNN on one device, as one thread uses it.
struct Library {
    cudnn: Arc<Cudnn>,
    forward: Choices<ForwardAlgorithm>,
    input: Choices<InputAlgorithm>,
    weight: Choices<WeightAlgorithm>,
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
        if !libraries.contains_key(&device.id()) {
            libraries.insert(device.id(), Library::new(device)?);
        }
        let Some(library) = libraries.get_mut(&device.id()) else { bail!("cuDNN is lost") };
        match problem.dtype {
            DType::F32 => library.compute::<f32, f32>(problem, wanted, device, a, b),
            DType::F64 => library.compute::<f64, f64>(problem, wanted, device, a, b),
            // Sums of bf16 products are in f32.
            DType::BF16 => library.compute::<bf16, f32>(problem, wanted, device, a, b),
            other => bail!("convolutions of {other:?} are not supported"),
        }
    })
}

impl Library {
    fn new(device: &CudaDevice) -> Result<Self> {
        let cudnn = Cudnn::new(device.cuda_stream())?;
        let (forward, input, weight) = Default::default();
        Ok(Self { cudnn, forward, input, weight, workspace: None })
    }

    /// In numbers `T`, with sums in `S`.
    fn compute<T, S>(
        &mut self,
        problem: Problem,
        wanted: Wanted,
        device: &CudaDevice,
        a: (&CudaStorage, &Layout),
        b: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage>
    where
        T: CudnnDataType + CudaDType + DeviceRepr + WithDType,
        S: CudnnDataType,
    {
        let Self { cudnn, forward, input, weight, workspace } = self;
        let Geometry { padding, stride, groups, .. } = problem.geometry;
        let mut conv = cudnn.create_conv2d::<S>(int(padding)?, int([stride; 2])?, [1, 1], CUDNN_CROSS_CORRELATION)?;
        conv.set_group_count(int([groups])?[0])?;
        conv.set_math_type(math(problem))?;
        let x = cudnn.create_4d_tensor::<T>(CUDNN_TENSOR_NCHW, int(problem.geometry.x)?)?;
        let y = cudnn.create_4d_tensor::<T>(CUDNN_TENSOR_NCHW, int(problem.geometry.y())?)?;
        let w = cudnn.create_4d_filter::<T>(CUDNN_TENSOR_NCHW, int(problem.geometry.w)?)?;
        let (a, b) = (view::<T>(a)?, view::<T>(b)?);
        let scales = (T::from_f64(1.0), T::from_f64(0.0));
        let out = match wanted {
            Wanted::Y => {
                let op = ConvForward { conv: &conv, x: &x, w: &w, y: &y };
                let (algorithm, bytes) = choose(forward, problem, || {
                    let algorithm = op.pick_algorithm()?;
                    Ok((algorithm, op.get_workspace_size(algorithm)?))
                })?;
                let mut out = empty::<T>(device, problem.geometry.y())?;
                // SAFETY: the operands have the descriptors' shapes and type, as the caller and `view` have checked.
                unsafe { op.launch(algorithm, room(workspace, bytes, device)?, scales, &a, &b, &mut out)? };
                out
            }
            Wanted::X => {
                let op = ConvBackwardData { conv: &conv, dx: &x, w: &w, dy: &y };
                let (algorithm, bytes) = choose(input, problem, || {
                    let algorithm = match op.pick_algorithm()? {
                        // It adds in whatever order its threads come.
                        InputAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 => {
                            InputAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1
                        }
                        other => other,
                    };
                    Ok((algorithm, op.get_workspace_size(algorithm)?))
                })?;
                let mut out = empty::<T>(device, problem.geometry.x)?;
                // SAFETY: as above.
                unsafe { op.launch(algorithm, room(workspace, bytes, device)?, scales, &mut out, &a, &b)? };
                out
            }
            Wanted::W => {
                let op = ConvBackwardFilter { conv: &conv, x: &x, dw: &w, dy: &y };
                let (algorithm, bytes) = choose(weight, problem, || {
                    let algorithm = match op.pick_algorithm()? {
                        // These add in whatever order their threads come.
                        WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0
                        | WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3 => {
                            WeightAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
                        }
                        other => other,
                    };
                    Ok((algorithm, op.get_workspace_size(algorithm)?))
                })?;
                let mut out = empty::<T>(device, problem.geometry.w)?;
                // SAFETY: as above.
                unsafe { op.launch(algorithm, room(workspace, bytes, device)?, scales, &a, &mut out, &b)? };
                out
            }
        };
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

/// How products are made. cuDNN's default takes TF32 for f32 where the device has it, unasked.
fn math(problem: Problem) -> Math {
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

/// The choice for this problem, made once.
fn choose<A: Copy>(
    choices: &mut Choices<A>,
    problem: Problem,
    choice: impl FnOnce() -> Result<(A, usize)>,
) -> Result<(A, usize)> {
    if let Some(&known) = choices.get(&problem) {
        return Ok(known);
    }
    let chosen = choice()?;
    choices.insert(problem, chosen);
    Ok(chosen)
}

/// The workspace, with at least so many bytes; none where none is needed.
fn room<'a>(
    workspace: &'a mut Option<CudaSlice<u8>>,
    bytes: usize,
    device: &CudaDevice,
) -> Result<Option<&'a mut CudaSlice<u8>>> {
    if bytes == 0 {
        return Ok(None);
    }
    if workspace.as_ref().is_none_or(|workspace| workspace.len() < bytes) {
        // Given back first, so that both need not fit.
        *workspace = None;
        // SAFETY: cuDNN writes before it reads.
        *workspace = Some(unsafe { device.alloc::<u8>(bytes)? });
    }
    Ok(workspace.as_mut())
}

/// Memory for a result, all of which the operation writes.
fn empty<T: DeviceRepr>(device: &CudaDevice, shape: [usize; 4]) -> Result<CudaSlice<T>> {
    // SAFETY: with a second scale of 0 cuDNN writes every element and reads none.
    unsafe { device.alloc::<T>(shape.iter().product()) }
}

/// The numbers of a contiguous tensor.
fn view<'a, T: CudaDType>((storage, layout): (&'a CudaStorage, &Layout)) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => bail!("a convolution reads contiguous tensors"),
    }
}

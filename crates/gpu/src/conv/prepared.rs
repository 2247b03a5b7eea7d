//! Convolutions that are asked again and again, of memory that its owner places.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, bail};

#[cfg(feature = "cudnn")]
use super::cudnn;
use super::{Order, Problem, Wanted};
use crate::kernels::{Call, Parameters, Source, bf16_text, f32_text};

/// Makes [`Prepared`] convolutions of one device.
pub struct Convolutions {
    device: Device,
    /// A handle of cuDNN is one thread's at a time.
    turn: Arc<Mutex<()>>,
    #[cfg(feature = "cudnn")]
    cudnn: Option<Arc<candle_core::cuda_backend::cudarc::cudnn::Cudnn>>,
}

/// A convolution or one of its gradients with its algorithm chosen.
pub struct Prepared {
    problem: Problem,
    wanted: Wanted,
    accumulate: bool,
    turn: Arc<Mutex<()>>,
    by: By,
}

// SAFETY: handles and descriptors of cuDNN may be used by any thread, by one at a time: whoever has the turn.
#[cfg(feature = "cudnn")]
unsafe impl Send for Convolutions {}
// SAFETY: as above.
#[cfg(feature = "cudnn")]
unsafe impl Sync for Convolutions {}
// SAFETY: as above.
#[cfg(feature = "cudnn")]
unsafe impl Send for Prepared {}
// SAFETY: as above.
#[cfg(feature = "cudnn")]
unsafe impl Sync for Prepared {}

enum By {
    #[cfg(feature = "cudnn")]
    Cudnn(candle_core::CudaDevice, Box<cudnn::Prepared>),
    /// The definition, in tests.
    Host,
}

impl std::fmt::Debug for Convolutions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Convolutions").field("device", &self.device).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { problem, wanted, accumulate, .. } = self;
        let mut debug = f.debug_struct("Prepared");
        debug.field("problem", problem).field("wanted", wanted).field("accumulate", accumulate).finish_non_exhaustive()
    }
}

impl Convolutions {
    /// Of a GPU; on the CPU for tests only.
    ///
    /// # Errors
    /// If cuDNN is not installed.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "cudnn")]
            cudnn: match device {
                Device::Cuda(device) => Some(cudnn::handle(device)?),
                _ => None,
            },
            turn: Arc::default(),
            device: device.clone(),
        })
    }

    /// The convolution of `problem`, or a gradient of it, put where it is told or added to what is there.
    ///
    /// # Errors
    /// If cuDNN has no algorithm for it, or this build has no cuDNN.
    pub fn prepare(&self, problem: Problem, wanted: Wanted, accumulate: bool) -> Result<Prepared> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let by = match &self.device {
            #[cfg(feature = "cudnn")]
            Device::Cuda(device) => match &self.cudnn {
                Some(cudnn) => By::Cudnn(device.clone(), Box::new(cudnn::Prepared::new(cudnn, &problem, wanted)?)),
                None => bail!("cuDNN is lost"),
            },
            Device::Cpu if wanted != Wanted::W => By::Host,
            device => bail!("there are no prepared convolutions on {device:?}"),
        };
        Ok(Prepared { problem, wanted, accumulate, turn: self.turn.clone(), by })
    }
}

impl Prepared {
    /// Bytes of the workspace.
    #[must_use]
    pub fn workspace(&self) -> usize {
        match &self.by {
            #[cfg(feature = "cudnn")]
            By::Cudnn(_, prepared) => prepared.workspace(),
            By::Host => 0,
        }
    }

    /// Queues it on addresses of its operands (in the order x, w, y), its result and the workspace.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// The memory there is of the problem's shapes and numbers, and has room for the workspace.
    pub unsafe fn enqueue(&self, operands: [u64; 2], out: u64, workspace: u64) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's.
        unsafe {
            match &self.by {
                #[cfg(feature = "cudnn")]
                By::Cudnn(device, prepared) => prepared.enqueue(device, operands, out, self.accumulate, workspace),
                By::Host => {
                    let _ = workspace;
                    self.by_definition(operands, out)
                }
            }
        }
    }

    unsafe fn by_definition(&self, [a, b]: [u64; 2], out: u64) -> Result<()> {
        let source = match self.problem.dtype {
            DType::F32 => Source { name: "convolution-f32", text: f32_text!("convolution.cu") },
            DType::BF16 => Source { name: "convolution-bf16", text: bf16_text!("convolution.cu") },
            other => bail!("prepared convolutions are of f32 or bf16, not {other:?}"),
        };
        let g = &self.problem.geometry;
        let ([_, c, h, width], [o, _, rows, columns], [_, _, oh, ow]) =
            (g.x.map(|x| x as u32), g.w.map(|w| w as u32), g.y().map(|y| y as u32));
        let [top, left] = g.padding.map(|padding| padding as u32);
        let (x, w, y, kernel) = match self.wanted {
            Wanted::Y => (a, b, 0, "convolve"),
            _ => (0, a, b, "convolve_back"),
        };
        let (stride, groups) = (g.stride as u32, g.groups as u32);
        let (nhwc, accumulate) = (u32::from(self.problem.order == Order::Nhwc), u32::from(self.accumulate));
        let parameters = Convolution {
            x,
            w,
            y,
            out,
            c,
            h,
            width,
            o,
            oh,
            ow,
            rows,
            columns,
            stride,
            top,
            left,
            groups,
            nhwc,
            accumulate,
        };
        let threads = g.shapes(self.wanted)[2].iter().product();
        // SAFETY: the caller's.
        unsafe { Call::new(&Device::Cpu).launch(&source, kernel, threads, &parameters) }
    }
}

/// As its namesake in convolution.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Convolution {
    x: u64,
    w: u64,
    y: u64,
    out: u64,
    c: u32,
    h: u32,
    width: u32,
    o: u32,
    oh: u32,
    ow: u32,
    rows: u32,
    columns: u32,
    stride: u32,
    top: u32,
    left: u32,
    groups: u32,
    nhwc: u32,
    accumulate: u32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Convolution {}

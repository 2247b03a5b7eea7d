//! Convolutions as one custom operation, whose gradients are two others.

#[cfg(feature = "cudnn")]
mod cudnn;
mod prepared;
mod reference;

use candle_core::{
    CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage, bail,
};
use half::bf16;

use crate::Precision;

pub use prepared::{Convolutions, Prepared};

/// The shapes of a cross-correlation, and how its kernel moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Images `(n, c, h, w)`.
    pub x: [usize; 4],
    /// Kernels `(o, c / groups, rows, columns)`.
    pub w: [usize; 4],
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
    /// Step in pixels.
    pub stride: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Geometry {
    /// # Errors
    /// If the kernels do not fit the images.
    pub fn new(x: &Tensor, w: &Tensor, padding: [usize; 2], stride: usize, groups: usize) -> Result<Self> {
        let ((n, c, h, width), (o, per_group, rows, columns)) = (x.dims4()?, w.dims4()?);
        let geometry = Self { x: [n, c, h, width], w: [o, per_group, rows, columns], padding, stride, groups };
        let fits = groups > 0 && stride > 0 && c == per_group * groups && o % groups == 0;
        let small = rows > 0 && columns > 0 && rows <= h + 2 * padding[0] && columns <= width + 2 * padding[1];
        if !fits || !small || n == 0 || o == 0 || c == 0 {
            bail!("{geometry:?}: the kernels do not fit the images")
        }
        Ok(geometry)
    }

    /// The result's shape `(n, o, h', w')`.
    #[must_use]
    pub const fn y(&self) -> [usize; 4] {
        let rows = (self.x[2] + 2 * self.padding[0] - self.w[2]) / self.stride + 1;
        let columns = (self.x[3] + 2 * self.padding[1] - self.w[3]) / self.stride + 1;
        [self.x[0], self.w[0], rows, columns]
    }

    /// The shapes of both operands and of the result.
    fn shapes(&self, wanted: Wanted) -> [[usize; 4]; 3] {
        let (Self { x, w, .. }, y) = (*self, self.y());
        match wanted {
            Wanted::Y => [x, w, y],
            Wanted::X => [w, y, x],
            Wanted::W => [x, y, w],
        }
    }
}

/// The order of a tensor's numbers in memory; of kernels, outputs stand for images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Planes of channels: rows of pixels one after the other.
    Nchw,
    /// Pixels, each with its channels together.
    Nhwc,
}

/// A convolution with all that the choice of its algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The shapes.
    pub geometry: Geometry,
    /// The numbers.
    pub dtype: DType,
    /// Whether f32 factors may be rounded to TF32.
    pub tf32: bool,
    /// Of all three tensors.
    pub order: Order,
}

/// Which of the three is computed from the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The result, of images and kernels.
    Y,
    /// The gradient at the images, of kernels and the gradient at the result.
    X,
    /// The gradient at the kernels, of images and the gradient at the result.
    W,
}

/// A convolution or one of its gradients; the operands come in the order x, w, y.
#[derive(Clone, Copy, Debug)]
struct Convolution {
    geometry: Geometry,
    wanted: Wanted,
    /// Whether f32 factors may be rounded to TF32.
    #[cfg_attr(not(feature = "cudnn"), expect(dead_code, reason = "the CPU rounds no factor"))]
    tf32: bool,
}

/// Cross-correlation of `x` `(n, c, h, w)` with `w` `(o, c / groups, rows, columns)`, with gradients for both.
///
/// `padding` is rows above and below, and columns left and right. On a GPU it takes f32, f64 and bf16, of which `precision`
/// concerns f32 alone; on the CPU it is the slow reference, in double precision whatever the choice, rounded at the end.
/// The gradient of a tensor that asks for none is not computed. On a GPU the algorithm depends on the shapes, and with it
/// the last bits: the same images in another batch agree within rounding.
///
/// # Errors
/// If the shapes or types do not fit, or the device fails.
pub fn conv2d(
    x: &Tensor,
    w: &Tensor,
    padding: [usize; 2],
    stride: usize,
    groups: usize,
    precision: Precision,
) -> Result<Tensor> {
    if precision == Precision::Bf16 && x.dtype() == DType::F32 {
        let (x, w) = (x.to_dtype(DType::BF16)?, w.to_dtype(DType::BF16)?);
        return conv2d(&x, &w, padding, stride, groups, Precision::F32)?.to_dtype(DType::F32);
    }
    let geometry = Geometry::new(x, w, padding, stride, groups)?;
    let op = Convolution { geometry, wanted: Wanted::Y, tf32: precision == Precision::Tf32 };
    x.contiguous()?.apply_op2(&w.contiguous()?, op)
}

impl Convolution {
    /// Fails unless the operands are what the geometry says.
    fn check(&self, (a, a_layout): (DType, &Layout), (b, b_layout): (DType, &Layout)) -> Result<()> {
        let [first, second, _] = self.geometry.shapes(self.wanted);
        if a != b || a_layout.dims() != first || b_layout.dims() != second {
            bail!("{self:?}: not of {:?} ({a:?}) and {:?} ({b:?})", a_layout.dims(), b_layout.dims())
        }
        Ok(())
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        match self.wanted {
            Wanted::Y => "convolution",
            Wanted::X => "convolution-input-gradient",
            Wanted::W => "convolution-weight-gradient",
        }
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.check((a.dtype(), al), (b.dtype(), bl))?;
        let out = match a.dtype() {
            DType::F32 => self.slow::<f32>((a, al), (b, bl))?,
            DType::F64 => self.slow::<f64>((a, al), (b, bl))?,
            DType::BF16 => self.slow::<bf16>((a, al), (b, bl))?,
            other => bail!("convolutions of {other:?} are not supported"),
        };
        Ok((out, Shape::from(&self.geometry.shapes(self.wanted)[2])))
    }

    #[cfg(feature = "cudnn")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        al: &Layout,
        b: &candle_core::CudaStorage,
        bl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.check((a.dtype(), al), (b.dtype(), bl))?;
        let problem = Problem { geometry: self.geometry, dtype: a.dtype(), tf32: self.tf32, order: Order::Nchw };
        Ok((
            cudnn::compute(problem, self.wanted, (a, al), (b, bl))?,
            Shape::from(&self.geometry.shapes(self.wanted)[2]),
        ))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if self.wanted != Wanted::Y {
            bail!("the gradient of a convolution's gradient is not supported")
        }
        let dy = dy.contiguous()?;
        let dx = x.track_op().then(|| w.apply_op2_no_bwd(&dy, &Self { wanted: Wanted::X, ..*self }));
        let dw = w.track_op().then(|| x.apply_op2_no_bwd(&dy, &Self { wanted: Wanted::W, ..*self }));
        Ok((dx.transpose()?, dw.transpose()?))
    }
}

impl Convolution {
    fn slow<T: WithDType>(&self, a: (&CpuStorage, &Layout), b: (&CpuStorage, &Layout)) -> Result<CpuStorage> {
        let out = reference::compute::<T>(&self.geometry, self.wanted, numbers(a)?, numbers(b)?);
        Ok(T::to_cpu_storage_owned(out))
    }
}

/// The numbers of a contiguous tensor.
fn numbers<'a, T: WithDType>((storage, layout): (&'a CpuStorage, &Layout)) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&T::cpu_storage_as_slice(storage)?[from..to]),
        None => bail!("a convolution reads contiguous tensors"),
    }
}

#[cfg(test)]
mod tests;

//! Convolutions, frozen and trained, and linear layers as convolutions of one pixel.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::{
    Activation, Element, dispatch, kernel, kernel::Geometry, owned, plain, read, same_type, tensor, view, zeros,
};
use crate::{Padding, Precision};

/// How a kernel moves over a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Step in pixels.
    pub stride: usize,
    /// Zero padding.
    pub padding: Padding,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { stride: 1, padding: Padding::default(), groups: 1 }
    }
}

/// Cross-correlation of `x` `(n, c, h, w)` with `weight` `(o, c / groups, rows, columns)` and an optional `bias` `(o)`, with
/// gradients for all of them.
///
/// # Errors
/// If the shapes or types do not fit.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    same_type("convolution", x.dtype(), weight.dtype())?;
    if !x.device().is_cpu() {
        return plain::conv2d(x, weight, bias, window, Precision::F32);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Trained(window)),
        None => x.apply_op2(&weight, Trained(window)),
    }
}

/// `x weight^T + bias` of `(n, c)`, `(o, c)` and `(o)`, with gradients for all of them.
///
/// # Errors
/// If the shapes or types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let x = x.unsqueeze(2)?.unsqueeze(3)?;
    let weight = weight.unsqueeze(2)?.unsqueeze(3)?;
    conv2d(&x, &weight, Some(bias), Window::default())?.flatten_from(1)
}

/// A convolution whose gradients reach its weights.
#[derive(Debug)]
struct Trained(Window);

impl Trained {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let g = Geometry::new(x_layout.dims(), weight_layout.dims(), &self.0)?;
        dispatch!(candle_core::backend::BackendStorage::dtype(x), T => {
            let bias: Option<&[T]> = bias.map(|(bias, layout)| view(bias, layout)).transpose()?;
            let finish = |_: usize, out: &mut [T]| {
                if let Some(bias) = bias {
                    add_bias(&g, out, bias);
                }
            };
            Ok(owned(kernel::forward(&g, view::<T>(x, x_layout)?, view(weight, weight_layout)?, finish), g.output().to_vec()))
        })
    }

    fn backward(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = Geometry::new(x.dims(), weight.dims(), &self.0)?;
        dispatch!(dy.dtype(), T => read::<T, _>(dy, |dy| {
            let dx = x.track_op().then(|| {
                let dx = read::<T, _>(weight, |weight| kernel::input_gradient(&g, weight, dy))?;
                tensor(dx, x.shape())
            });
            let dw = weight.track_op().then(|| {
                let dw = read::<T, _>(x, |x| kernel::weight_gradient(&g, x, dy))?;
                tensor(dw, weight.shape())
            });
            Ok((dx.transpose()?, dw.transpose()?))
        })?)
    }
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, weight, dy)
    }
}

impl CustomOp3 for Trained {
    fn name(&self) -> &'static str {
        "conv2d-with-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), Some((b, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, weight, dy)?;
        let (_, o, ..) = dy.dims4()?;
        let plane = dy.elem_count() / dy.dim(0)?.max(1) / o;
        let db = dispatch!(dy.dtype(), T => tensor(read::<T, _>(dy, |dy| bias_gradient(dy, o, plane))?, bias.shape())?);
        Ok((dx, dw, Some(db)))
    }
}

fn add_bias<T: Element>(g: &Geometry, out: &mut [T], bias: &[T]) {
    for (plane, &bias) in out.chunks_mut(g.plane_out()).zip(bias) {
        plane.iter_mut().for_each(|out| *out += bias);
    }
}

fn bias_gradient<T: Element>(dy: &[T], o: usize, plane: usize) -> Vec<T> {
    let mut db = vec![T::zero(); o];
    for (i, plane) in dy.chunks(plane).enumerate() {
        db[i % o] += plane.iter().fold(T::zero(), |sum, &dy| sum + dy);
    }
    db
}

/// A convolution with fixed weights, an optional residual sum and an activation: `activation(x * weight + bias + y)`.
///
/// No gradient of the weights is ever computed.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// `(o, c / groups, rows, columns)`, contiguous.
    pub weight: Tensor,
    /// `(o)`, contiguous.
    pub bias: Option<Tensor>,
    /// How the kernel moves.
    pub window: Window,
    /// Applied last.
    pub activation: Activation,
    /// Of the products, where a GPU makes them; the CPU's are in the numbers' own type.
    pub precision: Precision,
}

impl Frozen {
    /// Of images `(n, c, h, w)`; `y` has the output's shape.
    ///
    /// # Errors
    /// If the shapes or types do not fit.
    pub fn apply(&self, x: &Tensor, y: Option<&Tensor>) -> Result<Tensor> {
        same_type("convolution", x.dtype(), self.weight.dtype())?;
        if !x.device().is_cpu() {
            let out = plain::conv2d(x, &self.weight, self.bias.as_ref(), self.window, self.precision)?;
            return match y {
                Some(y) => super::add(&out, y, self.activation),
                None => super::activate(&out, self.activation),
            };
        }
        match y {
            Some(y) => x.contiguous()?.apply_op2(&y.contiguous()?, self.clone()),
            None => x.contiguous()?.apply_op1(self.clone()),
        }
    }

    fn forward(&self, x: &CpuStorage, xl: &Layout, y: Option<(&CpuStorage, &Layout)>) -> Result<(CpuStorage, Shape)> {
        let g = Geometry::new(xl.dims(), self.weight.dims(), &self.window)?;
        if let Some((_, layout)) = y
            && layout.dims() != g.output()
        {
            candle_core::bail!("a sum of {:?} and {:?}", g.output(), layout.dims());
        }
        dispatch!(self.weight.dtype(), T => {
            let y: Option<&[T]> = y.map(|(y, layout)| view(y, layout)).transpose()?;
            let x: &[T] = view(x, xl)?;
            let bias = match &self.bias {
                Some(bias) => read::<T, _>(bias, <[T]>::to_vec)?,
                None => zeros::<T>(g.o),
            };
            let finish = |image: usize, out: &mut [T]| {
                let y = y.map(|y| &y[image * g.image_out()..][..g.image_out()]);
                finish(out, y, &bias, g.plane_out(), self.activation);
            };
            let out = read::<T, _>(&self.weight, |weight| kernel::forward(&g, x, weight, finish))?;
            Ok(owned(out, g.output().to_vec()))
        })
    }

    /// The gradients of `x` and of the residual.
    fn backward(&self, x: &Tensor, out: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let g = Geometry::new(x.dims(), self.weight.dims(), &self.window)?;
        let dy = super::pointwise::mask(out, dy, self.activation)?;
        let dx = dispatch!(dy.dtype(), T => read::<T, _>(&dy, |dy| {
            tensor(read::<T, _>(&self.weight, |weight| kernel::input_gradient(&g, weight, dy))?, x.shape())
        })??);
        Ok((dx, dy))
    }
}

/// Bias, residual and activation of one image.
fn finish<T: Element>(out: &mut [T], y: Option<&[T]>, bias: &[T], plane: usize, activation: Activation) {
    for (channel, (out, &bias)) in out.chunks_mut(plane).zip(bias).enumerate() {
        match y {
            Some(y) => {
                out.iter_mut().zip(&y[channel * plane..]).for_each(|(out, &y)| *out = activation.of(*out + bias + y))
            }
            None => out.iter_mut().for_each(|out| *out = activation.of(*out + bias)),
        }
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(x, xl, None)
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.backward(x, out, dy)?.0))
    }
}

impl CustomOp2 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-conv2d-with-residual"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, y: &CpuStorage, yl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(x, xl, Some((y, yl)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, out: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dy) = self.backward(x, out, dy)?;
        Ok((Some(dx), Some(dy)))
    }
}

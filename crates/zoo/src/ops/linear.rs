//! Linear layers over the last axis.

use candle_core::{Result, Tensor};
use nets::ops::Element;

use super::{
    Map,
    matrix::{Matrix, product},
};

/// `x weight^T + bias` over the last axis of `(n, .., c)`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `(o, c)`.
    pub weight: Tensor,
    /// `(o)`.
    pub bias: Tensor,
}

impl Linear {
    fn sizes(&self, dims: &[usize]) -> [usize; 3] {
        let (o, c) = self.weight.dims2().expect("a linear layer's weight is a matrix");
        [dims.iter().product::<usize>() / c, o, c]
    }
}

impl Map for Linear {
    const NAME: &'static str = "linear";

    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.weight, &self.bias]
    }

    fn shape(&self, dims: &[usize]) -> Vec<usize> {
        let mut shape = dims.to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.weight.dims()[0];
        }
        shape
    }

    fn forward<T: Element>(&self, dims: &[usize], parameters: &[&[T]], x: &[T], out: &mut [T]) {
        let [rows, o, c] = self.sizes(dims);
        product([rows, o, c], T::one(), out, o, Matrix::rows(x, c), Matrix::rows(parameters[0], c).transposed());
        for row in out.chunks_exact_mut(o) {
            row.iter_mut().zip(parameters[1]).for_each(|(out, &bias)| *out += bias);
        }
    }

    fn backward<T: Element>(&self, dims: &[usize], parameters: &[&[T]], _: &[T], dy: &[T], dx: &mut [T]) {
        let [rows, o, c] = self.sizes(dims);
        product([rows, c, o], T::one(), dx, c, Matrix::rows(dy, o), Matrix::rows(parameters[0], c));
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let dims = x.dims().to_vec();
        let [rows, _, c] = self.sizes(&dims);
        let out = x.contiguous()?.reshape((rows, c))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
        out.reshape(self.shape(&dims))
    }
}

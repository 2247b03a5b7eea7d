//! Self-attention.

use candle_core::{D, Result, Tensor};
use nets::ops::Element;

use super::{
    Map,
    matrix::{Matrix, product},
    sum,
};

/// Multi-head self-attention (Vaswani et al. 2017, section 3.2.2) between its two projections: `(n, t, 3 c)`, which are
/// the queries, keys and values of all heads, to `(n, t, c)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// Divides `c`.
    pub heads: usize,
}

/// The sizes of one image, and where the parts of one head are.
struct Sizes {
    t: usize,
    /// Channels of all heads.
    c: usize,
    /// Channels of one head.
    d: usize,
}

impl Attention {
    fn sizes(self, dims: &[usize]) -> Sizes {
        let c = dims[1] / 3;
        Sizes { t: dims[0], c, d: c / self.heads }
    }
}

impl Sizes {
    /// `part` 0 are the queries, 1 the keys, 2 the values.
    fn part<'a, T>(&self, x: &'a [T], part: usize, head: usize) -> Matrix<'a, T> {
        Matrix::rows(&x[part * self.c + head * self.d..], 3 * self.c)
    }

    fn scale<T: Element>(&self) -> T {
        T::of(1.0 / (self.d as f64).sqrt())
    }

    /// How much each token looks at each other.
    fn weights<T: Element>(&self, x: &[T], head: usize, weights: &mut [T]) {
        let (queries, keys) = (self.part(x, 0, head), self.part(x, 1, head));
        product([self.t, self.t, self.d], self.scale(), weights, self.t, queries, keys.transposed());
        for row in weights.chunks_exact_mut(self.t) {
            let largest = row.iter().copied().fold(T::neg_infinity(), |a, b| if b > a { b } else { a });
            row.iter_mut().for_each(|w| *w = (*w - largest).exp());
            let total = T::of(1.0 / sum(row.len(), |i| row[i]));
            row.iter_mut().for_each(|w| *w *= total);
        }
    }
}

impl Map for Attention {
    const NAME: &'static str = "attention";

    fn shape(&self, dims: &[usize]) -> Vec<usize> {
        vec![dims[0], dims[1] / 3]
    }

    fn forward<T: Element>(&self, dims: &[usize], _: &[&[T]], x: &[T], out: &mut [T]) {
        let sizes = self.sizes(dims);
        let mut weights = vec![T::zero(); sizes.t * sizes.t];
        for head in 0..self.heads {
            sizes.weights(x, head, &mut weights);
            let out = &mut out[head * sizes.d..];
            let (look, values) = (Matrix::rows(&weights[..], sizes.t), sizes.part(x, 2, head));
            product([sizes.t, sizes.d, sizes.t], T::one(), out, sizes.c, look, values);
        }
    }

    fn backward<T: Element>(&self, dims: &[usize], _: &[&[T]], x: &[T], dy: &[T], dx: &mut [T]) {
        let sizes = self.sizes(dims);
        let Sizes { t, c, d } = sizes;
        let (mut weights, mut scores) = (vec![T::zero(); t * t], vec![T::zero(); t * t]);
        for head in 0..self.heads {
            sizes.weights(x, head, &mut weights);
            let dy = Matrix::rows(&dy[head * d..], c);
            let at = |part: usize| part * c + head * d;
            product([t, d, t], T::one(), &mut dx[at(2)..], 3 * c, Matrix::rows(&weights[..], t).transposed(), dy);
            product([t, t, d], T::one(), &mut scores, t, dy, sizes.part(x, 2, head).transposed());
            for (scores, weights) in scores.chunks_exact_mut(t).zip(weights.chunks_exact(t)) {
                let mean = T::of(sum(t, |i| scores[i] * weights[i]));
                scores.iter_mut().zip(weights).for_each(|(score, &weight)| *score = weight * (*score - mean));
            }
            let scores = Matrix::rows(&scores[..], t);
            product([t, d, t], sizes.scale(), &mut dx[at(0)..], 3 * c, scores, sizes.part(x, 1, head));
            product([t, d, t], sizes.scale(), &mut dx[at(1)..], 3 * c, scores.transposed(), sizes.part(x, 0, head));
        }
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let (n, t, c) = x.dims3()?;
        let d = c / 3 / self.heads;
        let parts = x.reshape((n, t, 3, self.heads, d))?.permute((2, 0, 3, 1, 4))?;
        let part = |part: usize| parts.narrow(0, part, 1)?.squeeze(0)?.contiguous();
        let scores = (part(0)?.matmul(&part(1)?.t()?)? * (1.0 / (d as f64).sqrt()))?;
        // The softmax is the same whatever is subtracted, so no gradient passes there.
        let raised = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
        let weights = raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)?;
        weights.matmul(&part(2)?)?.transpose(1, 2)?.reshape((n, t, c / 3))
    }
}

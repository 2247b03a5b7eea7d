//! Position embeddings of DINOv2 on another grid than that they were trained on.

use candle_core::{DType, Result, Tensor};

/// Added to the number of patches a side in the authors' code, against rounding; it changes the result.
const OFFSET: f64 = 0.1;
/// The cubic's free parameter in PyTorch.
const A: f64 = -0.75;

/// Embeddings `(1, 1 + from^2, c)` on a grid of `to` places a side, `(1, 1 + to^2, c)`: bicubic, as DINOv2's authors resample
/// them whenever an image is not of 518 pixels (`interpolate_pos_encoding`, without anti-aliasing).
pub(crate) fn places(embeddings: &Tensor, from: usize, to: usize) -> Result<Tensor> {
    let c = embeddings.dim(2)?;
    let dtype = embeddings.dtype();
    let grid = embeddings.narrow(1, 1, from * from)?.to_dtype(DType::F64)?.reshape((from, from * c))?;
    let axis = Tensor::from_vec(matrix(from, to), (to, from), embeddings.device())?;
    // Rows, then columns.
    let rows = axis.matmul(&grid)?.reshape((to, from, c))?.transpose(0, 1)?.contiguous()?.reshape((from, to * c))?;
    let both = axis.matmul(&rows)?.reshape((to, to, c))?.transpose(0, 1)?.contiguous()?.reshape((1, to * to, c))?;
    Tensor::cat(&[embeddings.narrow(1, 0, 1)?, both.to_dtype(dtype)?], 1)
}

/// The weights of every old place in each new one, along one axis.
fn matrix(from: usize, to: usize) -> Vec<f64> {
    let step = from as f64 / (to as f64 + OFFSET);
    let mut weights = vec![0.0; to * from];
    for (place, row) in weights.chunks_exact_mut(from).enumerate() {
        let centre = (place as f64 + 0.5) * step - 0.5;
        let first = centre.floor();
        for tap in -1..=2 {
            let at = (first as isize + tap).clamp(0, from as isize - 1) as usize;
            row[at] += cubic(centre - first - tap as f64);
        }
    }
    weights
}

/// Keys' cubic convolution.
fn cubic(distance: f64) -> f64 {
    let x = distance.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

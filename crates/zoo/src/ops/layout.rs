//! Channels first, channels last.

use candle_core::{Result, Tensor};
use nets::ops::Element;

use super::Map;

/// Rows and columns change places.
#[derive(Clone, Copy, Debug)]
struct Swap;

/// `(n, a, b)` to `(n, b, a)`, in a new order in memory.
pub(crate) fn swap(x: &Tensor) -> Result<Tensor> {
    Swap.apply(x)
}

/// Side of the squares that are turned at once.
const TILE: usize = 16;

fn turn<T: Copy>(rows: usize, columns: usize, from: &[T], to: &mut [T]) {
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    to[column * rows + row] = from[row * columns + column];
                }
            }
        }
    }
}

impl Map for Swap {
    const NAME: &'static str = "swap";

    fn shape(&self, dims: &[usize]) -> Vec<usize> {
        vec![dims[1], dims[0]]
    }

    fn forward<T: Element>(&self, dims: &[usize], _: &[&[T]], x: &[T], out: &mut [T]) {
        turn(dims[0], dims[1], x, out);
    }

    fn backward<T: Element>(&self, dims: &[usize], _: &[&[T]], _: &[T], dy: &[T], dx: &mut [T]) {
        turn(dims[1], dims[0], dy, dx);
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        x.transpose(1, 2)?.contiguous()
    }
}

//! Products of matrices inside slices.

use gemm::Parallelism;
use nets::ops::Element;

/// A matrix inside a slice, by its strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    data: &'a [T],
    row: usize,
    column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows that are `row` apart, of numbers side by side.
    pub const fn rows(data: &'a [T], row: usize) -> Self {
        Self { data, row, column: 1 }
    }

    pub const fn transposed(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }
}

/// `out (m, n) = scale a (m, k) b (k, n)`, on one thread; the rows of `out` are `stride` apart.
pub(super) fn product<T: Element>(
    [m, n, k]: [usize; 3],
    scale: T,
    out: &mut [T],
    stride: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    let fits = |rows: usize, columns: usize, row: usize, column: usize, len: usize| {
        rows > 0 && columns > 0 && (rows - 1) * row + (columns - 1) * column < len
    };
    assert!(fits(m, n, stride, 1, out.len()) && fits(m, k, a.row, a.column, a.data.len()));
    assert!(fits(k, n, b.row, b.column, b.data.len()));
    // SAFETY: the assertions above keep every access inside the three slices, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::zero(),
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

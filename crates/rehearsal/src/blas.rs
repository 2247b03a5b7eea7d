//! cuBLAS's products of matrices (`libcublas.so.13`), column-major as there.

use std::ffi::{c_int, c_uint};

use rayon::prelude::*;

use crate::{
    convolution::{Kind, Sum, read, write},
    failure::{INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, Outcome, exported, fail},
    memory,
    numbers::tf32,
    stream,
};

/// The library's code of a failure's.
const fn code(failure: u32) -> u32 {
    match failure {
        INVALID_VALUE | INVALID_HANDLE => 7,
        NOT_SUPPORTED => 15,
        _ => 13,
    }
}

struct Handle {
    stream: usize,
    /// `cublasMath_t`; 3 allows TF32.
    math: c_uint,
}

unsafe fn borrow<'a>(handle: usize) -> Outcome<&'a mut Handle> {
    if handle == 0 {
        return fail(INVALID_HANDLE, "no handle");
    }
    // SAFETY: made by `Box::into_raw` here, and used by one thread at a time.
    Ok(unsafe { &mut *(handle as *mut Handle) })
}

/// A matrix of each product: its address, format, leading dimension, step to the next product's, and whether it is transposed.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    at: u64,
    kind: Kind,
    leading: usize,
    step: i64,
    turned: bool,
}

impl Matrix {
    fn new(at: u64, kind: Kind, leading: c_int, step: i64, operation: c_uint) -> Outcome<Self> {
        if leading <= 0 || operation > 2 {
            return fail(INVALID_VALUE, format!("leading dimension {leading}, operation {operation}"));
        }
        Ok(Self { at, kind, leading: leading as usize, step, turned: operation != 0 })
    }

    /// Fails unless each product's matrix of so many rows and columns, before it is turned, is live.
    fn check(&self, rows: usize, columns: usize, batch: usize, what: &str) -> Outcome {
        let [rows, columns] = if self.turned { [columns, rows] } else { [rows, columns] };
        if self.leading < rows.max(1) {
            return fail(INVALID_VALUE, format!("{what}: {rows} rows with a leading dimension of {}", self.leading));
        }
        for i in [0, batch as i64 - 1] {
            let address = self.at.wrapping_add_signed(i * self.step * self.kind.bytes() as i64);
            let bytes = if rows * columns == 0 { 0 } else { ((columns - 1) * self.leading + rows) * self.kind.bytes() };
            memory::check(address, bytes, what)?;
        }
        Ok(())
    }

    fn of(&self, product: usize) -> u64 {
        self.at.wrapping_add_signed(product as i64 * self.step * self.kind.bytes() as i64)
    }

    fn index(&self, row: usize, column: usize) -> usize {
        if self.turned { row * self.leading + column } else { column * self.leading + row }
    }
}

#[derive(Clone, Copy, Debug)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    batch: usize,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    scales: [f64; 2],
    rounded: bool,
}

impl Product {
    fn run(&self) -> Outcome {
        let Self { m, n, k, batch, a, b, c, .. } = *self;
        a.check(m, k, batch, "a product's first matrix")?;
        b.check(k, n, batch, "a product's second matrix")?;
        c.check(m, n, batch, "a product's result")?;
        for product in 0..batch {
            if a.kind == Kind::F64 { self.one::<f64>(product) } else { self.one::<f32>(product) }
        }
        Ok(())
    }

    fn one<S: Sum>(&self, product: usize) {
        let Self { m, n, k, a, b, c, scales: [alpha, beta], rounded, .. } = *self;
        let round = |x: f64| S::of(if rounded { tf32(x as f32).into() } else { x });
        // SAFETY: `run` has checked all three.
        let first: Vec<S> =
            (0..k * m).map(|i| round(unsafe { read(a.kind, a.of(product), a.index(i % m, i / m)) })).collect();
        (0..n).into_par_iter().for_each(|column| {
            let mut sums = vec![S::default(); m];
            for row in 0..k {
                // SAFETY: as above.
                let factor = round(unsafe { read(b.kind, b.of(product), b.index(row, column)) });
                for (sum, &x) in sums.iter_mut().zip(&first[row * m..][..m]) {
                    *sum += x * factor;
                }
            }
            for (row, sum) in sums.iter().enumerate() {
                let (to, at) = (c.of(product), c.index(row, column));
                // SAFETY: as above; each column is one task's.
                unsafe {
                    let old = if beta == 0.0 { 0.0 } else { beta * read(c.kind, to, at) };
                    write(c.kind, to, at, alpha * sum.wide() + old);
                }
            }
        });
    }
}

fn kind(number: c_uint) -> Outcome<Kind> {
    match number {
        0 => Ok(Kind::F32),
        1 => Ok(Kind::F64),
        2 => Ok(Kind::F16),
        14 => Ok(Kind::Bf16),
        _ => fail(NOT_SUPPORTED, format!("numbers of type {number}")),
    }
}

type Sizes = [c_int; 4];

unsafe fn multiply(
    handle: usize,
    [m, n, k, batch]: Sizes,
    [a, b, c]: [Matrix; 3],
    scales: [f64; 2],
    fast: bool,
) -> Outcome {
    // SAFETY: the caller's handle.
    let handle = unsafe { borrow(handle)? };
    if [m, n, k, batch].iter().any(|&size| size < 0) || a.kind != b.kind {
        return fail(INVALID_VALUE, format!("sizes {:?}, {:?} by {:?}", [m, n, k, batch], a.kind, b.kind));
    }
    let [m, n, k, batch] = [m, n, k, batch].map(|size| size as usize);
    let rounded = a.kind == Kind::F32 && (fast || handle.math == 3);
    let product = Product { m, n, k, batch, a, b, c, scales, rounded };
    stream::submit(handle.stream, move || product.run())
}

macro_rules! cublas {
    ($($functions:tt)*) => {
        exported! { code; $($functions)* }
    };
}

cublas! {
    fn cublasCreate_v2(to: *mut usize) {
        to.write(Box::into_raw(Box::new(Handle { stream: 0, math: 0 })) as usize);
        Ok(())
    }
    fn cublasDestroy_v2(handle: usize) { drop(Box::from_raw(borrow(handle)?)); Ok(()) }
    fn cublasSetStream_v2(handle: usize, on: usize) { borrow(handle)?.stream = on; Ok(()) }
    fn cublasGetStream_v2(handle: usize, to: *mut usize) { to.write(borrow(handle)?.stream); Ok(()) }
    fn cublasSetMathMode(handle: usize, math: c_uint) { borrow(handle)?.math = math & 15; Ok(()) }
    fn cublasGetMathMode(handle: usize, to: *mut c_uint) { to.write(borrow(handle)?.math); Ok(()) }
    fn cublasSetWorkspace_v2(_handle: usize, at: u64, bytes: usize) { memory::check(at, bytes, "a workspace") }
    fn cublasSetPointerMode_v2(_handle: usize, mode: c_uint) {
        if mode == 0 { Ok(()) } else { fail(NOT_SUPPORTED, "scales on the device") }
    }
    fn cublasGetPointerMode_v2(_handle: usize, to: *mut c_uint) { to.write(0); Ok(()) }

    fn cublasSgemm_v2(
        handle: usize, ta: c_uint, tb: c_uint, m: c_int, n: c_int, k: c_int, alpha: *const f32, a: u64, lda: c_int, b: u64, ldb: c_int,
        beta: *const f32, c: u64, ldc: c_int,
    ) {
        let matrices = [Matrix::new(a, Kind::F32, lda, 0, ta)?, Matrix::new(b, Kind::F32, ldb, 0, tb)?, Matrix::new(c, Kind::F32, ldc, 0, 0)?];
        multiply(handle, [m, n, k, 1], matrices, [f64::from(*alpha), f64::from(*beta)], false)
    }
    fn cublasDgemm_v2(
        handle: usize, ta: c_uint, tb: c_uint, m: c_int, n: c_int, k: c_int, alpha: *const f64, a: u64, lda: c_int, b: u64, ldb: c_int,
        beta: *const f64, c: u64, ldc: c_int,
    ) {
        let matrices = [Matrix::new(a, Kind::F64, lda, 0, ta)?, Matrix::new(b, Kind::F64, ldb, 0, tb)?, Matrix::new(c, Kind::F64, ldc, 0, 0)?];
        multiply(handle, [m, n, k, 1], matrices, [*alpha, *beta], false)
    }
    fn cublasSgemmStridedBatched(
        handle: usize, ta: c_uint, tb: c_uint, m: c_int, n: c_int, k: c_int, alpha: *const f32, a: u64, lda: c_int, sa: i64, b: u64,
        ldb: c_int, sb: i64, beta: *const f32, c: u64, ldc: c_int, sc: i64, batch: c_int,
    ) {
        let matrices = [Matrix::new(a, Kind::F32, lda, sa, ta)?, Matrix::new(b, Kind::F32, ldb, sb, tb)?, Matrix::new(c, Kind::F32, ldc, sc, 0)?];
        multiply(handle, [m, n, k, batch], matrices, [f64::from(*alpha), f64::from(*beta)], false)
    }
    fn cublasDgemmStridedBatched(
        handle: usize, ta: c_uint, tb: c_uint, m: c_int, n: c_int, k: c_int, alpha: *const f64, a: u64, lda: c_int, sa: i64, b: u64,
        ldb: c_int, sb: i64, beta: *const f64, c: u64, ldc: c_int, sc: i64, batch: c_int,
    ) {
        let matrices = [Matrix::new(a, Kind::F64, lda, sa, ta)?, Matrix::new(b, Kind::F64, ldb, sb, tb)?, Matrix::new(c, Kind::F64, ldc, sc, 0)?];
        multiply(handle, [m, n, k, batch], matrices, [*alpha, *beta], false)
    }
    fn cublasGemmEx(
        handle: usize, ta: c_uint, tb: c_uint, m: c_int, n: c_int, k: c_int, alpha: usize, a: u64, at: c_uint, lda: c_int, b: u64, bt: c_uint,
        ldb: c_int, beta: usize, c: u64, ct: c_uint, ldc: c_int, sums: c_uint, _algorithm: c_int,
    ) {
        let matrices = [Matrix::new(a, kind(at)?, lda, 0, ta)?, Matrix::new(b, kind(bt)?, ldb, 0, tb)?, Matrix::new(c, kind(ct)?, ldc, 0, 0)?];
        multiply(handle, [m, n, k, 1], matrices, [scale(alpha, sums)?, scale(beta, sums)?], sums == 77)
    }
    fn cublasGemmStridedBatchedEx(
        handle: usize, ta: c_uint, tb: c_uint, m: c_int, n: c_int, k: c_int, alpha: usize, a: u64, at: c_uint, lda: c_int, sa: i64, b: u64,
        bt: c_uint, ldb: c_int, sb: i64, beta: usize, c: u64, ct: c_uint, ldc: c_int, sc: i64, batch: c_int, sums: c_uint, _algorithm: c_int,
    ) {
        let matrices = [Matrix::new(a, kind(at)?, lda, sa, ta)?, Matrix::new(b, kind(bt)?, ldb, sb, tb)?, Matrix::new(c, kind(ct)?, ldc, sc, 0)?];
        multiply(handle, [m, n, k, batch], matrices, [scale(alpha, sums)?, scale(beta, sums)?], sums == 77)
    }
}

/// A scale in the format of the sums (`cublasComputeType_t`).
unsafe fn scale(from: usize, sums: c_uint) -> Outcome<f64> {
    if from == 0 {
        return fail(INVALID_VALUE, "a scale is missing");
    }
    // SAFETY: the caller's number.
    unsafe {
        match sums {
            68 | 69 | 74..=77 => Ok((*(from as *const f32)).into()),
            70 | 71 => Ok(*(from as *const f64)),
            64 | 65 => Ok((*(from as *const half::f16)).to_f64()),
            _ => fail(NOT_SUPPORTED, format!("sums of type {sums}")),
        }
    }
}

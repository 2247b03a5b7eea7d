//! The definition of a convolution and of its gradients, on the CPU.

use candle_core::WithDType;

use super::{Geometry, Wanted};

/// What is wanted, from the two others in the order x, w, y; sums are in double precision.
pub(super) fn compute<T: WithDType>(g: &Geometry, wanted: Wanted, a: &[T], b: &[T]) -> Vec<T> {
    let shape = match wanted {
        Wanted::Y => g.y(),
        Wanted::X => g.x,
        Wanted::W => g.w,
    };
    let mut out = vec![0.0; shape.iter().product()];
    each_product(g, |x, w, y| {
        let (to, a, b) = match wanted {
            Wanted::Y => (y, a[x], b[w]),
            Wanted::X => (x, a[w], b[y]),
            Wanted::W => (w, a[x], b[y]),
        };
        out[to] += a.to_f64() * b.to_f64();
    });
    out.into_iter().map(T::from_f64).collect()
}

/// Calls `term` with the places in x, w and y of every product `x w` that is a term of `y`.
fn each_product(g: &Geometry, mut term: impl FnMut(usize, usize, usize)) {
    let ([n, c, h, width], [o, per_group, rows, columns]) = (g.x, g.w);
    let [_, _, out_rows, out_columns] = g.y();
    for image in 0..n {
        for output in 0..o {
            let first = output / (o / g.groups) * per_group;
            for channel in 0..per_group {
                for (row, column) in places(rows, columns) {
                    let w = ((output * per_group + channel) * rows + row) * columns + column;
                    for (i, j) in places(out_rows, out_columns) {
                        let inside = |place: usize, padding, size| {
                            usize::checked_sub(place, padding).filter(|&place| place < size)
                        };
                        let up = inside(i * g.stride + row, g.padding[0], h);
                        let across = inside(j * g.stride + column, g.padding[1], width);
                        if let (Some(up), Some(across)) = (up, across) {
                            let x = ((image * c + first + channel) * h + up) * width + across;
                            term(x, w, ((image * o + output) * out_rows + i) * out_columns + j);
                        }
                    }
                }
            }
        }
    }
}

fn places(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

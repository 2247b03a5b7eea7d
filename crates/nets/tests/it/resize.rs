//! Images of other sizes, as PIL makes them.

/// PIL's bilinear resize of a square image: a triangle as wide as the step between output pixels, first along the
/// rows, then along the columns, rounded to bytes after each.
pub(crate) fn resize(image: &[u8], from: usize, to: usize) -> Vec<u8> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let weights: Vec<(usize, Vec<f64>)> = (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let triangle = |i: usize| (1.0 - ((i as f64 - centre + 0.5) / support).abs()).max(0.0);
            let total: f64 = (first..last).map(triangle).sum();
            (first, (first..last).map(|i| triangle(i) / total).collect())
        })
        .collect();
    let pass =
        |image: &[u8], lines: usize, line: usize, step: usize, out: &mut [u8], out_line: usize, out_step: usize| {
            for at in 0..lines {
                for (place, (first, weights)) in weights.iter().enumerate() {
                    for channel in 0..3 {
                        let pixel = |i: usize| f64::from(image[at * line + (first + i) * step + channel]);
                        let sum: f64 = weights.iter().enumerate().map(|(i, weight)| weight * pixel(i)).sum();
                        out[at * out_line + place * out_step + channel] = (sum + 0.5) as u8;
                    }
                }
            }
        };
    let (mut narrow, mut small) = (vec![0; from * to * 3], vec![0; to * to * 3]);
    pass(image, from, from * 3, 3, &mut narrow, to * 3, 3);
    pass(&narrow, to, 3, to * 3, &mut small, 3, to * 3);
    small
}

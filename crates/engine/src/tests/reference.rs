//! The same graphs in f64, one image at a time, by the definitions.

use candle_core::DType;
use game::Key;
use nets::{Conv, Graph, Id, Op, Weights};

/// Channels, rows, columns.
type Shape = [usize; 3];

/// Which branch a unit of a piecewise smooth layer takes: 1 or 0 for a ReLU or where the largest values stay, the place in
/// the window for a max-pool, [`pruned`] for pruning.
pub(super) type Branch<'a> = &'a dyn Fn(Id, usize) -> usize;

/// The branch of a value that pruning meets: whether it stays, and its sign, which the sum of magnitudes depends on.
pub(super) fn pruned(stays: bool, value: f64) -> usize {
    let sign = if value == 0.0 { 1 } else { 2 * usize::from(value > 0.0) };
    2 * sign + usize::from(stays)
}

/// The smallest of the largest values that stay.
pub(super) fn smallest_kept(x: &[f64], share: f64) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    sorted[((share * x.len() as f64).floor() as usize).max(1) - 1]
}

/// The mean of an image, what it is multiplied by to standardise it, and whether that depends on it.
fn standard(x: &[f64]) -> (f64, f64, bool) {
    let count = x.len() as f64;
    let mean = x.iter().sum::<f64>() / count;
    let deviation = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
    (mean, 1.0 / deviation.max(1.0 / count.sqrt()), deviation > 1.0 / count.sqrt())
}

/// What pruning multiplies magnitudes by.
pub(super) fn rate(x: &[f64], samples: f64) -> f64 {
    match x.iter().map(|r| r.abs()).sum::<f64>() {
        0.0 => 0.0,
        sum => samples * x.len() as f64 / sum,
    }
}

/// The uniform numbers of a pruning.
pub(super) fn uniforms(key: Key, index: u64, count: usize) -> Vec<f64> {
    let mut uniform = vec![0.0; count];
    key.at(index).fill_uniform(&mut uniform);
    uniform.into_iter().map(f64::from).collect()
}

pub(super) struct Reference<'a> {
    graph: &'a Graph,
    weights: std::collections::BTreeMap<String, Vec<f64>>,
    pub shapes: Vec<Shape>,
}

/// Calls `each(output, input, weight)` for every product of a convolution, as offsets.
fn products(conv: &Conv, from: Shape, to: Shape, mut each: impl FnMut(usize, usize, usize, usize, usize)) {
    let (inputs, outputs) = (conv.inputs / conv.groups, conv.outputs / conv.groups);
    let padding = conv.padding([from[1], from[2]]);
    for o in 0..conv.outputs {
        for i in 0..inputs {
            let channel = o / outputs * inputs + i;
            for ky in 0..conv.kernel[0] {
                for kx in 0..conv.kernel[1] {
                    let w = ((o * inputs + i) * conv.kernel[0] + ky) * conv.kernel[1] + kx;
                    // Columns whose source is inside the plane.
                    let low = padding.left.saturating_sub(kx).div_ceil(conv.stride);
                    let high = match (from[2] + padding.left).checked_sub(kx + 1) {
                        Some(room) => (room / conv.stride + 1).min(to[2]),
                        None => 0,
                    };
                    for y in 0..to[1] {
                        let row = y * conv.stride + ky;
                        if row < padding.top || row >= from[1] + padding.top || low >= high {
                            continue;
                        }
                        let source = (channel * from[1] + row - padding.top) * from[2];
                        let first = source + low * conv.stride + kx - padding.left;
                        each((o * to[1] + y) * to[2] + low, first, high - low, conv.stride, w);
                    }
                }
            }
        }
    }
}

/// Calls `each(output, input, place in the window)` for every pixel of every window.
fn windows(from: Shape, to: Shape, [kernel, stride, padding]: [usize; 3], mut each: impl FnMut(usize, usize, usize)) {
    for c in 0..to[0] {
        for y in 0..to[1] {
            for x in 0..to[2] {
                for place in 0..kernel * kernel {
                    let (row, column) = (y * stride + place / kernel, x * stride + place % kernel);
                    let inside = |at: usize, size: usize| at >= padding && at < size + padding;
                    if inside(row, from[1]) && inside(column, from[2]) {
                        let source = (c * from[1] + row - padding) * from[2] + column - padding;
                        each((c * to[1] + y) * to[2] + x, source, place);
                    }
                }
            }
        }
    }
}

/// Calls `each(output, input, one over the window's pixels)` for every pixel of every window of an adaptive pool.
fn adapt(from: Shape, to: Shape, mut each: impl FnMut(usize, usize, f64)) {
    let span = |at: usize, axis: usize| at * from[axis] / to[axis]..((at + 1) * from[axis]).div_ceil(to[axis]);
    for c in 0..to[0] {
        for (y, x) in (0..to[1]).flat_map(|y| (0..to[2]).map(move |x| (y, x))) {
            let share = 1.0 / (span(y, 1).len() * span(x, 2).len()) as f64;
            for (row, column) in span(y, 1).flat_map(|row| span(x, 2).map(move |column| (row, column))) {
                each((c * to[1] + y) * to[2] + x, (c * from[1] + row) * from[2] + column, share);
            }
        }
    }
}

impl<'a> Reference<'a> {
    pub(super) fn new(graph: &'a Graph, weights: &Weights, [rows, columns]: [usize; 2]) -> Self {
        let f64s = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let mut shapes: Vec<Shape> = Vec::new();
        for node in &graph.nodes {
            let from = node.inputs.first().map_or([3, rows, columns], |&i| shapes[i]);
            let out = |size: usize, pad: usize, k: usize, s: usize| (size + pad - k) / s + 1;
            shapes.push(match &node.op {
                Op::Conv(c) => {
                    let padding = c.padding([from[1], from[2]]);
                    [
                        c.outputs,
                        out(from[1], padding.top + padding.bottom, c.kernel[0], c.stride),
                        out(from[2], padding.left + padding.right, c.kernel[1], c.stride),
                    ]
                }
                &Op::MaxPool { kernel, stride, padding } | &Op::AveragePool { kernel, stride, padding } => {
                    [from[0], out(from[1], 2 * padding, kernel, stride), out(from[2], 2 * padding, kernel, stride)]
                }
                &Op::Subsample { stride, before, after } => {
                    [before + from[0] + after, from[1].div_ceil(stride), from[2].div_ceil(stride)]
                }
                Op::Concat => [node.inputs.iter().map(|&i| shapes[i][0]).sum(), from[1], from[2]],
                Op::GlobalAveragePool => [from[0], 1, 1],
                &Op::AdaptiveAveragePool { side } => [from[0], side, side],
                Op::Linear { outputs, .. } => [*outputs, 1, 1],
                _ => from,
            });
        }
        Self { graph, weights: weights.iter().map(|(name, t)| (name.clone(), f64s(t))).collect(), shapes }
    }

    fn weight(&self, name: &str, part: &str) -> &[f64] {
        &self.weights[&format!("{name}.{part}")]
    }

    /// Scale and shift of each channel.
    fn affine(&self, op: &Op) -> Vec<(f64, f64)> {
        match op {
            Op::Normalise { mean, std } => mean.iter().zip(std).map(|(m, s)| (1.0 / s, -m / s)).collect(),
            Op::BatchNorm { name, channels, eps } => (0..*channels)
                .map(|c| {
                    let scale = self.weight(name, "weight")[c] / (self.weight(name, "running_var")[c] + eps).sqrt();
                    (scale, self.weight(name, "bias")[c] - scale * self.weight(name, "running_mean")[c])
                })
                .collect(),
            _ => unreachable!(),
        }
    }

    /// Whether a unit's other branch gives another value at the kink, too.
    pub(super) fn jumps(&self) -> bool {
        self.graph.nodes.iter().any(|node| matches!(node.op, Op::KeepLargest { .. } | Op::Prune { .. }))
    }

    /// The values of all nodes; where values jump at a kink, at the given branches or else their own.
    pub(super) fn forward(&self, image: &[f64], key: Key, branch: Option<Branch<'_>>) -> Vec<Vec<f64>> {
        let mut values: Vec<Vec<f64>> = Vec::new();
        for (id, node) in self.graph.nodes.iter().enumerate() {
            let to = self.shapes[id];
            let from = node.inputs.first().map_or(to, |&i| self.shapes[i]);
            let x: &[f64] = node.inputs.first().map_or(image, |&i| &values[i]);
            let mut y = vec![0.0; to.iter().product()];
            match &node.op {
                Op::Input => y.copy_from_slice(image),
                Op::Normalise { .. } | Op::BatchNorm { .. } => {
                    let plane = to[1] * to[2];
                    let affine = self.affine(&node.op);
                    y.iter_mut().zip(x).enumerate().for_each(|(i, (y, x))| {
                        let (scale, shift) = affine[i / plane];
                        *y = x * scale + shift;
                    });
                }
                Op::Conv(conv) => {
                    let w = self.weight(&conv.name, "weight");
                    products(conv, from, to, |o, i, n, s, k| {
                        let x = x[i..].iter().step_by(s);
                        y[o..o + n].iter_mut().zip(x).for_each(|(y, x)| *y += w[k] * x);
                    });
                    if conv.bias {
                        let bias = self.weight(&conv.name, "bias");
                        y.chunks_mut(to[1] * to[2]).zip(bias).for_each(|(y, b)| y.iter_mut().for_each(|y| *y += b));
                    }
                }
                Op::Relu => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.max(0.0)),
                Op::Relu6 => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.clamp(0.0, 6.0)),
                Op::LeakyRelu { slope } => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.max(slope * x)),
                &Op::KeepLargest { share } => {
                    let low = smallest_kept(x, share);
                    for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                        let stays = branch.map_or(x >= low, |branch| branch(id, i) == 1);
                        *y = if stays { x } else { 0.0 };
                    }
                }
                Op::Add => y.iter_mut().zip(x).zip(&values[node.inputs[1]]).for_each(|((y, a), b)| *y = a + b),
                &Op::MaxPool { kernel, stride, padding } => {
                    y.fill(f64::NEG_INFINITY);
                    windows(from, to, [kernel, stride, padding], |o, i, _| y[o] = y[o].max(x[i]));
                }
                &Op::Subsample { stride, before, .. } => {
                    self.lattice(from, to, stride, before, |o, i| y[o] = x[i]);
                }
                Op::Standardise => {
                    let (mean, scale, _) = standard(x);
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * scale);
                }
                Op::Concat => y = node.inputs.iter().flat_map(|&i| &values[i]).copied().collect(),
                &Op::AveragePool { kernel, stride, padding } => {
                    let share = 1.0 / (kernel * kernel) as f64;
                    windows(from, to, [kernel, stride, padding], |o, i, _| y[o] += x[i] * share);
                }
                &Op::Prune { samples, index } => {
                    let uniform = uniforms(key, index, x.len());
                    let rate = rate(x, samples);
                    for (i, (y, &r)) in y.iter_mut().zip(x).enumerate() {
                        let q = -(-rate * r.abs()).exp_m1();
                        let stays = branch.map_or(uniform[i] < q, |branch| branch(id, i) % 2 == 1);
                        *y = if stays { r / (q + 1e-8) } else { 0.0 };
                    }
                }
                Op::GlobalAveragePool => {
                    let plane = from[1] * from[2];
                    y.iter_mut().zip(x.chunks(plane)).for_each(|(y, x)| *y = x.iter().sum::<f64>() / plane as f64);
                }
                Op::AdaptiveAveragePool { .. } => adapt(from, to, |o, i, share| y[o] += x[i] * share),
                Op::Linear { name, inputs, .. } => {
                    let (w, b) = (self.weight(name, "weight"), self.weight(name, "bias"));
                    for (o, y) in y.iter_mut().enumerate() {
                        *y = b[o] + w[o * inputs..][..*inputs].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                    }
                }
            }
            values.push(y);
        }
        values
    }

    fn lattice(&self, from: Shape, to: Shape, stride: usize, before: usize, mut each: impl FnMut(usize, usize)) {
        for c in 0..from[0] {
            for y in 0..to[1] {
                for x in 0..to[2] {
                    let i = (c * from[1] + y * stride) * from[2] + x * stride;
                    each(((c + before) * to[1] + y) * to[2] + x, i);
                }
            }
        }
    }

    /// The branches that the values themselves take.
    pub(super) fn branches(&self, values: &[Vec<f64>], key: Key) -> Vec<Vec<usize>> {
        let branches = self.graph.nodes.iter().enumerate().map(|(id, node)| {
            let x = node.inputs.first().map(|&i| &values[i]);
            match (&node.op, x) {
                (Op::Relu | Op::LeakyRelu { .. }, Some(x)) => x.iter().map(|&x| usize::from(x > 0.0)).collect(),
                (Op::Relu6, Some(x)) => x.iter().map(|&x| usize::from(x > 0.0 && x < 6.0)).collect(),
                (&Op::KeepLargest { share }, Some(x)) => {
                    let low = smallest_kept(x, share);
                    x.iter().map(|&x| usize::from(x >= low)).collect()
                }
                (&Op::Prune { samples, index }, Some(x)) => {
                    let (uniform, rate) = (uniforms(key, index, x.len()), rate(x, samples));
                    let stays = |(r, u): (&f64, f64)| u < -(-rate * r.abs()).exp_m1();
                    x.iter().zip(uniform).map(|unit| pruned(stays(unit), *unit.0)).collect()
                }
                (&Op::MaxPool { kernel, stride, padding }, Some(x)) => {
                    let mut best = vec![(f64::NEG_INFINITY, 0); values[id].len()];
                    let from = self.shapes[node.inputs[0]];
                    windows(from, self.shapes[id], [kernel, stride, padding], |o, i, place| {
                        if x[i] > best[o].0 {
                            best[o] = (x[i], place);
                        }
                    });
                    best.into_iter().map(|b| b.1).collect()
                }
                _ => Vec::new(),
            }
        });
        branches.collect()
    }

    /// How much less than the maximum of its window a max-pool's unit would get by taking another place.
    pub(super) fn loss(&self, values: &[Vec<f64>], id: Id, unit: usize, place: usize) -> f64 {
        let node = &self.graph.nodes[id];
        let &Op::MaxPool { kernel, stride, padding } = &node.op else { unreachable!() };
        let mut loss = f64::INFINITY;
        windows(self.shapes[node.inputs[0]], self.shapes[id], [kernel, stride, padding], |o, i, p| {
            if o == unit && p == place {
                loss = values[id][o] - values[node.inputs[0]][i];
            }
        });
        loss
    }

    /// The product of `upstream` with the Jacobian of the logits at these values, given which branches the units take.
    pub(super) fn backward(&self, values: &[Vec<f64>], upstream: &[f64], branch: Branch<'_>) -> Vec<f64> {
        let mut grads: Vec<Vec<f64>> = self.shapes.iter().map(|s| vec![0.0; s.iter().product()]).collect();
        grads.last_mut().unwrap().copy_from_slice(upstream);
        for (id, node) in self.graph.nodes.iter().enumerate().skip(1).rev() {
            let g = std::mem::take(&mut grads[id]);
            let to = self.shapes[id];
            let from = self.shapes[node.inputs[0]];
            let dx = &mut grads[node.inputs[0]];
            match &node.op {
                Op::Input => unreachable!(),
                Op::Normalise { .. } | Op::BatchNorm { .. } => {
                    let affine = self.affine(&node.op);
                    dx.iter_mut().zip(&g).enumerate().for_each(|(i, (dx, g))| *dx += g * affine[i / (to[1] * to[2])].0);
                }
                Op::Conv(conv) => {
                    let w = self.weight(&conv.name, "weight");
                    products(conv, from, to, |o, i, n, s, k| {
                        let dx = dx[i..].iter_mut().step_by(s);
                        g[o..o + n].iter().zip(dx).for_each(|(g, dx)| *dx += w[k] * g);
                    });
                }
                Op::Relu | Op::Relu6 | Op::KeepLargest { .. } => {
                    dx.iter_mut().zip(&g).enumerate().for_each(|(i, (dx, g))| *dx += g * branch(id, i) as f64);
                }
                Op::Prune { samples, .. } => {
                    let x = &values[node.inputs[0]];
                    let (sum, rate) = (x.iter().map(|r| r.abs()).sum::<f64>(), rate(x, *samples));
                    // The derivative by the rate, which falls as the sum of magnitudes grows.
                    let mut by_rate = 0.0;
                    for (i, (dx, (g, r))) in dx.iter_mut().zip(g.iter().zip(x)).enumerate() {
                        let (rest, q) = ((-rate * r.abs()).exp(), -(-rate * r.abs()).exp_m1() + 1e-8);
                        if branch(id, i) % 2 == 1 {
                            *dx += g / q - g * r * rate * r.signum() * rest / (q * q);
                            by_rate -= g * r * r.abs() * rest / (q * q);
                        }
                    }
                    let by_sum = if sum == 0.0 { 0.0 } else { -by_rate * rate / sum };
                    let sign = |i: usize| (branch(id, i) / 2) as f64 - 1.0;
                    dx.iter_mut().enumerate().for_each(|(i, dx)| *dx += by_sum * sign(i));
                }
                Op::Standardise => {
                    let (mean, scale, varies) = standard(&values[node.inputs[0]]);
                    let z = |x: f64| if varies { (x - mean) * scale } else { 0.0 };
                    let x = &values[node.inputs[0]];
                    let count = x.len() as f64;
                    let by_mean = g.iter().sum::<f64>() / count;
                    let by_deviation = g.iter().zip(x).map(|(g, &x)| g * z(x)).sum::<f64>() / count;
                    let all = dx.iter_mut().zip(g.iter().zip(x));
                    all.for_each(|(dx, (g, &x))| *dx += (g - by_mean - z(x) * by_deviation) * scale);
                }
                Op::Concat => {
                    let mut rest = &g[..];
                    for &input in &node.inputs {
                        let (part, others) = rest.split_at(grads[input].len());
                        grads[input].iter_mut().zip(part).for_each(|(dx, g)| *dx += g);
                        rest = others;
                    }
                }
                &Op::AveragePool { kernel, stride, padding } => {
                    let share = 1.0 / (kernel * kernel) as f64;
                    windows(from, to, [kernel, stride, padding], |o, i, _| dx[i] += g[o] * share);
                }
                Op::LeakyRelu { slope } => {
                    let factor = |i: usize| if branch(id, i) == 1 { 1.0 } else { *slope };
                    dx.iter_mut().zip(&g).enumerate().for_each(|(i, (dx, g))| *dx += g * factor(i));
                }
                Op::Add => {
                    for &input in &node.inputs {
                        grads[input].iter_mut().zip(&g).for_each(|(dx, g)| *dx += g);
                    }
                }
                &Op::MaxPool { kernel, stride, padding } => {
                    windows(from, to, [kernel, stride, padding], |o, i, place| {
                        if branch(id, o) == place {
                            dx[i] += g[o];
                        }
                    });
                }
                &Op::Subsample { stride, before, .. } => self.lattice(from, to, stride, before, |o, i| dx[i] += g[o]),
                Op::GlobalAveragePool => {
                    let plane = from[1] * from[2];
                    dx.iter_mut().enumerate().for_each(|(i, dx)| *dx += g[i / plane] / plane as f64);
                }
                Op::AdaptiveAveragePool { .. } => adapt(from, to, |o, i, share| dx[i] += g[o] * share),
                Op::Linear { name, inputs, .. } => {
                    let w = self.weight(name, "weight");
                    for (o, g) in g.iter().enumerate() {
                        dx.iter_mut().zip(&w[o * inputs..]).for_each(|(dx, w)| *dx += w * g);
                    }
                }
            }
        }
        grads.swap_remove(0)
    }
}

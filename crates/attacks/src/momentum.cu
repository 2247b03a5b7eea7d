// After crates/attacks/src/queue/images.cu.
//
// The momentum iterative method: momentum.rs, operation by operation but for the order of sums.

struct Kernel {
    Images at;
    float *sum;
    double decay;
};

KERNEL(lengths, Kernel) { PARTIAL(p.at, id, at, fabs((double)p.at.gradient[at])); }

KERNEL(momentum, Kernel) {
    const double length = p.at.total[id / p.at.size], share = length > 0.0 ? 1.0 / length : 0.0;
    p.sum[id] = (float)(p.decay * (double)p.sum[id] + share * (double)p.at.gradient[id]);
}

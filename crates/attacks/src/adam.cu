// After crates/attacks/src/queue/images.cu.
//
// Adam: adam.rs, operation by operation.

struct Kernel {
    Images at;
    double *first, *second;
    double direction, beta1, beta2, rate, bias;
    u64 signs;
};

KERNEL(adam, Kernel) {
    const double g = p.direction * (p.signs ? sign(p.at.gradient[id]) : raw(p.at, id));
    const double m = p.beta1 * p.first[id] + (1.0 - p.beta1) * g;
    const double v = p.beta2 * p.second[id] + (1.0 - p.beta2) * g * g;
    p.first[id] = m;
    p.second[id] = v;
    p.at.x[id] = (float)((double)p.at.x[id] + p.rate * m / (sqrt(v) / p.bias + 1e-8));
}

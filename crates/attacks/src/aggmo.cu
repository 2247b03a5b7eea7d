// After crates/attacks/src/queue/images.cu.
//
// Aggregated momentum: aggmo.rs, operation by operation.

struct Kernel {
    Images at;
    float *sum;
    double beta, most;
    u64 signs;
};

KERNEL(aggmo, Kernel) {
    double entry = sign(p.at.gradient[id]);
    if (!p.signs) {
        entry = raw(p.at, id);
        entry = entry < -p.most ? -p.most : entry > p.most ? p.most : entry;
    }
    p.sum[id] = (float)(p.beta * (double)p.sum[id] + entry);
}

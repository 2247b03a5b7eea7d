// After crates/defenses/src/common.cu.
// Quantisation: every channel of every image has its scale, and the scale's reciprocal.

struct Quantisation {
    const float *from;
    float *to;
    const double *reciprocals;
    const float *scales;
    u64 area;
};

KERNEL(quantise, Quantisation) {
    const u64 plane = id / p.area;
    p.to[id] = (float)((double)rintf(p.from[id] * p.scales[plane]) * p.reciprocals[plane]);
}

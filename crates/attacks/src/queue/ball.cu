// After crates/attacks/src/queue/images.cu.
//
// Steps and projections: crates/attacks/src/ball.rs, operation by operation but for the order of sums.

struct Move {
    Images at;
    const float *direction;
    double step, eps;
};

KERNEL(fold, Images) {
    double sum = 0.0;
    for (u64 part = 0; part < PARTS; part++) sum += p.partial[id * PARTS + part];
    p.total[id] = sum;
}

KERNEL(squares, Move) { PARTIAL(p.at, id, at, (double)p.direction[at] * (double)p.direction[at]); }

KERNEL(ascend_linf, Move) {
    p.at.x[id] = (float)((double)p.at.x[id] + p.step * sign(p.direction[id]));
}

KERNEL(ascend_l2, Move) {
    const double length = sqrt(p.at.total[id / p.at.size]) + 1e-7;
    p.at.x[id] = (float)((double)p.at.x[id] + p.step * ((double)p.direction[id] / length));
}

KERNEL(box, Images) { p.x[id] = boxed(p.x[id]); }

INLINE double change(const Images &at, u64 id) { return (double)at.x[id] - (double)at.origin[id]; }

// The squared distance from the origin.
KERNEL(distances, Images) { PARTIAL(p, id, at, change(p, at) * change(p, at)); }

// The target, or the nearest float between it and the origin.
INLINE float inward(float origin, double target) {
    const float rounded = (float)target;
    if (fabs((double)rounded - (double)origin) <= fabs(target - (double)origin)) return rounded;
    return nextafterf(rounded, target > (double)origin ? -2.0f : 2.0f);
}

KERNEL(clip, Move) {
    const double moved = change(p.at, id);
    const float origin = p.at.origin[id];
    if (fabs(moved) > p.eps) p.at.x[id] = inward(origin, (double)origin + (moved < 0.0 ? -p.eps : p.eps));
}

KERNEL(shorten, Move) {
    const double length = sqrt(p.at.total[id / p.at.size]);
    const float origin = p.at.origin[id];
    if (length > p.eps) p.at.x[id] = inward(origin, (double)origin + p.eps / length * change(p.at, id));
}

// After crates/attacks/src/queue/images.cu.
//
// Gradient ascent: gradient_ascent.rs, operation by operation but for the order of sums.

struct Kernel {
    Images at;
    double direction, rate, penalty, eps;
};

// Where there is a penalty, `total` holds the squared distances from the origins.
KERNEL(rise, Kernel) {
    double pull = 0.0;
    if (p.penalty != 0.0) {
        const double length = sqrt(p.at.total[id / p.at.size]);
        pull = length > p.eps ? p.penalty / length : 0.0;
    }
    const double from = p.at.x[id], origin = p.at.origin[id];
    p.at.x[id] = (float)(from + p.rate * (p.direction * raw(p.at, id) + pull * (from - origin)));
}

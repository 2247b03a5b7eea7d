// After crates/defenses/src/common.cu.
// Swirl about a centre. A thread makes one pixel of all channels.

struct Drawn {
    double strength, radius, column, row;
};

// Where a pixel of the output is read: the first of four neighbours, and how far beyond it.
struct Spot {
    u32 first;
    float down, across;
    // The next spot with the same first neighbour.
    u32 next;
};

struct Swirl {
    const float *from;
    float *to;
    const Drawn *drawn;
    // For every pixel of the input the last spot, of those that begin there, that was put in its chain.
    u32 *heads;
    Spot *spots;
    Shape shape;
};

CONSTANT u32 NONE = 0xFFFFFFFFU;
// Adding it rounds to an integer, which stands in the lowest bits.
CONSTANT double ROUND = 6755399441055744.0;

INLINE double exp_minus(double t) {
    t = t < 700.0 ? t : 700.0;
    const double rounded = t * 1.44269504088896340735992468100189214 + ROUND;
    const double r = (rounded - ROUND) * 0.693147180559945309417232121458176568 - t;
    double sum = 1.0;
    for (int k = 13; k >= 1; k--) sum = 1.0 + sum * r * (1.0 / (double)k);
    return sum * double_of_bits((1023ULL - (bits_of_double(rounded) & 0x7FF)) << 52);
}

INLINE void sin_cos(double angle, double *sin, double *cos) {
    const double rounded = angle * 0.636619772367581343075535053490057448 + ROUND;
    const double quarters = rounded - ROUND;
    const double r = angle - quarters * 1.5707963267341256 - quarters * 6.077100506506192e-11;
    const double z = r * r;
    double s = 1.0, c = 1.0;
    for (int k = 16; k >= 2; k -= 2) {
        s = 1.0 - s * z * (1.0 / ((double)k * ((double)k + 1.0)));
        c = 1.0 - c * z * (1.0 / ((double)k * ((double)k - 1.0)));
    }
    s = s * r;
    const u64 quarter = bits_of_double(rounded) & 3;
    *sin = double_of_bits(bits_of_double(quarter & 1 ? c : s) ^ (quarter >> 1) << 63);
    *cos = double_of_bits(bits_of_double(quarter & 1 ? s : c) ^ ((quarter ^ quarter >> 1) & 1) << 63);
}

// The point of 0 to `last` that a mirrored axis shows at `at`.
INLINE double mirrored(double at, double last) {
    const double period = 2.0 * last;
    at = fabs(at);
    at = last > 0.0 ? at - period * floor(at / period) : 0.0;
    return at > last ? period - at : at;
}

INLINE Spot spot_of(const Drawn &drawn, Shape shape, u32 at) {
    const double bottom = (double)(shape.height - 1), right = (double)(shape.width - 1);
    const double last_row = bottom > 1.0 ? bottom - 1.0 : 0.0, last_column = right > 1.0 ? right - 1.0 : 0.0;
    const double rate = 5.0 / (drawn.radius * 0.693147180559945309417232121458176568);
    const double dy = (double)(at / shape.width) - drawn.row, dx = (double)(at % shape.width) - drawn.column;
    double sin, cos;
    sin_cos(drawn.strength * exp_minus(rate * sqrt(dx * dx + dy * dy)), &sin, &cos);
    const double y = mirrored(drawn.row + dx * sin + dy * cos, bottom);
    const double x = mirrored(drawn.column + dx * cos - dy * sin, right);
    double top = floor(y), left = floor(x);
    top = top < last_row ? top : last_row;
    left = left < last_column ? left : last_column;
    return {(u32)top * shape.width + (u32)left, (float)(y - top), (float)(x - left), NONE};
}

KERNEL(swirl, Swirl) {
    const u32 pixels = area(p.shape), right = p.shape.width > 1, below = p.shape.height > 1 ? p.shape.width : 0;
    const u64 image = id / pixels;
    const u32 at = (u32)(id % pixels);
    const Spot spot = spot_of(p.drawn[image], p.shape, at);
    for (u64 c = image * p.shape.channels; c < (image + 1) * p.shape.channels; c++) {
        const float *x = p.from + c * pixels + spot.first;
        const float top = x[0] + (x[right] - x[0]) * spot.across;
        const float bottom = x[below] + (x[below + right] - x[below]) * spot.across;
        p.to[c * pixels + at] = top + (bottom - top) * spot.down;
    }
}

// Puts every spot in the chain of its first neighbour. The order of a chain is chance; who follows it sorts.
KERNEL(chain, Swirl) {
    const u32 pixels = area(p.shape);
    const u64 image = id / pixels;
    const u32 at = (u32)(id % pixels);
    Spot spot = spot_of(p.drawn[image], p.shape, at);
    spot.next = exchange(p.heads + image * pixels + spot.first, at);
    p.spots[id] = spot;
}

// The transpose: the spots that read a pixel, in the order of the output's pixels.
KERNEL(swirl_back, Swirl) {
    const u32 width = p.shape.width, pixels = area(p.shape);
    const u32 right = width > 1, below = p.shape.height > 1 ? width : 0;
    const u64 image = id / pixels;
    const u32 at = (u32)(id % pixels);
    const u32 *heads = p.heads + image * pixels;
    const Spot *spots = p.spots + image * pixels;
    u32 chains[4];
    for (u32 k = 0; k < 4; k++) {
        const u32 up = k / 2, back = k % 2;
        const bool inside = at / width >= up && at % width >= back;
        chains[k] = inside ? heads[at - up * width - back] : NONE;
    }
    for (u64 c = image * p.shape.channels; c < (image + 1) * p.shape.channels; c++) p.to[c * pixels + at] = 0.0f;
    for (u32 least = 0;;) {
        u32 next = NONE;
        for (u32 k = 0; k < 4; k++) {
            for (u32 i = chains[k]; i != NONE; i = spots[i].next) {
                if (i >= least && i < next) next = i;
            }
        }
        if (next == NONE) return;
        least = next + 1;
        const Spot spot = spots[next];
        const u32 targets[4] = {spot.first, spot.first + right, spot.first + below, spot.first + below + right};
        for (u32 k = 0; k < 4; k++) {
            if (targets[k] != at) continue;
            const float weight = (k / 2 ? spot.down : 1.0f - spot.down) * (k % 2 ? spot.across : 1.0f - spot.across);
            for (u64 c = image * p.shape.channels; c < (image + 1) * p.shape.channels; c++) {
                p.to[c * pixels + at] += weight * p.from[c * pixels + next];
            }
        }
    }
}

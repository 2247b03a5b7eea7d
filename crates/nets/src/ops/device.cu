// What training asks of a GPU beside convolutions, on f32 planes (n, c, h, w). Sums over a channel are in double precision and in
// a fixed order: PARTS threads add the numbers that are PARTS apart, and one thread adds their sums.

#define PARTS 1024

struct Norm {
    const float *x, *out, *upstream, *gamma, *beta;
    float *to, *dgamma, *dbeta;
    double *parts, *statistics, *sums;
    double eps, slope;
    u64 count;
    u32 channels, plane, act;
};

// Number `i` of a channel: image after image.
INLINE u64 of_channel(const Norm &p, u64 channel, u64 i) {
    return (i / p.plane * p.channels + channel) * p.plane + i % p.plane;
}

// The gradient before the activation; `act` is 0 none, 1 ReLU, 2 ReLU6, 3 leaky.
INLINE float pass(const Norm &p, float out, float dy) {
    const bool open = p.act == 0 || (out > 0.0f && (p.act != 2 || out < 6.0f));
    return open ? dy : p.act == 3 ? (float)p.slope * dy : 0.0f;
}

INLINE double inverse(const Norm &p, u64 channel) { return 1.0 / sqrt(p.statistics[2 * channel + 1] + p.eps); }

INLINE double total(const double *parts) {
    double sum = 0.0;
    for (u32 i = 0; i < PARTS; i++) sum += parts[i];
    return sum;
}

KERNEL(mean_parts, Norm) {
    double sum = 0.0;
    for (u64 i = id % PARTS; i < p.count; i += PARTS) sum += p.x[of_channel(p, id / PARTS, i)];
    p.parts[id] = sum;
}

KERNEL(mean_total, Norm) { p.statistics[2 * id] = total(p.parts + id * PARTS) / (double)p.count; }

KERNEL(variance_parts, Norm) {
    const float mean = (float)p.statistics[id / PARTS * 2];
    double sum = 0.0;
    for (u64 i = id % PARTS; i < p.count; i += PARTS) {
        const float gap = p.x[of_channel(p, id / PARTS, i)] - mean;
        sum += gap * gap;
    }
    p.parts[id] = sum;
}

KERNEL(variance_total, Norm) { p.statistics[2 * id + 1] = total(p.parts + id * PARTS) / (double)p.count; }

KERNEL(normalise, Norm) {
    const u64 channel = id / p.plane % p.channels;
    const float scale = (float)inverse(p, channel) * p.gamma[channel];
    const float v = (p.x[id] - (float)p.statistics[2 * channel]) * scale + p.beta[channel];
    // Not `max`, so that NaN stays.
    const bool low = p.act && v < 0.0f, high = p.act == 2 && v > 6.0f;
    p.to[id] = low ? (p.act == 3 ? (float)p.slope * v : 0.0f) : high ? 6.0f : v;
}

// Of the gradient, and of its products with what was normalised.
KERNEL(gradient_parts, Norm) {
    const u64 channel = id / PARTS;
    const float mean = (float)p.statistics[2 * channel], scale = (float)inverse(p, channel);
    double first = 0.0, second = 0.0;
    for (u64 i = id % PARTS; i < p.count; i += PARTS) {
        const u64 at = of_channel(p, channel, i);
        const float dy = pass(p, p.out[at], p.upstream[at]);
        first += dy, second += dy * ((p.x[at] - mean) * scale);
    }
    p.parts[id] = first, p.parts[id + (u64)p.channels * PARTS] = second;
}

KERNEL(gradient_total, Norm) {
    const double first = total(p.parts + id * PARTS), second = total(p.parts + (id + p.channels) * PARTS);
    p.dbeta[id] = (float)first, p.dgamma[id] = (float)second;
    p.sums[2 * id] = first / (double)p.count, p.sums[2 * id + 1] = second / (double)p.count;
}

KERNEL(gradient, Norm) {
    const u64 channel = id / p.plane % p.channels;
    const float mean = (float)p.statistics[2 * channel], unit = (float)inverse(p, channel);
    const float first = (float)p.sums[2 * channel], second = (float)p.sums[2 * channel + 1] * unit;
    const float dy = pass(p, p.out[id], p.upstream[id]);
    p.to[id] = p.gamma[channel] * unit * (dy - first - (p.x[id] - mean) * second);
}

struct Pool {
    const float *x;
    float *to;
    u8 *winners;
    u32 h, w, oh, ow, kernel, stride, padding;
};

// The largest of a window, the first of several, and its place in the window.
KERNEL(max_pool, Pool) {
    const u32 column = (u32)(id % p.ow), row = (u32)(id / p.ow % p.oh);
    const float *plane = p.x + id / p.ow / p.oh * p.h * p.w;
    float best = 0.0f;
    u32 winner = 255;
    for (u32 i = 0; i < p.kernel; i++)
        for (u32 j = 0; j < p.kernel; j++) {
            // What is before the first wraps round to a number that is too large.
            const u32 y = row * p.stride + i - p.padding, x = column * p.stride + j - p.padding;
            if (y >= p.h || x >= p.w) continue;
            const float v = plane[y * p.w + x];
            if (winner == 255 || v > best || v != v) best = v, winner = i * p.kernel + j;
        }
    p.to[id] = best;
    p.winners[id] = (u8)winner;
}

// x is the gradient after the pool.
KERNEL(max_pool_gradient, Pool) {
    const u32 x = (u32)(id % p.w) + p.padding, y = (u32)(id / p.w % p.h) + p.padding;
    const u64 plane = id / p.w / p.h * p.oh * p.ow;
    float sum = 0.0f;
    for (u32 row = y < p.kernel ? 0 : (y - p.kernel) / p.stride + 1; row <= y / p.stride && row < p.oh; row++)
        for (u32 column = x < p.kernel ? 0 : (x - p.kernel) / p.stride + 1; column <= x / p.stride && column < p.ow; column++) {
            const u64 at = plane + row * p.ow + column;
            if (p.winners[at] == (y - row * p.stride) * p.kernel + x - column * p.stride) sum += p.x[at];
        }
    p.to[id] = sum;
}

// The operations of training on f32 tensors (n, c, h, w). Each kernel reads the fields it needs: x is an operand, y a second
// one or, in a backward pass, the forward pass's result, dy the gradient of that result. (c, h, w) is the shape of an image
// of x, (oc, oh, ow) that of the result.

struct Step {
    const float *x, *y, *dy, *gamma, *beta;
    float *out, *channels, *slopes, *dgamma, *dbeta;
    double *moments, *sums;
    u8 *winners;
    double eps;
    u32 c, h, w, oc, oh, ow, size, stride, padding, before, count, parts, act;
    float slope;
};

// The activation of v; of NaN it is NaN. `act` is 0 none, 1 ReLU, 2 ReLU6, 3 leaky.
INLINE float activation(const Step &p, float v) {
    if (p.act == 0) return v;
    if (v < 0.0f) return p.act == 3 ? p.slope * v : 0.0f;
    return p.act == 2 && v > 6.0f ? 6.0f : v;
}

// The gradient before the activation, where its value is `out` and the gradient after it `dy`.
INLINE float pass(const Step &p, float out, float dy) {
    if (p.act == 0 || (out > 0.0f && !(p.act == 2 && out >= 6.0f))) return dy;
    return p.act == 3 ? p.slope * dy : 0.0f;
}

KERNEL(activate, Step) { p.out[id] = activation(p, p.y ? p.x[id] + p.y[id] : p.x[id]); }

KERNEL(activate_back, Step) { p.out[id] = pass(p, p.y[id], p.dy[id]); }

// Sums over a channel: `parts` threads each add, in double precision, those of its `count` numbers that are `parts` apart;
// LANES threads each add their share of these sums; and who needs the total adds the rest. `sums` holds `parts` numbers for
// each channel, twice: two sums are made at once.
#define LANES 32

#define EACH_OF_PART(v) for (u32 v = (u32)id % p.parts; v < p.count; v += p.parts)
#define CHANNEL_OF_PART ((u32)id / p.parts)

// The place of number `v` of a channel, counted (n, h, w).
INLINE u32 of_channel(const Step &p, u32 c, u32 v) {
    const u32 plane = p.h * p.w;
    return (v / plane * p.c + c) * plane + v % plane;
}

INLINE u32 channel_of(const Step &p, u64 id) { return (u32)id / (p.h * p.w) % p.c; }

INLINE void keep_parts(const Step &p, u64 id, double first, double second) {
    p.sums[id] = first;
    p.sums[(u64)p.c * p.parts + id] = second;
}

KERNEL(add_parts, Step) {
    double *parts = p.sums + id / LANES * p.parts, sum = 0.0;
    for (u32 i = (u32)id % LANES; i < p.parts; i += LANES) sum += parts[i];
    parts[id % LANES] = sum;
}

INLINE double total(const Step &p, u64 row) {
    double sum = 0.0;
    for (u32 i = 0; i < LANES; i++) sum += p.sums[row * p.parts + i];
    return sum;
}

// Of the gaps to a channel's first number, so that little cancels in the variance, and nothing where all are the same.
KERNEL(moments_parts, Step) {
    const u32 c = CHANNEL_OF_PART;
    const double shift = p.x[of_channel(p, c, 0)];
    double sum = 0.0, squares = 0.0;
    EACH_OF_PART(v) {
        const double gap = (double)p.x[of_channel(p, c, v)] - shift;
        sum += gap, squares += gap * gap;
    }
    keep_parts(p, id, sum, squares);
}

// A channel's mean and biased variance; and, rounded, the mean and one over the deviation.
KERNEL(moments_total, Step) {
    const double gap = total(p, id) / p.count, variance = total(p, p.c + id) / p.count - gap * gap;
    const double mean = (double)p.x[of_channel(p, (u32)id, 0)] + gap;
    // Not `max`, so that NaN stays.
    const double least = variance < 0.0 ? 0.0 : variance;
    p.moments[id] = mean, p.moments[p.c + id] = least;
    p.channels[id] = (float)mean, p.channels[p.c + id] = (float)(1.0 / sqrt(least + p.eps));
}

KERNEL(normalise, Step) {
    const u32 c = channel_of(p, id);
    const float scale = p.gamma ? p.channels[p.c + c] * p.gamma[c] : p.channels[p.c + c];
    p.out[id] = activation(p, (p.x[id] - p.channels[c]) * scale + p.beta[c]);
}

KERNEL(normalise_back_parts, Step) {
    const u32 c = CHANNEL_OF_PART;
    const float mean = p.channels[c], inverse = p.channels[p.c + c];
    double first = 0.0, second = 0.0;
    EACH_OF_PART(v) {
        const u32 at = of_channel(p, c, v);
        const float dy = p.act == 0 ? p.dy[at] : pass(p, p.y[at], p.dy[at]);
        first += dy, second += (double)dy * ((p.x[at] - mean) * inverse);
    }
    keep_parts(p, id, first, second);
}

// The gradients of beta and gamma, and what they take off each number's own.
KERNEL(normalise_back_total, Step) {
    const double first = total(p, id), second = total(p, p.c + id);
    p.dbeta[id] = (float)first, p.dgamma[id] = (float)second;
    p.slopes[id] = (float)(first / p.count);
    p.slopes[p.c + id] = (float)(second / p.count) * p.channels[p.c + id];
}

KERNEL(normalise_back, Step) {
    const u32 c = channel_of(p, id);
    const float dy = p.act == 0 ? p.dy[id] : pass(p, p.y[id], p.dy[id]);
    const float gap = p.x[id] - p.channels[c], scale = p.gamma[c] * p.channels[p.c + c];
    p.out[id] = scale * (dy - p.slopes[c] - gap * p.slopes[p.c + c]);
}

// The gradient of `normalise` where the channels' numbers are fixed.
KERNEL(scale_back, Step) {
    p.out[id] = pass(p, p.y[id], p.dy[id]) * p.channels[p.c + channel_of(p, id)];
}

// A number's channel, counted over all images, and pixel.
struct Place {
    u32 plane, y, x;
};

INLINE Place place(u64 id, u32 h, u32 w) {
    const u32 i = (u32)id;
    return {i / w / h, i / w % h, i % w};
}

// The places of one axis that a window reads; and the windows of one axis that read a place: from `first` to before `end`.
struct Span {
    u32 first, end;
};

INLINE Span window(const Step &p, u32 at, u32 size) {
    const u32 first = at * p.stride, end = first + p.size - p.padding;
    return {first < p.padding ? 0 : first - p.padding, end < size ? end : size};
}

INLINE Span windows(const Step &p, u32 at, u32 outputs) {
    const u32 padded = at + p.padding, end = padded / p.stride + 1;
    return {padded < p.size ? 0 : (padded - p.size) / p.stride + 1, end < outputs ? end : outputs};
}

// The largest of a window, the first of several, and its place in the window.
KERNEL(max_pool, Step) {
    const Place to = place(id, p.oh, p.ow);
    const Span rows = window(p, to.y, p.h), columns = window(p, to.x, p.w);
    const float *plane = p.x + (u64)to.plane * p.h * p.w;
    u32 winner = rows.first * p.w + columns.first;
    float best = plane[winner];
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 i = y * p.w + columns.first; i < y * p.w + columns.end; i++) {
            const float v = plane[i];
            if (v > best || v != v) best = v, winner = i;
        }
    p.out[id] = best;
    const u32 y = winner / p.w + p.padding - to.y * p.stride, x = winner % p.w + p.padding - to.x * p.stride;
    p.winners[id] = (u8)(y * p.size + x);
}

KERNEL(max_pool_back, Step) {
    const Place at = place(id, p.h, p.w);
    const Span rows = windows(p, at.y, p.oh), columns = windows(p, at.x, p.ow);
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++) {
            const u64 from = ((u64)at.plane * p.oh + y) * p.ow + x;
            const u32 tap = (at.y + p.padding - y * p.stride) * p.size + at.x + p.padding - x * p.stride;
            if (p.winners[from] == tap) sum += p.dy[from];
        }
    p.out[id] = sum;
}

// `slope` is one over the pixels of a window.
KERNEL(average_pool, Step) {
    const Place to = place(id, p.oh, p.ow);
    const Span rows = window(p, to.y, p.h), columns = window(p, to.x, p.w);
    const float *plane = p.x + (u64)to.plane * p.h * p.w;
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++) sum += plane[y * p.w + x];
    p.out[id] = sum * p.slope;
}

KERNEL(average_pool_back, Step) {
    const Place at = place(id, p.h, p.w);
    const Span rows = windows(p, at.y, p.oh), columns = windows(p, at.x, p.ow);
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++) sum += p.dy[((u64)at.plane * p.oh + y) * p.ow + x] * p.slope;
    p.out[id] = sum;
}

// The mean over all pixels; a thread for every image and channel.
KERNEL(global_pool, Step) {
    const u32 plane = p.h * p.w;
    double sum = 0.0;
    for (u32 i = 0; i < plane; i++) sum += p.x[id * plane + i];
    p.out[id] = (float)(sum / plane);
}

KERNEL(global_pool_back, Step) { p.out[id] = p.dy[id / (p.h * p.w)] * p.slope; }

// Every `stride`-th pixel, `before` channels later; zeros in the channels around.
KERNEL(subsample, Step) {
    const Place to = place(id, p.oh, p.ow);
    // A channel before the first wraps round to a number that is too large.
    const u32 n = to.plane / p.oc, c = to.plane % p.oc - p.before;
    p.out[id] = c < p.c ? p.x[((u64)(n * p.c + c) * p.h + to.y * p.stride) * p.w + to.x * p.stride] : 0.0f;
}

KERNEL(subsample_back, Step) {
    const Place at = place(id, p.h, p.w);
    const u32 n = at.plane / p.c, c = at.plane % p.c + p.before;
    const bool read = at.y % p.stride == 0 && at.x % p.stride == 0;
    p.out[id] = read ? p.dy[((u64)(n * p.oc + c) * p.oh + at.y / p.stride) * p.ow + at.x / p.stride] : 0.0f;
}

struct Adam {
    const float *gradient, *old, *old_mean, *old_square;
    float *updated, *mean, *square;
    float keep, step, root, one_less1, one_less2, beta2, eps;
};

// One step of AdamW.
KERNEL(adam_w, Adam) {
    const float g = p.gradient[id];
    const float mean = p.old_mean[id] + (g - p.old_mean[id]) * p.one_less1;
    const float square = p.old_square[id] * p.beta2 + g * g * p.one_less2;
    p.mean[id] = mean, p.square[id] = square;
    p.updated[id] = p.old[id] * p.keep - p.step * mean / (sqrtf(square) / p.root + p.eps);
}

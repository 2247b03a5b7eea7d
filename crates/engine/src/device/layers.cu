// What of a network is no dense convolution, on NUMBERs that are f32 or bf16; arithmetic is in f32, sums over an image in
// double precision. Tensors are (n, c, h, w) in memory, or (n, h, w, c) where `nhwc` is 1. Each kernel reads the fields it
// needs: x, and y if there are two operands, are its operands, (c, h, w) the shape of an image of x, and (oc, oh, ow) that of
// the result or, in a backward pass, of the gradient that is read.

struct Layer {
    const void *x, *y;
    void *out;
    u8 *bits;
    const float *weight, *bias;
    const u32 *words;
    double *sums;
    double samples;
    u64 count;
    u32 c, h, w, oc, oh, ow, rows, columns, stride, top, left, before, nhwc, accumulate, act, keep;
    float slope;
};

#define X ((const NUMBER *)p.x)
#define Y ((const NUMBER *)p.y)
#define OUT ((NUMBER *)p.out)
#define RUN 8

struct Place {
    u32 n, c, y, x;
};

// The pixel and channel of a number.
INLINE Place place(u32 nhwc, u32 id, u32 c, u32 h, u32 w) {
    Place at;
    if (nhwc) {
        at.c = id % c, id /= c;
        at.x = id % w, id /= w;
        at.y = id % h, at.n = id / h;
    } else {
        at.x = id % w, id /= w;
        at.y = id % h, id /= h;
        at.c = id % c, at.n = id / c;
    }
    return at;
}

INLINE u32 index(u32 nhwc, u32 n, u32 c, u32 y, u32 x, u32 channels, u32 height, u32 width) {
    return nhwc ? ((n * height + y) * width + x) * channels + c : ((n * channels + c) * height + y) * width + x;
}

// Eight numbers at a time, of which `n` are there and the others 0. Loops over them have constant bounds, so that the
// numbers stay in registers.
#define EACH_OF_RUN(i) UNROLLED for (u32 i = 0; i < RUN; i++)

INLINE void load_run(const NUMBER *from, u32 n, float *to) {
#ifdef __CUDACC__
    if (n == RUN) {
#if BF16
        const uint4 all = *(const uint4 *)from;
        const u32 words[4] = {all.x, all.y, all.z, all.w};
        UNROLLED
        for (u32 i = 0; i < 4; i++) {
            to[2 * i] = of_bits(words[i] << 16);
            to[2 * i + 1] = of_bits(words[i] & 0xFFFF0000U);
        }
#else
        const float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
#endif
        return;
    }
#endif
    EACH_OF_RUN(i) to[i] = i < n ? load(from[i]) : 0.0f;
}

INLINE void store_run(NUMBER *to, u32 n, const float *from) {
#ifdef __CUDACC__
    if (n == RUN) {
#if BF16
        u32 words[4];
        UNROLLED
        for (u32 i = 0; i < 4; i++) words[i] = (u32)store(from[2 * i]) | (u32)store(from[2 * i + 1]) << 16;
        *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
#else
        ((float4 *)to)[0] = make_float4(from[0], from[1], from[2], from[3]);
        ((float4 *)to)[1] = make_float4(from[4], from[5], from[6], from[7]);
#endif
        return;
    }
#endif
    EACH_OF_RUN(i) if (i < n) to[i] = store(from[i]);
}

INLINE u32 run_of(u64 count, u64 first) { return count - first < RUN ? (u32)(count - first) : RUN; }

// act(x + bias + y), and a bit for every number that passes its gradient on; `act` is 0 none, 1 ReLU, 2 ReLU6, 3 leaky.
KERNEL(finish, Layer) {
    const u64 first = id * RUN;
    const u32 n = run_of(p.count, first);
    float v[RUN], other[RUN];
    load_run(X + first, n, v);
    if (p.bias) {
        const u32 plane = p.oh * p.ow;
        u32 c = p.nhwc ? (u32)first % p.oc : (u32)first / plane % p.oc, pixel = p.nhwc ? 0 : (u32)first % plane;
        EACH_OF_RUN(i) {
            v[i] += p.bias[c];
            if (p.nhwc || ++pixel == plane) {
                pixel = 0;
                c = c + 1 == p.oc ? 0 : c + 1;
            }
        }
    }
    if (p.y) {
        load_run(Y + first, n, other);
        EACH_OF_RUN(i) v[i] += other[i];
    }
    if (p.act) {
        u32 mask = 0;
        EACH_OF_RUN(i) {
            // Not `max`, so that NaN stays.
            const bool low = v[i] <= 0.0f, high = p.act == 2 && v[i] >= 6.0f;
            mask |= (u32)!(low || high) << i;
            v[i] = low ? (p.act == 3 ? v[i] * p.slope : 0.0f) : high ? 6.0f : v[i];
        }
        if (p.bits) p.bits[id] = (u8)mask;
    }
    store_run(OUT + first, n, v);
}

// The gradient where a bit is set, elsewhere times `slope`.
KERNEL(mask, Layer) {
    const u64 first = id * RUN;
    const u32 n = run_of(p.count, first), bits = p.bits[id];
    float v[RUN];
    load_run(X + first, n, v);
    EACH_OF_RUN(i)
        if (!(bits >> i & 1)) v[i] = p.slope == 0.0f ? 0.0f : v[i] * p.slope;
    store_run(OUT + first, n, v);
}

// x, added to what is there if `accumulate`.
KERNEL(copy, Layer) {
    const u64 first = id * RUN;
    const u32 n = run_of(p.count, first);
    float v[RUN], there[RUN];
    load_run(X + first, n, v);
    if (p.accumulate) {
        load_run(OUT + first, n, there);
        EACH_OF_RUN(i) v[i] += there[i];
    }
    store_run(OUT + first, n, v);
}

KERNEL(widen, Layer) { ((float *)p.out)[id] = load(X[id]); }

KERNEL(narrow, Layer) { OUT[id] = store(((const float *)p.x)[id]); }

// (x - bias) * weight of `before` channels of f32 planes; the others of the result's `oc` are 0. Without weights, x itself.
KERNEL(enter, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.oc, p.oh, p.ow);
    float v = 0.0f;
    if (at.c < p.before) {
        v = ((const float *)p.x)[((at.n * p.before + at.c) * p.oh + at.y) * p.ow + at.x];
        if (p.weight) v = (v - p.bias[at.c]) * p.weight[at.c];
    }
    OUT[id] = store(v);
}

// x * weight, from `c` channels to `before` channels of f32 planes; without weights x itself.
KERNEL(leave, Layer) {
    const Place at = place(0, (u32)id, p.before, p.h, p.w);
    const float v = load(X[index(p.nhwc, at.n, at.c, at.y, at.x, p.c, p.h, p.w)]);
    ((float *)p.out)[id] = p.weight ? v * p.weight[at.c] : v;
}

// From every `stride`-th pixel, `top` and `left` further up, and `before` channels later; zeros where nothing comes from.
KERNEL(spread, Layer) {
    const Place to = place(p.nhwc, (u32)id, p.oc, p.oh, p.ow);
    // What is before the first wraps round to a number that is too large.
    const u32 y = to.y * p.stride - p.top, x = to.x * p.stride - p.left, c = to.c - p.before;
    const bool inside = y < p.h && x < p.w && c < p.c;
    OUT[id] = inside ? X[index(p.nhwc, to.n, c, y, x, p.c, p.h, p.w)] : store(0.0f);
}

// One of the inputs of a concatenation: from channel `before` on.
KERNEL(put, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.c, p.h, p.w);
    OUT[index(p.nhwc, at.n, at.c + p.before, at.y, at.x, p.oc, p.h, p.w)] = X[id];
}

INLINE void give(const Layer &p, u64 id, float v) {
    OUT[id] = store(p.accumulate ? load(OUT[id]) + v : v);
}

// The gradient of `spread` and of `put`.
KERNEL(collect, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.c, p.h, p.w);
    const u32 y = at.y + p.top, x = at.x + p.left;
    const bool read = y % p.stride == 0 && x % p.stride == 0 && y / p.stride < p.oh && x / p.stride < p.ow;
    const u32 from = index(p.nhwc, at.n, at.c + p.before, y / p.stride, x / p.stride, p.oc, p.oh, p.ow);
    give(p, id, read ? load(X[from]) : 0.0f);
}

// The windows of one axis that read place `at`: from `first` to before `end`.
struct Windows {
    u32 first, end;
};

INLINE Windows windows(u32 at, u32 before, u32 size, u32 stride, u32 outputs) {
    const u32 last = (at + before) / stride + 1;
    return {at + before < size ? 0 : (at + before - size) / stride + 1, last < outputs ? last : outputs};
}

// The largest of a window, the first of several, and its place in the window.
KERNEL(max_pool, Layer) {
    const Place to = place(p.nhwc, (u32)id, p.oc, p.oh, p.ow);
    float best = 0.0f;
    u32 winner = 255;
    for (u32 ky = 0; ky < p.rows; ky++)
        for (u32 kx = 0; kx < p.columns; kx++) {
            const u32 y = to.y * p.stride + ky - p.top, x = to.x * p.stride + kx - p.left;
            if (y >= p.h || x >= p.w) continue;
            const float v = load(X[index(p.nhwc, to.n, to.c, y, x, p.c, p.h, p.w)]);
            if (winner == 255 || v > best || v != v) best = v, winner = ky * p.columns + kx;
        }
    OUT[id] = store(best);
    if (p.bits) p.bits[id] = (u8)winner;
}

KERNEL(max_pool_back, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.c, p.h, p.w);
    const Windows rows = windows(at.y, p.top, p.rows, p.stride, p.oh);
    const Windows columns = windows(at.x, p.left, p.columns, p.stride, p.ow);
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++) {
            const u32 from = index(p.nhwc, at.n, at.c, y, x, p.oc, p.oh, p.ow);
            const u32 tap = (at.y + p.top - y * p.stride) * p.columns + at.x + p.left - x * p.stride;
            if (p.bits[from] == tap) sum += load(X[from]);
        }
    give(p, id, sum);
}

// Weights of a depthwise convolution are (rows, columns, c).
KERNEL(depthwise, Layer) {
    const Place to = place(p.nhwc, (u32)id, p.oc, p.oh, p.ow);
    float sum = 0.0f;
    for (u32 ky = 0; ky < p.rows; ky++)
        for (u32 kx = 0; kx < p.columns; kx++) {
            const u32 y = to.y * p.stride + ky - p.top, x = to.x * p.stride + kx - p.left;
            if (y >= p.h || x >= p.w) continue;
            const float weight = p.weight[(ky * p.columns + kx) * p.c + to.c];
            sum += weight * load(X[index(p.nhwc, to.n, to.c, y, x, p.c, p.h, p.w)]);
        }
    OUT[id] = store(sum);
}

KERNEL(depthwise_back, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.c, p.h, p.w);
    const Windows rows = windows(at.y, p.top, p.rows, p.stride, p.oh);
    const Windows columns = windows(at.x, p.left, p.columns, p.stride, p.ow);
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++) {
            const u32 tap = (at.y + p.top - y * p.stride) * p.columns + at.x + p.left - x * p.stride;
            sum += p.weight[tap * p.c + at.c] * load(X[index(p.nhwc, at.n, at.c, y, x, p.oc, p.oh, p.ow)]);
        }
    give(p, id, sum);
}

// The mean over all pixels; a thread for every image and channel.
KERNEL(global_pool, Layer) {
    float sum = 0.0f;
    for (u32 i = 0; i < p.h * p.w; i++)
        sum += load(X[index(p.nhwc, (u32)id / p.c, (u32)id % p.c, i / p.w, i % p.w, p.c, p.h, p.w)]);
    OUT[id] = store(sum / (float)(p.h * p.w));
}

KERNEL(global_pool_back, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.c, p.h, p.w);
    give(p, id, load(X[at.n * p.c + at.c]) * (1.0f / (float)(p.h * p.w)));
}

// The rows, or columns, of `size` that window `at` of `side` covers: windows cover all of them, whatever the size.
INLINE Windows cover(u32 at, u32 size, u32 side) { return {at * size / side, ((at + 1) * size + side - 1) / side}; }

// The means over windows that cover a plane.
KERNEL(adaptive_pool, Layer) {
    const Place to = place(p.nhwc, (u32)id, p.oc, p.oh, p.ow);
    const Windows rows = cover(to.y, p.h, p.oh), columns = cover(to.x, p.w, p.ow);
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++)
            sum += load(X[index(p.nhwc, to.n, to.c, y, x, p.c, p.h, p.w)]);
    OUT[id] = store(sum / (float)((rows.end - rows.first) * (columns.end - columns.first)));
}

// The windows that cover a row are those that its own span in the result touches.
KERNEL(adaptive_pool_back, Layer) {
    const Place at = place(p.nhwc, (u32)id, p.c, p.h, p.w);
    const Windows rows = cover(at.y, p.oh, p.h), columns = cover(at.x, p.ow, p.w);
    float sum = 0.0f;
    for (u32 y = rows.first; y < rows.end; y++)
        for (u32 x = columns.first; x < columns.end; x++) {
            const Windows high = cover(y, p.h, p.oh), wide = cover(x, p.w, p.ow);
            const float share = 1.0f / (float)((high.end - high.first) * (wide.end - wide.first));
            sum += load(X[index(p.nhwc, at.n, at.c, y, x, p.oc, p.oh, p.ow)]) * share;
        }
    give(p, id, sum);
}

// Sums over an image: PARTS threads each add the numbers of an image that are PARTS apart, and one thread adds their sums.
// `sums` holds for each image two totals, then two rows of PARTS.
#define PARTS 256
#define SUMS (2 + 2 * PARTS)

// The place of number `v` of an image, counted (c, h, w).
INLINE u32 of_image(const Layer &p, u32 n, u32 v) {
    return index(p.nhwc, n, v / (p.h * p.w), v / p.w % p.h, v % p.w, p.c, p.h, p.w);
}

INLINE u32 size(const Layer &p) { return p.c * p.h * p.w; }

INLINE double total(const double *sums) {
    double all = 0.0;
    for (u32 i = 0; i < PARTS; i++) all += sums[i];
    return all;
}

#define EACH_OF_PART(v) for (u32 v = (u32)id % PARTS; v < size(p); v += PARTS)
#define IMAGE_OF_PART ((u32)id / PARTS)
#define PART(row) p.sums[(u64)IMAGE_OF_PART * SUMS + 2 + (row) * PARTS + (u32)id % PARTS]

// f32 planes: (x - bias) * weight.
KERNEL(normalise, Layer) {
    const u32 c = (u32)(id / (p.h * p.w)) % p.c;
    ((float *)p.out)[id] = (((const float *)p.x)[id] - p.bias[c]) * p.weight[c];
}

KERNEL(sum_parts, Layer) {
    double sum = 0.0;
    EACH_OF_PART(v) sum += ((const float *)p.x)[IMAGE_OF_PART * size(p) + v];
    PART(0) = sum;
}

KERNEL(mean_total, Layer) { p.sums[id * SUMS] = total(p.sums + id * SUMS + 2) / size(p); }

KERNEL(square_parts, Layer) {
    const double mean = p.sums[(u64)IMAGE_OF_PART * SUMS];
    double sum = 0.0;
    EACH_OF_PART(v) {
        const double gap = (double)((const float *)p.x)[IMAGE_OF_PART * size(p) + v] - mean;
        sum += gap * gap;
    }
    PART(0) = sum;
}

// One over what the image is divided by: its deviation, or, negative, 1 / sqrt(c h w) where that is larger.
KERNEL(inverse_total, Layer) {
    const double deviation = sqrt(total(p.sums + id * SUMS + 2) / size(p)), least = 1.0 / sqrt((double)size(p));
    p.sums[id * SUMS + 1] = deviation < least ? -1.0 / least : 1.0 / deviation;
}

KERNEL(standardise, Layer) {
    const double *sums = p.sums + id / size(p) * SUMS;
    ((float *)p.out)[id] = (float)(((double)((const float *)p.x)[id] - sums[0]) * fabs(sums[1]));
}

// x is the gradient, y the standardised image.
KERNEL(standardise_back_parts, Layer) {
    double sum = 0.0, product = 0.0;
    EACH_OF_PART(v) {
        const double g = ((const float *)p.x)[IMAGE_OF_PART * size(p) + v];
        sum += g, product += g * ((const float *)p.y)[IMAGE_OF_PART * size(p) + v];
    }
    PART(0) = sum, PART(1) = product;
}

// The rows' first numbers become the two means.
KERNEL(standardise_back_total, Layer) {
    double *sums = p.sums + id * SUMS;
    const double mean = total(sums + 2) / size(p), slope = sums[1] < 0.0 ? 0.0 : total(sums + 2 + PARTS) / size(p);
    sums[2] = mean, sums[2 + PARTS] = slope;
}

KERNEL(standardise_back, Layer) {
    const double *sums = p.sums + id / size(p) * SUMS;
    const u32 c = (u32)(id / (p.h * p.w)) % p.c;
    const double g = ((const float *)p.x)[id], z = ((const float *)p.y)[id];
    const float through = (float)((g - sums[2] - sums[2 + PARTS] * z) * fabs(sums[1]));
    ((float *)p.out)[id] = through * p.weight[c];
}

// Stochastic activation pruning: sums[0] is `samples c h w / sum |x|`, or 0 where that sum, sums[1], is 0.
KERNEL(magnitude_parts, Layer) {
    double sum = 0.0;
    EACH_OF_PART(v) sum += fabs((double)load(X[of_image(p, IMAGE_OF_PART, v)]));
    PART(0) = sum;
}

KERNEL(rate_total, Layer) {
    double *sums = p.sums + id * SUMS;
    sums[1] = total(sums + 2);
    sums[0] = sums[1] == 0.0 ? 0.0 : p.samples * size(p) / sums[1];
}

// 1 / (q + 1e-8) where the number is kept, and 1 - q.
INLINE double factor(double magnitude, double rate, float uniform, double *dropped) {
    const double q = -expm1(-rate * magnitude);
    *dropped = exp(-rate * magnitude);
    return (double)uniform >= q ? 0.0 : 1.0 / (q + 1e-8);
}

// A thread for each block of four numbers of an image.
KERNEL(prune, Layer) {
    const u32 blocks = (size(p) + 3) / 4, n = (u32)id / blocks, first = (u32)id % blocks * 4;
    const Block block = block_of(p.words + 4 * n, first / 4);
    const double rate = p.sums[(u64)n * SUMS];
    for (u32 i = 0; i < 4 && first + i < size(p); i++) {
        const u32 at = of_image(p, n, first + i);
        const double x = load(X[at]);
        double dropped;
        OUT[at] = store(rate == 0.0 ? 0.0f : (float)(x * factor(fabs(x), rate, unit(block.word[i]), &dropped)));
    }
}

// x is what was pruned, y the gradient.
KERNEL(prune_back_parts, Layer) {
    const u32 n = IMAGE_OF_PART;
    const double rate = p.sums[(u64)n * SUMS];
    double shared = 0.0;
    EACH_OF_PART(v) {
        const u32 at = of_image(p, n, v);
        const double x = load(X[at]), dy = load(Y[at]);
        double dropped;
        const double kept = factor(fabs(x), rate, unit(block_of(p.words + 4 * n, v / 4).word[v % 4]), &dropped);
        shared += -dy * x * kept * kept * dropped * fabs(x);
    }
    PART(0) = shared;
}

// The first part becomes the share of the sum that every number acts through.
KERNEL(prune_back_total, Layer) {
    double *sums = p.sums + id * SUMS;
    sums[2] = sums[1] == 0.0 ? 0.0 : total(sums + 2) / sums[1];
}

KERNEL(prune_back, Layer) {
    const u32 blocks = (size(p) + 3) / 4, n = (u32)id / blocks, first = (u32)id % blocks * 4;
    const Block block = block_of(p.words + 4 * n, first / 4);
    const double rate = p.sums[(u64)n * SUMS], shared = p.sums[(u64)n * SUMS + 2];
    for (u32 i = 0; i < 4 && first + i < size(p); i++) {
        const u32 at = of_image(p, n, first + i);
        const double x = load(X[at]), dy = load(Y[at]);
        double dropped;
        const double kept = factor(fabs(x), rate, unit(block.word[i]), &dropped);
        const double dz = -dy * x * kept * kept * dropped, sign = x == 0.0 ? 0.0 : x < 0.0 ? -1.0 : 1.0;
        give(p, at, rate == 0.0 ? 0.0f : (float)(dy * kept + sign * rate * (dz - shared)));
    }
}

// k-winners-take-all: the rank of the smallest winner, eight bits at a time. `sums` holds for each image 128 numbers of room
// for 256 counts, then the rank so far and how many are still to be counted; `before` is the lowest of the eight bits.
#define RANKS 129

INLINE u32 rank_of(float x) {
    const u32 bits = bits_of(x);
    return bits >> 31 ? ~bits : bits | 0x80000000U;
}

INLINE u32 *counts(const Layer &p, u64 n) { return (u32 *)(p.sums + n * RANKS); }

// A thread for each of an image's 258 words.
KERNEL(clear_ranks, Layer) { counts(p, id / 258)[id % 258] = id % 258 == 257 ? p.keep : 0; }

KERNEL(count_ranks, Layer) {
    u32 *count = counts(p, id / size(p));
    const u32 rank = rank_of(load(X[id]));
    // The bits above are those of the smallest winner.
    const bool candidate = p.before == 24 || (rank ^ count[256]) >> (p.before + 8) == 0;
    if (candidate) atomic_add(count + (rank >> p.before & 255), 1);
}

KERNEL(pick_rank, Layer) {
    u32 *count = counts(p, id), left = count[257];
    int digit = 255;
    for (; digit > 0 && count[digit] < left; digit--) left -= count[digit];
    count[256] |= (u32)digit << p.before;
    count[257] = left;
    for (u32 i = 0; i < 256; i++) count[i] = 0;
}

KERNEL(keep_largest, Layer) {
    const u64 first = id * RUN;
    const u32 n = run_of(p.count, first);
    float v[RUN];
    u32 mask = 0;
    load_run(X + first, n, v);
    EACH_OF_RUN(i) {
        const u32 rank = counts(p, (i < n ? first + i : first) / size(p))[256];
        const float smallest = of_bits(rank >> 31 ? rank ^ 0x80000000U : ~rank);
        const bool loses = v[i] < smallest;
        mask |= (u32)!loses << i;
        v[i] = loses ? 0.0f : v[i];
    }
    if (p.bits) p.bits[id] = (u8)mask;
    store_run(OUT + first, n, v);
}

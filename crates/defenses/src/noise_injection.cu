// After crates/defenses/src/common.cu.
// Noise of a type of each image's own.

// What one image meets. ADD: normal noise times `first + second * pixel`. HIT: a value whose uniform number is below `first`
// becomes 1, one below `second` else 0. Poisson images are left to the kernels below.
struct Hit {
    u32 words[4];
    u32 type;
    float first, second;
};

CONSTANT u32 ADD = 0, HIT = 1;

struct Injection {
    const float *x, *upstream;
    float *to;
    const Hit *hits;
    u64 len;
};

INLINE u64 blocks_of(u64 len) { return (len + 3) / 4; }

// A thread makes the four numbers of a block: the noisy ones, or (`back`) the gradients of what they were.
INLINE void inject_block(const Injection &p, u64 id, bool back) {
    const u64 image = id / blocks_of(p.len), start = id % blocks_of(p.len) * 4;
    const Hit hit = p.hits[image];
    if (hit.type != ADD && hit.type != HIT) return;
    const Block block = block_of(hit.words, start / 4);
    float z[4];
    if (hit.type == ADD) normals_of(block, z);
    for (u64 i = 0; i < 4 && start + i < p.len; i++) {
        const u64 at = image * p.len + start + i;
        const float x = p.x[at];
        if (hit.type == ADD) {
            const float noisy = x + (hit.first + hit.second * x) * z[i];
            if (!back) p.to[at] = clipped(noisy);
            else p.to[at] = is_inside(noisy) ? p.upstream[at] * (1.0f + hit.second * z[i]) : 0.0f;
        } else {
            const float u = unit(block.word[i]);
            if (!back) p.to[at] = u < hit.second ? (u < hit.first ? 1.0f : 0.0f) : clipped(x);
            else p.to[at] = u < hit.second || !is_inside(x) ? 0.0f : p.upstream[at];
        }
    }
}

KERNEL(inject, Injection) { inject_block(p, id, false); }

KERNEL(inject_back, Injection) { inject_block(p, id, true); }

// Numbers of distinct values, by tables of their bits with open addressing: 0 is empty, for no number is ordered so low.
// What is in a table does not depend on who came first, only where it is.
struct Distinct {
    const float *x;
    u32 *tables, *counts;
    // Of each table's image, its number.
    const u32 *images;
    u64 len;
    u32 slots;
    u32 threads;
};

KERNEL(enter, Distinct) {
    const u64 table = id / p.len;
    u32 *slots = p.tables + table * p.slots;
    const u32 bits = ordered(p.x[p.images[table] * p.len + id % p.len]);
    u32 slot = bits * 0x9E3779B9U;
    slot = (slot ^ slot >> 16) & (p.slots - 1);
    while (true) {
        // Most values are there already: a look is cheaper than an exchange.
        u32 found = *(volatile u32 *)(slots + slot);
        if (found == 0) found = exchange_if(slots + slot, 0, bits);
        if (found == 0 || found == bits) return;
        slot = (slot + 1) & (p.slots - 1);
    }
}

// A thread counts every slot that is `threads` after its own.
KERNEL(count, Distinct) {
    const u64 table = id / p.threads;
    u32 taken = 0;
    for (u32 slot = (u32)(id % p.threads); slot < p.slots; slot += p.threads) {
        taken += p.tables[table * p.slots + slot] != 0;
    }
    if (taken) atomic_add(p.counts + table, taken);
}

// Poisson counts, as noise_injection.rs draws them.
struct Streams {
    u32 first[4], second[4], rest[4];
    u32 image;
};

struct Poisson {
    const float *x, *upstream;
    float *to;
    const Streams *streams;
    // Numbers of distinct values; null where counts are divided by 256.
    const u32 *counts;
    // By block of four numbers, which of them the first proposal did not settle; `stride` blocks for each image.
    u8 *open;
    u64 len, stride;
};

INLINE double scale_of(const Poisson &p, u64 image) {
    if (!p.counts) return 256.0;
    double scale = 1.0;
    while (scale < (double)p.counts[image]) scale *= 2.0;
    return scale;
}

// The middle of the 2^-24 that a drawn number stands for.
INLINE double centred(float u) { return (double)u + 1.0 / 33554432.0; }

struct Proposal {
    double rate, a, b;
};

INLINE Proposal proposal_of(double rate) {
    const double b = 0.931 + 2.53 * sqrt(rate);
    return {rate, -0.059 + 0.02483 * b, b};
}

// The count proposed by `u`, and how near `u` is to an end of (0, 1).
INLINE double proposed(const Proposal &q, double u, double *near) {
    u = u - 0.5;
    *near = 0.5 - fabs(u);
    return floor((2.0 * q.a / *near + q.b) * u + q.rate + 0.43);
}

INLINE double ln_factorial(double n) {
    if (n < 10.0) {
        double product = 1.0;
        for (u32 i = 1; i <= (u32)n; i++) product *= (double)i;
        return log(product);
    }
    const double series = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * n * n)) / (n * n)) / n;
    return (n + 0.5) * log(n) - n + 0.5 * log(6.283185307179586476925286766559) + series;
}

INLINE bool accepts(const Proposal &q, double count, double near, double v) {
    if (near >= 0.07 && v <= 0.9277 - 3.6224 / (q.b - 2.0)) return true;
    if (count < 0.0 || (near < 0.013 && v > near)) return false;
    const double inverse_alpha = 1.1239 + 1.1328 / (q.b - 3.4);
    const double hat = log(v) + log(inverse_alpha) - log(q.a / (near * near) + q.b);
    return hat <= count * log(q.rate) - q.rate - ln_factorial(count);
}

// By inversion: for small rates.
INLINE double invert(double rate, double u) {
    double count = 0.0, mass = exp(-rate), sum = mass;
    while (u > sum && count < 100.0) {
        count += 1.0;
        mass *= rate / count;
        sum += mass;
    }
    return count;
}

INLINE void put(const Poisson &p, u64 at, double value) {
    if (p.upstream) p.to[at] = value <= 1.0 ? p.upstream[at] : 0.0f;
    else p.to[at] = clipped((float)value);
}

INLINE double rate_of(const Poisson &p, u64 at, double scale) {
    const double rate = (double)p.x[at] * scale;
    return rate > 0.0 ? rate : 0.0;
}

// Every count that the first proposal settles.
KERNEL(settle, Poisson) {
    const Streams &streams = p.streams[id / p.stride];
    const u64 block = id % p.stride;
    const double scale = scale_of(p, id / p.stride);
    u32 open = 0;
    if (4 * block < p.len) {
        const Block first = block_of(streams.first, block), second = block_of(streams.second, block);
        for (u32 i = 0; i < 4 && 4 * block + i < p.len; i++) {
            const u64 at = streams.image * p.len + 4 * block + i;
            const double rate = rate_of(p, at, scale);
            const float u = unit(first.word[i]), v = unit(second.word[i]);
            if (rate < 10.0) {
                put(p, at, invert(rate, (double)u + centred(v) / 16777216.0) / scale);
                continue;
            }
            double near;
            const Proposal q = proposal_of(rate);
            const double count = proposed(q, centred(u), &near);
            if (accepts(q, count, near, centred(v))) put(p, at, count / scale);
            else open |= 1U << i;
        }
    }
    p.open[id] = (u8)open;
}

// The others, one after another, since each goes on in the image's stream where the one before left off: about a tenth of
// an image, by a thread of its own.
KERNEL(reject, Poisson) {
    const Streams &streams = p.streams[id];
    const double scale = scale_of(p, id);
    const u64 *open = (const u64 *)(p.open + id * p.stride);
    u64 drawn = 0;
    Block block = {{0, 0, 0, 0}};
    for (u64 group = 0; group < p.stride / 8; group++) {
        const u64 bits = open[group];
        for (u32 bit = 0; bits >> bit; bit++) {
            if (!(bits >> bit & 1)) continue;
            const u64 at = streams.image * p.len + 32 * group + bit / 8 * 4 + bit % 8;
            const Proposal q = proposal_of(rate_of(p, at, scale));
            double near, v, count;
            do {
                if (drawn % 4 == 0) block = block_of(streams.rest, drawn / 4);
                count = proposed(q, centred(unit(block.word[drawn % 4])), &near);
                v = centred(unit(block.word[drawn % 4 + 1]));
                drawn += 2;
            } while (!accepts(q, count, near, v));
            put(p, at, count / scale);
            // A shift by all bits means nothing.
            if (bit == 63) break;
        }
    }
}

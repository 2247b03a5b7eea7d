// Keyed noise. A thread makes the four numbers of one block of one image's key; images have `len` numbers each.

struct Noise {
    const u32 *words;
    const float *x, *upstream;
    float *out;
    u64 len;
    float sigma;
    int clip;
};

INLINE u64 blocks(const Noise &p) { return (p.len + 3) / 4; }

KERNEL(uniform, Noise) {
    const u64 image = id / blocks(p), first = id % blocks(p) * 4;
    const Block block = block_of(p.words + 4 * image, first / 4);
    for (u64 i = 0; i < 4 && first + i < p.len; i++) p.out[image * p.len + first + i] = unit(block.word[i]);
}

// x + sigma z, clipped to [0, 1] where `clip` is not 0; NaN stays.
KERNEL(add_normal, Noise) {
    const u64 image = id / blocks(p), first = id % blocks(p) * 4;
    float z[4];
    normals_of(block_of(p.words + 4 * image, first / 4), z);
    for (u64 i = 0; i < 4 && first + i < p.len; i++) {
        const u64 at = image * p.len + first + i;
        float noisy = p.x[at] + p.sigma * z[i];
        if (p.clip) {
            noisy = noisy < 0.0f ? 0.0f : noisy;
            noisy = noisy > 1.0f ? 1.0f : noisy;
        }
        p.out[at] = noisy;
    }
}

// The upstream gradient where x + sigma z is in [0, 1], else 0.
KERNEL(keep_inside, Noise) {
    const u64 image = id / blocks(p), first = id % blocks(p) * 4;
    float z[4];
    normals_of(block_of(p.words + 4 * image, first / 4), z);
    for (u64 i = 0; i < 4 && first + i < p.len; i++) {
        const u64 at = image * p.len + first + i;
        const float noisy = p.x[at] + p.sigma * z[i];
        p.out[at] = noisy >= 0.0f && noisy <= 1.0f ? p.upstream[at] : 0.0f;
    }
}

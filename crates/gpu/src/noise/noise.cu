// The draws of a game::Key, bit for bit: Philox4x32-10 (Salmon et al. 2011), uniform numbers of 24 bits, and normal numbers
// by Box and Muller with the polynomials of crates/game/src/fill.rs. Compiled at run time by NVRTC, without contracting
// products and sums; and by a C++ compiler for the test, where each kernel is a loop over its threads.
//
// A thread makes the four numbers of one block of one image's key. `words` holds each image's key in four words.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define INLINE static __device__ __forceinline__
#define KERNEL extern "C" __global__
#define EACH_THREAD(id, count)                                            \
    const u64 id = (u64)blockIdx.x * blockDim.x + threadIdx.x;            \
    if (id < (count))
#else
#include <math.h>
#define INLINE static inline
#define KERNEL extern "C"
#define EACH_THREAD(id, count) for (u64 id = 0; id < (count); id++)
#endif

INLINE u32 bits_of(float x) {
    union {
        float number;
        u32 bits;
    } both;
    both.number = x;
    return both.bits;
}

INLINE float of_bits(u32 bits) {
    union {
        float number;
        u32 bits;
    } both;
    both.bits = bits;
    return both.number;
}

struct Block {
    u32 word[4];
};

// Block `index` of the stream of a key.
INLINE Block block_of(const u32 *words, u64 index) {
    u32 k0 = words[0], k1 = words[1];
    Block c = {{(u32)index, (u32)(index >> 32), words[2], words[3]}};
    for (int round = 0; round < 10; round++) {
        const u64 a = 0xD2511F53ULL * c.word[0], b = 0xCD9E8D57ULL * c.word[2];
        const Block next = {{(u32)(b >> 32) ^ c.word[1] ^ k0, (u32)b, (u32)(a >> 32) ^ c.word[3] ^ k1, (u32)a}};
        c = next;
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
    return c;
}

INLINE float unit(u32 word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }

// sqrt(-2 ln u) for u = (a + 1/2) / 2^32.
INLINE float radius(u32 a) {
    const u32 root_half = 0x3F3504F3U;
    const u32 bits = bits_of((float)a + 0.5f) - (root_half + (32U << 23));
    const float e = (float)((int)bits >> 23);
    const float m = of_bits((bits & 0x007FFFFFU) + root_half) - 1.0f;
    const float z = m * m;
    float p = -2.0f * 7.0376836e-2f;
    p = p * m + 2.0f * 1.151461e-1f;
    p = p * m + -2.0f * 1.1676999e-1f;
    p = p * m + 2.0f * 1.2420141e-1f;
    p = p * m + -2.0f * 1.4249323e-1f;
    p = p * m + 2.0f * 1.6668058e-1f;
    p = p * m + -2.0f * 2.0000715e-1f;
    p = p * m + 2.0f * 2.4999994e-1f;
    p = p * m + -2.0f * 3.333333e-1f;
    const float y = p * m * z - -2.0f * 2.1219444e-4f * e + z;
    return sqrtf(y - 2.0f * m - 2.0f * 0.6933594f * e);
}

INLINE float signed_by(float x, u32 sign) { return of_bits(bits_of(x) ^ (sign & 0x80000000U)); }

// Two normal numbers of two words.
INLINE void pair(u32 a, u32 b, float *first, float *second) {
    const float x = (float)(int)(b << 2) * (6.28318530717958647692f / 17179869184.0f);
    const float z = x * x;
    const float s = ((-1.9515296e-4f * z + 8.332161e-3f) * z + -1.6666655e-1f) * z * x + x;
    const float c = ((2.4433157e-5f * z + -1.3887316e-3f) * z + 4.1666646e-2f) * z * z - 0.5f * z + 1.0f;
    const u32 turned = b + (1U << 29);
    const bool straight = (turned & (1U << 30)) == 0;
    const float r = radius(a);
    *first = r * signed_by(straight ? c : s, turned + (1U << 30));
    *second = r * signed_by(straight ? s : c, turned);
}

INLINE void normals_of(Block block, float *z) {
    pair(block.word[0], block.word[1], z, z + 1);
    pair(block.word[2], block.word[3], z + 2, z + 3);
}

// Of `images` images of `len` numbers each.
KERNEL void uniform(const u32 *words, u64 images, u64 len, float *out) {
    const u64 blocks = (len + 3) / 4;
    EACH_THREAD(id, images * blocks) {
        const u64 image = id / blocks, first = id % blocks * 4;
        const Block block = block_of(words + 4 * image, first / 4);
        for (u64 i = 0; i < 4 && first + i < len; i++) out[image * len + first + i] = unit(block.word[i]);
    }
}

// x + sigma z, clipped to [0, 1] where `clip` is not 0; NaN stays.
KERNEL void add_normal(const u32 *words, u64 images, u64 len, float sigma, int clip, const float *x, float *out) {
    const u64 blocks = (len + 3) / 4;
    EACH_THREAD(id, images * blocks) {
        const u64 image = id / blocks, first = id % blocks * 4;
        float z[4];
        normals_of(block_of(words + 4 * image, first / 4), z);
        for (u64 i = 0; i < 4 && first + i < len; i++) {
            const u64 at = image * len + first + i;
            float noisy = x[at] + sigma * z[i];
            if (clip) {
                noisy = noisy < 0.0f ? 0.0f : noisy;
                noisy = noisy > 1.0f ? 1.0f : noisy;
            }
            out[at] = noisy;
        }
    }
}

// The upstream gradient where x + sigma z is in [0, 1], else 0.
KERNEL void keep_inside(const u32 *words, u64 images, u64 len, float sigma, const float *x, const float *upstream,
                        float *out) {
    const u64 blocks = (len + 3) / 4;
    EACH_THREAD(id, images * blocks) {
        const u64 image = id / blocks, first = id % blocks * 4;
        float z[4];
        normals_of(block_of(words + 4 * image, first / 4), z);
        for (u64 i = 0; i < 4 && first + i < len; i++) {
            const u64 at = image * len + first + i;
            const float noisy = x[at] + sigma * z[i];
            out[at] = noisy >= 0.0f && noisy <= 1.0f ? upstream[at] : 0.0f;
        }
    }
}

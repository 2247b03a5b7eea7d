// What every kernel stands on. Compiled at run time by NVRTC, without contracting products and sums, so that each operation
// is rounded as on the CPU; and by a C++ compiler for the tests, where a kernel is a loop over its threads.
//
// A kernel is KERNEL(name, Parameters) { ... }: its body sees one structure `p`, which Rust fills, and the number `id` of its
// thread. What several threads write they write by `atomic_add` or an exchange, and no result may depend on which was first.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef __CUDACC__
#define INLINE static __device__ __forceinline__
#define CONSTANT static __device__ const
#define UNROLLED _Pragma("unroll")
#define KERNEL(name, Parameters)                                                  \
    INLINE void name##_thread(const Parameters &p, const u64 id);                 \
    extern "C" __global__ void name(const Parameters p, const u64 threads) {      \
        const u64 id = (u64)blockIdx.x * blockDim.x + threadIdx.x;                \
        if (id < threads) name##_thread(p, id);                                   \
    }                                                                             \
    INLINE void name##_thread(const Parameters &p, const u64 id)
INLINE void atomic_add(u32 *sum, u32 value) { atomicAdd(sum, value); }
// What stood there.
INLINE u32 exchange(u32 *at, u32 value) { return atomicExch(at, value); }
INLINE u32 exchange_if(u32 *at, u32 expected, u32 value) { return atomicCAS(at, expected, value); }
#else
#include <math.h>
#define INLINE static inline
#define CONSTANT static const
#define UNROLLED
#define KERNEL(name, Parameters)                                                  \
    INLINE void name##_thread(const Parameters &p, const u64 id);                 \
    extern "C" void name(const Parameters *p, const u64 threads) {                \
        for (u64 id = 0; id < threads; id++) name##_thread(*p, id);               \
    }                                                                             \
    INLINE void name##_thread(const Parameters &p, const u64 id)
INLINE void atomic_add(u32 *sum, u32 value) { *sum += value; }
INLINE u32 exchange(u32 *at, u32 value) {
    const u32 old = *at;
    *at = value;
    return old;
}
INLINE u32 exchange_if(u32 *at, u32 expected, u32 value) {
    const u32 old = *at;
    if (old == expected) *at = value;
    return old;
}
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

INLINE u64 bits_of_double(double x) {
    union {
        double number;
        u64 bits;
    } both;
    both.number = x;
    return both.bits;
}

INLINE double double_of_bits(u64 bits) {
    union {
        double number;
        u64 bits;
    } both;
    both.bits = bits;
    return both.number;
}

// bf16, rounded to the nearest, the even one of two; NaN stays.
INLINE float of_bf16(u16 x) { return of_bits((u32)x << 16); }

INLINE u16 to_bf16(float x) {
    const u32 bits = bits_of(x);
    if (x != x) return (u16)(bits >> 16 | 0x40U);
    return (u16)((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// The draws of a game::Key, bit for bit: Philox4x32-10 (Salmon et al. 2011), uniform numbers of 24 bits, and normal numbers
// by Box and Muller with the polynomials of crates/game/src/fill.rs. `words` is a key in four words, Key::words.

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

// A uniform number in [0, 1) of 24 bits.
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

// The four normal numbers of a block.
INLINE void normals_of(Block block, float *z) {
    pair(block.word[0], block.word[1], z, z + 1);
    pair(block.word[2], block.word[3], z + 2, z + 3);
}

// What the kernels of attacks have in common: the images of a run, and the gradient last asked for.
//
// Sums over an image's pixels are made of PARTS partial sums, each of every PARTS-th number in their order, which `fold` adds in
// theirs: no other image, and no other number of threads, can change a bit of them.

#define PARTS 256
#define NO_UNIT (-2147483647 - 1)

struct Images {
    float *x;
    const float *origin;
    float *gradient; // times 2^-log2
    int *log2;       // of every image
    double *partial; // PARTS for every image
    double *total;   // of every image
    u64 images, size;
};

// Two to the power log2; 0 where that is below the smallest normal number.
INLINE double pow2(int log2) {
    if (log2 < -1022) return 0.0;
    return double_of_bits((u64)((log2 < 1023 ? log2 : 1023) + 1023) << 52);
}

// The same down to the smallest number there is, rounded to it or to 0 below.
INLINE double whole_pow2(int log2) {
    if (log2 >= -1022) return pow2(log2);
    return log2 < -1074 ? 0.0 : pow2(-1022) * pow2(log2 + 1022);
}

INLINE bool is_finite(double x) { return x - x == 0.0; }

INLINE double sign(double x) { return x == 0.0 ? 0.0 : x < 0.0 ? -1.0 : 1.0; }

// An entry of the gradient in its true magnitude.
INLINE double raw(const Images &at, u64 id) { return (double)at.gradient[id] * whole_pow2(at.log2[id / at.size]); }

// NaN stays.
INLINE float boxed(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

// The partial sum number `id` of what BODY says of the pixel `at` of all.
#define PARTIAL(images, id, at, BODY)                                                         \
    double sum = 0.0;                                                                         \
    const u64 begin = (id) / PARTS * (images).size;                                           \
    for (u64 at = begin + (id) % PARTS; at < begin + (images).size; at += PARTS) sum += BODY; \
    (images).partial[id] = sum

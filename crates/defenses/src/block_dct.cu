// After crates/defenses/src/common.cu.
// Quantisation of the cosine transform of blocks. A thread makes a block.

struct BlockDct {
    const float *from;
    float *to;
    // What coefficients are multiplied with before they are rounded, and afterwards; 64 each, rows by vertical frequency.
    const float *before, *after;
    Shape shape;
};

CONSTANT float HALF = (float)0.70710678118654752440, LOW = (float)0.3826834323650898;
CONSTANT float DIFFERENCE = (float)0.541196100146197, SUM = (float)1.3065629648763766;

// The scaled cosine transform of dct.rs, of 8 numbers `step` apart.
INLINE void forward(float *x, int step) {
    const float s0 = x[0] + x[7 * step], s1 = x[step] + x[6 * step];
    const float s2 = x[2 * step] + x[5 * step], s3 = x[3 * step] + x[4 * step];
    const float d0 = x[0] - x[7 * step], d1 = x[step] - x[6 * step];
    const float d2 = x[2 * step] - x[5 * step], d3 = x[3 * step] - x[4 * step];
    const float outer = s0 + s3, inner = s1 + s2, outer_minus = s0 - s3, inner_minus = s1 - s2;
    const float turn = (inner_minus + outer_minus) * HALF;
    float a = d3 + d2, b = d1 + d0;
    const float q = (d2 + d1) * HALF, both = (a - b) * LOW;
    a = a * DIFFERENCE + both;
    b = b * SUM + both;
    const float plus = d0 + q, minus = d0 - q;
    x[0] = outer + inner;
    x[step] = plus + b;
    x[2 * step] = outer_minus + turn;
    x[3 * step] = minus - a;
    x[4 * step] = outer - inner;
    x[5 * step] = minus + a;
    x[6 * step] = outer_minus - turn;
    x[7 * step] = plus - b;
}

INLINE void backward(float *x, int step) {
    const float outer = x[0] + x[4 * step], inner = x[0] - x[4 * step];
    const float turn = (x[2 * step] - x[6 * step]) * HALF;
    const float outer_minus = x[2 * step] + x[6 * step] + turn;
    const float s0 = outer + outer_minus, s1 = inner + turn, s2 = inner - turn, s3 = outer - outer_minus;
    const float plus = x[step] + x[7 * step], minus = x[5 * step] + x[3 * step];
    float b = x[step] - x[7 * step], a = x[5 * step] - x[3 * step];
    const float q = (plus - minus) * HALF, both = (a + b) * LOW;
    a = a * DIFFERENCE + both;
    b = b * SUM - both;
    const float d0 = plus + minus + b, d1 = q + b, d2 = a + q, d3 = a;
    x[0] = s0 + d0;
    x[step] = s1 + d1;
    x[2 * step] = s2 + d2;
    x[3 * step] = s3 + d3;
    x[4 * step] = s3 - d3;
    x[5 * step] = s2 - d2;
    x[6 * step] = s1 - d1;
    x[7 * step] = s0 - d0;
}

KERNEL(quantise, BlockDct) {
    const u32 height = p.shape.height, width = p.shape.width;
    const u32 across = (width + 7) / 8, blocks = (height + 7) / 8 * across;
    const u64 plane = id / blocks * area(p.shape);
    const u32 top = (u32)(id % blocks) / across * 8, left = (u32)(id % blocks) % across * 8;
    float x[64];
    for (u32 k = 0; k < 64; k++) {
        const u32 row = top + k / 8, column = left + k % 8;
        x[k] = p.from[plane + (u64)(row < height ? row : height - 1) * width + (column < width ? column : width - 1)];
    }
    for (int j = 0; j < 8; j++) forward(x + j, 8);
    for (int i = 0; i < 8; i++) forward(x + 8 * i, 1);
    for (int k = 0; k < 64; k++) x[k] = rintf(x[k] * p.before[k]) * p.after[k];
    for (int i = 0; i < 8; i++) backward(x + 8 * i, 1);
    for (int j = 0; j < 8; j++) backward(x + j, 8);
    for (u32 k = 0; k < 64; k++) {
        const u32 row = top + k / 8, column = left + k % 8;
        if (row < height && column < width) p.to[plane + (u64)row * width + column] = clipped(x[k]);
    }
}

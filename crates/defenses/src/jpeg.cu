// After crates/defenses/src/common.cu.
// JPEG's lossy part in libjpeg's integers, as in jpeg.rs. Planes are bytes.

struct Jpeg {
    const float *from;
    float *to;
    // Of images of three channels: luma, then both chromas at full size; of others, all channels.
    u8 *bytes;
    // Both chromas of each image, halved: rows of `stride` bytes.
    u8 *small;
    // For each image the steps of luma, then those of chroma, 64 each.
    const int *steps;
    u32 stride;
    Shape shape;
};

// A pixel as a byte; NaN is black.
INLINE int rounded(float x) {
    x = x > 0.0f ? x : 0.0f;
    x = x < 1.0f ? x : 1.0f;
    return (int)(x * 255.0f + 0.5f);
}

INLINE int byte_of(int value) {
    value = value < 0 ? 0 : value;
    return value > 255 ? 255 : value;
}

KERNEL(to_bytes, Jpeg) { p.bytes[id] = (u8)rounded(p.from[id]); }

KERNEL(from_bytes, Jpeg) { p.to[id] = (float)p.bytes[id] / 255.0f; }

// Luma and chroma of a pixel.
KERNEL(to_ycc, Jpeg) {
    const u32 pixels = area(p.shape);
    const u64 at = id / pixels * 3 * pixels + id % pixels;
    const int red = rounded(p.from[at]), green = rounded(p.from[at + pixels]), blue = rounded(p.from[at + 2 * pixels]);
    const int centre = (128 << 16) + 32767;
    p.bytes[at] = (u8)((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16);
    p.bytes[at + pixels] = (u8)((blue * 32768 - red * 11059 - green * 21709 + centre) >> 16);
    p.bytes[at + 2 * pixels] = (u8)((red * 32768 - green * 27439 - blue * 5329 + centre) >> 16);
}

// A byte of a halved chroma: means of four, halves rounded down and up in turns; columns are filled up with means of the
// last pixels.
KERNEL(halve, Jpeg) {
    const u32 height = p.shape.height, width = p.shape.width, rows = (height + 1) / 2;
    const u32 j = (u32)(id % p.stride), i = (u32)(id / p.stride % rows);
    const u64 plane = id / p.stride / rows;
    const u8 *x = p.bytes + (plane / 2 * 3 + 1 + plane % 2) * area(p.shape);
    const u8 *above = x + (u64)(2 * i) * width, *below = 2 * i + 1 < height ? above + width : above;
    const u32 first = 2 * j < width ? 2 * j : width - 1, second = 2 * j + 1 < width ? 2 * j + 1 : width - 1;
    // The column after an odd last one counts as that one.
    const int sum = j < width / 2 ? above[first] + above[second] + below[first] + below[second]
                                  : 2 * (above[width - 1] + below[width - 1]);
    p.small[id] = (u8)((sum + 1 + (int)(j & 1)) >> 2);
}

INLINE int descale(int value, int bits) { return (value + (1 << (bits - 1))) >> bits; }

// The odd part of both transforms (Loeffler, Ligtenberg and Moschytz 1989).
INLINE void odd(int a, int b, int c, int d, int *out) {
    const int z5 = (a + c + b + d) * 9633;
    const int z1 = (a + d) * -7373, z2 = (b + c) * -20995;
    const int z3 = (a + c) * -16069 + z5, z4 = (b + d) * -3196 + z5;
    out[0] = a * 2446 + z1 + z3;
    out[1] = b * 16819 + z2 + z4;
    out[2] = c * 25172 + z2 + z3;
    out[3] = d * 12299 + z1 + z4;
}

// One pass of the cosine transform, of 8 numbers `step` apart; the first leaves 2 fractional bits.
INLINE void transform(int *x, int step, bool second) {
    const int bits = second ? 15 : 11;
    const int s0 = x[0] + x[7 * step], s1 = x[step] + x[6 * step];
    const int s2 = x[2 * step] + x[5 * step], s3 = x[3 * step] + x[4 * step];
    int out[4];
    odd(x[3 * step] - x[4 * step], x[2 * step] - x[5 * step], x[step] - x[6 * step], x[0] - x[7 * step], out);
    const int even0 = s0 + s3, even3 = s0 - s3, even1 = s1 + s2, even2 = s1 - s2;
    const int z = (even2 + even3) * 4433;
    x[0] = second ? descale(even0 + even1, 2) : (even0 + even1) * 4;
    x[4 * step] = second ? descale(even0 - even1, 2) : (even0 - even1) * 4;
    x[2 * step] = descale(z + even3 * 6270, bits);
    x[6 * step] = descale(z - even2 * 15137, bits);
    for (int k = 0; k < 4; k++) x[(7 - 2 * k) * step] = descale(out[k], bits);
}

// One pass of the inverse.
INLINE void transform_back(int *x, int step, bool second) {
    const int bits = second ? 18 : 11;
    const int z = (x[2 * step] + x[6 * step]) * 4433;
    const int low = z - x[6 * step] * 15137, high = z + x[2 * step] * 6270;
    const int sum = (x[0] + x[4 * step]) * 8192, difference = (x[0] - x[4 * step]) * 8192;
    const int even[4] = {sum + high, difference + low, difference - low, sum - high};
    int out[4];
    odd(x[7 * step], x[5 * step], x[3 * step], x[step], out);
    for (int i = 0; i < 4; i++) {
        x[i * step] = descale(even[i] + out[3 - i], bits);
        x[(7 - i) * step] = descale(even[i] - out[3 - i], bits);
    }
}

// Quantises a block of a plane of bytes where it stands.
INLINE void quantise_block(u8 *plane, u32 height, u32 width, u32 block, const int *steps) {
    const u32 across = (width + 7) / 8, top = block / across * 8, left = block % across * 8;
    int x[64];
    for (u32 k = 0; k < 64; k++) {
        const u32 row = top + k / 8, column = left + k % 8;
        x[k] = plane[(u64)(row < height ? row : height - 1) * width + (column < width ? column : width - 1)] - 128;
    }
    for (int i = 0; i < 8; i++) transform(x + 8 * i, 1, false);
    for (int j = 0; j < 8; j++) transform(x + j, 8, true);
    for (int k = 0; k < 64; k++) {
        const int step = steps[k], size = (x[k] < 0 ? -x[k] : x[k]) + step * 4;
        const int count = (int)(((float)size + 0.5f) * (1.0f / (float)(step * 8)));
        x[k] = (x[k] < 0 ? -count : count) * step;
    }
    for (int j = 0; j < 8; j++) transform_back(x + j, 8, false);
    for (int i = 0; i < 8; i++) transform_back(x + 8 * i, 1, true);
    for (u32 k = 0; k < 64; k++) {
        const u32 row = top + k / 8, column = left + k % 8;
        if (row < height && column < width) plane[(u64)row * width + column] = (u8)byte_of(x[k] + 128);
    }
}

INLINE u32 blocks_of(u32 height, u32 width) { return (height + 7) / 8 * ((width + 7) / 8); }

// Luma, or every channel of images of other than three.
KERNEL(quantise, Jpeg) {
    const u32 blocks = blocks_of(p.shape.height, p.shape.width);
    const u64 plane = id / blocks;
    const u64 image = p.shape.channels == 3 ? plane : plane / p.shape.channels;
    u8 *bytes = p.bytes + (p.shape.channels == 3 ? 3 * plane : plane) * area(p.shape);
    quantise_block(bytes, p.shape.height, p.shape.width, (u32)(id % blocks), p.steps + 128 * image);
}

KERNEL(quantise_small, Jpeg) {
    const u32 rows = (p.shape.height + 1) / 2, blocks = blocks_of(rows, p.stride);
    const u64 plane = id / blocks;
    u8 *bytes = p.small + plane * rows * p.stride;
    quantise_block(bytes, rows, p.stride, (u32)(id % blocks), p.steps + 128 * (plane / 2) + 64);
}

// A halved plane at its full size: three quarters of the nearest pixel, one of the next, along either axis.
INLINE int doubled(const u8 *x, u32 rows, u32 columns, u32 stride, u32 i, u32 j) {
    const u32 row = i / 2, column = j / 2;
    const u32 next_row = i % 2 ? (row + 1 < rows ? row + 1 : row) : (row ? row - 1 : 0);
    const u32 next_column = j % 2 ? (column + 1 < columns ? column + 1 : column) : (column ? column - 1 : 0);
    const u8 *near = x + (u64)row * stride, *next = x + (u64)next_row * stride;
    const int at = 3 * near[column] + next[column], beside = 3 * near[next_column] + next[next_column];
    return (3 * at + beside + (j % 2 ? 7 : 8)) >> 4;
}

// Red, green and blue of a pixel.
KERNEL(to_rgb, Jpeg) {
    const u32 height = p.shape.height, width = p.shape.width, pixels = area(p.shape);
    const u32 rows = (height + 1) / 2, columns = (width + 1) / 2;
    const u64 image = id / pixels, at = image * 3 * pixels + id % pixels;
    const u32 i = (u32)(id % pixels) / width, j = (u32)(id % pixels) % width;
    const u8 *small = p.small + image * 2 * rows * p.stride;
    const int luma = p.bytes[at];
    const int blue = doubled(small, rows, columns, p.stride, i, j) - 128;
    const int red = doubled(small + (u64)rows * p.stride, rows, columns, p.stride, i, j) - 128;
    p.to[at] = (float)byte_of(luma + red + ((red * 26345 + 32768) >> 16)) / 255.0f;
    p.to[at + pixels] = (float)byte_of(luma - red + ((red * 18734 - blue * 22554 + 32768) >> 16)) / 255.0f;
    p.to[at + 2 * pixels] = (float)byte_of(luma + blue + blue + ((32768 - blue * 14942) >> 16)) / 255.0f;
}

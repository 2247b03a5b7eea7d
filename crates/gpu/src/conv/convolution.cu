// The definition of a convolution and of its gradient at the images, for tests on the host: sums are in double precision.
// Weights are (o, c, rows, columns), or (o, rows, columns, c) where NHWC.

struct Convolution {
    const NUMBER *x, *w;
    const NUMBER *y;
    NUMBER *out;
    u32 c, h, width, o, oh, ow, rows, columns, stride, top, left, groups, nhwc, accumulate;
};

INLINE u64 at(u32 nhwc, u64 n, u64 c, u64 y, u64 x, u64 channels, u64 height, u64 width) {
    return nhwc ? ((n * height + y) * width + x) * channels + c : ((n * channels + c) * height + y) * width + x;
}

KERNEL(convolve, Convolution) {
    const u64 column = id % p.ow, row = id / p.ow % p.oh, o = id / p.ow / p.oh % p.o, n = id / p.ow / p.oh / p.o;
    const u32 per = p.c / p.groups, first = (u32)o / (p.o / p.groups) * per;
    double sum = 0.0;
    for (u32 c = 0; c < per; c++)
        for (u32 ky = 0; ky < p.rows; ky++)
            for (u32 kx = 0; kx < p.columns; kx++) {
                const i64 y = (i64)(row * p.stride + ky) - p.top, x = (i64)(column * p.stride + kx) - p.left;
                if (y < 0 || x < 0 || y >= p.h || x >= p.width) continue;
                sum += (double)load(p.x[at(p.nhwc, n, first + c, y, x, p.c, p.h, p.width)]) *
                       (double)load(p.w[at(p.nhwc, o, c, ky, kx, per, p.rows, p.columns)]);
            }
    const u64 to = at(p.nhwc, n, o, row, column, p.o, p.oh, p.ow);
    p.out[to] = store((float)(p.accumulate ? sum + (double)load(p.out[to]) : sum));
}

KERNEL(convolve_back, Convolution) {
    const u64 x = id % p.width, y = id / p.width % p.h, c = id / p.width / p.h % p.c, n = id / p.width / p.h / p.c;
    const u32 per = p.c / p.groups, outputs = p.o / p.groups, group = (u32)c / per;
    double sum = 0.0;
    for (u32 ky = 0; ky < p.rows; ky++)
        for (u32 kx = 0; kx < p.columns; kx++) {
            const i64 row = (i64)y + p.top - ky, column = (i64)x + p.left - kx;
            if (row < 0 || column < 0 || row % p.stride || column % p.stride) continue;
            if (row / p.stride >= p.oh || column / p.stride >= p.ow) continue;
            for (u32 o = group * outputs; o < (group + 1) * outputs; o++)
                sum += (double)load(p.y[at(p.nhwc, n, o, row / p.stride, column / p.stride, p.o, p.oh, p.ow)]) *
                       (double)load(p.w[at(p.nhwc, o, c - group * per, ky, kx, per, p.rows, p.columns)]);
        }
    const u64 to = at(p.nhwc, n, c, y, x, p.c, p.h, p.width);
    p.out[to] = store((float)(p.accumulate ? sum + (double)load(p.out[to]) : sum));
}

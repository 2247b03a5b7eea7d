// After crates/defenses/src/common.cu.
// Multiplication of the Fourier coefficients, by four products with matrices of roots of unity. Of the columns' frequencies
// only the first half is computed (`half` = width / 2 + 1): planes are real, and so is what comes out, for gains at opposite
// frequencies are equal. Sums are in single precision, 16 terms at a time.

struct Complex {
    float re, im;
};

// Frequencies of one channel that are removed: from, to; of rows, of columns.
struct Removed {
    u32 row_from, row_to, column_from, column_to;
};

struct Fft {
    const float *x, *upstream;
    float *to;
    // Roots of unity exp(2 pi i j / n) by j, and the matrices of their powers j * k; of rows, of columns.
    const Complex *row_roots, *column_roots;
    Complex *rows, *columns;
    // By image, row frequency `k` and column frequency `l` at `l * height + k`.
    float *field;
    const u32 *words;
    const Removed *removed;
    // By plane, row (or row frequency) and column frequency.
    Complex *spectrum, *other;
    float low, range, scale;
    u32 clip;
    u32 half;
    Shape shape;
};

CONSTANT u32 RUN = 4, TERMS = 16;

KERNEL(row_matrix, Fft) {
    const u32 n = p.shape.height;
    p.rows[id] = p.row_roots[id / n * (id % n) % n];
}

KERNEL(column_matrix, Fft) {
    const u32 n = p.shape.width;
    p.columns[id] = p.column_roots[id / n * (id % n) % n];
}

// Factors drawn for one block of four coefficients.
KERNEL(factors, Fft) {
    const u32 pixels = area(p.shape), blocks = (pixels + 3) / 4;
    const u64 image = id / blocks;
    const u32 start = (u32)(id % blocks) * 4;
    const Block block = block_of(p.words + 4 * image, start / 4);
    for (u32 i = 0; i < 4 && start + i < pixels; i++) {
        p.field[image * pixels + start + i] = p.low + p.range * unit(block.word[i]);
    }
}

// Where a thread works that makes a run of rows in one of `columns` columns.
struct Run {
    u64 plane;
    u32 first, n, column;
};

INLINE Run run_of(u64 id, u32 rows, u32 columns) {
    const u32 runs = (rows + RUN - 1) / RUN;
    const u64 line = id / columns;
    const u32 first = (u32)(line % runs) * RUN;
    return {line / runs, first, rows - first < RUN ? rows - first : RUN, (u32)(id % columns)};
}

// Along the rows of the planes.
KERNEL(across, Fft) {
    const u32 height = p.shape.height, width = p.shape.width;
    const Run run = run_of(id, height, p.half);
    const float *x = p.x + (run.plane * height + run.first) * width;
    Complex sum[4] = {};
    for (u32 start = 0; start < width; start += TERMS) {
        Complex part[4] = {};
        for (u32 j = start; j < width && j < start + TERMS; j++) {
            const Complex root = p.columns[(u64)j * width + run.column];
            for (u32 r = 0; r < run.n; r++) {
                part[r].re += x[r * width + j] * root.re;
                part[r].im -= x[r * width + j] * root.im;
            }
        }
        for (u32 r = 0; r < RUN; r++) {
            sum[r].re += part[r].re;
            sum[r].im += part[r].im;
        }
    }
    for (u32 r = 0; r < run.n; r++) p.spectrum[(run.plane * height + run.first + r) * p.half + run.column] = sum[r];
}

// A run of rows of the product of `from`, column by column, with the powers (`back`) or their conjugates.
INLINE void turn_columns(const Fft &p, const Run &run, const Complex *from, bool back, Complex *sum) {
    const u32 height = p.shape.height;
    from += run.plane * height * p.half + run.column;
    for (u32 start = 0; start < height; start += TERMS) {
        Complex part[4] = {};
        for (u32 i = start; i < height && i < start + TERMS; i++) {
            const Complex x = from[(u64)i * p.half];
            for (u32 r = 0; r < run.n; r++) {
                const Complex root = p.rows[(u64)i * height + run.first + r];
                const float im = back ? root.im : -root.im;
                part[r].re += x.re * root.re - x.im * im;
                part[r].im += x.re * im + x.im * root.re;
            }
        }
        for (u32 r = 0; r < RUN; r++) {
            sum[r].re += part[r].re;
            sum[r].im += part[r].im;
        }
    }
}

// The factor of a coefficient, 0 where it is removed.
INLINE float kept(const Fft &p, u64 plane, u32 k, u32 l) {
    const Removed &removed = p.removed[plane];
    if ((k >= removed.row_from && k < removed.row_to) || (l >= removed.column_from && l < removed.column_to)) return 0.0f;
    return p.field[plane / p.shape.channels * area(p.shape) + (u64)l * p.shape.height + k];
}

// Along the columns of the spectrum, times the mean of each factor and its opposite.
KERNEL(down, Fft) {
    const u32 height = p.shape.height, width = p.shape.width;
    const Run run = run_of(id, height, p.half);
    Complex sum[4] = {};
    turn_columns(p, run, p.spectrum, false, sum);
    for (u32 r = 0; r < run.n; r++) {
        const u32 k = run.first + r, l = run.column;
        const float here = kept(p, run.plane, k, l);
        const float there = kept(p, run.plane, k ? height - k : 0, l ? width - l : 0);
        const float gain = p.scale * here + p.scale * there;
        p.other[(run.plane * height + k) * p.half + l] = {sum[r].re * gain, sum[r].im * gain};
    }
}

KERNEL(up, Fft) {
    const Run run = run_of(id, p.shape.height, p.half);
    Complex sum[4] = {};
    turn_columns(p, run, p.other, true, sum);
    for (u32 r = 0; r < run.n; r++) {
        p.spectrum[(run.plane * p.shape.height + run.first + r) * p.half + run.column] = sum[r];
    }
}

// Back along the rows: the second half of the frequencies gives what the first does.
KERNEL(back, Fft) {
    const u32 height = p.shape.height, width = p.shape.width;
    const Run run = run_of(id, height, width);
    const Complex *from = p.spectrum + (run.plane * height + run.first) * p.half;
    float sum[4] = {};
    for (u32 start = 0; start < p.half; start += TERMS) {
        float part[4] = {};
        for (u32 l = start; l < p.half && l < start + TERMS; l++) {
            const Complex root = p.columns[(u64)l * width + run.column];
            const float times = l == 0 || 2 * l == width ? 1.0f : 2.0f;
            for (u32 r = 0; r < run.n; r++) {
                const Complex x = from[r * p.half + l];
                part[r] += times * (x.re * root.re - x.im * root.im);
            }
        }
        for (u32 r = 0; r < RUN; r++) sum[r] += part[r];
    }
    for (u32 r = 0; r < run.n; r++) {
        p.to[(run.plane * height + run.first + r) * width + run.column] = p.clip ? clipped(sum[r]) : sum[r];
    }
}

// The upstream gradient where `x` is in [0, 1], else 0.
KERNEL(keep_inside, Fft) { p.to[id] = is_inside(p.x[id]) ? p.upstream[id] : 0.0f; }

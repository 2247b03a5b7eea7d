// After crates/defenses/src/common.cu.
// Gaussian blur along one axis after the other.

struct Blur {
    const float *from;
    float *to;
    // For each image the weights of rows, then those of columns, `most` of each; and how many there are.
    const float *weights;
    const u32 *sizes;
    u32 most;
    // 0: along a column; 1: along a row.
    u32 axis;
    Shape shape;
};

// The pixel of a line of `n` that stands at `i`, which may be outside.
INLINE int reflected(int i, int n) {
    if (i >= 0 && i < n) return i;
    const int period = n > 1 ? 2 * (n - 1) : 1;
    i %= period;
    if (i < 0) i += period;
    i = i < period - i ? i : period - i;
    return i < n - 1 ? i : n - 1;
}

// A line of pixels, and what it is blurred with.
struct Line {
    const float *pixels, *weights;
    u64 step;
    int at, n, size;
};

INLINE Line line_of(const Blur &p, u64 id) {
    const Place place = place_of(id, p.shape);
    const u64 kernel = 2 * place.image + p.axis, step = p.axis ? 1 : p.shape.width;
    const u32 at = p.axis ? place.column : place.row, n = p.axis ? p.shape.width : p.shape.height;
    return {p.from + (id - at * step), p.weights + kernel * p.most, step, (int)at, (int)n, (int)p.sizes[kernel]};
}

KERNEL(blur, Blur) {
    const Line line = line_of(p, id);
    float sum = 0.0f;
    for (int k = 0; k < line.size; k++) {
        sum += line.weights[k] * line.pixels[(u64)reflected(line.at + k - line.size / 2, line.n) * line.step];
    }
    p.to[id] = sum;
}

// What a pixel at `at`, which may be outside, has given to the line: kernels are symmetric.
INLINE float given(const Line &line, int at) {
    float sum = 0.0f;
    for (int k = 0; k < line.size; k++) {
        const int i = at + k - line.size / 2;
        if (i >= 0 && i < line.n) sum += line.weights[k] * line.pixels[(u64)i * line.step];
    }
    return sum;
}

// The transpose: also what was given by the pixels beyond the border that this one stood for.
KERNEL(blur_back, Blur) {
    const Line line = line_of(p, id);
    const int beyond = line.size / 2;
    float sum = given(line, line.at);
    if (line.at <= beyond || line.at >= line.n - 1 - beyond) {
        for (int i = -beyond; i < 0; i++) {
            if (reflected(i, line.n) == line.at) sum += given(line, i);
        }
        for (int i = line.n; i < line.n + beyond; i++) {
            if (reflected(i, line.n) == line.at) sum += given(line, i);
        }
    }
    p.to[id] = sum;
}

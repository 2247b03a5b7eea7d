// After crates/defenses/src/common.cu.
// Bilinear resampling along rows and columns.

struct Points {
    double shift, step, length, parts, start;
};

// How one image is read, and where in the frame what is read stands.
struct Reading {
    Points rows, columns;
    u32 top, left, height, width;
};

// What a row or column reads: two of the image's, and their weights.
struct Tap {
    u32 low, high;
    float weight, rest;
};

struct Resample {
    const float *from;
    float *to;
    const Reading *readings;
    // For each image those of rows, then those of columns, `most` of each.
    Tap *taps;
    u32 most;
    float fill;
    Shape shape, frame;
};

KERNEL(taps, Resample) {
    const Reading &reading = p.readings[id / (2 * p.most)];
    const u32 i = (u32)(id % p.most);
    const bool across = id / p.most % 2 == 1;
    if (i >= (across ? reading.width : reading.height)) return;
    const Points &points = across ? reading.columns : reading.rows;
    const double last = (double)((across ? p.shape.width : p.shape.height) - 1);
    double point = ((double)i + points.shift) * points.step * points.length / points.parts + points.start;
    point = point < 0.0 ? 0.0 : point;
    point = point > last ? last : point;
    const u32 low = (u32)point;
    const double weight = point - (double)low;
    const u32 high = (double)low < last ? low + 1 : low;
    p.taps[id] = {low, high, (float)weight, (float)(1.0 - weight)};
}

KERNEL(sample, Resample) {
    const Place place = place_of(id, p.frame);
    const Reading &reading = p.readings[place.image];
    // Beyond any size where it wraps.
    const u32 i = place.row - reading.top, j = place.column - reading.left;
    if (i >= reading.height || j >= reading.width) {
        p.to[id] = p.fill;
        return;
    }
    const Tap *taps = p.taps + 2 * p.most * place.image;
    const Tap down = taps[i], across = taps[p.most + j];
    const float *plane = p.from + (place.image * p.shape.channels + place.channel) * area(p.shape);
    const float *above = plane + (u64)down.low * p.shape.width, *below = plane + (u64)down.high * p.shape.width;
    const float left = above[across.low] + (below[across.low] - above[across.low]) * down.weight;
    const float right = above[across.high] + (below[across.high] - above[across.high]) * down.weight;
    p.to[id] = left + (right - left) * across.weight;
}

// The first of `n` taps that reaches `at`; they are in order.
INLINE u32 reach(const Tap *taps, u32 n, u32 at) {
    u32 low = 0;
    while (low < n) {
        const u32 middle = low + (n - low) / 2;
        if (taps[middle].high < at) low = middle + 1;
        else n = middle;
    }
    return low;
}

// The transpose: what each pixel of the image has given to the frame `from`.
KERNEL(sample_back, Resample) {
    const Place place = place_of(id, p.shape);
    const Reading &reading = p.readings[place.image];
    const Tap *rows = p.taps + 2 * p.most * place.image, *columns = rows + p.most;
    const float *plane = p.from + (place.image * p.frame.channels + place.channel) * area(p.frame);
    const u32 first = reach(columns, reading.width, place.column);
    float sum = 0.0f;
    for (u32 i = reach(rows, reading.height, place.row); i < reading.height && rows[i].low <= place.row; i++) {
        const float *line = plane + (u64)(reading.top + i) * p.frame.width + reading.left;
        float row = 0.0f;
        for (u32 j = first; j < reading.width && columns[j].low <= place.column; j++) {
            if (columns[j].low == place.column) row += (1.0f - columns[j].weight) * line[j];
            if (columns[j].high == place.column) row += columns[j].weight * line[j];
        }
        if (rows[i].low == place.row) sum += rows[i].rest * row;
        if (rows[i].high == place.row) sum += rows[i].weight * row;
    }
    p.to[id] = sum;
}

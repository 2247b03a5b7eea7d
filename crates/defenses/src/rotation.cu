// After crates/defenses/src/common.cu.
// Rotation about the centre. A thread makes one pixel of all channels.

struct Rotation {
    const float *from;
    float *to;
    // Sine and cosine of each image's angle.
    const double *turns;
    Shape shape;
};

struct Point {
    double y, x;
};

// The point that pixel (i, j) of the output shows.
INLINE Point source(const double *turn, Shape shape, u32 i, u32 j) {
    const double sin = turn[0], cos = turn[1];
    const double cy = (double)(shape.height - 1) / 2.0, cx = (double)(shape.width - 1) / 2.0;
    const double dy = (double)i - cy, dx = (double)j - cx;
    return {cy + sin * dx + cos * dy, cx + cos * dx - sin * dy};
}

KERNEL(rotate, Rotation) {
    const u32 width = p.shape.width, pixels = area(p.shape);
    const u64 image = id / pixels;
    const u32 at = (u32)(id % pixels);
    const Point point = source(p.turns + 2 * image, p.shape, at / width, at % width);
    const double top = floor(point.y), left = floor(point.x);
    const double fy = point.y - top, fx = point.x - left;
    u32 from[4];
    float weights[4];
    int taps = 0;
    for (int k = 0; k < 4; k++) {
        const double row = top + (double)(k / 2), column = left + (double)(k % 2);
        const bool inside = row >= 0.0 && row < (double)p.shape.height && column >= 0.0 && column < (double)width;
        if (!inside) continue;
        from[taps] = (u32)row * width + (u32)column;
        weights[taps++] = (float)((k / 2 ? fy : 1.0 - fy) * (k % 2 ? fx : 1.0 - fx));
    }
    for (u64 c = image * p.shape.channels; c < (image + 1) * p.shape.channels; c++) {
        float sum = 0.0f;
        for (int k = 0; k < taps; k++) sum += weights[k] * p.from[c * pixels + from[k]];
        p.to[c * pixels + at] = sum;
    }
}

// The transpose. Pixels of the output that read this one show points less than one pixel away along both axes: turned
// back, these are in a square whose sides are at most 1.415 pixels away, so at most three by three.
KERNEL(rotate_back, Rotation) {
    const u32 height = p.shape.height, width = p.shape.width, pixels = area(p.shape);
    const u64 image = id / pixels;
    const u32 at = (u32)(id % pixels);
    const double *turn = p.turns + 2 * image, sin = turn[0], cos = turn[1];
    const double row = (double)(at / width), column = (double)(at % width);
    const double cy = (double)(height - 1) / 2.0, cx = (double)(width - 1) / 2.0;
    const double i0 = cy + cos * (row - cy) - sin * (column - cx), j0 = cx + sin * (row - cy) + cos * (column - cx);
    const double away = fabs(sin) + fabs(cos) + 1e-6;
    u32 from[9];
    float weights[9];
    int taps = 0;
    for (double i = ceil(i0 - away); i <= i0 + away; i += 1.0) {
        for (double j = ceil(j0 - away); j <= j0 + away; j += 1.0) {
            if (i < 0.0 || i >= (double)height || j < 0.0 || j >= (double)width) continue;
            const Point point = source(turn, p.shape, (u32)i, (u32)j);
            const double top = floor(point.y), left = floor(point.x);
            const double fy = point.y - top, fx = point.x - left;
            const double down = row - top, across = column - left;
            if ((down != 0.0 && down != 1.0) || (across != 0.0 && across != 1.0)) continue;
            from[taps] = (u32)i * width + (u32)j;
            weights[taps++] = (float)((down == 1.0 ? fy : 1.0 - fy) * (across == 1.0 ? fx : 1.0 - fx));
        }
    }
    for (u64 c = image * p.shape.channels; c < (image + 1) * p.shape.channels; c++) {
        float sum = 0.0f;
        for (int k = 0; k < taps; k++) sum += weights[k] * p.from[c * pixels + from[k]];
        p.to[c * pixels + at] = sum;
    }
}

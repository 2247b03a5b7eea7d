// After crates/defenses/src/common.cu.
// Median filter, zeros outside.

struct Median {
    const float *x, *upstream;
    float *to;
    // Of every median the pixel of its plane that it is, or NOWHERE.
    u32 *sources;
    // Height and width of each image's rectangle, odd.
    const u32 *sizes;
    Shape shape;
};

CONSTANT u32 NOWHERE = 0xFFFFFFFFU;
// Zero as `ordered` has it.
CONSTANT u32 ZERO = 0x80000000U;

// The part of a rectangle that is inside the image, and how many of its pixels are outside.
struct Window {
    const float *plane;
    u32 width;
    int top, bottom, left, right;
    u32 outside, half;
};

INLINE Window window_of(const Median &p, Place place) {
    const int down = (int)p.sizes[2 * place.image] / 2, across = (int)p.sizes[2 * place.image + 1] / 2;
    const int row = (int)place.row, column = (int)place.column;
    const int height = (int)p.shape.height, width = (int)p.shape.width;
    Window window;
    window.plane = p.x + (place.image * p.shape.channels + place.channel) * area(p.shape);
    window.width = p.shape.width;
    window.top = row > down ? row - down : 0;
    window.left = column > across ? column - across : 0;
    window.bottom = row + down < height ? row + down + 1 : height;
    window.right = column + across < width ? column + across + 1 : width;
    const u32 all = (u32)((2 * down + 1) * (2 * across + 1));
    window.outside = all - (u32)((window.bottom - window.top) * (window.right - window.left));
    window.half = all / 2;
    return window;
}

// The ordered bits of the median, by bisection: the number with at most half of the pixels on either side. Bounds shrink
// to the values met, so about as many rounds as the number of pixels has bits.
INLINE u32 median_of(const Window &window) {
    u32 low = window.outside ? ZERO : 0xFFFFFFFFU, high = window.outside ? ZERO : 0;
    for (int i = window.top; i < window.bottom; i++) {
        for (int j = window.left; j < window.right; j++) {
            const u32 bits = ordered(window.plane[(u32)i * window.width + (u32)j]);
            low = bits < low ? bits : low;
            high = bits > high ? bits : high;
        }
    }
    while (low < high) {
        const u32 guess = low + (high - low) / 2;
        u32 less = ZERO < guess ? window.outside : 0, greater = ZERO > guess ? window.outside : 0;
        u32 below = less ? ZERO : low, above = greater ? ZERO : high;
        for (int i = window.top; i < window.bottom; i++) {
            for (int j = window.left; j < window.right; j++) {
                const u32 bits = ordered(window.plane[(u32)i * window.width + (u32)j]);
                if (bits < guess) {
                    less++;
                    below = bits > below ? bits : below;
                } else if (bits > guess) {
                    greater++;
                    above = bits < above ? bits : above;
                }
            }
        }
        if (less <= window.half && greater <= window.half) return guess;
        if (less == window.half + 1) return below;
        if (greater == window.half + 1) return above;
        if (less > window.half) high = below;
        else low = above;
    }
    return low;
}

KERNEL(median, Median) { p.to[id] = of_ordered(median_of(window_of(p, place_of(id, p.shape)))); }

// Which pixel is the median: the first of equal ones, those outside included.
KERNEL(locate, Median) {
    const Place place = place_of(id, p.shape);
    const u32 sought = median_of(window_of(p, place));
    const int height = (int)p.shape.height, width = (int)p.shape.width;
    const int down = (int)p.sizes[2 * place.image] / 2, across = (int)p.sizes[2 * place.image + 1] / 2;
    const float *plane = p.x + (place.image * p.shape.channels + place.channel) * area(p.shape);
    for (int i = (int)place.row - down; i <= (int)place.row + down; i++) {
        for (int j = (int)place.column - across; j <= (int)place.column + across; j++) {
            const bool inside = i >= 0 && i < height && j >= 0 && j < width;
            if ((inside ? ordered(plane[i * width + j]) : ZERO) != sought) continue;
            p.sources[id] = inside ? (u32)(i * width + j) : NOWHERE;
            return;
        }
    }
}

// The gradients of the medians that a pixel is.
KERNEL(median_back, Median) {
    const Place place = place_of(id, p.shape);
    // Rectangles that hold this pixel are centred in the one about it.
    const Window window = window_of(p, place);
    const u64 plane = (place.image * p.shape.channels + place.channel) * area(p.shape);
    const u32 at = place.row * p.shape.width + place.column;
    float sum = 0.0f;
    for (int i = window.top; i < window.bottom; i++) {
        for (int j = window.left; j < window.right; j++) {
            const u64 from = plane + (u32)i * window.width + (u32)j;
            if (p.sources[from] == at) sum += p.upstream[from];
        }
    }
    p.to[id] = sum;
}

// What the kernels of several defenses share. Arithmetic is that of the CPU, in its order, unless a kernel says otherwise.

// Of one image; pixel (c, i, j) of image n is number ((n * channels + c) * height + i) * width + j of a batch.
struct Shape {
    u32 channels, height, width;
};

INLINE u32 area(Shape shape) { return shape.height * shape.width; }

struct Place {
    u64 image;
    u32 channel, row, column;
};

// Of number `id` of a batch.
INLINE Place place_of(u64 id, Shape shape) {
    const u32 len = shape.channels * area(shape);
    const u64 image = id / len;
    const u32 rest = (u32)(id - image * len), line = rest / shape.width;
    return {image, line / shape.height, line % shape.height, rest % shape.width};
}

INLINE u64 number_of(Place place, Shape shape) {
    return ((place.image * shape.channels + place.channel) * shape.height + place.row) * shape.width + place.column;
}

INLINE float clipped(float x) {
    x = x < 0.0f ? 0.0f : x;
    return x > 1.0f ? 1.0f : x;
}

INLINE bool is_inside(float x) { return x >= 0.0f && x <= 1.0f; }

// Bits that order as the numbers do; -0 and 0 are one.
INLINE u32 ordered(float x) {
    const u32 bits = bits_of(x + 0.0f);
    return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

INLINE float of_ordered(u32 bits) { return of_bits(bits & 0x80000000U ? bits ^ 0x80000000U : ~bits); }

struct Fill {
    u32 *to;
    u32 value;
};

KERNEL(fill, Fill) { p.to[id] = p.value; }

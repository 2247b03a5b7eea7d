// After crates/defenses/src/common.cu.
// Squares cut from images: `corners` are the row and column of each image's.

struct Crop {
    const float *from;
    float *to;
    const u32 *corners;
    Shape whole, square;
};

KERNEL(crop, Crop) {
    Place place = place_of(id, p.square);
    place.row += p.corners[2 * place.image];
    place.column += p.corners[2 * place.image + 1];
    p.to[id] = p.from[number_of(place, p.whole)];
}

// Squares put back, into zeros.
KERNEL(crop_back, Crop) {
    Place place = place_of(id, p.whole);
    // Beyond any square where it wraps.
    place.row -= p.corners[2 * place.image];
    place.column -= p.corners[2 * place.image + 1];
    const bool inside = place.row < p.square.height && place.column < p.square.width;
    p.to[id] = inside ? p.from[number_of(place, p.square)] : 0.0f;
}

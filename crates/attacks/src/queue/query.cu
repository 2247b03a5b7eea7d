// After crates/attacks/src/queue/images.cu.
//
// A gradient query: what of crates/attacks/src/loss.rs and of `Sum` in victim.rs happens between the network's evaluations,
// operation by operation.

struct Query {
    Images at;
    const u32 *classes; // what every image's loss is about
    double *sums;       // of the gradients of every image's draws, in units of 2^unit
    int *units;
    double *loss_sums;
    double *non_finite; // entries, over all draws of all steps
    double *losses;     // the answers: the mean loss,
    u32 *zeros;         // and how many entries are 0
    double *factors;
    double *logit_sums; // of every image's draws, where their mean is asked for
    u64 k, draws;
    u64 by_image; // whether the loss is one of the mean logits, not one of every draw

    // Draws `first` to `first + rows` of all, those of one image together.
    u64 first, rows;
    const double *logits;
    double *upstream; // one row for every loss
    double *row_loss;
    int *row_log2;
    double *spread;      // one row for every draw
    const float *answer; // the gradients
    u32 *broken, *alive; // entries of every draw that are not finite, and that are and not 0
    double *fade, *share;
    float *out;
};

INLINE u64 image_of(const Query &p, u64 row) { return (p.first + row) / p.draws; }

// The rows of an image's draws: from `from` to less than `to`.
INLINE u64 from(const Query &p, u64 image) { return image * p.draws > p.first ? image * p.draws - p.first : 0; }

INLINE u64 to(const Query &p, u64 image) {
    const u64 end = (image + 1) * p.draws - p.first;
    return end < p.rows ? end : p.rows;
}

// A float or a word is 0 where its bits are.
struct Words {
    u32 *words;
};

KERNEL(clear, Words) { p.words[id] = 0; }

KERNEL(begin, Query) {
    p.units[id] = NO_UNIT;
    p.loss_sums[id] = 0.0;
    p.zeros[id] = 0;
}

// The image of every draw.
KERNEL(gather, Query) { p.out[id] = p.at.x[image_of(p, id / p.at.size) * p.at.size + id % p.at.size]; }

// Adds the logits of this chunk's draws, for every image and class.
KERNEL(add_logits, Query) {
    const u64 image = image_of(p, 0) + id / p.k, j = id % p.k;
    double sum = p.logit_sums[image * p.k + j];
    for (u64 row = from(p, image); row < to(p, image); row++) sum += p.logits[row * p.k + j];
    p.logit_sums[image * p.k + j] = sum;
}

struct Row {
    const double *logits;
    double *upstream;
    u64 k, class_;
    double n;
};

INLINE double logit(const Row &row, u64 j) { return row.logits[j] / row.n; }

// The other class with the largest logit, the smallest class on ties.
INLINE u64 rival(const Row &row) {
    u64 best = row.class_ == 0 ? 1 : 0;
    double top = logit(row, best);
    for (u64 j = best + 1; j < row.k; j++) {
        const double z = logit(row, j);
        if (j != row.class_ && z > top) {
            best = j;
            top = z;
        }
    }
    return best;
}

INLINE void cross_entropy(const Row &row, double *loss, int *log2) {
    const double top = logit(row, rival(row));
    double others = 0.0;
    for (u64 j = 0; j < row.k; j++) {
        const double odds = j == row.class_ ? 0.0 : exp(logit(row, j) - top);
        row.upstream[j] = odds;
        others += odds;
    }
    row.upstream[row.class_] = -others;
    const double lead = logit(row, row.class_) - top, certain = log1p(others * exp(-lead));
    double ln_sum = lead + certain;
    *loss = certain;
    if (!(lead > 0.0)) {
        ln_sum = log(others + exp(lead));
        *loss = ln_sum - lead;
    }
    const double power = -ln_sum / 0.693147180559945309417232121458, whole = floor(power);
    const double rest = exp2(power - whole);
    for (u64 j = 0; j < row.k; j++) row.upstream[j] *= rest;
    *log2 = whole > -1e9 ? (int)whole : -1000000000;
}

INLINE void margin_of(const Row &row, double *loss, int *log2) {
    const u64 other = rival(row);
    for (u64 j = 0; j < row.k; j++) row.upstream[j] = j == other ? 1.0 : j == row.class_ ? -1.0 : 0.0;
    *loss = logit(row, other) - logit(row, row.class_);
    *log2 = 0;
}

INLINE Row row_of(const Query &p, u64 id) {
    const u64 image = p.by_image ? image_of(p, 0) + id : image_of(p, id);
    const double *logits = p.by_image ? p.logit_sums + image * p.k : p.logits + id * p.k;
    const Row row = {logits, p.upstream + id * p.k, p.k, p.classes[image], p.by_image ? (double)p.draws : 1.0};
    return row;
}

KERNEL(cross_entropies, Query) { cross_entropy(row_of(p, id), p.row_loss + id, p.row_log2 + id); }

KERNEL(margins, Query) { margin_of(row_of(p, id), p.row_loss + id, p.row_log2 + id); }

// Hands an image's loss to each of its draws.
KERNEL(repeat, Query) {
    p.spread[id] = p.upstream[(image_of(p, id / p.k) - image_of(p, 0)) * p.k + id % p.k];
}

KERNEL(begin_draws, Query) {
    p.broken[id] = 0;
    p.alive[id] = 0;
}

KERNEL(census, Query) {
    const u64 row = id / PARTS;
    u32 broken = 0, alive = 0;
    for (u64 j = id % PARTS; j < p.at.size; j += PARTS) {
        const float entry = p.answer[row * p.at.size + j];
        broken += !is_finite(entry);
        alive += is_finite(entry) && entry != 0.0f;
    }
    if (broken > 0) atomic_add(p.broken + row, broken);
    if (alive > 0) atomic_add(p.alive + row, alive);
}

// What each draw's gradient is multiplied by, and the sum before it; for every image of the chunk.
KERNEL(weigh, Query) {
    const u64 image = image_of(p, 0) + id;
    double loss = p.loss_sums[image], non_finite = p.non_finite[image];
    int unit = p.units[image];
    for (u64 row = from(p, image); row < to(p, image); row++) {
        const u64 said = p.by_image ? id : row;
        const int log2 = p.row_log2[said];
        loss += p.row_loss[said];
        non_finite += p.broken[row];
        p.fade[row] = 1.0;
        p.share[row] = 0.0;
        // A draw without gradient says nothing about the unit.
        if (p.alive[row] == 0) continue;
        if (unit == NO_UNIT) unit = log2;
        if (log2 > unit) {
            p.fade[row] = pow2(unit - log2);
            unit = log2;
        }
        p.share[row] = pow2(log2 - unit);
    }
    p.units[image] = unit;
    p.loss_sums[image] = loss;
    p.non_finite[image] = non_finite;
}

// Adds the draws' gradients in their order, for every pixel of the chunk's images.
KERNEL(add, Query) {
    const u64 image = image_of(p, 0) + id / p.at.size, j = id % p.at.size;
    double sum = p.sums[image * p.at.size + j];
    for (u64 row = from(p, image); row < to(p, image); row++) {
        const double entry = p.answer[row * p.at.size + j];
        sum *= p.fade[row];
        if (is_finite(entry)) sum += p.share[row] * entry;
    }
    p.sums[image * p.at.size + j] = sum;
}

KERNEL(largest, Query) {
    const u64 begin = id / PARTS * p.at.size;
    double most = 0.0;
    for (u64 at = begin + id % PARTS; at < begin + p.at.size; at += PARTS) {
        const double entry = fabs(p.sums[at]);
        most = entry > most ? entry : most;
    }
    p.at.partial[id] = most;
}

KERNEL(scale, Query) {
    double most = 0.0;
    for (u64 part = 0; part < PARTS; part++) {
        const double entry = p.at.partial[id * PARTS + part];
        most = entry > most ? entry : most;
    }
    most /= (double)p.draws;
    // The exponent field: right for every normal number, and no worse than 1 for the rest.
    const int field = (int)(bits_of_double(most) >> 52) - 1023, log2 = field < -1022 ? -1022 : field;
    const bool none = most == 0.0;
    p.factors[id] = none ? 0.0 : pow2(-log2);
    p.at.log2[id] = none ? 0 : log2 + (p.units[id] == NO_UNIT ? 0 : p.units[id]);
    p.losses[id] = p.loss_sums[id] / (double)p.draws;
}

KERNEL(finish, Query) {
    const u64 image = id / PARTS, begin = image * p.at.size;
    u32 zeros = 0;
    for (u64 at = begin + id % PARTS; at < begin + p.at.size; at += PARTS) {
        const float entry = (float)(p.sums[at] / (double)p.draws * p.factors[image]);
        p.at.gradient[at] = entry;
        zeros += entry == 0.0f;
    }
    if (zeros > 0) atomic_add(p.zeros + image, zeros);
}

struct Report {
    const double *losses, *non_finite;
    const u32 *zeros;
    double *out;
};

KERNEL(report, Report) {
    p.out[3 * id] = p.losses[id];
    p.out[3 * id + 1] = (double)p.zeros[id];
    p.out[3 * id + 2] = p.non_finite[id];
}

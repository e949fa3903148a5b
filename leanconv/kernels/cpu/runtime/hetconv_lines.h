// HetConv's lines: copies of a map's rows as its products read them. Zeros stand at both ends, so that the loops over taps
// have no borders. A line has float32, or pairs of bfloat16 where the machine multiplies those.
#pragma once
#include "hetconv_order.h"

#define BAND_BYTES (96 * 1024)  // of lines and results: most of an L2 cache is left for the weights

// A product: rows of `from` become rows of `to`. The gradient of the data is one too, with both exchanged.
typedef struct {
    const hetconv_t *p;
    map_t from, to;
    int inputs, h, w, outputs, rows, columns;  // channels and sizes of both
    int sh, sw, top, left;                     // strides and padding
    int uh, uw;                                // the other way: results that rows and columns of `from` are apart
    int zeros;                                 // columns of a line before the map's first; negative ones are left out
    int pairs, items;                          // kind of items, and how many of them a pixel of a line has
    int cols;                                  // pixels of a line
    int64_t line;                              // items of a line
    int wide;                                  // outputs as vectors
    int band, lines;                           // most rows of a band, and lines that it needs
    int back;
    int sorted;                                // whether tiles of blocks have their results in the map's order
    uint32_t order[LANES];                     // of one vector's
    float *taps, *centre, *bias;               // by vectors: taps × steps, items, one
    int64_t taps_size, centre_size;            // of a lane
} plan_t;

static int taps_of(const hetconv_t *p) { return p->r * p->s; }
static int middle_of(const hetconv_t *p) { return p->r / 2 * p->s + p->s / 2; }
static int vectors_at(int v, int wide) { return wide < LANES ? 0 : v + LANES < wide ? 2 : 1; }
static int lanes_of(int vectors) { return vectors ? vectors * LANES : LANES / 2; }
static int log2_of(int part) { return part == 2 ? 1 : part == 4 ? 2 : 3; }
static int span_h(const hetconv_t *p) { return p->dh * (p->r - 1); }
static int span_w(const hetconv_t *p) { return p->dw * (p->s - 1); }
static int64_t place(const map_t *m, int64_t n, int row) { return n * m->sample + row * m->row; }

static int wide_of(int outputs, int part) {
    return outputs <= LANES / 2 && part <= LANES / 2 ? LANES / 2 : up(outputs, LANES);
}

// Floats that reading and writing of a row take beside it: chunks, then two rows.
static int64_t chunks_of(const plan_t *k) {
    return k->p->blocked ? (int64_t)SPARE_CHUNKS * CHUNK * most(k->inputs, k->outputs) : 0;
}

static int64_t row_of_spare(const plan_t *k) {
    int64_t line = (int64_t)k->cols * k->inputs, row = (int64_t)(k->columns + 1) * k->outputs;
    return (line > row ? line : row) + LANES;
}

static int64_t spare_of(const plan_t *k) { return chunks_of(k) + 2 * row_of_spare(k); }

// How many rows are computed at a time: as many as fit, and as have that many pixels.
static void fit_band(plan_t *k, int64_t more_items, int64_t all_rows, int pixels) {
    int64_t each = sizeof(float) * (k->line * k->sh + more_items);
    k->band = (int)(BAND_BYTES / each);
    k->band = most(k->band, (pixels + k->columns - 1) / k->columns);
    if (k->band > all_rows) k->band = (int)all_rows;
    int pieces = (k->band + k->rows - 2) / k->rows + 1;
    k->lines = k->band * k->sh + pieces * (span_h(k->p) + 1);
}

#if HAS_PAIRS
typedef uint16_t halves_t __attribute__((vector_size(64), aligned(2), may_alias));
BY_ORDER(halves_t, 32, halves_t)

// Pairs of channels P apart: what one step of vectors multiplies. An odd last step has zeros.
#define PAIR_UP(P)                                                                                                     \
    static void pair_up##P(item_t *to, const uint16_t *from, int64_t pixel, int count, int c) {                      \
        halves_t order;                                                                                                \
        for (int i = 0; i < 32; i++) order[i] = i / (2 * P) * (2 * P) + i % (2 * P) / 2 + i % 2 * P;                   \
        int64_t each = c;                                                                                              \
        if (c % (2 * P) == 0 && pixel == c) each = (int64_t)count * c, count = 1;                                      \
        for (int i = 0; i < count; i++, from += pixel) {                                                               \
            int64_t k = 0;                                                                                             \
            for (; k + 32 <= each; k += 32, to += 16)                                                                  \
                *(halves_t *)to = halves_t_by(*(const halves_t *)(from + k), order);                                   \
            for (; k + 2 * P <= each; k += 2 * P, to += P)                                                             \
                for (int j = 0; j < P; j++) to[j] = from[k + j] | (uint32_t)from[k + P + j] << 16;                     \
            if (k < each) {                                                                                            \
                for (int j = 0; j < P; j++) to[j] = from[k + j];                                                       \
                to += P;                                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    }
PAIR_UP(2) PAIR_UP(4) PAIR_UP(8)
#undef PAIR_UP

static void pair_channels(const plan_t *k, item_t *to, int64_t at, int count, float *spare) {
    int64_t pixel = k->from.pixel;
    const uint16_t *from = (const uint16_t *)k->from.data + at;
    if (pixel != k->inputs && k->inputs < 32)
        from = squeezed((uint16_t *)spare, from, pixel, count, k->inputs), pixel = k->inputs;
    switch (k->p->part) {
    case 2: pair_up2(to, from, pixel, count, k->inputs); break;
    case 4: pair_up4(to, from, pixel, count, k->inputs); break;
    default: pair_up8(to, from, pixel, count, k->inputs);
    }
}
#endif

// Pixels of blocks as pairs of channels that are next to each other in a block. An odd last one has a zero.
static void pair_blocks(const plan_t *k, item_t *to, int64_t at, int count, float *spare) {
    const map_t *m = &k->from;
    const uint16_t *from = (const uint16_t *)m->data + at;
    int part = k->p->part, own = k->inputs / part;
    if (own % 2 == 0) {
        deal_dense((float *)to, k->items, from, 2 * m->pixel, count, k->items, log2_of(part), spare);
        return;
    }
    for (int i = 0; i < count; i++, from += m->pixel, to += k->items)
        for (int j = 0; j < part; j++)
            for (int c = 0; c < own; c += 2)
                to[c / 2 * part + j] = from[j * own + c] | (c + 1 < own ? (uint32_t)from[j * own + c + 1] << 16 : 0u);
}

// Pixels of a row as items.
static void read_items(const plan_t *k, float *to, int64_t at, int count, float *spare) {
#if HAS_PAIRS
    if (k->pairs) {
        if (k->p->blocked) pair_blocks(k, (item_t *)to, at, count, spare);
        else pair_channels(k, (item_t *)to, at, count, spare);
        return;
    }
#endif
    if (k->p->blocked) {
        deal_pixels(to, k->inputs, &k->from, at, count, k->inputs, log2_of(k->p->part), spare);
        return;
    }
    read_pixels(to, k->inputs, &k->from, at, k->from.pixel, count, k->inputs);
}

// A row of results into its map.
static void write_row(const plan_t *k, const float *from, int64_t at, float *spare) {
    if (!k->sorted) {
        gather_pixels(from, k->wide, &k->to, at, k->columns, k->outputs, log2_of(k->p->part), spare);
        return;
    }
#if HAS_PAIRS
    if (k->pairs && k->outputs == k->wide && k->to.pixel == k->wide) {
        round_dense(from, (uint16_t *)k->to.data + at, (int64_t)k->columns * k->wide);
        return;
    }
#endif
    write_pixels(from, k->wide, &k->to, at, k->to.pixel, k->columns, k->outputs);
}

// Whether a row that taps ask for is there; rows between those of the map are not.
static int is_there(const plan_t *k, int row) { return row >= 0 && row % k->uh == 0 && row / k->uh < k->h; }

// A row of the map with zeros around it.
static void read_line(const plan_t *k, float *to, int64_t n, int row, float *spare) {
    int begin = most(0, k->zeros), first = begin - k->zeros;  // the first column of the line that is on the map
    int count = least(k->cols - begin, k->w - first);
    size_t items = sizeof(float) * k->items;
    if (count < 1) begin = k->cols, count = 0;
    memset(to, 0, items * begin);
    int64_t at = place(&k->from, n, row / k->uh) + first * k->from.pixel;
    if (count) read_items(k, to + (int64_t)begin * k->items, at, count, spare);
    memset(to + (int64_t)(begin + count) * k->items, 0, items * (k->cols - begin - count));
}

typedef struct { int64_t n; int row, line; } target_t;  // a row of results, and its first line

// Rows from..end of all samples: where each one's lines are. Each sample's have their own.
static void lines_for(const plan_t *k, int64_t from, int64_t end, target_t *targets) {
    for (int64_t i = from, lines = 0; i < end; i++) {
        target_t *t = &targets[i - from];
        *t = (target_t){i / k->rows, (int)(i % k->rows), (int)lines};
        if (i > from && t->row) t->line = t[-1].line + k->sh;
        lines = t->line + span_h(k->p) + 1;
    }
}

// Numbers in pairs, those of `low` first; NULL: zeros.
INLINE void pair_numbers(item_t *to, const uint16_t *low, const uint16_t *high, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        *(bits_t *)(to + i) = (low ? __builtin_convertvector(*(const half_t *)(low + i), bits_t) : (bits_t){0}) |
                              (high ? __builtin_convertvector(*(const half_t *)(high + i), bits_t) << 16 : (bits_t){0});
    if (i + LANES / 2 <= count) {
        part_bits_t none = {0};
        *(part_bits_t *)(to + i) =
            (low ? __builtin_convertvector(*(const part_half_t *)(low + i), part_bits_t) : none) |
            (high ? __builtin_convertvector(*(const part_half_t *)(high + i), part_bits_t) << 16 : none);
        i += LANES / 2;
    }
    for (; i < count; i++) to[i] = (low ? low[i] : 0u) | (high ? (uint32_t)high[i] << 16 : 0u);
}

// A line of pixels in pairs: each with the one `apart` columns on. `begin` columns of zeros come first.
static void pair_line(item_t *to, const uint16_t *from, int64_t pixel, int begin, int count, int c, int cols, int apart) {
    for (int j = 0; j < cols;) {
        int low = j - begin, high = low + apart, length = 1;
        int has_low = low >= 0 && low < count, has_high = high >= 0 && high < count;
        const uint16_t *first = has_low ? from + low * pixel : NULL, *second = has_high ? from + high * pixel : NULL;
        if (has_low && has_high && pixel == c) length = count - high;
        if (has_low && has_high) pair_numbers(to, first, second, (int64_t)length * c);
        else pair_numbers(to, first, second, c);
        to += (int64_t)length * c, j += length;
    }
}

// A row of the gradient: two pixels after two, of `wide` lanes.
static void pair_row(item_t *to, const map_t *m, int64_t at, int count, int c, int wide) {
    const uint16_t *from = (const uint16_t *)m->data + at;
    for (int q = 0; q < count; q += 2, from += 2 * m->pixel, to += wide) {
        if (q + 1 < count) pair_numbers(to, from, from + m->pixel, c);
        else pair_numbers(to, from, NULL, c);
        for (int i = c; i < wide; i++) to[i] = 0;
    }
}

// Sums over channels of 8-bit integers: 1×1 convolutions, and all that are sums of them: dense and grouped kernels tap by
// tap, transposed ones row by row. A tile of pixels × output channels stays in registers.
#include "int8_store.h"

#if V == 64
enum { WIDE4 = 6, WIDE2 = 12, WIDE1 = 16 };  // pixels of a tile whose pixels have 4, 2 or 1 vectors of sums
#else
enum { WIDE4 = 2, WIDE2 = 4, WIDE1 = 8 };
#endif

// `wide` pixels from `x` on. `same`: one pixel, whose sums are computed for `wide` of them.
INLINE void tile(const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m,
                 const limits_t *k, int64_t x,
                 int vectors, int wide, int same, int mode) {
    const uint8_t *w = packed + b->weights;
    const int32_t *bias = (const int32_t *)(packed + b->bias);
    ivec sums[16 * 4];
#pragma GCC unroll 64
    for (int i = 0; i < wide * vectors; i++) sums[i] = ints(bias + i % vectors * LANES);
    for (int r = 0; r < p->runs; r++) {
        int64_t pixel = same ? 0 : d->source[r].pixel;
        const uint8_t *at = d->source[r].at + x * d->source[r].pixel, *end = at + 4 * d->source[r].quads;
        for (; at < end; at += 4, w += vectors * V) {
            bytes s[4];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) s[v] = load(w + v * V);
#pragma GCC unroll 16
            for (int i = 0; i < wide; i++) {
                bytes u = repeat(at + i * pixel);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) sums[i * vectors + v] = dot(sums[i * vectors + v], u, s[v]);
            }
        }
    }
    __asm__("" : "+r"(k));  // read here: limits in registers leave too few for the weights
    store_tile(p, b, d, m, k, x, sums, vectors, wide, same, mode);
}

// A row of pixels for a short sum of one run: its weights stay in registers. Returns the pixels that are done.
INLINE int64_t short_sums(const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m,
                          const limits_t *k, int64_t count, int vectors, int quads, int mode) {
    const uint8_t *w = packed + b->weights;
    const int32_t *bias = (const int32_t *)(packed + b->bias);
    bytes s[16];
    int wide = 8 / vectors;
#pragma GCC unroll 16
    for (int i = 0; i < quads * vectors; i++) s[i] = load(w + i * V);
    int64_t x = 0, pixel = d->source[0].pixel;
    const uint8_t *at = d->source[0].at;
    for (; x + wide <= count; x += wide, at += wide * pixel) {
        ivec sums[16 * 4];
#pragma GCC unroll 8
        for (int i = 0; i < wide; i++) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[i * vectors + v] = ints(bias + v * LANES);
#pragma GCC unroll 8
            for (int q = 0; q < quads; q++) {
                bytes u = repeat(at + i * pixel + 4 * q);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    sums[i * vectors + v] = dot(sums[i * vectors + v], u, s[q * vectors + v]);
            }
        }
        store_tile(p, b, d, m, k, x, sums, vectors, wide, 0, mode);
    }
    return x;
}
// A row of `count` pixels: whole tiles, then as many pixels as fill a vector, then single ones.
#define ROW(name, vectors, wide, mode) \
    static void name(const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m, \
                     int64_t count) { \
        limits_t limits = limits_of(&p->finish), *k = &limits; \
        int64_t x = 0; \
        if (V == 64 && vectors == 2 && mode != GENERAL && p->runs == 1) { \
            if (d->source[0].quads == 4) x = short_sums(p, b, d, packed, m, k, count, 2, 4, mode); \
            if (d->source[0].quads == 8) x = short_sums(p, b, d, packed, m, k, count, 2, 8, mode); \
        } \
        for (; x + wide <= count; x += wide) tile(p, b, d, packed, m, k, x, vectors, wide, 0, mode); \
        for (; x + 4 / vectors <= count; x += 4 / vectors) tile(p, b, d, packed, m, k, x, vectors, 4 / vectors, 0, mode); \
        for (; x < count; x++) tile(p, b, d, packed, m, k, x, vectors, 4 / vectors, 1, mode); \
    }
ROW(one_clamped, 1, WIDE1, CLAMPED)
ROW(two_clamped, 2, WIDE2, CLAMPED)
ROW(four_clamped, 4, WIDE4, CLAMPED)
ROW(one_added, 1, WIDE1, ADDED)
ROW(two_added, 2, WIDE2, ADDED)
ROW(four_added, 4, WIDE4, ADDED)
ROW(one_blended, 1, WIDE1, BLENDED)
ROW(two_blended, 2, WIDE2, BLENDED)
ROW(four_blended, 4, WIDE4, BLENDED)
ROW(one_general, 1, WIDE1, GENERAL)
ROW(two_general, 2, WIDE2, GENERAL)
ROW(four_general, 4, WIDE4, GENERAL)

typedef void (*row_t)(const product8_t *, const block_t *, const line_t *, const uint8_t *, factors_t, int64_t);
static const row_t ROWS[3][4] = {
    {one_clamped, one_added, one_blended, one_general},
    {two_clamped, two_added, two_blended, two_general},
    {four_clamped, four_added, four_blended, four_general},
};

static row_t row_of(const product8_t *p, const block_t *b) {
    if (p->arithmetic == AMX) return lc_int8_row_amx;
    return p->arithmetic == EMULATED ? lc_int8_row_emulated : ROWS[b->vectors / 2][p->finish.mode];
}

// Whether the rows of a map follow each other without a gap.
static int seamless(const place_t *p) { return p->row == p->w * p->pixel && (p->pointer >= 0 || p->columns == p->w); }

void lc_int8_product(const product8_t *p, const task8_t *t) {
    const place_t *places = t->call->place, *into = &places[p->into];
    const place_t *addend = p->finish.addend >= 0 ? &places[p->finish.addend] : NULL;
    int y0 = first_row(into, t), y1 = end_row(into, t), flat = p->row_stride == 1 && p->column_stride == 1;
    if (y0 < 0) y0 = 0;
    if (y1 > into->h) y1 = into->h;
    if (y1 <= y0) return;
    for (int r = 0; r < p->runs; r++) {
        const place_t *from = &places[p->run[r].from];
        flat &= seamless(from) && from->w == into->w && !p->run[r].row && !p->run[r].column;
    }
    flat &= seamless(into) && (!addend || seamless(addend));
    int64_t count = flat ? (int64_t)(y1 - y0) * into->w : into->w;
    for (int i = 0; i < p->blocks; i++) {
        const block_t *b = &p->block[i];
        const float *m = (const float *)(t->packed + b->multipliers);
        factors_t factors = {m, NULL, NULL};
        if (p->finish.factors) {
            const float *own = t->factors + b->factor;
            factors = (factors_t){own, own + p->factor_row, own + 2 * p->factor_row};
        }
        row_t run = row_of(p, b);
        for (int y = y0; y < (flat ? y0 + 1 : y1); y++) {
            line_t d = {.pixel = into->pixel};
            for (int r = 0; r < p->runs; r++) {
                const run_t *each = &p->run[r];
                const place_t *from = &places[each->from];
                const uint8_t *row = row_at(from, t, y * p->row_stride + each->row);
                int64_t pixel = from->pixel;
                d.source[r] = (source_t){
                    row + (from->left + each->column) * pixel + each->channel + each->grouped * b->source,
                    pixel * p->column_stride, each->quads};
            }
            int64_t bytes_each = into->element == FLOAT32 ? 4 : 1;
            d.into = row_at(into, t, y) + into->left * into->pixel + b->at * bytes_each;
            if (addend) {
                d.addend = row_at(addend, t, y) + b->at;
                d.addend_pixel = addend->pixel;
            }
            run(p, b, &d, t->packed, factors, count);
        }
    }
}

// The loops of a product on tiles around the arithmetic of the including file, which names its kernel RUN and defines
//
//     BLOCK                 pixels that are computed together
//     begin(depth), end()   before and after all products
//     product(call, i, count, weights, strips, o)
//                           `count` pixels (at most BLOCK) from i on; outputs o.. of one or two strips of 16
//
// A sum has one order, whatever the block: any number of threads gives the same bits.
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#include "tiles_panel.h"

typedef struct {
    const tiles_t *plan;
    const uint16_t *base[MAX_OPERANDS];  // of each operand, its first pixel in this line
    int64_t strip;                       // numbers of the weights from one 16 outputs to the next
    int row, columns, period;            // the line's first row in the block; pixels of a row
    uint16_t *out;
    const uint16_t *residual;
    int64_t out_pixel, out_row, residual_pixel, residual_row;
    const float *bias, *first, *second, *third;
} call_t;

INLINE vec read_floats(const float *from, int left) {
    if (left >= LANES) return *(const vec *)from;
    vec made = {0};
    for (int i = 0; i < left; i++) made[i] = from[i];
    return made;
}

INLINE vec read_half(const uint16_t *from, int left) {
    half_t made = {0};
    if (left >= LANES) made = *(const half_t *)from;
    else for (int i = 0; i < left; i++) made[i] = from[i];
    return (vec)(__builtin_convertvector(made, bits_t) << 16);
}

// Between 0 and 6, or 0 and infinity; a NaN stays one, since no comparison with it holds.
INLINE vec clamped(vec v, int six) {
    bits_t below = (bits_t)(v < 0.0f), above = (bits_t)(v > 6.0f);
    v = (vec)((bits_t)v & ~below);
    return six ? (vec)(((bits_t)v & ~above) | (above & (bits_t)((vec){0} + 6.0f))) : v;
}

static __attribute__((noinline)) vec activated(int kind, vec v) {
    if (kind <= RELU6) return clamped(v, kind == RELU6);
    vec share = clamped(v + 3.0f, 1) * (1.0f / 6);
    if (kind == HARDSWISH) share *= v;
    return share;
}

// To the nearest, ties to even. AVX512-BF16 turns a subnormal result into zero, as its products do.
INLINE half_t narrowed(vec v) {
#ifdef __AVX512BF16__
    return (half_t)_mm512_cvtneps_pbh((__m512)v);
#else
    return rounded_vec(v);
#endif
}

INLINE vec finished(const call_t *c, const uint16_t *residual, int o, vec v, int left) {
    v += *(const vec *)(c->bias + o);
    if (residual) {
        vec added = read_half(residual + o, left);
        if (c->first)
            v = added * read_floats(c->first + o, left)
                + (v * read_floats(c->second + o, left) + read_floats(c->third + o, left));
        else v += added;
    }
    int kind = c->plan->activation;
    return kind == NONE ? v : kind == RELU ? clamped(v, 0) : activated(kind, v);
}

static __attribute__((noinline)) void finish_last(
    const call_t *c, uint16_t *out, const uint16_t *residual, int o, vec v, int left) {
    half_t made = narrowed(finished(c, residual, o, v, left));
    for (int i = 0; i < left; i++) out[o + i] = made[i];
}

// Outputs o.. of a pixel, from their sums to what is stored.
INLINE void finish(const call_t *c, uint16_t *out, const uint16_t *residual, int o, vec v) {
    int left = c->plan->outputs - o;
    if (left >= LANES) *(half_t *)(out + o) = narrowed(finished(c, residual, o, v, LANES));
    else if (left > 0) finish_last(c, out, residual, o, v, left);
}

// Where a pixel of the line lies in the result, and in the map that is added. From column `columns` on it lies between
// two rows, and is not stored.
typedef struct { int column; uint16_t *out; const uint16_t *residual; } place_t;

INLINE place_t place_of(const call_t *c, int i) {
    int row = c->row + i / c->period, column = i % c->period;
    return (place_t){
        column, c->out + row * c->out_row + column * c->out_pixel,
        c->residual ? c->residual + row * c->residual_row + column * c->residual_pixel : NULL,
    };
}

INLINE void to_next(const call_t *c, place_t *p) {
    p->out += c->out_pixel;
    if (p->residual) p->residual += c->residual_pixel;
    if (++p->column < c->period) return;
    p->column = 0;
    p->out += c->out_row - c->period * c->out_pixel;
    if (p->residual) p->residual += c->residual_row - c->period * c->residual_pixel;
}

static void begin(int depth);
static void end(void);
static void product(const call_t *c, int i, int count, const uint16_t *weights, int strips, int o);

// The row y of a map, whose last dimension may begin with the block.
static uint16_t *row_at(const buffer_t *b, int y) {
    const dimension_t *last = &b->dim[b->dimensions - 1];
    return (uint16_t *)b->host + (int64_t)(y - last->min) * last->stride;
}

static const float *floats(void **args, int which) { return (const float *)((const buffer_t *)args[which])->host; }

static void operands_of_line(call_t *c, void **args, const uint16_t *panel, int y0, int line) {
    for (int j = 0; j < c->plan->operands; j++) {
        const operand_t *o = &c->plan->operand[j];
        const uint16_t *from = o->argument ? row_at(args[o->argument], y0) : panel;
        c->base[j] = from + o->offset + (int64_t)line * o->line;
    }
}

int RUN(void **args) {
    const tiles_t *p = (const tiles_t *)((const buffer_t *)args[0])->host;
    const uint16_t *weights = (const uint16_t *)((const buffer_t *)args[1])->host, *copied = NULL;
    const buffer_t *out = args[2];
    const dimension_t *last = &out->dim[out->dimensions - 1];
    int y0 = last->min, rows = last->extent;
    uint16_t *own = NULL;
    if (p->panel.maps && !(copied = panel(&p->panel, args, y0, rows, p->columns, &own))) return -1;
    // All pixels in a row are one row.
    int columns = p->columns ? p->columns : rows, lines = p->columns && !p->period ? rows : 1;
    int period = p->period ? p->period : columns, height = p->columns ? rows / lines : 1;
    int count = (height - 1) * period + columns;
    call_t c = {
        .plan = p, .columns = columns, .period = period, .out = (uint16_t *)out->host,
        .out_pixel = out->dim[1].stride, .out_row = p->columns ? last->stride : 0,
        .bias = floats(args, p->bias),
    };
    if (p->blend) {
        c.first = floats(args, p->blend);
        c.second = floats(args, p->blend + 1);
        c.third = floats(args, p->blend + 2);
    }
    if (p->residual) {
        const buffer_t *added = args[p->residual];
        c.residual = row_at(added, y0);
        c.residual_pixel = added->dim[1].stride;
        c.residual_row = p->columns ? added->dim[2].stride : 0;
    }
    for (int j = 0; j < p->operands; j++) c.strip += (int64_t)TILE * p->depth * p->operand[j].tiles;
    begin(p->depth);
    // Strips outermost: their weights stay in the cache while all pixels of the block pass.
    for (int o = 0; o < p->outputs; o += 2 * TILE) {
        const uint16_t *strip = weights + o / TILE * c.strip;
        int strips = o + TILE < p->outputs ? 2 : 1;
        for (int line = 0; line < lines; line++) {
            operands_of_line(&c, args, copied, y0, line);
            c.row = line;
            for (int i = 0; i < count; i += BLOCK) product(&c, i, least(BLOCK, count - i), strip, strips, o);
        }
    }
    end();
    lc_free(NULL, own);
    return 0;
}

// The loops of a product on tiles around the arithmetic of the including file, which names its kernel RUN and defines
//
//     BLOCK                 pixels that are computed together
//     begin(depth), end()   before and after all products
//     product(call, i, count, weights, strips, o)
//                           `count` pixels (at most BLOCK) from i on; outputs o.. of one or two strips of 16
//
// A sum has one order, whatever the block: any number of threads gives the same bits.
#ifdef __AVX512F__
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

// To the nearest, ties to even. AVX512-BF16 turns a subnormal result into zero, as its products do.
INLINE half_t narrowed(vec v) {
#ifdef __AVX512BF16__
    return (half_t)_mm512_cvtneps_pbh((__m512)v);
#else
    return rounded_vec(v);
#endif
}

// A NaN stays one: no comparison with it holds, and of a NaN and a number the instructions take the second.
INLINE vec at_least_zero(vec v) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v);
#else
    return (vec)((bits_t)v & ~(bits_t)(v < 0.0f));
#endif
}

INLINE vec at_most_six(vec v) {
    bits_t above = (bits_t)(v > 6.0f), six = (bits_t)((vec){0} + 6.0f);
    return (vec)(((bits_t)v & ~above) | (above & six));
}

INLINE vec activated(int kind, vec v) {
    if (kind == NONE) return v;
    if (kind == RELU) return at_least_zero(v);
    if (kind == RELU6) return at_most_six(at_least_zero(v));
    vec share = at_most_six(at_least_zero(v + 3.0f)) * (1.0f / 6);
    if (kind == HARDSWISH) share *= v;
    return share;
}

// One run of pixels in a row of the result.
typedef struct { const float *sums; int pixels; uint16_t *out; const uint16_t *residual; } run_t;
enum { ALONE, ADDED, BLENDED };

// Outputs o.. of the run, from their sums to what is stored: `left` of them. The last two arguments are constants.
INLINE void finish(const call_t *c, const run_t *r, int o, int left, const int with, const int kind) {
    vec bias = *(const vec *)(c->bias + o), first = {0}, second = first, third = first;
    if (with == BLENDED) {
        first = read_floats(c->first + o, left);
        second = read_floats(c->second + o, left);
        third = read_floats(c->third + o, left);
    }
    const float *sums = r->sums;
    const uint16_t *residual = r->residual + o;
    uint16_t *out = r->out + o;
    for (int i = 0; i < r->pixels; i++, sums += 2 * TILE, out += c->out_pixel, residual += c->residual_pixel) {
        vec v = *(const vec *)sums + bias;
        if (with == ADDED) v += read_half(residual, left);
        if (with == BLENDED) v = read_half(residual, left) * first + (v * second + third);
        half_t made = narrowed(activated(kind, v));
        if (left >= LANES) *(half_t *)out = made;
        else for (int k = 0; k < left; k++) out[k] = made[k];
    }
}

INLINE void finish_with(const call_t *c, const run_t *r, int o, int left, const int with) {
    switch (c->plan->activation) {
    case NONE: finish(c, r, o, left, with, NONE); break;
    case RELU: finish(c, r, o, left, with, RELU); break;
    default: finish(c, r, o, left, with, c->plan->activation);
    }
}

static void finish_outputs(const call_t *c, const run_t *r, int o, int left) {
    if (c->first) finish_with(c, r, o, left, BLENDED);
    else if (c->residual) finish_with(c, r, o, left, ADDED);
    else finish_with(c, r, o, left, ALONE);
}

// The pixels i.. i+count of the line, from their sums (two strips of 16 side by side) to what is stored. From column
// `columns` on a pixel lies between two rows, and is not stored.
static void finish_block(const call_t *c, int i, int count, int strips, int o, const float *sums) {
    int row = c->row + i / c->period, column = i % c->period;
    for (; count > 0; row++, column = 0) {
        int pixels = least(count, c->period - column), stored = least(pixels, c->columns - column);
        run_t r = {
            sums, stored, c->out + row * c->out_row + column * c->out_pixel,
            c->residual ? c->residual + row * c->residual_row + column * c->residual_pixel : NULL,
        };
        for (int n = 0; stored > 0 && n < strips * TILE && o + n < c->plan->outputs; n += LANES, r.sums += LANES) {
            int left = c->plan->outputs - o - n;
            if (left >= LANES) finish_outputs(c, &r, o + n, LANES);
            else finish_outputs(c, &r, o + n, left);
        }
        sums += pixels * 2 * TILE;
        count -= pixels;
    }
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

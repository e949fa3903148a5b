// Depthwise taps on 8-bit integers. Four taps of a channel are one product: four bytes, from rows or columns one after the
// other, are interleaved once and serve all taps of the other axis, and two rows of the result.
#include "int8_finish.h"

// In a register: else the compiler loads weights anew for each product, and loads are what takes the time.
#if V == 64
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define KEEP(x) (void)(x)
#endif

typedef struct {
    const uint8_t *planes;      // interleaved strips: four of each quad
    int64_t plane;
    const int8_t *weights;
    const int32_t *bias;
    factors_t m;
    uint8_t *into[2];           // rows of the result
    const uint8_t *addend[2];
    int64_t step;               // bytes of the result from one vector to the next
} strip_t;

// `wide` vectors of `rows` rows at the vector `at` of the strip; the next one is `phases` further. `count` bytes are left.
INLINE void tile(const stencil8_t *s, const strip_t *d, const limits_t *limits, int at, int count, int wide, int rows, int mode) {
    ivec sums[2][4][4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
#pragma GCC unroll 8
        for (int i = 0; i < wide * rows; i++) sums[i % rows][i / rows][v] = ints(d->bias + v * LANES);
    const int8_t *w = d->weights;
    int64_t apart = (int64_t)s->phases * V;
    for (int k = 0; k < s->taps; k++, w += rows * 4 * V) {
        const uint8_t *source = d->planes + s->tap[k].quad * 4 * d->plane + s->tap[k].shift + (int64_t)at * V;
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            bytes first = load((const uint8_t *)w + v * V), second = {0};
            if (rows == 2) second = load((const uint8_t *)w + (4 + v) * V);
            KEEP(first);
            if (rows == 2) KEEP(second);
#pragma GCC unroll 4
            for (int i = 0; i < wide; i++) {
                bytes x = load(source + v * d->plane + i * apart);
                sums[0][i][v] = dot(sums[0][i][v], x, first);
                if (rows == 2) sums[1][i][v] = dot(sums[1][i][v], x, second);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < wide; i++) {
        int64_t place = (int64_t)(at + i * s->phases) * d->step;
        int left = count - i * (int)apart;
#pragma GCC unroll 2
        for (int r = rows - 1; r >= 0; r--) {
            bytes addend = {0};
            if (mode == ADDED || (mode == GENERAL && s->finish.addend >= 0)) addend = load_some(d->addend[r] + place, left);
            if (mode == GENERAL && s->finish.element == FLOAT32) {
                float made[4 * LANES];
                general_floats(sums[r][i], addend, &s->finish, d->m, 4, made);
                memcpy(d->into[r] + 4 * place, made, 4 * (size_t)(left < V ? left : V));
            } else if (mode == GENERAL)
                store_some(d->into[r] + place, general_bytes(sums[r][i], addend, &s->finish, limits, d->m, 4), left);
            else
                store_some(d->into[r] + place, finished(sums[r][i], addend, &s->finish, limits, d->m, 4, mode), left);
        }
    }
}

// All vectors of a strip that have the same weights.
#define PHASE(name, wide, rows, mode) \
    static void name(const stencil8_t *s, const strip_t *d, int phase, int bytes_left) { \
        limits_t limits = limits_of(&s->finish); \
        int vectors = (bytes_left + V - 1) / V, at = phase; \
        for (; at + (wide - 1) * s->phases < vectors; at += wide * s->phases) \
            tile(s, d, &limits, at, bytes_left - at * V, wide, rows, mode); \
        for (; at < vectors; at += s->phases) tile(s, d, &limits, at, bytes_left - at * V, 1, rows, mode); \
    }
#if V == 64
PHASE(single_clamped, 4, 1, CLAMPED)
PHASE(single_added, 4, 1, ADDED)
PHASE(pair_clamped, 2, 2, CLAMPED)
PHASE(pair_added, 2, 2, ADDED)
#else  // 16 registers
PHASE(single_clamped, 2, 1, CLAMPED)
PHASE(single_added, 2, 1, ADDED)
PHASE(pair_clamped, 1, 2, CLAMPED)
PHASE(pair_added, 1, 2, ADDED)
#endif
PHASE(single_general, 2, 1, GENERAL)
PHASE(pair_general, 1, 2, GENERAL)

typedef void (*phase_t)(const stencil8_t *, const strip_t *, int, int);
static const phase_t PHASES[2][4] = {
    {single_clamped, single_added, single_general, single_general},
    {pair_clamped, pair_added, pair_general, pair_general},
};

// The four planes of a quad for `count` bytes.
static void interleaved(const stencil8_t *s, const four_t *q, uint8_t *const *rows, int64_t start, uint8_t *planes,
                        int64_t plane, int count) {
    const uint8_t *from[4];
    for (int i = 0; i < 4; i++) from[i] = rows[q->row[i]] + start + q->byte[i];
    int64_t step = s->from_step;
    for (int at = 0; at < count; at += V) {
        bytes out[4];
        interleave(load(from[0]), load(from[1]), load(from[2]), load(from[3]), out);
        for (int v = 0; v < 4; v++) *(bytes *)(planes + v * plane + at) = out[v];
        for (int i = 0; i < 4; i++) from[i] += step;
    }
}

#define MOST_ROWS 64  // that the taps of two rows of the result span

void lc_int8_stencil(const stencil8_t *s, const task8_t *t, uint8_t *strips) {
    const place_t *from = &t->call->place[s->from], *into = &t->call->place[s->into];
    const place_t *addend = s->finish.addend >= 0 ? &t->call->place[s->finish.addend] : NULL;
    int y0 = first_row(into, t), y1 = end_row(into, t), spans = 1;
    if (y0 < 0) y0 = 0;
    if (y1 > into->h) y1 = into->h;
    for (int g = 0; g < s->quads; g++)
        for (int i = 0; i < 4; i++) if (s->quad[g].row[i] >= spans) spans = s->quad[g].row[i] + 1;
    strip_t d = {.planes = strips, .step = s->into_step};
    d.plane = ((int64_t)s->strip + s->reach + 2 * V) & ~(int64_t)(V - 1);
    d.plane += V;  // planes do not share the sets of the L1 cache
    int width = into->element == FLOAT32 ? 4 : 1;
    // With a pair, row y and row y + apart; then the next y, until all rows of both have had their turn.
    for (int y = y0; y < y1; y += s->pair == 2 && (y + 1 - y0) % s->apart == 0 ? s->apart + 1 : 1) {
        uint8_t *rows[MOST_ROWS];
        int two = y + s->apart < y1 ? s->pair : 1;
        for (int i = 0; i < spans; i++) {
            int row = y * s->stride - s->top + i;
            if (two < s->pair && i >= spans - s->apart) row -= s->apart;  // only the row that is not wanted reads it
            rows[i] = row_at(from, t, row);
        }
        for (int column = 0; column < s->columns; column++)
            for (int start = 0; start < s->count; start += s->strip) {
                int left = s->count - start < s->strip ? s->count - start : s->strip;
                int64_t at = (int64_t)column * V;
                for (int g = 0; g < s->quads; g++)
                    interleaved(s, &s->quad[g], rows, at + (int64_t)(start / V) * s->from_step,
                                strips + g * 4 * d.plane, d.plane, left + s->reach);
                int64_t begin = at + (int64_t)(start / V) * s->into_step;
                for (int r = 0; r < s->pair; r++) {
                    int row = r < two ? y + r * s->apart : y;  // one that is not wanted is overwritten, see `tile`
                    d.into[r] = row_at(into, t, row) + column_at(into, into->left) + begin * width;
                    if (addend) d.addend[r] = row_at(addend, t, row) + begin;
                }
                for (int phase = 0; phase < s->phases; phase++) {
                    int index = s->columns > 1 ? column : phase;
                    d.weights = (const int8_t *)t->packed + s->weights + (int64_t)index * s->taps * s->pair * 4 * V;
                    d.bias = (const int32_t *)(t->packed + s->bias) + index * V;
                    const float *m = s->finish.factors ? t->factors : (const float *)(t->packed + s->multipliers);
                    d.m = (factors_t){m + index * V, NULL, NULL};
                    PHASES[s->pair - 1][s->finish.mode](s, &d, phase, left);
                }
            }
    }
}

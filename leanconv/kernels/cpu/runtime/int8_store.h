// What a product on 8-bit integers reads for a row of pixels, and how its sums are stored.
#pragma once
#include "int8_finish.h"

#define MOST_RUNS 64  // that are looked up together
typedef struct { const uint8_t *at; int64_t pixel; int quads; } source_t;

// What a row of pixels reads and writes, all for its first pixel.
typedef struct {
    source_t source[MOST_RUNS];
    uint8_t *into;
    const uint8_t *addend;
    int64_t pixel, addend_pixel;  // bytes from one to the next
} line_t;

// What is stored of the sums of `wide` pixels from `x` on.
INLINE void store_tile(const product8_t *p, const block_t *b, const line_t *d, factors_t m, const limits_t *k,
                       int64_t x, ivec *sums,
                       int vectors, int wide, int same, int mode) {
    const finish_t *f = &p->finish;
    uint8_t *into = d->into + x * d->pixel;
    const uint8_t *addend = d->addend ? d->addend + x * d->addend_pixel : NULL;
    int group = 4 / vectors;  // pixels whose bytes fill a vector
    if (mode == GENERAL && vectors == 1 && wide == LANES && !same && b->outputs == 1 && f->element == FLOAT32
        && d->pixel == 4 && !addend && !f->blended) {  // one channel of float32: a vector of pixels
        ivec one;
#pragma GCC unroll 16
        for (int i = 0; i < wide; i++) one[i] = sums[i][0];
        *(vec *)into = activated(as_floats(one) * m.first[0], f->activation);
        return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < wide; i += group) {
        bytes more = {0};
        int count = same ? 1 : group;
        if (mode == ADDED || mode == BLENDED || (mode == GENERAL && addend))
            more = by_lane(
                load_pixels(addend + i * d->addend_pixel, d->addend_pixel, vectors, b->outputs, count), vectors);
        if (mode == GENERAL && f->element == FLOAT32) {
            float made[4 * LANES];
            general_floats(sums + i * vectors, more, f, m, vectors, made);
            for (int one = 0; one < count; one++) {
                float *to = (float *)(into + (i + one) * d->pixel);
                if (b->outputs == 1) *to = made[one * vectors * LANES];
                else memcpy(to, made + one * vectors * LANES, 4 * (size_t)b->outputs);
            }
        } else if (mode == GENERAL) {
            bytes q = by_pixel(general_bytes(sums + i * vectors, more, f, k, m, vectors), vectors);
            store_pixels(into + i * d->pixel, q, d->pixel, vectors, b->outputs, count);
        } else {
            bytes q = by_pixel(finished(sums + i * vectors, more, f, k, m, vectors, mode), vectors);
            store_pixels(into + i * d->pixel, q, d->pixel, vectors, b->outputs, count);
        }
    }
}

// A row of `count` pixels, its sums on tiles.
void lc_int8_row_amx(
    const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m, int64_t count);
void lc_int8_row_emulated(
    const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m, int64_t count);

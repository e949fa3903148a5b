// A row of a product on 8-bit integers on tile registers, around the arithmetic of the including file, which defines
//
//     tile_add(C, A, B)     adds the products of fours of bytes, unsigned by signed
//     ROW                   the name of its function
//
// A tile has 16 pixels × `depth` fours of their bytes; one of weights has them × a vector of sums. Weights are packed as
// for vectors, and sums of integers have no order: the bits are those of `int8_product.c`.
#pragma once
#include "int8_store.h"

#define PIXELS 16
#define BLOCK (2 * PIXELS)

// Sums of `count` pixels (at most BLOCK) from `x` on, for `strips` (1 or 2) of a pixel's vectors from `first` on.
INLINE void multiply(const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, int64_t x,
                     int first, const int strips, const int second, ivec *sums) {
    const int32_t *bias = (const int32_t *)(packed + b->bias) + first * LANES;
    tile_load(0, bias, 0);  // the same row again and again
    if (strips > 1) tile_load(1, bias + LANES, 0);
    if (second) tile_load(2, bias, 0);
    if (second && strips > 1) tile_load(3, bias + LANES, 0);
    int64_t line = (int64_t)b->vectors * V;
    const uint8_t *w = packed + b->weights + first * V;
    for (int r = 0; r < p->runs; r++) {
        const source_t *from = &d->source[r];
        const uint8_t *at = from->at + x * from->pixel;
        for (int q = 0; q < from->quads; q += p->depth, at += 4 * p->depth, w += line * p->depth) {
            tile_load(6, w, line);
            tile_load(4, at, from->pixel);
            tile_add(0, 4, 6);
            if (strips > 1) {
                tile_load(7, w + V, line);
                tile_add(1, 4, 7);
            }
            if (second) {
                tile_load(5, at + PIXELS * from->pixel, from->pixel);
                tile_add(2, 5, 6);
                if (strips > 1) tile_add(3, 5, 7);
            }
        }
    }
    ivec *to = sums + first, *under = to + PIXELS * b->vectors;
    tile_store(0, to, line);
    if (strips > 1) tile_store(1, to + 1, line);
    if (second) tile_store(2, under, line);
    if (second && strips > 1) tile_store(3, under + 1, line);
}

// What is stored of `count` pixels: as many at once as fill a vector, then single ones.
INLINE void store_block(const product8_t *p, const block_t *b, const line_t *d, factors_t m, const limits_t *k, int64_t x,
                        ivec *sums, int count, const int vectors, const int mode) {
    int i = 0, group = 4 / vectors;
    if (mode == GENERAL && vectors == 1)
        for (; i + LANES <= count; i += LANES) store_tile(p, b, d, m, k, x + i, sums + i, 1, LANES, 0, mode);
    for (; i + group <= count; i += group) store_tile(p, b, d, m, k, x + i, sums + i * vectors, vectors, group, 0, mode);
    for (; i < count; i++) {
        ivec one[4];  // a copy: what is stored of a pixel overwrites the sums of four vectors
        memcpy(one, sums + i * vectors, sizeof one);
        store_tile(p, b, d, m, k, x + i, one, vectors, group, 1, mode);
    }
}

#define STORE(vectors, mode) \
    static void store_##vectors##_##mode(const product8_t *p, const block_t *b, const line_t *d, factors_t m, \
                                         const limits_t *k, int64_t x, ivec *sums, int count) { \
        store_block(p, b, d, m, k, x, sums, count, vectors, mode); \
    }
#define EACH_MODE(vectors) \
    STORE(vectors, CLAMPED) STORE(vectors, ADDED) STORE(vectors, BLENDED) STORE(vectors, GENERAL)
EACH_MODE(1)
EACH_MODE(2)
EACH_MODE(4)

typedef void (*store_t)(
    const product8_t *, const block_t *, const line_t *, factors_t, const limits_t *, int64_t, ivec *, int);
#define NAMES(vectors) \
    {store_##vectors##_CLAMPED, store_##vectors##_ADDED, store_##vectors##_BLENDED, store_##vectors##_GENERAL}
static const store_t STORES[3][4] = {NAMES(1), NAMES(2), NAMES(4)};

void ROW(const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m, int64_t count) {
    ivec sums[BLOCK * 4 + 4] __attribute__((aligned(64))) = {{0}};  // a last pixel is read with what fills four vectors
    limits_t limits = limits_of(&p->finish);
    store_t store = STORES[b->vectors / 2][p->finish.mode];
    configure(PIXELS, PIXELS, 4 * p->depth, V);
    for (int64_t x = 0; x < count; x += BLOCK) {
        int some = (int)(count - x < BLOCK ? count - x : BLOCK), second = some > PIXELS;
        if (some < BLOCK) configure(least(some, PIXELS), second ? some - PIXELS : PIXELS, 4 * p->depth, V);
        for (int v = 0; v < b->vectors; v += 2) {
            if (b->vectors > 1 && second) multiply(p, b, d, packed, x, v, 2, 1, sums);
            else if (b->vectors > 1) multiply(p, b, d, packed, x, v, 2, 0, sums);
            else if (second) multiply(p, b, d, packed, x, v, 1, 1, sums);
            else multiply(p, b, d, packed, x, v, 1, 0, sums);
        }
        store(p, b, d, m, &limits, x, sums, some);
    }
    release();
}

// From four vectors of sums to bytes, or to float32: the epilogue of the kernels on 8-bit integers.
#pragma once
#include "int8_vectors.h"
#include "elementary.h"

// The factors of four vectors of sums: one vector each, or three where `blended`.
typedef struct { const float *first, *second, *third; } factors_t;

// Vector i of four, if `vectors` of them belong to a pixel and are repeated for the next one.
INLINE vec factor(const float *p, int i, int vectors) { return floats(p + i % vectors * LANES); }

INLINE vec in_steps(
    ivec sum, ivec addend, const finish_t *f, float scale, factors_t m, int i, int vectors, int mode) {
    if (mode == BLENDED || (mode == GENERAL && f->blended)) {
        vec a = as_floats(addend) * factor(m.first, i, vectors), b = as_floats(sum) * factor(m.second, i, vectors);
        return (a + b) + factor(m.third, i, vectors);
    }
    vec v = as_floats(sum) * factor(m.first, i, vectors);
    if (mode == ADDED || (mode == GENERAL && f->addend >= 0)) v = v + as_floats(addend) * scale;
    return v;
}

// The numbers of `finish_t` that a loop needs, as vectors.
typedef struct { ivec addend_zero; float addend_scale; shorts zero; bytes low, high; } limits_t;

INLINE limits_t limits_of(const finish_t *f) {
    limits_t k = {(ivec){0} + f->addend_zero, f->addend_scale, (shorts){0} + (short)f->zero,
                  (bytes){0} + (uint8_t)f->low, (bytes){0} + (uint8_t)f->high};
    return k;
}

// Bytes in the order of `packed8`. `addend`: bytes in that order.
INLINE bytes finished(ivec *sums, bytes addend, const finish_t *f, const limits_t *k, factors_t m, int vectors, int mode) {
    ivec added_ones[4] = {{0}};
    if (mode == ADDED || mode == BLENDED || (mode == GENERAL && f->addend >= 0)) {
        spread(addend, added_ones);
        for (int i = 0; i < 4; i++) added_ones[i] -= k->addend_zero;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vec v = in_steps(sums[i], added_ones[i], f, k->addend_scale, m, i, vectors, mode);
        if (mode == GENERAL) {
            if (f->activation > RELU6) v = activated(v, f->activation) * f->inverse;
            v = at_most(at_least(v, (float)(f->low - f->zero)), (float)(f->high - f->zero));
        }
        sums[i] = nearest(v);
    }
    bytes q = packed8(added(packed16(sums[0], sums[1]), k->zero), added(packed16(sums[2], sums[3]), k->zero));
    return limited(q, k->low, k->high);
}

// GENERAL has every activation, and is compiled once.
__attribute__((noinline, unused)) static bytes general_bytes(
    ivec *sums, bytes addend, const finish_t *f, const limits_t *k, factors_t m, int vectors) {
    return finished(sums, addend, f, k, m, vectors, GENERAL);
}

// Sums as float32, in the order of channels: `out` has room for 4 · LANES.
__attribute__((noinline, unused)) static void general_floats(ivec *sums, bytes addend, const finish_t *f, factors_t m, int vectors, float *out) {
    ivec ones[4] = {{0}};
    if (f->addend >= 0) {
        spread(addend, ones);
        for (int i = 0; i < 4; i++) ones[i] -= f->addend_zero;
    }
    for (int i = 0; i < 4; i++) {
        vec v = activated(in_steps(sums[i], ones[i], f, f->addend_scale, m, i, vectors, GENERAL), f->activation);
        float *pixel = out + i / vectors * vectors * LANES + 4 * (i % vectors);
        for (int lane = 0; lane < LANES / 4; lane++)
            memcpy(pixel + 4 * vectors * lane, (const float *)&v + 4 * lane, 16);
    }
}

// Rows of maps as vectors of float32, whatever their numbers are stored in: for the kernels for training. With the vectors
// of GCC and Clang, of no machine in particular.
#pragma once
#include <string.h>
#include "training.h"

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits_t __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t half_t __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
// Of half as many lanes, for the rest of channels that are no whole vectors.
typedef float part_t __attribute__((vector_size(LANES * 2), aligned(4), may_alias));
typedef uint32_t part_bits_t __attribute__((vector_size(LANES * 2), aligned(4), may_alias));
typedef uint16_t part_half_t __attribute__((vector_size(LANES), aligned(2), may_alias));
// Of four: such maps are halves of eight channels.
#define FEW 4
typedef float few_t __attribute__((vector_size(FEW * 4), aligned(4), may_alias));
typedef uint32_t few_bits_t __attribute__((vector_size(FEW * 4), aligned(4), may_alias));
typedef uint16_t few_half_t __attribute__((vector_size(FEW * 2), aligned(2), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE int up(int value, int unit) { return (value + unit - 1) / unit * unit; }
INLINE int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

INLINE float widened(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// To the nearest, ties to even; a NaN stays one.
INLINE uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define ROUNDED(NAME, VEC, BITS, HALF)                                                                                 \
    INLINE HALF NAME(VEC value) {                                                                                      \
        BITS bits = (BITS)value, missing = (BITS)(value != value);                                                     \
        BITS near = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;                                                          \
        return __builtin_convertvector((near & ~missing) | (missing & 0x7fc0), HALF);                                  \
    }
ROUNDED(rounded_vec, vec, bits_t, half_t)
ROUNDED(rounded_part, part_t, part_bits_t, part_half_t)
ROUNDED(rounded_few, few_t, few_bits_t, few_half_t)
#undef ROUNDED

INLINE vec widened_vec(const uint16_t *from) { return (vec)(__builtin_convertvector(*(const half_t *)from, bits_t) << 16); }

// Numbers that lie densely.
static void read_dense(float *to, const map_t *m, int64_t at, int64_t numbers) {
    if (m->element == FLOAT32) {
        memcpy(to, (const float *)m->data + at, sizeof(float) * numbers);
        return;
    }
    const uint16_t *from = (const uint16_t *)m->data + at;
    int64_t i = 0;
    for (; i + LANES <= numbers; i += LANES) *(vec *)(to + i) = widened_vec(from + i);
    for (; i < numbers; i++) to[i] = widened(from[i]);
}

static void write_dense(const float *from, const map_t *m, int64_t at, int64_t numbers) {
    if (m->element == FLOAT32) {
        memcpy((float *)m->data + at, from, sizeof(float) * numbers);
        return;
    }
    uint16_t *to = (uint16_t *)m->data + at;
    int64_t i = 0;
    for (; i + LANES <= numbers; i += LANES) *(half_t *)(to + i) = rounded_vec(*(const vec *)(from + i));
    for (; i < numbers; i++) to[i] = rounded(from[i]);
}

// `count` pixels of `c` numbers from a map into dense pixels of `wide` floats; lanes beyond c are zero.
static void read_pixels(
    float *to, int wide, const map_t *m, int64_t at, int64_t pixel, int count, int c) {
    int whole = c / LANES * LANES, parts = c - whole >= LANES / 2, rest = whole + parts * (LANES / 2);
    if (pixel == wide && c == wide) {
        read_dense(to, m, at, (int64_t)wide * count);
        return;
    }
    if (c == FEW) {
        for (int i = 0; i < count && wide > FEW; i++)
            for (int k = FEW; k < wide; k += FEW) *(few_t *)(to + (int64_t)i * wide + k) = (few_t){0};
        if (m->element == FLOAT32)
            for (int i = 0; i < count; i++)
                *(few_t *)(to + (int64_t)i * wide) = *(const few_t *)((const float *)m->data + at + i * pixel);
        else
            for (int i = 0; i < count; i++) {
                few_half_t bits = *(const few_half_t *)((const uint16_t *)m->data + at + i * pixel);
                *(few_t *)(to + (int64_t)i * wide) = (few_t)(__builtin_convertvector(bits, few_bits_t) << 16);
            }
        return;
    }
    if (c < wide && c == rest)  // half a vector of zeros behind each pixel
        for (int i = 0; i < count; i++) *(part_t *)(to + i * wide + rest) = (part_t){0};
    if (m->element == FLOAT32) {
        const float *from = (const float *)m->data + at;
        for (int i = 0; i < count; i++, from += pixel, to += wide) {
            for (int k = 0; k < whole; k += LANES) *(vec *)(to + k) = *(const vec *)(from + k);
            if (parts) *(part_t *)(to + whole) = *(const part_t *)(from + whole);
            if (c > rest) for (int k = rest; k < wide; k++) to[k] = k < c ? from[k] : 0.0f;
        }
    } else {
        const uint16_t *from = (const uint16_t *)m->data + at;
        for (int i = 0; i < count; i++, from += pixel, to += wide) {
            for (int k = 0; k < whole; k += LANES) *(vec *)(to + k) = widened_vec(from + k);
            if (parts) {
                part_bits_t bits = __builtin_convertvector(*(const part_half_t *)(from + whole), part_bits_t) << 16;
                *(part_t *)(to + whole) = (part_t)bits;
            }
            if (c > rest) for (int k = rest; k < wide; k++) to[k] = k < c ? widened(from[k]) : 0.0f;
        }
    }
}

// Likewise from dense pixels of `wide` floats into a map.
static void write_pixels(
    const float *from, int wide, const map_t *m, int64_t at, int64_t pixel, int count, int c) {
    if (pixel == wide && c == wide) {
        write_dense(from, m, at, (int64_t)wide * count);
        return;
    }
    if (c == FEW) {
        if (m->element == FLOAT32)
            for (int i = 0; i < count; i++)
                *(few_t *)((float *)m->data + at + i * pixel) = *(const few_t *)(from + (int64_t)i * wide);
        else
            for (int i = 0; i < count; i++)
                *(few_half_t *)((uint16_t *)m->data + at + i * pixel) =
                    rounded_few(*(const few_t *)(from + (int64_t)i * wide));
        return;
    }
    int whole = c / LANES * LANES, parts = c - whole >= LANES / 2, rest = whole + parts * (LANES / 2);
    if (m->element == FLOAT32) {
        float *to = (float *)m->data + at;
        for (int i = 0; i < count; i++, from += wide, to += pixel) {
            for (int k = 0; k < whole; k += LANES) *(vec *)(to + k) = *(const vec *)(from + k);
            if (parts) *(part_t *)(to + whole) = *(const part_t *)(from + whole);
            for (int k = rest; k < c; k++) to[k] = from[k];
        }
    } else {
        uint16_t *to = (uint16_t *)m->data + at;
        for (int i = 0; i < count; i++, from += wide, to += pixel) {
            for (int k = 0; k < whole; k += LANES) *(half_t *)(to + k) = rounded_vec(*(const vec *)(from + k));
            if (parts) *(part_half_t *)(to + whole) = rounded_part(*(const part_t *)(from + whole));
            for (int k = rest; k < c; k++) to[k] = rounded(from[k]);
        }
    }
}

// Ask for `count` pixels that are read or written next: the processor's own guesses end at a page, which is about a row.
INLINE void fetch(const map_t *m, int64_t at, int count, const int written) {
    int size = m->element == FLOAT32 ? 4 : 2;
    const char *from = (const char *)m->data + at * size, *end = from + count * m->pixel * size;
    for (; from < end; from += 64) __builtin_prefetch(from, written, 2);
}

// The first of `count` pixels of a map as floats, and in `step` how far apart they are: where they lie, if they are
// whole vectors of float32; else a copy in `line`.
INLINE const float *row_of(const map_t *m, int64_t at, int count, int c, int wide, float *line, int64_t *step) {
    *step = m->pixel;
    if (m->element == FLOAT32 && c == wide) return (const float *)m->data + at;
    read_pixels(line, wide, m, at, m->pixel, count, c);
    *step = wide;
    return line;
}

// Where `count` pixels of results may be written as floats, and how far apart; `row_done` puts them into the map.
INLINE float *row_for(const map_t *m, int64_t at, int c, int wide, float *line, int64_t *step) {
    int straight = m->element == FLOAT32 && c == wide;
    *step = straight ? m->pixel : wide;
    return straight ? (float *)m->data + at : line;
}

INLINE void row_done(const map_t *m, int64_t at, int count, int c, int wide, const float *line) {
    if (m->element != FLOAT32 || c != wide) write_pixels(line, wide, m, at, m->pixel, count, c);
}

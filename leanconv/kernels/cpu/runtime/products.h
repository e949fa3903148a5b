// Products of a matrix with the channels of pixels, and the sums for its gradient. Output channels are the lanes of whole
// vectors, or of half a vector where they fit in it; an input is one number for all of them.
#pragma once
#include "rows.h"

INLINE int product_width(int outputs) { return outputs <= LANES / 2 ? LANES / 2 : up(outputs, LANES); }

// `tiles` times N pixels of V vectors of outputs.
#define DOT(TYPE, L, N, V)                                                                                             \
    static void TYPE##_dot##N##x##V(const float *x, int64_t x_step, const float *w, int64_t w_step, int inputs,        \
                                    const float *bias, float *y, int64_t y_step, int tiles) {                          \
        for (; tiles > 0; tiles--, x += N * x_step, y += N * y_step) {                                                 \
            TYPE sum[N][V];                                                                                            \
            _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] = *(const TYPE *)(bias + v * L);         \
            for (int c = 0; c < inputs; c++) {                                                                         \
                TYPE weight[V];                                                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) weight[v] = *(const TYPE *)(w + c * w_step + v * L); \
                _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                    \
                    _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] += x[i * x_step + c] * weight[v];    \
            }                                                                                                          \
            _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) *(TYPE *)(y + i * y_step + v * L) = sum[i][v];     \
        }                                                                                                              \
    }
#define EIGHT(MAKE, TYPE, L) \
    MAKE(TYPE, L, 1, 1) MAKE(TYPE, L, 2, 1) MAKE(TYPE, L, 3, 1) MAKE(TYPE, L, 4, 1) \
    MAKE(TYPE, L, 5, 1) MAKE(TYPE, L, 6, 1) MAKE(TYPE, L, 7, 1) MAKE(TYPE, L, 8, 1)
#define SIX_PAIRS(MAKE, TYPE, L) \
    MAKE(TYPE, L, 1, 2) MAKE(TYPE, L, 2, 2) MAKE(TYPE, L, 3, 2) MAKE(TYPE, L, 4, 2) MAKE(TYPE, L, 5, 2) MAKE(TYPE, L, 6, 2)
#define NAMES_OF_EIGHT(T, F) {NULL, T##_##F##1x1, T##_##F##2x1, T##_##F##3x1, T##_##F##4x1, T##_##F##5x1, T##_##F##6x1, T##_##F##7x1, T##_##F##8x1}
#define NAMES_OF_SIX(T, F) {NULL, T##_##F##1x2, T##_##F##2x2, T##_##F##3x2, T##_##F##4x2, T##_##F##5x2, T##_##F##6x2}
typedef void dot_fn(const float *, int64_t, const float *, int64_t, int, const float *, float *, int64_t, int);
EIGHT(DOT, part_t, LANES / 2) EIGHT(DOT, vec, LANES) SIX_PAIRS(DOT, vec, LANES)
// By vectors of outputs: half a one, one, two.
static dot_fn *const DOTS[3][9] = {NAMES_OF_EIGHT(part_t, dot), NAMES_OF_EIGHT(vec, dot), NAMES_OF_SIX(vec, dot)};

// sums[c][o] += Σ x[q][c] · g[q][o] over a run, of N inputs and V vectors of outputs.
#define OUTER(TYPE, L, N, V)                                                                                           \
    static void TYPE##_outer##N##x##V(const float *x, int64_t x_step, const float *g, int64_t g_step, int count,       \
                                      float *sums, int64_t wide) {                                                     \
        TYPE sum[N][V];                                                                                                \
        _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                            \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] = *(const TYPE *)(sums + i * wide + v * L);  \
        for (int q = 0; q < count; q++, x += x_step, g += g_step) {                                                    \
            TYPE value[V];                                                                                             \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) value[v] = *(const TYPE *)(g + v * L);                 \
            _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] += x[i] * value[v];                      \
        }                                                                                                              \
        _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                            \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) *(TYPE *)(sums + i * wide + v * L) = sum[i][v];        \
    }
typedef void outer_fn(const float *, int64_t, const float *, int64_t, int, float *, int64_t);
EIGHT(OUTER, part_t, LANES / 2) EIGHT(OUTER, vec, LANES) SIX_PAIRS(OUTER, vec, LANES)
static outer_fn *const OUTERS[3][9] = {NAMES_OF_EIGHT(part_t, outer), NAMES_OF_EIGHT(vec, outer), NAMES_OF_SIX(vec, outer)};
#undef EIGHT
#undef SIX_PAIRS
#undef NAMES_OF_EIGHT
#undef NAMES_OF_SIX

INLINE int vectors_at(int v, int wide) { return wide < LANES ? 0 : v + LANES < wide ? 2 : 1; }

// y = bias + x · w of `count` pixels; w: inputs × wide. A pixel's last vector may be written over the next pixel's numbers,
// which come later.
static void dots(const float *x, int64_t x_step, const float *w, int wide, int inputs, const float *bias, float *y, int64_t y_step, int count) {
    for (int v = 0; v < wide; v += 2 * LANES) {
        int vectors = vectors_at(v, wide), most_pixels = vectors == 2 ? 6 : 8, tiles = (count + most_pixels - 1) / most_pixels;
        int n = count / tiles, larger = count - n * tiles, done = larger * (n + 1);
        dot_fn *const *of = DOTS[vectors];
        if (larger) of[n + 1](x, x_step, w + v, wide, inputs, bias + v, y + v, y_step, larger);
        of[n](x + done * x_step, x_step, w + v, wide, inputs, bias + v, y + done * y_step + v, y_step, tiles - larger);
    }
}

// sums += of `count` pixels each input times each output; sums: inputs × wide.
static void outers(const float *x, int64_t x_step, const float *g, int64_t g_step, int count, int inputs, float *sums, int wide) {
    for (int v = 0; v < wide; v += 2 * LANES) {
        int vectors = vectors_at(v, wide), most_inputs = vectors == 2 ? 6 : 8, parts = (inputs + most_inputs - 1) / most_inputs;
        for (int part = 0; part < parts; part++) {
            int from = inputs * part / parts, to = inputs * (part + 1) / parts;
            OUTERS[vectors][to - from](x + from, x_step, g + v, g_step, count, sums + (int64_t)from * wide + v, wide);
        }
    }
}

// sums += of `count` pixels each output.
static void totals(const float *g, int64_t g_step, int count, float *sums, int wide) {
    for (int v = 0; v < wide; v += LANES / 2) {
        part_t sum[4] = {{0}};
        for (int q = 0; q < count; q++) sum[q % 4] += *(const part_t *)(g + q * g_step + v);
        *(part_t *)(sums + v) += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

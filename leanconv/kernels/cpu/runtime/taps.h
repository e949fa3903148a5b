// Depthwise products over rows of pixels: results of stencils, and sums of their taps' weights.
#pragma once
#include "rows.h"

// One product of a row of results: floats from the ring's start, and from the first tap's weights.
typedef struct { int64_t x; int64_t w; } tap_t;

// `tiles` times N results that lie next to each other, of V vectors of channels; `step`: floats from one's inputs to the
// next's. Sums stay in registers: N·V of them, and the weights of a tap.
#define TILE(N, V)                                                                                                     \
    static void tile##N##x##V(const float *x, const float *w, const tap_t *t, int taps, int64_t step,                  \
                              const float *bias, float *out, int64_t out_step, int tiles) {                            \
        for (; tiles > 0; tiles--, x += N * step, out += N * out_step) {                                               \
            vec sum[N][V];                                                                                             \
            _Pragma("GCC unroll 16") for (int i = 0; i < N; i++)                                                       \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] = *(const vec *)(bias + v * LANES);      \
            for (int k = 0; k < taps; k++) {                                                                           \
                const float *a = x + t[k].x, *b = w + t[k].w;                                                          \
                vec weight[V];                                                                                         \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) weight[v] = *(const vec *)(b + v * LANES);         \
                _Pragma("GCC unroll 16") for (int i = 0; i < N; i++)                                                   \
                    _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                                \
                        sum[i][v] += *(const vec *)(a + i * step + v * LANES) * weight[v];                             \
            }                                                                                                          \
            _Pragma("GCC unroll 16") for (int i = 0; i < N; i++)                                                       \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                                    \
                    *(vec *)(out + i * out_step + v * LANES) = sum[i][v];                                              \
        }                                                                                                              \
    }
typedef void tile_fn(const float *, const float *, const tap_t *, int, int64_t, const float *, float *, int64_t, int);
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1)
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
static tile_fn *const TILES[2][9] = {
    {NULL, tile1x1, tile2x1, tile3x1, tile4x1, tile5x1, tile6x1, tile7x1, tile8x1},
    {NULL, tile1x2, tile2x2, tile3x2, tile4x2, tile5x2, tile6x2},
};
#define PIXELS(V) ((V) == 2 ? 6 : 8)

// `count` results of one or two vectors of channels, in tiles of nearly the same size.
static void run_tiles(const float *x, const float *w, const tap_t *t, int taps, int64_t step, const float *bias,
                      float *out, int64_t out_step, int count, int vectors) {
    int most = PIXELS(vectors), tiles = (count + most - 1) / most, n = count / tiles, larger = count - n * tiles;
    tile_fn *const *of = TILES[vectors - 1];
    if (larger) of[n + 1](x, w, t, taps, step, bias, out, out_step, larger);
    int64_t done = (int64_t)larger * (n + 1);
    of[n](x + done * step, w, t, taps, step, bias, out + done * out_step, out_step, tiles - larger);
}

// N taps' sums over a row of `count` pixels, of V vectors of channels: sums[t[i].w] += Σ g · x.
#define SUMS(N, V)                                                                                                     \
    static void sums##N##x##V(const float *x, const tap_t *t, int64_t step, const float *g, int64_t g_step,            \
                              int count, float *sums) {                                                                \
        vec sum[N][V];                                                                                                 \
        const float *a[N];                                                                                             \
        _Pragma("GCC unroll 16") for (int i = 0; i < N; i++) {                                                         \
            a[i] = x + t[i].x;                                                                                         \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] = *(const vec *)(sums + t[i].w + v * LANES); \
        }                                                                                                              \
        for (int64_t q = 0, at = 0; q < count; q++, at += step, g += g_step) {                                         \
            vec value[V];                                                                                              \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) value[v] = *(const vec *)(g + v * LANES);              \
            _Pragma("GCC unroll 16") for (int i = 0; i < N; i++)                                                       \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                                    \
                    sum[i][v] += *(const vec *)(a[i] + at + v * LANES) * value[v];                                     \
        }                                                                                                              \
        _Pragma("GCC unroll 16") for (int i = 0; i < N; i++)                                                           \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) *(vec *)(sums + t[i].w + v * LANES) = sum[i][v];       \
    }
typedef void sums_fn(const float *, const tap_t *, int64_t, const float *, int64_t, int, float *);
SUMS(1, 1) SUMS(2, 1) SUMS(3, 1) SUMS(4, 1) SUMS(5, 1) SUMS(6, 1) SUMS(7, 1) SUMS(8, 1) SUMS(9, 1)
SUMS(1, 2) SUMS(2, 2) SUMS(3, 2) SUMS(4, 2) SUMS(5, 2) SUMS(6, 2)
static sums_fn *const SUMS[2][10] = {
    {NULL, sums1x1, sums2x1, sums3x1, sums4x1, sums5x1, sums6x1, sums7x1, sums8x1, sums9x1},
    {NULL, sums1x2, sums2x2, sums3x2, sums4x2, sums5x2, sums6x2},
};
#define TAPS(V) ((V) == 2 ? 6 : 9)

// Register tiles of HetConv's products. A vector holds consecutive filters; filter o of it reads the channels k·P + o mod P,
// so the P numbers of step k, repeated, are what all its lanes multiply: no channel is moved. At the kernel's centre every
// channel counts, and one number is for all lanes.
//
// An item is four bytes of a line: one float32, or two bfloat16 whose products one instruction adds.
#pragma once
#include "rows.h"
#if defined(__AVX__)
#include <immintrin.h>
#endif
#ifdef __AVX512BF16__
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

typedef uint32_t item_t __attribute__((may_alias));  // written as bits, read as floats

// P items, again and again.
#define LOOPED(TYPE, L, P)                                                                                             \
    INLINE TYPE TYPE##_repeated##P(const float *p) {                                                                   \
        TYPE found;                                                                                                    \
        for (int i = 0; i < L; i++) found[i] = p[i % P];                                                               \
        return found;                                                                                                  \
    }
#define BY(TYPE, P, VALUE) INLINE TYPE TYPE##_repeated##P(const float *p) { return (TYPE)VALUE; }
#if defined(__AVX512F__)
BY(vec, 1, _mm512_set1_ps(*p))
BY(part_t, 1, _mm256_set1_ps(*p))
BY(vec, 2, _mm512_broadcastsd_pd(_mm_loadl_pd(_mm_setzero_pd(), (const double *)p)))
BY(vec, 4, _mm512_broadcast_f32x4(_mm_loadu_ps(p)))
BY(vec, 8, _mm512_broadcast_f64x4(_mm256_loadu_pd((const double *)p)))
BY(part_t, 2, _mm256_broadcast_sd((const double *)p))
BY(part_t, 4, _mm256_broadcast_ps((const __m128 *)p))
BY(part_t, 8, _mm256_loadu_ps(p))
#elif defined(__AVX__)
BY(vec, 1, _mm256_set1_ps(*p))
BY(part_t, 1, _mm_set1_ps(*p))
BY(vec, 2, _mm256_broadcast_sd((const double *)p))
BY(vec, 4, _mm256_broadcast_ps((const __m128 *)p))
BY(vec, 8, _mm256_loadu_ps(p))
BY(part_t, 2, _mm_loaddup_pd((const double *)p))
BY(part_t, 4, _mm_loadu_ps(p))
LOOPED(part_t, LANES / 2, 8)  // of no use: more channels than lanes
#else
LOOPED(vec, LANES, 1) LOOPED(part_t, LANES / 2, 1)
LOOPED(vec, LANES, 2) LOOPED(vec, LANES, 4) LOOPED(vec, LANES, 8)
LOOPED(part_t, LANES / 2, 2) LOOPED(part_t, LANES / 2, 4) LOOPED(part_t, LANES / 2, 8)
#endif
#undef LOOPED
#undef BY

INLINE vec floats_vec(vec sum, vec a, vec b) { return sum + a * b; }
INLINE part_t floats_part_t(part_t sum, part_t a, part_t b) { return sum + a * b; }
#if HAS_PAIRS
INLINE vec pairs_vec(vec sum, vec a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
}
INLINE part_t pairs_part_t(part_t sum, part_t a, part_t b) {
    return (part_t)_mm256_dpbf16_ps((__m256)sum, (__m256bh)(__m256)a, (__m256bh)(__m256)b);
}
#endif

// Results of blocks, which are dealt out among the lanes, in the map's order: one vector by any order, and two whose lanes
// are those of two blocks by turns.
#ifdef __clang__
#define MIXED(TYPE, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define BY_ORDER(TYPE, L, BITS)                                                                                        \
    INLINE TYPE TYPE##_by(TYPE a, BITS order) {                                                                        \
        TYPE found;                                                                                                    \
        for (int i = 0; i < L; i++) found[i] = a[order[i]];                                                            \
        return found;                                                                                                  \
    }
#else
#define MIXED(TYPE, a, b, ...) __builtin_shuffle(a, b, (TYPE){__VA_ARGS__})
#define BY_ORDER(TYPE, L, BITS) INLINE TYPE TYPE##_by(TYPE a, BITS order) { return __builtin_shuffle(a, order); }
#endif
BY_ORDER(vec, LANES, bits_t)
BY_ORDER(part_t, LANES / 2, part_bits_t)
#if LANES == 16
INLINE vec vec_low(vec a, vec b) { return MIXED(bits_t, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
INLINE vec vec_high(vec a, vec b) { return MIXED(bits_t, a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31); }
#else
INLINE vec vec_low(vec a, vec b) { return MIXED(bits_t, a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
INLINE vec vec_high(vec a, vec b) { return MIXED(bits_t, a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
#endif
INLINE part_t part_t_low(part_t a, part_t b) { return a; }  // never asked for
INLINE part_t part_t_high(part_t a, part_t b) { return b; }
INLINE vec vec_order(const uint32_t *order, vec a) { return vec_by(a, *(const bits_t *)order); }
INLINE part_t part_t_order(const uint32_t *order, part_t a) { return part_t_by(a, *(const part_bits_t *)order); }

// A row of results, for one or two vectors of filters: where products begin among the items and among the weights.
typedef struct { int64_t x, w; } tap_t;
typedef struct {
    const tap_t *threes;         // rows of a kernel with three taps side by side: an input that is read serves them all
    tap_t two;                   // the centre's row, without it; x -1: not on the map
    const tap_t *taps;           // steps of other taps
    const float *w, *centre_w, *bias;
    int64_t step, y_step, tap;   // from a pixel to the next: items, and floats of results; weights of a tap
    int64_t centre;              // items to the centre's tap; -1: it is not on the map
    int rows, count, steps, items;  // of threes, of taps; steps of P items, and items, of a pixel
    const uint32_t *order;       // which lane each of a vector's results comes from; NULL: its own
    int64_t apart;               // floats from a vector of results to that of the other block; 0: they are side by side
} row_t;

// `tiles` times N pixels of V vectors of L filters.
#define DOT(KIND, TYPE, L, P, N, V)                                                                                    \
    static void KIND##_##TYPE##_dot##P##_##N##x##V(const row_t *k, const float *x, float *y, int tiles) {              \
        const int64_t step = k->step, y_step = k->y_step, tap = k->tap;                                                \
        for (; tiles > 0; tiles--, x += N * step, y += N * y_step) {                                                   \
            TYPE sum[N][V];                                                                                            \
            _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] = *(const TYPE *)(k->bias + v * L);      \
            for (int t = 0; t < k->rows; t++) {                                                                        \
                const float *a = x + k->threes[t].x, *w = k->w + k->threes[t].w;                                       \
                for (int s = k->steps; s > 0; s--, a += P, w += V * L) {                                               \
                    TYPE weight[3][V];                                                                                 \
                    _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)                                                \
                        _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                            \
                            weight[j][v] = *(const TYPE *)(w + j * tap + v * L);                                       \
                    _Pragma("GCC unroll 10") for (int i = 0; i < N + 2; i++) {                                         \
                        TYPE many = TYPE##_repeated##P(a + i * step);                                                  \
                        _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)                                            \
                            if (i >= j && i - j < N)                                                                   \
                                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                    \
                                    sum[i - j][v] = KIND##_##TYPE(sum[i - j][v], weight[j][v], many);                  \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
            if (k->two.x >= 0) {                                                                                       \
                const float *a = x + k->two.x, *w = k->w + k->two.w;                                                   \
                for (int s = k->steps; s > 0; s--, a += P, w += V * L) {                                               \
                    TYPE weight[2][V];                                                                                 \
                    _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) {                                              \
                        weight[0][v] = *(const TYPE *)(w + v * L);                                                     \
                        weight[1][v] = *(const TYPE *)(w + tap + v * L);                                               \
                    }                                                                                                  \
                    _Pragma("GCC unroll 10") for (int i = 0; i < N + 2; i++) {                                         \
                        TYPE many = TYPE##_repeated##P(a + i * step);                                                  \
                        _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) {                                          \
                            if (i < N) sum[i][v] = KIND##_##TYPE(sum[i][v], weight[0][v], many);                       \
                            if (i >= 2) sum[i - 2][v] = KIND##_##TYPE(sum[i - 2][v], weight[1][v], many);              \
                        }                                                                                              \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
            for (int t = 0; t < k->count; t++) {                                                                       \
                const float *a = x + k->taps[t].x, *w = k->w + k->taps[t].w;                                           \
                _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) {                                                  \
                    TYPE many = TYPE##_repeated##P(a + i * step);                                                      \
                    _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                                \
                        sum[i][v] = KIND##_##TYPE(sum[i][v], *(const TYPE *)(w + v * L), many);                        \
                }                                                                                                      \
            }                                                                                                          \
            if (k->centre >= 0) {                                                                                      \
                const float *a = x + k->centre, *w = k->centre_w;                                                      \
                for (int c = k->items; c > 0; c--, a++, w += V * L)                                                    \
                    _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) {                                              \
                        TYPE one = TYPE##_repeated1(a + i * step);                                                     \
                        _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                            \
                            sum[i][v] = KIND##_##TYPE(sum[i][v], *(const TYPE *)(w + v * L), one);                     \
                    }                                                                                                  \
            }                                                                                                          \
            if (V == 2 && k->apart)                                                                                    \
                _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) {                                                  \
                    *(TYPE *)(y + i * y_step) = TYPE##_low(sum[i][0], sum[i][V - 1]);                                  \
                    *(TYPE *)(y + i * y_step + k->apart) = TYPE##_high(sum[i][0], sum[i][V - 1]);                      \
                }                                                                                                      \
            else if (V == 1 && k->order)                                                                               \
                _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                    \
                    *(TYPE *)(y + i * y_step) = TYPE##_order(k->order, sum[i][0]);                                     \
            else                                                                                                       \
                _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                    \
                    _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) *(TYPE *)(y + i * y_step + v * L) = sum[i][v]; \
        }                                                                                                              \
    }
typedef void dot_fn(const row_t *, const float *, float *, int);

// Rows of pixels for the sums of weights, of x and of the gradient: where each begins.
typedef struct {
    const float *x, *g;
    const int64_t *x_at, *g_at;
    int64_t step, g_step;          // items from a pixel to the next
    int64_t next, tap;             // items from a pixel to the tap beside it; weights of a tap
    int pixels;                    // of a row
} rows_t;

// sums[i] += Σ g · x of N weights, whose items lie `at[i]` behind a row's beginning, of V vectors of L filters.
#define SUM(KIND, TYPE, L, P, N, V)                                                                                    \
    static void KIND##_##TYPE##_sum##P##_##N##x##V(const rows_t *k, int v0, int from, int end, const int64_t *at,      \
                                                   float *sums) {                                                      \
        const int64_t step = k->step, g_step = k->g_step;                                                              \
        TYPE sum[N][V];                                                                                                \
        _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                            \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][v] = (TYPE){0};                                 \
        for (int row = from; row < end; row++) {                                                                       \
            const float *x = k->x + k->x_at[row], *g = k->g + k->g_at[row] + v0, *a[N];                             \
            _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) a[i] = x + at[i];                                      \
            int64_t off = 0;                                                                                           \
            for (int q = k->pixels; q > 0; q--, off += step, g += g_step) {                                            \
                TYPE value[V];                                                                                         \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) value[v] = *(const TYPE *)(g + v * L);             \
                _Pragma("GCC unroll 8") for (int i = 0; i < N; i++) {                                                  \
                    TYPE many = TYPE##_repeated##P(a[i] + off);                                                        \
                    _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                                \
                        sum[i][v] = KIND##_##TYPE(sum[i][v], value[v], many);                                          \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                                                            \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) *(TYPE *)(sums + (i * V + v) * L) += sum[i][v];        \
    }
typedef void sum_fn(const rows_t *, int, int, int, const int64_t *, float *);

// Likewise of three taps side by side at N steps: those of a tap lie `tap` weights behind the other's.
#define SUM_THREES(KIND, TYPE, L, P, N, V, PAIRS)                                                                      \
    static void KIND##_##TYPE##_threes##P##_##N##x##V(const rows_t *k, int v0, int from, int end, const int64_t *at,   \
                                                      float *sums) {                                                   \
        const int64_t step = k->step, g_step = k->g_step, next = k->next;                                              \
        TYPE sum[N][3][V];                                                                                             \
        _Pragma("GCC unroll 4") for (int i = 0; i < N; i++)                                                            \
            _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) sum[i][j][v] = (TYPE){0};                          \
        for (int row = from; row < end; row++) {                                                                       \
            const float *x = k->x + k->x_at[row], *g = k->g + k->g_at[row] + v0, *a[N];                             \
            TYPE seen[N][3];                                                                                           \
            _Pragma("GCC unroll 4") for (int i = 0; i < N; i++) {                                                      \
                a[i] = x + at[i];                                                                                      \
                seen[i][0] = TYPE##_repeated##P(a[i]);                                                                 \
                if (!PAIRS) seen[i][1] = TYPE##_repeated##P(a[i] + next);                                              \
                a[i] += 2 * next;                                                                                      \
            }                                                                                                          \
            int64_t off = 0;                                                                                           \
            for (int q = k->pixels; q > 0; q--, off += step, g += g_step) {                                            \
                TYPE value[V];                                                                                         \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) value[v] = *(const TYPE *)(g + v * L);             \
                _Pragma("GCC unroll 4") for (int i = 0; i < N; i++) {                                                  \
                    if (PAIRS) seen[i][1] = TYPE##_repeated##P(a[i] + off - next);                                     \
                    seen[i][2] = TYPE##_repeated##P(a[i] + off);                                                       \
                    _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)                                                \
                        _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                            \
                            sum[i][j][v] = KIND##_##TYPE(sum[i][j][v], value[v], seen[i][j]);                          \
                    seen[i][0] = PAIRS ? seen[i][2] : seen[i][1];                                                      \
                    seen[i][1] = seen[i][2];                                                                           \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 4") for (int i = 0; i < N; i++)                                                            \
            _Pragma("GCC unroll 3") for (int j = 0; j < 3; j++)                                                        \
                _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                                    \
                    *(TYPE *)(sums + ((i + j * k->tap) * V + v) * L) += sum[i][j][v];                                  \
    }

#define FOUR(MAKE, KIND, TYPE, L, P, V) \
    MAKE(KIND, TYPE, L, P, 1, V) MAKE(KIND, TYPE, L, P, 2, V) MAKE(KIND, TYPE, L, P, 4, V) MAKE(KIND, TYPE, L, P, 8, V)
#define THREE(MAKE, KIND, P) \
    FOUR(MAKE, KIND, part_t, LANES / 2, P, 1) FOUR(MAKE, KIND, vec, LANES, P, 1) FOUR(MAKE, KIND, vec, LANES, P, 2)
#define IS_PAIRS_floats 0
#define IS_PAIRS_pairs 1
#define THREES_OF(KIND, TYPE, L, P, V)                                                                                 \
    SUM_THREES(KIND, TYPE, L, P, 1, V, IS_PAIRS_##KIND) SUM_THREES(KIND, TYPE, L, P, 2, V, IS_PAIRS_##KIND)            \
    SUM_THREES(KIND, TYPE, L, P, 4, V, IS_PAIRS_##KIND)
#define THREES(KIND, P) THREES_OF(KIND, part_t, LANES / 2, P, 1) THREES_OF(KIND, vec, LANES, P, 1)
#define NAMES_OF_THREES(KIND, TYPE, P) \
    {KIND##_##TYPE##_threes##P##_1x1, KIND##_##TYPE##_threes##P##_2x1, KIND##_##TYPE##_threes##P##_4x1}
#define BOTH_NAMES(KIND, P) {NAMES_OF_THREES(KIND, part_t, P), NAMES_OF_THREES(KIND, vec, P)}
#define THREES_NAMES(KIND) {{{0}}, BOTH_NAMES(KIND, 2), BOTH_NAMES(KIND, 4), BOTH_NAMES(KIND, 8)}
#define NAMES(KIND, TYPE, F, P, V) \
    {KIND##_##TYPE##_##F##P##_1x##V, KIND##_##TYPE##_##F##P##_2x##V, KIND##_##TYPE##_##F##P##_4x##V, KIND##_##TYPE##_##F##P##_8x##V}
#define ALL_NAMES(KIND, F, P) {NAMES(KIND, part_t, F, P, 1), NAMES(KIND, vec, F, P, 1), NAMES(KIND, vec, F, P, 2)}
#define OF_KIND(KIND)                                                                                                  \
    THREE(DOT, KIND, 2) THREE(DOT, KIND, 4) THREE(DOT, KIND, 8)                                                        \
    THREES(KIND, 2) THREES(KIND, 4) THREES(KIND, 8)                                                                    \
    THREE(SUM, KIND, 1) THREE(SUM, KIND, 2) THREE(SUM, KIND, 4) THREE(SUM, KIND, 8)
OF_KIND(floats)
#if HAS_PAIRS
OF_KIND(pairs)
#endif
// By kind, log2 of P, vectors of filters (half a one, one, two), and log2 of N.
#define DOT_NAMES(KIND) {{{0}}, ALL_NAMES(KIND, dot, 2), ALL_NAMES(KIND, dot, 4), ALL_NAMES(KIND, dot, 8)}
#define SUM_NAMES(KIND) \
    {ALL_NAMES(KIND, sum, 1), ALL_NAMES(KIND, sum, 2), ALL_NAMES(KIND, sum, 4), ALL_NAMES(KIND, sum, 8)}
#if HAS_PAIRS
static dot_fn *const DOTS[2][4][3][4] = {DOT_NAMES(floats), DOT_NAMES(pairs)};
static sum_fn *const SUMS[2][4][3][4] = {SUM_NAMES(floats), SUM_NAMES(pairs)};
static sum_fn *const SUMS_OF_THREES[2][4][2][3] = {THREES_NAMES(floats), THREES_NAMES(pairs)};
#else
static dot_fn *const DOTS[1][4][3][4] = {DOT_NAMES(floats)};
static sum_fn *const SUMS[1][4][3][4] = {SUM_NAMES(floats)};
static sum_fn *const SUMS_OF_THREES[1][4][2][3] = {THREES_NAMES(floats)};
#endif
#undef IS_PAIRS_floats
#undef IS_PAIRS_pairs
#undef THREES_OF
#undef THREES
#undef NAMES_OF_THREES
#undef BOTH_NAMES
#undef THREES_NAMES
#undef FOUR
#undef THREE
#undef NAMES
#undef ALL_NAMES
#undef OF_KIND
#undef DOT_NAMES
#undef SUM_NAMES

// log2 of the most pixels, or weights, of a tile, by vectors: registers for sums, weights and a repeated input.
static const int LARGEST[3] = {3, 3, LANES == 16 ? 3 : 2}, LARGEST_OF_THREES = LANES == 16 ? 2 : 1;

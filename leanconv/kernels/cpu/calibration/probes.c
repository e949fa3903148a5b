// Probes of a core for the cost model's calibration: register tiles of multiply-adds, and reading of memory.
//
// Each is compiled for one instruction set, whose widest vectors it uses. No other code calls them: they are a library
// of their own, built when a machine is calibrated.
#include <stdint.h>

#if defined(__AVX512F__)
#define WIDE 64
#elif defined(__AVX__)
#define WIDE 32
#else
#define WIDE 16
#endif
#define NARROW (WIDE > 16 ? WIDE / 2 : 16)  // as `cost_model.matrix_tiles` has it: four numbers at least

typedef float wide __attribute__((vector_size(WIDE)));
typedef float narrow __attribute__((vector_size(NARROW)));

// Compilers split some chains of multiply-adds in two; not those that are asked for by name.
#if defined(__AVX512F__)
#include <immintrin.h>
#define wide_multiply_add(a, b, c) _mm512_fmadd_ps(a, _mm512_set1_ps(b), c)
#define narrow_multiply_add(a, b, c) _mm256_fmadd_ps(a, _mm256_set1_ps(b), c)
#elif defined(__FMA__)
#include <immintrin.h>
#define wide_multiply_add(a, b, c) _mm256_fmadd_ps(a, _mm256_set1_ps(b), c)
#define narrow_multiply_add(a, b, c) _mm_fmadd_ps(a, _mm_set1_ps(b), c)
#else
#define wide_multiply_add(a, b, c) ((a) * (b) + (c))
#define narrow_multiply_add(a, b, c) ((a) * (b) + (c))
#endif

// `repeats` register tiles of ROWS x VECTORS sums over `depth` products; vectors and numbers lie side by side.
#define TILE(NAME, TYPE, ROWS, VECTORS)                                                         \
  void NAME(int64_t repeats, int64_t depth, const float *weights, const float *x, float *out) { \
    for (; repeats; repeats--) {                                                                \
      TYPE sums[ROWS][VECTORS];                                                                 \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                   \
        _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) sums[r][v] = (TYPE){0};      \
      const TYPE *w = (const TYPE *)weights;                                                    \
      for (int64_t k = 0; k < depth; k++, w += VECTORS) {                                       \
        TYPE block[VECTORS];                                                                    \
        _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) block[v] = w[v];             \
        _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                 \
          _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++)                            \
            sums[r][v] = TYPE##_multiply_add(block[v], x[r * 256 + k], sums[r][v]);             \
      }                                                                                         \
      TYPE *to = (TYPE *)out;                                                                   \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                   \
        _Pragma("GCC unroll 16") for (int v = 0; v < VECTORS; v++) to[r * VECTORS + v] = sums[r][v]; \
      __asm__ volatile("" ::: "memory");                                                        \
    }                                                                                           \
  }

// Twelve sums in flight fit 16 registers, and hide the latency of any core with two units.
TILE(lc_wide, wide, 6, 2)
TILE(lc_narrow, narrow, 6, 2)
// More loads than products: of vectors, and of numbers.
TILE(lc_loads, wide, 1, 8)
TILE(lc_spreads, wide, 8, 1)

// One sum through all repeats: each product waits for the one before it.
void lc_chain(int64_t repeats, int64_t depth, const float *weights, const float *x, float *out) {
  wide sum = {0};
  for (; repeats; repeats--) {
    const wide *w = (const wide *)weights;
    for (int64_t k = 0; k < depth; k++) sum = wide_multiply_add(w[k], x[k], sum);
    __asm__ volatile("" ::: "memory");
  }
  *(wide *)out = sum;
}

// Read n numbers (whole vectors) so many times; returns a sum of them, so that nothing is left out.
float lc_read(int64_t repeats, const float *from, int64_t n) {
  float found = 0;
  for (; repeats; repeats--) {
    const wide *x = (const wide *)from;
    wide sums[8] = {{0}};
    for (int64_t left = n * (int64_t)sizeof(float) / WIDE / 8; left; left--, x += 8)
      _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) sums[j] += x[j];
    wide all = sums[0];
    for (int j = 1; j < 8; j++) all += sums[j];
    for (unsigned i = 0; i < WIDE / sizeof(float); i++) found += all[i];
    __asm__ volatile("" ::: "memory");
  }
  return found;
}

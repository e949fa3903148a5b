// Products on AVX512-BF16: register tiles of pixels × two vectors of outputs, two products added by one instruction.
#define RUN lc_tiles_pairs
#include "tiles.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#define BLOCK 12
#include "tiles_product.h"

static void begin(int depth) { (void)depth; }
static void end(void) {}

INLINE void tile(const call_t *c, int i, const uint16_t *weights, int strips, int o, const int pixels) {
    const int vectors = strips;
    __m512 sums[12][2];
#pragma GCC unroll 12
    for (int m = 0; m < pixels; m++)
#pragma GCC unroll 2
        for (int n = 0; n < vectors; n++) sums[m][n] = _mm512_setzero_ps();
    for (int j = 0; j < c->plan->operands; j++) {
        const operand_t *operand = &c->plan->operand[j];
        int64_t step = operand->pixel;
        const uint16_t *a = c->base[j] + i * step;
        for (int k = operand->tiles * c->plan->depth; k > 0; k -= 2, a += 2, weights += 2 * TILE) {
            __m512bh w[2];
#pragma GCC unroll 2
            for (int n = 0; n < vectors; n++) w[n] = (__m512bh)_mm512_loadu_si512(weights + n * c->strip);
#pragma GCC unroll 12
            for (int m = 0; m < pixels; m++) {
                int pair;
                memcpy(&pair, a + m * step, sizeof pair);
                __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
                for (int n = 0; n < vectors; n++) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], both, w[n]);
            }
        }
    }
    float line[12][2 * TILE] __attribute__((aligned(64)));
#pragma GCC unroll 12
    for (int m = 0; m < pixels; m++)
#pragma GCC unroll 2
        for (int n = 0; n < vectors; n++) *(__m512 *)(line[m] + n * TILE) = sums[m][n];
    finish_block(c, i, pixels, vectors, o, line[0]);
}

static void product(const call_t *c, int i, int count, const uint16_t *weights, int strips, int o) {
    static const int sizes[] = {12, 8, 4, 2, 1};
    for (int which = 0; count; which++)
        for (; count >= sizes[which]; count -= sizes[which], i += sizes[which]) {
            if (strips == 1)
                switch (sizes[which]) {
                case 12: tile(c, i, weights, 1, o, 12); break;
                case 8: tile(c, i, weights, 1, o, 8); break;
                case 4: tile(c, i, weights, 1, o, 4); break;
                case 2: tile(c, i, weights, 1, o, 2); break;
                default: tile(c, i, weights, 1, o, 1);
                }
            else
                switch (sizes[which]) {
                case 12: tile(c, i, weights, 2, o, 12); break;
                case 8: tile(c, i, weights, 2, o, 8); break;
                case 4: tile(c, i, weights, 2, o, 4); break;
                case 2: tile(c, i, weights, 2, o, 2); break;
                default: tile(c, i, weights, 2, o, 1);
                }
        }
}

int lc_has_tiles_pairs(void) { return 1; }
#else
int lc_has_tiles_pairs(void) { return 0; }
int RUN(void **args) { (void)args; return -1; }
#endif

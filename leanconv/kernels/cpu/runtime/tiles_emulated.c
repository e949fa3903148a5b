// Products on tiles as AMX defines them, in plain C: the reference of `tiles_amx.c`, and its test on other machines.
//
// TDPBF16PS (Intel's Software Developer's Manual, volume 2): of each pair of numbers the first products are added to one
// sum and the second to another, then both together to the tile. Fused multiply-adds, to the nearest, ties to even;
// subnormal numbers are zero, as they come and as they go.
#include <float.h>
#include <math.h>
#include "tiles.h"

typedef struct { int rows, bytes; uint32_t word[TILE][TILE]; } tile_t;
static __thread tile_t register_[8];

static void configure(int first, int second, int depth) {
    for (int i = 0; i < 8; i++) {
        tile_t *t = &register_[i];
        memset(t, 0, sizeof *t);
        t->rows = i > 5 ? depth / 2 : i == 4 || i < 2 ? first : second;
        t->bytes = i == 4 || i == 5 ? 2 * depth : 4 * TILE;
    }
}
static void release(void) { memset(register_, 0, sizeof register_); }

static void tile_zero(int which) { memset(register_[which].word, 0, sizeof register_[which].word); }
static void tile_load(int which, const void *from, int64_t step) {
    tile_t *t = &register_[which];
    tile_zero(which);
    for (int i = 0; i < t->rows; i++) memcpy(t->word[i], (const char *)from + i * step, t->bytes);
}
static void tile_store(int which, void *to, int64_t step) {
    const tile_t *t = &register_[which];
    for (int i = 0; i < t->rows; i++) memcpy((char *)to + i * step, t->word[i], t->bytes);
}

static float normal(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }
static float number(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return normal(x);
}

static void tile_add(int sums, int pixels, int weights) {
    tile_t *c = &register_[sums];
    const tile_t *a = &register_[pixels], *b = &register_[weights];
    for (int m = 0; m < c->rows; m++)
        for (int n = 0; n < c->bytes / 4; n++) {
            float first = 0, second = 0;
            for (int k = 0; k < a->bytes / 4; k++) {
                uint32_t x = a->word[m][k], y = b->word[k][n];
                first = normal(fmaf(number(x << 16), number(y << 16), first));
                second = normal(fmaf(number(x & 0xffff0000), number(y & 0xffff0000), second));
            }
            float sum = normal(number(c->word[m][n]) + normal(first + second));
            memcpy(&c->word[m][n], &sum, sizeof sum);
        }
}

#define RUN lc_tiles_emulated
#include "tiles_2x2.h"

// Products on emulated tiles: the reference of `tiles_amx.c`, and its test on other machines.
//
// TDPBF16PS (Intel's Software Developer's Manual, volume 2): of each pair of numbers the first products are added to one
// sum and the second to another, then both together to the tile. Fused multiply-adds, to the nearest, ties to even;
// subnormal numbers are zero, as they come and as they go.
#include <float.h>
#include <math.h>
#include "tile_registers_emulated.h"
#include "tiles.h"

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

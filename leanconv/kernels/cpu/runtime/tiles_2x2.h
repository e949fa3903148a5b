// Two tiles of pixels by two of outputs, four sums at once: for an arithmetic that has tile registers.
//
//     tile_zero(C), tile_load(T, from, bytes from row to row), tile_add(C, A, B), tile_store(C, to, bytes)
//     configure(rows of the first tile of pixels, of the second, bytes of their rows, of those of weights and sums)
//
// Registers: sums 0..3, pixels 4 and 5, weights 6 and 7.
#define BLOCK (2 * TILE)
#include "tiles_product.h"

static void begin(int depth) { configure(TILE, TILE, 2 * depth, 4 * TILE); }
static void end(void) { release(); }

INLINE void tiles(const call_t *c, int i, const uint16_t *weights, const int second, const int strips, float *sums) {
    tile_zero(0);
    if (strips > 1) tile_zero(1);
    if (second) tile_zero(2);
    if (second && strips > 1) tile_zero(3);
    int depth = c->plan->depth;
    for (int j = 0; j < c->plan->operands; j++) {
        const operand_t *operand = &c->plan->operand[j];
        int64_t step = operand->pixel;
        const uint16_t *a = c->base[j] + i * step;
        for (int t = operand->tiles; t > 0; t--, a += depth, weights += TILE * depth) {
            tile_load(6, weights, 4 * TILE);
            tile_load(4, a, 2 * step);
            tile_add(0, 4, 6);
            if (strips > 1) {
                tile_load(7, weights + c->strip, 4 * TILE);
                tile_add(1, 4, 7);
            }
            if (second) {
                tile_load(5, a + TILE * step, 2 * step);
                tile_add(2, 5, 6);
                if (strips > 1) tile_add(3, 5, 7);
            }
        }
    }
    tile_store(0, sums, 8 * TILE);
    if (strips > 1) tile_store(1, sums + TILE, 8 * TILE);
    if (second) tile_store(2, sums + 2 * TILE * TILE, 8 * TILE);
    if (second && strips > 1) tile_store(3, sums + 2 * TILE * TILE + TILE, 8 * TILE);
}

static void product(const call_t *c, int i, int count, const uint16_t *weights, int strips, int o) {
    float sums[2 * TILE][2 * TILE] __attribute__((aligned(64)));
    if (count < BLOCK) configure(least(count, TILE), count > TILE ? count - TILE : TILE, 2 * c->plan->depth, 4 * TILE);
    if (count > TILE && strips > 1) tiles(c, i, weights, 1, 2, sums[0]);
    else if (count > TILE) tiles(c, i, weights, 1, 1, sums[0]);
    else if (strips > 1) tiles(c, i, weights, 0, 2, sums[0]);
    else tiles(c, i, weights, 0, 1, sums[0]);
    if (count < BLOCK) configure(TILE, TILE, 2 * c->plan->depth, 4 * TILE);
    finish_block(c, i, count, strips, o, sums[0]);
}

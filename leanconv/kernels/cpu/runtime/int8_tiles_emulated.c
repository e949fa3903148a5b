// Products on 8-bit integers on emulated tiles: the reference of `int8_tiles_amx.c`, and its test on other machines.
//
// TDPBUSD (Intel's Software Developer's Manual, volume 2): four products of unsigned and signed bytes are added to a sum
// of 32 bits, which wraps around.
#include "tile_registers_emulated.h"
#include "int8_store.h"

static void tile_add(int sums, int pixels, int weights) {
    tile_t *c = &register_[sums];
    const tile_t *a = &register_[pixels], *b = &register_[weights];
    for (int m = 0; m < c->rows; m++)
        for (int k = 0; k < a->bytes / 4; k++)
            for (int n = 0; n < c->bytes / 4; n++)
                for (int i = 0; i < 32; i += 8)
                    c->word[m][n] += (uint32_t)((int)(a->word[m][k] >> i & 255) * (int8_t)(b->word[k][n] >> i & 255));
}

#define ROW lc_int8_row_emulated
#include "int8_tiles.h"

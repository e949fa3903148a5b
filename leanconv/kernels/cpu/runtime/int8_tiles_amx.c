// Products on 8-bit integers on AMX's tiles (TDPBUSD): eight times as many products a cycle as AVX-512's VNNI.
#include "tile_registers_amx.h"
#include "int8_store.h"
#ifdef HAS_AMX
#define tile_add(sums, pixels, weights) _tile_dpbusd(sums, pixels, weights)
#define ROW lc_int8_row_amx
#include "int8_tiles.h"

int lc_int8_has_amx(void) { return tiles_allowed(); }
END_AMX
#else
int lc_int8_has_amx(void) { return 0; }
void lc_int8_row_amx(
    const product8_t *p, const block_t *b, const line_t *d, const uint8_t *packed, factors_t m, int64_t count) {
    (void)p, (void)b, (void)d, (void)packed, (void)m, (void)count;
}
#endif

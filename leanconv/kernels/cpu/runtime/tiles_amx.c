// Products on AMX: tiles of 16 × 64 bytes in a unit of their own, sixteen times as many products a cycle as AVX-512.
#include "tile_registers_amx.h"
#include "tiles.h"
#ifdef HAS_AMX
#define tile_add(sums, pixels, weights) _tile_dpbf16ps(sums, pixels, weights)
#define RUN lc_tiles_amx
#include "tiles_2x2.h"

int lc_has_tiles_amx(void) { return tiles_allowed(); }
END_AMX
#else
int lc_has_tiles_amx(void) { return 0; }
int lc_tiles_amx(void **args) { (void)args; return -1; }
#endif

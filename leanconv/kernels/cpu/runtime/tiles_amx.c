// Products on AMX: tiles of 16 × 64 bytes in a unit of their own, sixteen times as many products a cycle as AVX-512.
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define HAS_AMX
#endif
#endif
#ifdef HAS_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
// Whatever this machine has: the compiler emits the instructions, and `lc_has_tiles_amx` says whether they run.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16")
#endif
#include "tiles.h"

// A register's number must be a constant: macros.
#define tile_zero(which) _tile_zero(which)
#define tile_load(which, from, step) _tile_loadd(which, from, step)
#define tile_add(sums, pixels, weights) _tile_dpbf16ps(sums, pixels, weights)
#define tile_store(which, to, step) _tile_stored(which, to, step)

static void configure(int first, int second, int depth) {
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } c
        __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 4; i++) { c.rows[i] = (uint8_t)(i < 2 ? first : second); c.bytes[i] = 4 * TILE; }
    for (int i = 4; i < 6; i++) { c.rows[i] = (uint8_t)(i < 5 ? first : second); c.bytes[i] = (uint16_t)(2 * depth); }
    for (int i = 6; i < 8; i++) { c.rows[i] = (uint8_t)(depth / 2); c.bytes[i] = 4 * TILE; }
    _tile_loadconfig(&c);
}
static void release(void) { _tile_release(); }

#define RUN lc_tiles_amx
#include "tiles_2x2.h"

// Linux lets a process use the tile registers when it asks for them, once for all its threads.
int lc_has_tiles_amx(void) {
    const long ask = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    return !syscall(SYS_arch_prctl, ask, tile_data);
}
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
int lc_has_tiles_amx(void) { return 0; }
int lc_tiles_amx(void **args) { (void)args; return -1; }
#endif

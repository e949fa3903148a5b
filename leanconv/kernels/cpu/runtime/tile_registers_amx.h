// The tile registers of AMX, 16 rows of at most 64 bytes each. The including file adds products to them, and ends with
// `END_AMX`.
//
// Registers: sums 0..3, pixels 4 and 5, weights 6 and 7. A register's number must be a constant: macros.
#pragma once
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>) /* GCC */ || __has_include(<amxintrin.h>) /* Clang */
#define HAS_AMX
#endif
#endif
#ifdef HAS_AMX
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>
// Whatever this machine has: the compiler emits the instructions, and `tiles_allowed` says whether they run.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,amx-int8"))), apply_to = function)
#define END_AMX _Pragma("clang attribute pop")
#else
#pragma GCC target("amx-tile,amx-bf16,amx-int8")
#define END_AMX
#endif

#define tile_zero(which) _tile_zero(which)
#define tile_load(which, from, step) _tile_loadd(which, from, step)
#define tile_store(which, to, step) _tile_stored(which, to, step)

// Rows of both tiles of pixels, their bytes, and those of a row of weights and sums.
static void configure(int first, int second, int bytes, int columns) {
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } c
        __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 4; i++) { c.rows[i] = (uint8_t)(i < 2 ? first : second); c.bytes[i] = (uint16_t)columns; }
    for (int i = 4; i < 6; i++) { c.rows[i] = (uint8_t)(i < 5 ? first : second); c.bytes[i] = (uint16_t)bytes; }
    for (int i = 6; i < 8; i++) { c.rows[i] = (uint8_t)(bytes / 4); c.bytes[i] = (uint16_t)columns; }
    // GCC 12 says that the instruction reads 8 bytes: without this it drops what is stored behind them.
    __asm__ volatile("" : : "r"(&c) : "memory");
    _tile_loadconfig(&c);
}
static void release(void) { _tile_release(); }

// Linux lets a process use the tile registers when it asks for them, once for all its threads.
static int tiles_allowed(void) {
    const long ask = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    return !syscall(SYS_arch_prctl, ask, tile_data);
}
#endif

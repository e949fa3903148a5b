// Tile registers as AMX defines them, in plain C: the reference of `tile_registers_amx.h`, and its test on other machines.
#pragma once
#include <stdint.h>
#include <string.h>

#define TILE_ROWS 16

typedef struct { int rows, bytes; uint32_t word[TILE_ROWS][TILE_ROWS]; } tile_t;
static __thread tile_t register_[8];

static void configure(int first, int second, int bytes, int columns) {
    for (int i = 0; i < 8; i++) {
        tile_t *t = &register_[i];
        memset(t, 0, sizeof *t);
        t->rows = i > 5 ? bytes / 4 : i == 4 || i < 2 ? first : second;
        t->bytes = i == 4 || i == 5 ? bytes : columns;
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

// Products of bfloat16 pixels and packed weights, added in float32: the structures of a call; tiles.py has the same.
//
//     y[i,o] = act(bias[o] + sum over operands j, k of a_j[i,k] * w_j[k,o] + residual[i,o])
//
// A file `tiles_*.c` has an arithmetic and includes `tiles_product.h`, which has the loops around it.
#pragma once
#include "rows.h"

#define TILE 16          // pixels of a tile, and its outputs
#define MAX_OPERANDS 64

// One factor: `tiles * depth` numbers of each pixel. Steps in numbers.
typedef struct {
    int32_t argument;    // index among the kernel's arguments; 0: the panel
    int32_t offset;      // of its first number
    int32_t pixel, line; // from pixel to pixel, and from line to line
    int32_t tiles;       // tiles of `depth` numbers
} operand_t;

// A copy of what a block reads, its maps side by side: pixels of `wide` numbers, zeros around the map and behind the last
// channel. `gathered`: then the taps of each pixel of the result side by side, in so many numbers with zeros at the end.
typedef struct {
    int32_t maps, first;              // how many, and the argument that is the first of them
    int32_t planes;                   // whether they are `x c y`, in place of `c x y` (or `c x`: all pixels in a row)
    int32_t r, s, sh, sw, dh, dw, top, left;
    int32_t columns, wide, gathered;  // columns with their border; 0 where all pixels are in a row
} panel_t;

typedef struct {
    int32_t outputs, depth;           // O, and channels of a tile: even, at most 32
    int32_t columns;                  // pixels of a row of the result; 0: all of them are in a row
    int32_t period;                   // pixels of the operands from row to row; 0: each row is a line of its own
    int32_t bias;                     // the argument that is it: whole vectors, zeros behind the last output
    int32_t residual, blend;          // likewise, 0: none; blend: the first of three factors, see pointwise.py
    int32_t activation, operands;
    panel_t panel;
    operand_t operand[];
} tiles_t;

// As ACTIVATIONS in tiles.py.
enum { NONE, RELU, RELU6, HARDSIGMOID, HARDSWISH };

// Kernels as `frame_t` has them. Arguments: the call, weights, result, then those that the call names.
int lc_tiles_amx(void **args);
int lc_tiles_pairs(void **args);
int lc_tiles_emulated(void **args);
// Whether this process can run it.
int lc_has_tiles_amx(void);
int lc_has_tiles_pairs(void);

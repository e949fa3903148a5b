// Primitives on 8-bit integers (ops/quantized.py): a chain of steps on each block of rows, the maps between them in
// scratch. int8_abi.py has the same structures, and checks their sizes.
#pragma once
#include "runtime.h"

enum { UINT8 = 2 };  // beside FLOAT32: how a number of a map is stored

// A map: in the caller's memory, or what a block needs of one in scratch. All steps in bytes.
typedef struct {
    int32_t pointer;            // index among the call's pointers; -1: in scratch
    int32_t element, h, w;
    int64_t offset, sample, row, pixel, channel;
    int32_t left, columns;      // scratch: columns before the map's first; columns of a row, the border's included
    int32_t split, unused;      // scratch: columns lie by their remainder modulo this
    int32_t step, first, last;  // rows y0·step + first to (y1 - 1)·step + last are those of a block [y0, y1)
    int32_t border;             // whether what lies outside of the map is read: it is filled with `fill`
    int64_t fill;               // a pixel of zero points, among the packed numbers
} place_t;

// Channels of a map that go into another one. Bytes are copied; float32 that goes into uint8 is quantized.
typedef struct {
    int32_t from, channel, count, at;
    int64_t order;              // among the packed numbers: int32 sources of each channel; -1: one after the other
    float inverse; int32_t zero;
} segment_t;

typedef struct { int32_t into, segments; const segment_t *segment; } copy8_t;

// From sums to what is stored; see ops/quantized.py.
enum { CLAMPED, ADDED, BLENDED, GENERAL };
typedef struct {
    int32_t mode;               // GENERAL can do all; the others are clamps without overflow
    int32_t activation, low, high, zero;
    int32_t addend;             // place; -1: none
    int32_t addend_zero, blended, element;
    float addend_scale, inverse;
    int32_t factors;            // 0: multipliers are packed; else so many rows of them are computed for each sample
} finish_t;

// Four bytes of each position that become the bytes of one sum: rows of the map, and bytes within a row.
typedef struct { int32_t row[4], byte[4]; } four_t;
typedef struct { int32_t quad, shift; } tap_t;

// Depthwise taps. A row is a string of bytes that is computed V at a time, or a column of V channels where `columns` > 1.
typedef struct {
    int32_t from, into, stride, top;
    int32_t pair;               // rows of the result that are computed from the same interleaved rows: 1 or 2
    int32_t quads, taps, apart; // apart: those two rows lie so far from each other (the dilation)
    const four_t *quad; const tap_t *tap;
    int32_t columns, phases;    // one of them is 1; numbers are packed for each
    int32_t from_step, into_step, pixel;  // bytes from one vector to the next; of a pixel in the interleaved rows
    int32_t count, reach, strip;  // bytes of a row; by how much taps go beyond; bytes that are computed in all rows at once
    int64_t weights, bias, multipliers;   // among the packed numbers
    finish_t finish;
} stencil8_t;

typedef struct { int32_t from, row, column, channel, quads, grouped; } run_t;
typedef struct {
    int32_t vectors, outputs, at, source;  // vectors of sums of a pixel; channels of the result; of a group's input
    int64_t weights, bias, multipliers;
    int64_t factor;             // first of the block's numbers in a row of factors
} block_t;

// Sums over channels: for each run, channels of pixels of a map; blocks of output channels.
enum { VECTORS, AMX, EMULATED };
typedef struct {
    int32_t into, runs, blocks, row_stride, column_stride, factor_row;
    int32_t arithmetic, depth;  // on tiles: fours of bytes in one; they divide those of every run
    const run_t *run; const block_t *block;
    finish_t finish;
} product8_t;

typedef struct { int32_t from, into, r, s, sh, sw, top, left; } pool8_t;

enum { COPY, STENCIL, PRODUCT, POOL };
typedef struct { int32_t kind, unused; const void *what; } step8_t;

// Factors for each sample, from averages (a gated sum) or from gates (of the channels of a separable convolution).
typedef struct {
    int32_t kind;               // 0: none; 1: of a gated sum; 2: gates
    int32_t width, parts, row;  // channels; vectors of averages; numbers of a row of factors, in the order of sums
    const int32_t *sizes;       // channels of each part
    const float *inverse;       // of each part: float32(1 / scale)
    int32_t first, affine;      // pointer of the averages of a (or of the gates), the parts follow
    int64_t weights;            // int8 C × width
    int64_t bias, scale, b_scale, factor, third;  // int32; float32 of a sum; in steps of the result; affine
    float a_scale; int32_t unused;
    int64_t order, multipliers; // int32: which channel a number of a row belongs to, -1: none; of gates, what they scale
} factors8_t;

typedef struct {
    int32_t samples, rows, block, steps, places, packed;  // packed: pointer of the packed numbers
    const step8_t *step; const place_t *place;
    int64_t scratch;
    factors8_t factors;
    int32_t average, sums, channels, repeat;  // place that is averaged (-1: none), pointer of its averages; rows of it per row
    int32_t zero, unused; double scale;
} int8_t_call;

typedef struct {
    const int8_t_call *call;
    uint8_t *const *pointers;
    const uint8_t *packed;
    uint8_t *scratch;
    const float *factors;       // of the sample
    int64_t n;
    int y0, y1;
} task8_t;

static inline int first_row(const place_t *p, const task8_t *t) { return t->y0 * p->step + p->first; }
static inline int end_row(const place_t *p, const task8_t *t) { return (t->y1 - 1) * p->step + p->last + 1; }
static inline uint8_t *row_at(const place_t *p, const task8_t *t, int y) {
    if (p->pointer >= 0) return t->pointers[p->pointer] + p->offset + t->n * p->sample + y * p->row;
    return t->scratch + p->offset + (y - first_row(p, t)) * p->row;
}
// A column of a scratch map, counted from the left border.
static inline int64_t column_at(const place_t *p, int column) {
    if (p->split == 1) return column * p->pixel;
    return ((int64_t)(column % p->split) * (p->columns / p->split) + column / p->split) * p->pixel;
}

void lc_int8_copy(const copy8_t *c, const task8_t *t);
void lc_int8_border(const place_t *p, const task8_t *t);
void lc_int8_stencil(const stencil8_t *s, const task8_t *t, uint8_t *strips);
void lc_int8_product(const product8_t *p, const task8_t *t);
void lc_int8_pool(const pool8_t *p, const task8_t *t, uint8_t *line);
int lc_int8(const void *call, void **pointers, int threads);
int lc_int8_vector(void);
int lc_int8_has_amx(void);  // whether this process can run AMX
int lc_int8_size(int which);

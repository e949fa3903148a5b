// The structures of a call, and what the files of the runtime take from each other. abi.py has the same, and
// checks their sizes.
#pragma once
#include <stdint.h>
#include <stdlib.h>

// As HalideRuntime.h has them.
typedef struct { int32_t min, extent, stride; uint32_t flags; } dimension_t;
typedef struct {
    uint64_t device; const void *interface; uint8_t *host; uint64_t flags;
    uint32_t type; int32_t dimensions; dimension_t *dim; void *padding;
} buffer_t;

#define MAX_ARGS 48
#define MAX_DIMS 4

// One kernel with its arguments, made once for a shape.
typedef struct {
    int32_t pointer;      // index among the call's pointers
    int32_t dimensions;
    int32_t rows;         // 1: the last dimension is cut to the block of rows; 2: it begins there
    int32_t type;         // halide_type_t, packed
    int64_t sample;       // bytes from one sample to the next
    int64_t offset;       // bytes from the pointer to the first element
    int64_t row;          // bytes from one row to the next, where rows
    dimension_t dim[MAX_DIMS];
} argument_t;

typedef int (*kernel_t)(void **);
typedef struct { kernel_t kernel; int32_t count, unused; argument_t arguments[MAX_ARGS]; } frame_t;

// A map in memory that a block's kernels jump about in: what of it they read first is read before them, line by line, as
// fast as memory gives it.
typedef struct {
    int32_t pointer, unit, step, ahead;       // unit: of the program's rows, which make one of the result's; step: from the last of the map's rows that one of those reads to the next; ahead: the first such
    int32_t rows, pixels;                     // of the map
    int64_t sample, offset, pixel, bytes;     // in bytes: steps, and what of a pixel is read
} fetch_t;

typedef struct {
    int32_t frames, samples, rows, block;     // rows of the output and rows per block
    int32_t least, half;                      // rows that a kernel needs at least: the last block may overlap; whether the averaged map is bfloat16
    int32_t average, channels, columns, sums; // average != 0: pointer `average - 1` is averaged into pointer `sums`
    int32_t apart, unused;                    // its rows, where it is averaged when all blocks are done
    int64_t sample, row;                      // of the averaged map, in numbers
    const frame_t *frame[8];
    const fetch_t *fetch;
    int64_t fetches;
} program_t;

// The gates of a softmax pair; see `lc_gates`.
typedef struct {
    const float *mean_a, *const *means;
    const int32_t *sizes;
    int32_t parts, samples, width;
    const float *weight /* C × width */, *bias, *scale, *shift;
    float *out;
} gates_t;

// A gated sum from its maps, and perhaps the kernel before it that makes the first: one call.
#define MAX_PIECES (MAX_ARGS / 2)
typedef struct { int64_t sample, pixel; int32_t channels, rows, columns, half; } piece_t;
typedef struct {
    const program_t *program, *before;
    const float *weight, *bias, *scale, *shift;  // of the gates
    int32_t samples, width, parts;               // pieces behind the first map
    int32_t gates, averages, first;              // indices among the pointers: of the gates, of the averages (a null: it is computed), of what `before` takes
    piece_t piece[MAX_PIECES];                   // the maps, which are the first pointers
} blend_t;

// A map that goes from planes to pixels, or back; see `lc_copy`. Steps in numbers, of 4 or 2 bytes.
typedef struct { int32_t bytes, samples; int64_t rows, columns, in_sample, in_row, out_sample, out_row; } copy_t;

// What a plan runs between two steps of PyTorch, one after the other: of the three the one that is there.
typedef struct { const program_t *program; void **pointers; const gates_t *gates; const copy_t *copy; } call_t;

void *lc_malloc(void *context, size_t size);
void lc_free(void *context, void *p);
int lc_average(const void *map, int half, int64_t sample, int64_t row, int64_t pixel, int samples, int rows, int columns, int channels, float *means, int threads);
int lc_run(const program_t *p, void **pointers, int threads);
int lc_gates(const gates_t *g);
int lc_copy(const copy_t *p, void **pointers, int threads);

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

// How a number of a map is stored.
enum { FLOAT32 = 0, BFLOAT16 = 1 };

// One kernel with its arguments for one shape.
typedef struct {
    int32_t pointer;      // index among the call's pointers
    int32_t dimensions;
    int32_t rows;         // 1: the last dimension is cut to the block of rows; 2: it begins there; 3: as 1, in scratch
    int32_t type;         // halide_type_t, packed
    int64_t sample;       // bytes from one sample to the next
    int64_t offset;       // bytes from the pointer to the first element
    int64_t row;          // bytes from one row to the next, where rows
    dimension_t dim[MAX_DIMS];
} argument_t;

typedef int (*kernel_t)(void **);
typedef struct { kernel_t kernel; int32_t count, unused; argument_t arguments[MAX_ARGS]; } frame_t;

// Software prefetch of a map in memory: a block's kernels jump about in it, so the rows that they read first are read
// before them, line by line, as fast as memory gives them.
typedef struct {
    int32_t pointer;
    int32_t unit;         // rows of the loop that are one row of the result
    int32_t step;         // rows of the map from the last one that a row of the result reads to the next row's
    int32_t ahead;        // the last row of the map that the first row of the result reads
    int32_t rows, pixels; // of the map
    int64_t sample, offset, pixel, bytes;  // in bytes: steps, and what of a pixel is read
} prefetch_t;

// Kernels that run one after the other on each block of rows of each sample.
typedef struct {
    int32_t frames, samples, rows, block;      // rows of the output and rows per block
    int32_t least;                             // rows that a kernel needs at least: the last block may overlap
    int32_t element;                           // of the averaged map
    int32_t average, channels, columns, sums;  // average != 0: pointer `average - 1` is averaged into pointer `sums`
    int32_t apart, unit;                       // rows of a map that is averaged when all blocks are done, 0: with them;
                                               // rows that are summed together: a block has whole units
    int64_t sample;                            // of the averaged map, which is dense, in numbers
    const frame_t *frame[8];
    const prefetch_t *fetch;
    int64_t fetches;
    int64_t scratch;  // bytes that the kernels of a block hand to each other
} block_loop_t;

// The gates of a softmax pair; see `lc_gates`.
typedef struct {
    const float *mean_a, *const *means;
    const int32_t *sizes;
    int32_t parts, samples, width;
    const float *weight /* C × width */, *bias, *scale, *shift;
    float *out;
} gates_t;

// A map that goes from planes to pixels, or back; see `lc_copy`. Steps in numbers, of 4 or 2 bytes.
typedef struct { int32_t bytes, samples; int64_t rows, columns, in_sample, in_row, out_sample, out_row; } copy_t;

// One launch of a batch: of the four the one that is there.
typedef struct {
    const block_loop_t *loop; void **pointers; const gates_t *gates; const copy_t *copy;
    int (*function)(const void *call, void **pointers, int threads);
    const void *call;
} launch_t;

void *lc_malloc(void *context, size_t size);
void lc_free(void *context, void *p);
int lc_run(const block_loop_t *p, void **pointers, int threads);
int lc_gates(const gates_t *g);
int lc_copy(const copy_t *p, void **pointers, int threads);

// Maps from planes to pixels (channels_last) and back: out[x][r] = in[r][x], in squares of 16 by 16 numbers, each read
// and written in whole vectors. With the vectors of GCC and Clang, of no machine in particular.
#include <string.h>
#include "runtime.h"

#define SIDE 16
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vector){__VA_ARGS__})
#endif

// Where a square begins: the last one ends with the side and lies over the one before.
static inline int64_t start(int64_t at, int64_t length) { return at + SIDE > length ? length - SIDE : at; }

// `band_*` for one kind of number: at least SIDE rows and columns, steps in numbers. Rows i and i + 8 of a square are
// interleaved, four times: that transposes it.
#define TRANSPOSE(number)                                                                                              \
    static void band_##number(                                                                                         \
        const number *in, int64_t in_row, number *out, int64_t out_row, int64_t rows, int64_t columns) {               \
        typedef number vector __attribute__((vector_size(SIDE * sizeof(number))));                                     \
        vector lines[SIDE], mixed[SIDE];                                                                               \
        for (int64_t r = 0; r < rows; r += SIDE)                                                                       \
            for (int64_t c = 0; c < columns; c += SIDE) {                                                              \
                int64_t row = start(r, rows), column = start(c, columns);                                              \
                for (int i = 0; i < SIDE; i++) memcpy(&lines[i], in + (row + i) * in_row + column, sizeof(vector));    \
                for (int time = 0; time < 4; time++) {                                                                 \
                    for (int i = 0; i < SIDE / 2; i++) {                                                               \
                        vector a = lines[i], b = lines[i + SIDE / 2];                                                  \
                        mixed[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);          \
                        mixed[2 * i + 1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);\
                    }                                                                                                  \
                    memcpy(lines, mixed, sizeof lines);                                                                \
                }                                                                                                      \
                for (int i = 0; i < SIDE; i++) memcpy(out + (column + i) * out_row + row, &lines[i], sizeof(vector));  \
            }                                                                                                          \
    }
TRANSPOSE(uint32_t)
TRANSPOSE(uint16_t)

// Likewise number by number, where rows or columns are few.
#define NARROW(number)                                                                                                 \
    static void narrow_##number(                                                                                       \
        const number *in, int64_t in_row, number *out, int64_t out_row, int64_t rows, int64_t columns) {               \
        for (int64_t r = 0; r < rows; r++)                                                                             \
            for (int64_t c = 0; c < columns; c++) out[c * out_row + r] = in[r * in_row + c];                           \
    }
NARROW(uint32_t)
NARROW(uint16_t)

// Square by square, where both sides have one: a band of the longer side, its last square where the side ends.
static void copy_band(const copy_t *p, void **pointers, int64_t n, int64_t band) {
    int wide = p->rows >= SIDE && p->columns >= SIDE, down = p->rows > p->columns;
    int64_t at = wide ? start(band * SIDE, down ? p->rows : p->columns) : 0, r = down ? at : 0, c = down ? 0 : at;
    int64_t rows = wide && down ? SIDE : p->rows, columns = wide && !down ? SIDE : p->columns;
    int64_t from = n * p->in_sample + r * p->in_row + c, to = n * p->out_sample + c * p->out_row + r;
    if (p->bytes == 4) {
        const uint32_t *in = (const uint32_t *)pointers[0] + from;
        uint32_t *out = (uint32_t *)pointers[1] + to;
        (wide ? band_uint32_t : narrow_uint32_t)(in, p->in_row, out, p->out_row, rows, columns);
    } else {
        const uint16_t *in = (const uint16_t *)pointers[0] + from;
        uint16_t *out = (uint16_t *)pointers[1] + to;
        (wide ? band_uint16_t : narrow_uint16_t)(in, p->in_row, out, p->out_row, rows, columns);
    }
}

// `samples` of `rows` lines of `columns` numbers of 4 or 2 bytes, from the first pointer to the second. In bands of the
// longer side, each by one thread: a band reads or writes whole cache lines.
int lc_copy(const copy_t *p, void **pointers, int threads) {
    int64_t length = p->rows > p->columns ? p->rows : p->columns;
    int64_t bands = p->rows >= SIDE && p->columns >= SIDE ? (length + SIDE - 1) / SIDE : 1, tasks = p->samples * bands;
    if (threads > 1 && tasks > 16) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t t = 0; t < tasks; t++) copy_band(p, pointers, t / bands, t % bands);
    } else  // no parallel region: a team of one thread costs half a microsecond
        for (int64_t t = 0; t < tasks; t++) copy_band(p, pointers, t / bands, t % bands);
    return 0;
}

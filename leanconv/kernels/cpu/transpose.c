// Maps from planes to pixels (channels_last) and back: out[x][r] = in[r][x], in squares of 16 by 16 numbers, each read
// and written in whole vectors. With the vectors of GCC and Clang, of no machine in particular.
#include <stdint.h>
#include <string.h>

#define SIDE 16
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vector){__VA_ARGS__})
#endif

// Where a square begins: the last one ends with the side and lies over the one before.
static inline int64_t start(int64_t at, int64_t length) { return at + SIDE > length ? length - SIDE : at; }

// For one kind of number `band_*`, rows and columns at least SIDE, steps in numbers. Of a square the rows i and i + 8
// are dealt like cards, four times: that transposes it.
#define TRANSPOSE(number)                                                                                              \
    static void band_##number(                                                                                         \
        const number *in, int64_t in_row, number *out, int64_t out_row, int64_t rows, int64_t columns) {               \
        typedef number vector __attribute__((vector_size(SIDE * sizeof(number))));                                     \
        vector lines[SIDE], dealt[SIDE];                                                                               \
        for (int64_t r = 0; r < rows; r += SIDE)                                                                       \
            for (int64_t c = 0; c < columns; c += SIDE) {                                                              \
                int64_t row = start(r, rows), column = start(c, columns);                                              \
                for (int i = 0; i < SIDE; i++) memcpy(&lines[i], in + (row + i) * in_row + column, sizeof(vector));    \
                for (int time = 0; time < 4; time++) {                                                                 \
                    for (int i = 0; i < SIDE / 2; i++) {                                                               \
                        vector a = lines[i], b = lines[i + SIDE / 2];                                                  \
                        dealt[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);          \
                        dealt[2 * i + 1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);\
                    }                                                                                                  \
                    memcpy(lines, dealt, sizeof lines);                                                                \
                }                                                                                                      \
                for (int i = 0; i < SIDE; i++) memcpy(out + (column + i) * out_row + row, &lines[i], sizeof(vector));  \
            }                                                                                                          \
    }
TRANSPOSE(uint32_t)
TRANSPOSE(uint16_t)

// `samples` of `rows` lines of `columns` numbers of 4 or 2 bytes, both at least SIDE; steps in numbers. In bands of the
// longer side, each by one thread: what a band writes, or what it reads, are whole lines of the cache.
void lc_transpose(const void *in, void *out, int bytes, int samples, int64_t in_sample, int64_t out_sample, int64_t rows, int64_t columns, int64_t in_row, int64_t out_row, int threads) {
    int down = rows > columns;
    int64_t length = down ? rows : columns, bands = (length + SIDE - 1) / SIDE;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < samples * bands; t++) {
        int64_t n = t / bands, at = start(t % bands * SIDE, length), r = down ? at : 0, c = down ? 0 : at;
        int64_t height = down ? SIDE : rows, width = down ? columns : SIDE;
        int64_t from = n * in_sample + r * in_row + c, to = n * out_sample + c * out_row + r;
        if (bytes == 4) band_uint32_t((const uint32_t *)in + from, in_row, (uint32_t *)out + to, out_row, height, width);
        else band_uint16_t((const uint16_t *)in + from, in_row, (uint16_t *)out + to, out_row, height, width);
    }
}

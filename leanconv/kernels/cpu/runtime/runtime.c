// What every kernel runs in: the loop over blocks of rows in torch's own threads, and the average of a
// block while it is still in the cache. Plain C with OpenMP.
#include <string.h>
#include <time.h>
#include "runtime.h"

static int run_frame(
    const frame_t *f, uint8_t *const *pointers, uint8_t *scratch, int64_t n, int y0, int y1) {
    buffer_t buffers[MAX_ARGS];
    dimension_t dims[MAX_ARGS][MAX_DIMS];
    void *args[MAX_ARGS];
    for (int i = 0; i < f->count; i++) {
        const argument_t *a = &f->arguments[i];
        buffer_t *b = &buffers[i];
        memcpy(dims[i], a->dim, sizeof a->dim);
        uint8_t *host = (a->rows == 3 ? scratch : pointers[a->pointer] + n * a->sample) + a->offset;
        if (a->rows) {
            dimension_t *last = &dims[i][a->dimensions - 1];
            if (a->rows != 2) { last->min = y0; last->extent = y1 - y0; }
            if (a->rows != 3) host += y0 * a->row;
        }
        *b = (buffer_t){0, NULL, host, 0, (uint32_t)a->type, a->dimensions, dims[i], NULL};
        args[i] = b;
    }
    return f->kernel(args);
}

// A number of a map as float; a bfloat16 is the upper half of one.
static inline __attribute__((always_inline)) float number(const void *map, int64_t at, int element) {
    if (element == FLOAT32) return ((const float *)map)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)map)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static const void *number_at(const void *map, int element, int64_t at) {
    return (const uint8_t *)map + at * (element == FLOAT32 ? 4 : 2);
}

// Sum over rows y0..y1 of a dense map with channels innermost: in float over 64 pixels, in double between those.
static inline __attribute__((always_inline)) void sum_rows_of(
    const void *map, int element, const block_loop_t *p, int y0, int y1, double *sums, float *line) {
    int64_t row = p->row, pixel = p->channels, rows = y1 - y0, count = p->columns;
    int channels = p->channels;
    if (row == p->columns * pixel) { count *= rows; rows = rows > 0; }
    for (int64_t y = 0; y < rows; y++) {
        int64_t at = (y0 + y) * row;
        for (int64_t x = 0; x < count;) {
            int64_t end = x + 64 < count ? x + 64 : count;
            memset(line, 0, sizeof(float) * channels);
            for (; x + 4 <= end; x += 4, at += 4 * pixel)
                for (int c = 0; c < channels; c++)
                    line[c] += (number(map, at + c, element) + number(map, at + c + pixel, element))
                        + (number(map, at + c + 2 * pixel, element) + number(map, at + c + 3 * pixel, element));
            for (; x < end; x++, at += pixel)
                for (int c = 0; c < channels; c++) line[c] += number(map, at + c, element);
            for (int c = 0; c < channels; c++) sums[c] += line[c];
        }
    }
}

// Rows y0..y1 of sample n of the averaged map, added to `sums`; one loop is compiled for each element type.
static int sum_rows(const block_loop_t *p, void **pointers, int64_t n, int y0, int y1, double *sums) {
    float *line = lc_malloc(NULL, sizeof(float) * p->channels);
    if (!line) return 1;
    const void *map = number_at(pointers[p->average - 1], p->element, n * p->sample);
    if (p->element == BFLOAT16) sum_rows_of(map, BFLOAT16, p, y0, y1, sums, line);
    else sum_rows_of(map, FLOAT32, p, y0, y1, sums, line);
    lc_free(NULL, line);
    return 0;
}

// Averages of every sample and channel, from the sums of `blocks` blocks of `rows` rows in all.
static void divide(const block_loop_t *p, const double *sums, int blocks, int rows, float *means) {
    double scale = 1.0 / ((double)rows * p->columns);
    for (int n = 0; n < p->samples; n++)
        for (int c = 0; c < p->channels; c++) {
            double sum = 0;
            for (int b = 0; b < blocks; b++) sum += sums[((int64_t)n * blocks + b) * p->channels + c];
            means[(int64_t)n * p->channels + c] = (float)(sum * scale);
        }
}

static int64_t last_row(const prefetch_t *f, int64_t y) {
    int64_t end = y ? ((y - 1) / f->unit) * f->step + f->ahead + 1 : 0;
    return end < 0 ? 0 : end < f->rows ? end : f->rows;
}

// In so many places at once: what a core fetches ahead by itself ends with the page, and starts anew on the next one.
#define STREAMS 4
static void fetch_block(const prefetch_t *f, void *const *pointers, int64_t n, int y0, int y1) {
    int64_t from = last_row(f, y0) * f->pixels, pixels = last_row(f, y1) * f->pixels - from, bytes = f->bytes;
    const uint8_t *map = (const uint8_t *)pointers[f->pointer] + f->offset + n * f->sample + from * f->pixel;
    if (pixels <= 0) return;
    if (2 * bytes >= f->pixel) { bytes += (pixels - 1) * f->pixel; pixels = 1; }
    int64_t part = bytes / (64 * STREAMS) * 64;
    for (; pixels > 0; pixels--, map += f->pixel) {
        for (int64_t i = 0; i < part; i += 64)
            for (int s = 0; s < STREAMS; s++) (void)*(const volatile uint8_t *)(map + i + s * part);
        for (int64_t i = STREAMS * part; i < bytes; i += 64) (void)*(const volatile uint8_t *)(map + i);
    }
}

// One block of rows of one sample; the averaged channels' sums go to `sums`.
static int run_block(const block_loop_t *p, void **pointers, int64_t t, int blocks, double *sums) {
    int64_t n = t / blocks;
    int y0 = (int)(t % blocks) * p->block, y1 = y0 + p->block < p->rows ? y0 + p->block : p->rows, failed = 0;
    int start = y1 - y0 < p->least ? y1 - p->least : y0;
    for (int f = 0; f < p->fetches; f++) fetch_block(&p->fetch[f], pointers, n, y0, y1);
    uint8_t *scratch = p->scratch ? lc_malloc(NULL, p->scratch) : NULL;
    if (p->scratch && !scratch) return -1;
    for (int f = 0; f < p->frames; f++)
        failed |= run_frame(p->frame[f], (uint8_t *const *)pointers, scratch, n, start, y1);
    lc_free(NULL, scratch);
    return sums ? failed | sum_rows(p, pointers, n, y0, y1, sums + t * p->channels) : failed;
}

// The average of a map whose rows are not the loop's: after all blocks.
static int average_apart(const block_loop_t *p, void **pointers, int threads) {
    int rows = p->apart, blocks = rows < 16 ? 1 : 16, tasks = p->samples * blocks, failed = 0;
    double *sums = calloc((size_t)tasks * p->channels, sizeof(double));
    if (!sums) return -1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && tasks > 1) reduction(| : failed)
    for (int t = 0; t < tasks; t++) {
        int64_t b = t % blocks;
        int y0 = (int)(rows * b / blocks), y1 = (int)(rows * (b + 1) / blocks);
        failed |= sum_rows(p, pointers, t / blocks, y0, y1, sums + (int64_t)t * p->channels);
    }
    divide(p, sums, blocks, rows, pointers[p->sums]);
    free(sums);
    return failed;
}

int lc_run(const block_loop_t *p, void **pointers, int threads) {
    int blocks = (p->rows + p->block - 1) / p->block, failed = 0;
    int64_t tasks = (int64_t)blocks * p->samples;
    double *sums = NULL;
    if (p->average && !p->apart) {
        sums = lc_malloc(NULL, sizeof(double) * tasks * p->channels);
        if (!sums) return -1;
        memset(sums, 0, sizeof(double) * tasks * p->channels);
    }
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(p, pointers, t, blocks, sums);
    } else  // no parallel region: a team of one thread costs half a microsecond
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(p, pointers, t, blocks, sums);
    if (sums) {
        divide(p, sums, blocks, p->rows, pointers[p->sums]);
        lc_free(NULL, sums);
    }
    if (p->average && p->apart) failed |= average_apart(p, pointers, threads);
    return failed;
}

static int run_launch(const launch_t *l, int threads) {
    if (l->gates) return lc_gates(l->gates);
    return l->copy ? lc_copy(l->copy, l->pointers, threads) : lc_run(l->loop, l->pointers, threads);
}

// `seconds`: where it is given, the time of each launch is put there; of one thread the time that it computed.
int lc_batch(const launch_t *launches, int count, int threads, double *seconds) {
    struct timespec before, after;
    clockid_t clock = threads > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    for (int i = 0; i < count; i++) {
        if (seconds) clock_gettime(clock, &before);
        int failed = run_launch(&launches[i], threads);
        if (failed) return failed;
        if (!seconds) continue;
        clock_gettime(clock, &after);
        seconds[i] = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    }
    return 0;
}

int lc_sizes(int which) {
    const int sizes[] = {
        sizeof(argument_t), sizeof(frame_t), sizeof(block_loop_t), sizeof(gates_t),
        sizeof(launch_t), sizeof(prefetch_t), sizeof(copy_t),
    };
    return sizes[which];
}

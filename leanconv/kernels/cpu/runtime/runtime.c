// What every kernel runs in: the loop over blocks of rows in torch's own threads, and the average of a
// block while it is still in the cache. Plain C with OpenMP.
#include <string.h>
#include <time.h>
#include "runtime.h"

static int run_frame(const frame_t *f, uint8_t *const *pointers, int64_t n, int y0, int y1) {
    buffer_t buffers[MAX_ARGS];
    dimension_t dims[MAX_ARGS][MAX_DIMS];
    void *args[MAX_ARGS];
    for (int i = 0; i < f->count; i++) {
        const argument_t *a = &f->arguments[i];
        buffer_t *b = &buffers[i];
        memcpy(dims[i], a->dim, sizeof a->dim);
        uint8_t *host = pointers[a->pointer] + a->offset + n * a->sample;
        if (a->rows) {
            dimension_t *last = &dims[i][a->dimensions - 1];
            if (a->rows == 1) { last->min = y0; last->extent = y1 - y0; }
            host += y0 * a->row;
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

// How a map is averaged: its pixels in units of a size that the map alone decides, added in float, then the units' sums in
// order, in double. So blocks, threads and their number change no bit. Few pixels to a unit of a small map: most units
// then lie inside one block.
typedef struct { int64_t pixels, unit, units; double *total; float *sums; } averaging_t;  // channels; samples × units × channels

static int averaging_of(const block_loop_t *p, averaging_t *a) {
    a->pixels = (int64_t)(p->apart ? p->apart : p->rows) * p->columns;
    a->unit = 8;
    while (a->unit < 64 && 64 * a->unit < a->pixels) a->unit *= 2;
    a->units = (a->pixels + a->unit - 1) / a->unit;
    a->total = lc_malloc(NULL, sizeof(double) * p->channels + sizeof(float) * p->samples * a->units * p->channels);
    a->sums = (float *)(a->total + p->channels);
    return a->total == NULL;
}

// Sum of the pixels x..end of a dense map with channels innermost.
static inline __attribute__((always_inline)) void sum_pixels(
    const void *map, int element, int channels, int64_t x, int64_t end, float *sums) {
    int64_t pixel = channels, at = x * pixel;
    memset(sums, 0, sizeof(float) * channels);
    for (; x + 4 <= end; x += 4, at += 4 * pixel)
        for (int c = 0; c < channels; c++)
            sums[c] += (number(map, at + c, element) + number(map, at + c + pixel, element))
                + (number(map, at + c + 2 * pixel, element) + number(map, at + c + 3 * pixel, element));
    for (; x < end; x++, at += pixel)
        for (int c = 0; c < channels; c++) sums[c] += number(map, at + c, element);
}

// The sums of units from..to of sample n; one loop is compiled for each element type.
static void sum_units(const block_loop_t *p, const averaging_t *a, void **pointers, int64_t n, int64_t from, int64_t to) {
    const void *map = number_at(pointers[p->average - 1], p->element, n * p->sample);
    for (int64_t u = from; u < to; u++) {
        int64_t x = u * a->unit, end = x + a->unit < a->pixels ? x + a->unit : a->pixels;
        float *sums = a->sums + (n * a->units + u) * p->channels;
        if (p->element == BFLOAT16) sum_pixels(map, BFLOAT16, p->channels, x, end, sums);
        else sum_pixels(map, FLOAT32, p->channels, x, end, sums);
    }
}

// The units of rows y0..y1. Of a unit that began in an earlier block only if that one is done (`ordered`).
static void sum_block(const block_loop_t *p, const averaging_t *a, void **pointers, int64_t n, int y0, int y1, int ordered) {
    int64_t from = (int64_t)y0 * p->columns, to = (int64_t)y1 * p->columns;
    sum_units(p, a, pointers, n, (from + (ordered ? 0 : a->unit - 1)) / a->unit, y1 < p->rows ? to / a->unit : a->units);
}

// The units that lie in several blocks, when all blocks are done.
static void sum_shared(const block_loop_t *p, const averaging_t *a, void **pointers) {
    for (int n = 0; n < p->samples; n++) {
        int64_t done = -1;
        for (int64_t y = p->block; y < p->rows; y += p->block) {
            int64_t unit = y * p->columns / a->unit;
            if (y * p->columns % a->unit && unit > done) sum_units(p, a, pointers, n, unit, (done = unit) + 1);
        }
    }
}

// Averages of every sample and channel, from the sums of its units.
static void divide(const block_loop_t *p, const averaging_t *a, float *means) {
    const float *unit = a->sums;
    double *total = a->total, pixels = (double)a->pixels;
    for (int n = 0; n < p->samples; n++) {
        memset(total, 0, sizeof(double) * p->channels);
        for (int64_t u = 0; u < a->units; u++, unit += p->channels)
            for (int c = 0; c < p->channels; c++) total[c] += unit[c];
        for (int c = 0; c < p->channels; c++) means[(int64_t)n * p->channels + c] = (float)(total[c] / pixels);
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

// One block of rows of one sample. `a`: sum its units too; `ordered`: the earlier blocks are done.
static int run_block(const block_loop_t *p, void **pointers, int64_t t, int blocks, const averaging_t *a, int ordered) {
    int64_t n = t / blocks;
    int y0 = (int)(t % blocks) * p->block, y1 = y0 + p->block < p->rows ? y0 + p->block : p->rows, failed = 0;
    int start = y1 - y0 < p->least ? y1 - p->least : y0;
    for (int f = 0; f < p->fetches; f++) fetch_block(&p->fetch[f], pointers, n, y0, y1);
    for (int f = 0; f < p->frames; f++) failed |= run_frame(p->frame[f], (uint8_t *const *)pointers, n, start, y1);
    if (a) sum_block(p, a, pointers, n, y0, y1, ordered);
    return failed;
}

// The units of a map whose rows are not the loop's: after all blocks.
static void sum_apart(const block_loop_t *p, const averaging_t *a, void **pointers, int threads) {
    int parts = threads > 1 ? 4 * threads : 1;
    int64_t tasks = (int64_t)p->samples * parts;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (tasks > 1)
    for (int64_t t = 0; t < tasks; t++) {
        int64_t part = t % parts;
        sum_units(p, a, pointers, t / parts, a->units * part / parts, a->units * (part + 1) / parts);
    }
}

int lc_run(const block_loop_t *p, void **pointers, int threads) {
    int blocks = (p->rows + p->block - 1) / p->block, failed = 0;
    int64_t tasks = (int64_t)blocks * p->samples;
    averaging_t averaging, *with = NULL;
    if (p->average) {
        if (averaging_of(p, &averaging)) return -1;
        if (!p->apart) with = &averaging;
    }
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(p, pointers, t, blocks, with, 0);
        if (with) sum_shared(p, with, pointers);
    } else  // no parallel region: a team of one thread costs half a microsecond
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(p, pointers, t, blocks, with, 1);
    if (p->average) {
        if (p->apart) sum_apart(p, &averaging, pointers, threads);
        divide(p, &averaging, pointers[p->sums]);
        lc_free(NULL, averaging.total);
    }
    return failed;
}

static int run_launch(const launch_t *l, int threads) {
    if (l->function) return l->function(l->call, l->pointers, threads);
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

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

// An average does not depend on blocks or threads: the rows of a unit are summed together, units are those of the map,
// and their sums are added in order.
static int units_of(const block_loop_t *p) {
    int rows = p->apart ? p->apart : p->rows;
    return (rows + p->unit - 1) / p->unit;
}

// Sum over some pixels of a dense map with channels innermost, in float.
static inline __attribute__((always_inline)) void sum_pixels(
    const void *map, int element, int channels, int64_t from, int64_t count, float *sums) {
    int64_t pixel = channels, at = from * pixel, x = 0;
    memset(sums, 0, sizeof(float) * channels);
    for (; x + 4 <= count; x += 4, at += 4 * pixel)
        for (int c = 0; c < channels; c++)
            sums[c] += (number(map, at + c, element) + number(map, at + c + pixel, element))
                + (number(map, at + c + 2 * pixel, element) + number(map, at + c + 3 * pixel, element));
    for (; x < count; x++, at += pixel)
        for (int c = 0; c < channels; c++) sums[c] += number(map, at + c, element);
}

// The same, in double between every 64 pixels. `wide`: room for a number of each channel in double, and one in float.
static inline __attribute__((always_inline)) void sum_unit(
    const void *map, int element, int channels, int64_t from, int64_t count, float *sums, double *wide) {
    if (count <= 64) {
        sum_pixels(map, element, channels, from, count, sums);
        return;
    }
    float *line = (float *)(wide + channels);
    memset(wide, 0, sizeof(double) * channels);
    for (; count > 0; from += 64, count -= 64) {
        sum_pixels(map, element, channels, from, count < 64 ? count : 64, line);
        for (int c = 0; c < channels; c++) wide[c] += line[c];
    }
    for (int c = 0; c < channels; c++) sums[c] = (float)wide[c];
}

// The units of rows y0..y1 of sample n of the averaged map; one loop is compiled for each element type.
static int sum_units(const block_loop_t *p, void **pointers, int64_t n, int y0, int y1, float *sums) {
    double *wide = lc_malloc(NULL, (sizeof(double) + sizeof(float)) * p->channels);
    if (!wide) return 1;
    const void *map = number_at(pointers[p->average - 1], p->element, n * p->sample);
    for (int y = y0; y < y1; y += p->unit) {
        int64_t from = (int64_t)y * p->columns, count = (int64_t)(y + p->unit < y1 ? p->unit : y1 - y) * p->columns;
        float *unit = sums + (n * units_of(p) + y / p->unit) * p->channels;
        if (p->element == BFLOAT16) sum_unit(map, BFLOAT16, p->channels, from, count, unit, wide);
        else sum_unit(map, FLOAT32, p->channels, from, count, unit, wide);
    }
    lc_free(NULL, wide);
    return 0;
}

// Averages of every sample and channel, from the sums of the units. `wide`: room for a number of each channel.
static void divide(const block_loop_t *p, const float *unit, float *means, double *wide) {
    int units = units_of(p), channels = p->channels;
    double pixels = (double)(p->apart ? p->apart : p->rows) * p->columns;
    for (int n = 0; n < p->samples; n++, means += channels) {
        memset(wide, 0, sizeof(double) * channels);
        for (int u = 0; u < units; u++, unit += channels)
            for (int c = 0; c < channels; c++) wide[c] += unit[c];
        for (int c = 0; c < channels; c++) means[c] = (float)(wide[c] / pixels);
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

// One block of rows of one sample; the sums of its units go to `sums`.
static int run_block(const block_loop_t *p, void **pointers, int64_t t, int blocks, float *sums) {
    int64_t n = t / blocks;
    int y0 = (int)(t % blocks) * p->block, y1 = y0 + p->block < p->rows ? y0 + p->block : p->rows, failed = 0;
    int start = y1 - y0 < p->least ? y1 - p->least : y0;
    for (int f = 0; f < p->fetches; f++) fetch_block(&p->fetch[f], pointers, n, y0, y1);
    uint8_t *scratch = p->scratch ? lc_malloc(NULL, p->scratch) : NULL;
    if (p->scratch && !scratch) return -1;
    for (int f = 0; f < p->frames; f++)
        failed |= run_frame(p->frame[f], (uint8_t *const *)pointers, scratch, n, start, y1);
    lc_free(NULL, scratch);
    return sums ? failed | sum_units(p, pointers, n, y0, y1, sums) : failed;
}

// The units of a map whose rows are not the loop's: after all blocks.
static int sum_apart(const block_loop_t *p, void **pointers, int threads, float *sums) {
    int units = units_of(p), failed = 0;
    int64_t tasks = (int64_t)p->samples * units;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && tasks > 1) reduction(| : failed)
    for (int64_t t = 0; t < tasks; t++) {
        int y0 = (int)(t % units) * p->unit, y1 = y0 + p->unit < p->apart ? y0 + p->unit : p->apart;
        failed |= sum_units(p, pointers, t / units, y0, y1, sums);
    }
    return failed;
}

int lc_run(const block_loop_t *p, void **pointers, int threads) {
    int blocks = (p->rows + p->block - 1) / p->block, failed = 0;
    int64_t tasks = (int64_t)blocks * p->samples;
    float *sums = NULL, *with = NULL;
    double *wide = NULL;
    if (p->average) {
        wide = lc_malloc(NULL, (sizeof(double) + sizeof(float) * p->samples * units_of(p)) * p->channels);
        if (!wide) return -1;
        sums = (float *)(wide + p->channels);
        if (!p->apart) with = sums;
    }
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(p, pointers, t, blocks, with);
    } else  // no parallel region: a team of one thread costs half a microsecond
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(p, pointers, t, blocks, with);
    if (sums) {
        if (p->apart) failed |= sum_apart(p, pointers, threads, sums);
        divide(p, sums, pointers[p->sums], wide);
        lc_free(NULL, wide);
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

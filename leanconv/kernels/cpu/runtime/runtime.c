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

// A number of a map: float, or bfloat16, which is its upper half.
static inline __attribute__((always_inline)) float number(const void *map, int64_t at, int half) {
    if (!half) return ((const float *)map)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)map)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Sum over rows y0..y1 of a map with channels innermost: in float over 64 pixels, in double between those.
static inline __attribute__((always_inline)) void sum_rows_of(const void *map, int half, int64_t row, int columns, int channels, int64_t pixel, int y0, int y1, double *sums, float *line) {
    int64_t rows = y1 - y0, count = columns;
    if (row == columns * pixel) { count *= rows; rows = rows > 0; }
    for (int64_t y = 0; y < rows; y++) {
        int64_t p = (y0 + y) * row;
        for (int64_t x = 0; x < count;) {
            int64_t end = x + 64 < count ? x + 64 : count;
            memset(line, 0, sizeof(float) * channels);
            for (; x + 4 <= end; x += 4, p += 4 * pixel)
                for (int c = 0; c < channels; c++)
                    line[c] += (number(map, p + c, half) + number(map, p + c + pixel, half)) + (number(map, p + c + 2 * pixel, half) + number(map, p + c + 3 * pixel, half));
            for (; x < end; x++, p += pixel)
                for (int c = 0; c < channels; c++) line[c] += number(map, p + c, half);
            for (int c = 0; c < channels; c++) sums[c] += line[c];
        }
    }
}

static void sum_rows(const void *map, int half, int64_t row, int columns, int channels, int64_t pixel, int y0, int y1, double *sums, float *line) {
    if (half) sum_rows_of(map, 1, row, columns, channels, pixel, y0, y1, sums, line);  // a loop for each kind of number
    else sum_rows_of(map, 0, row, columns, channels, pixel, y0, y1, sums, line);
}

static int64_t last_row(const fetch_t *f, int64_t y) {
    int64_t end = y ? ((y - 1) / f->unit) * f->step + f->ahead + 1 : 0;
    return end < 0 ? 0 : end < f->rows ? end : f->rows;
}

// In so many places at once: what a core fetches ahead by itself ends with the page, and starts anew on the next one.
#define STREAMS 4
static void fetch_block(const fetch_t *f, void *const *pointers, int64_t n, int y0, int y1) {
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

static const void *sample_of(const void *map, int half, int64_t at) { return (const uint8_t *)map + at * (half ? 2 : 4); }

// One block of rows of one sample; the averaged channels' sums go to `sums`.
static int run_task(const program_t *p, void **pointers, int64_t t, int blocks, double *sums) {
    int64_t n = t / blocks;
    int y0 = (int)(t % blocks) * p->block, y1 = y0 + p->block < p->rows ? y0 + p->block : p->rows, failed = 0;
    int start = y1 - y0 < p->least ? y1 - p->least : y0;
    for (int f = 0; f < p->fetches; f++) fetch_block(&p->fetch[f], pointers, n, y0, y1);
    for (int f = 0; f < p->frames; f++) failed |= run_frame(p->frame[f], (uint8_t *const *)pointers, n, start, y1);
    if (sums) {
        float *line = lc_malloc(NULL, sizeof(float) * p->channels);
        if (!line) return 1;
        const void *map = sample_of(pointers[p->average - 1], p->half, n * p->sample);
        sum_rows(map, p->half, p->row, p->columns, p->channels, p->channels, y0, y1, sums + t * p->channels, line);
        lc_free(NULL, line);
    }
    return failed;
}

// The average over the pixels of `channels` channels of a map whose pixels lie `pixel` numbers apart.
int lc_average(const void *map, int half, int64_t sample, int64_t row, int64_t pixel, int samples, int rows, int columns, int channels, float *means, int threads) {
    int blocks = rows < 16 ? 1 : 16, failed = 0;
    double *sums = calloc((size_t)samples * blocks * channels, sizeof(double));
    if (!sums) return -1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && samples * blocks > 1) reduction(| : failed)
    for (int t = 0; t < samples * blocks; t++) {
        int n = t / blocks, b = t % blocks;
        float *line = lc_malloc(NULL, sizeof(float) * channels);
        if (!line) { failed = 1; continue; }
        sum_rows(sample_of(map, half, n * sample), half, row, columns, channels, pixel, (int)((int64_t)rows * b / blocks), (int)((int64_t)rows * (b + 1) / blocks), sums + (int64_t)t * channels, line);
        lc_free(NULL, line);
    }
    double scale = 1.0 / ((double)rows * columns);
    for (int n = 0; n < samples; n++)
        for (int c = 0; c < channels; c++) {
            double sum = 0;
            for (int b = 0; b < blocks; b++) sum += sums[((int64_t)n * blocks + b) * channels + c];
            means[(int64_t)n * channels + c] = (float)(sum * scale);
        }
    free(sums);
    return failed;
}

int lc_run(const program_t *p, void **pointers, int threads) {
    int blocks = (p->rows + p->block - 1) / p->block, failed = 0;
    int64_t tasks = (int64_t)blocks * p->samples;
    int channels = p->average && !p->apart ? p->channels : 0;
    double *sums = NULL;
    if (channels) {
        sums = lc_malloc(NULL, sizeof(double) * tasks * channels);
        if (!sums) return -1;
        memset(sums, 0, sizeof(double) * tasks * channels);
    }
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_task(p, pointers, t, blocks, sums);
    } else  // a team of one thread is made and ended too: half a microsecond
        for (int64_t t = 0; t < tasks; t++) failed |= run_task(p, pointers, t, blocks, sums);
    if (channels) {
        float *means = pointers[p->sums];
        double scale = 1.0 / ((double)p->rows * p->columns);
        for (int n = 0; n < p->samples; n++)
            for (int c = 0; c < channels; c++) {
                double sum = 0;
                for (int b = 0; b < blocks; b++) sum += sums[((int64_t)n * blocks + b) * channels + c];
                means[(int64_t)n * channels + c] = (float)(sum * scale);
            }
        lc_free(NULL, sums);
    }
    if (p->average && p->apart)
        failed |= lc_average(pointers[p->average - 1], p->half, p->sample, p->row, p->channels, p->samples, p->apart, p->columns, p->channels, pointers[p->sums], threads);
    return failed;
}

static int run_call(const call_t *c, int threads) {
    if (c->gates) return lc_gates(c->gates);
    return c->copy ? lc_copy(c->copy, c->pointers, threads) : lc_run(c->program, c->pointers, threads);
}

// `seconds`: where it is given, the time of each call is put there; of one thread the time that it computed.
int lc_calls(const call_t *calls, int count, int threads, double *seconds) {
    struct timespec before, after;
    clockid_t clock = threads > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    for (int i = 0; i < count; i++) {
        if (seconds) clock_gettime(clock, &before);
        int failed = run_call(&calls[i], threads);
        if (failed) return failed;
        if (!seconds) continue;
        clock_gettime(clock, &after);
        seconds[i] = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    }
    return 0;
}

int lc_sizes(int which) {
    const int sizes[] = {sizeof(argument_t), sizeof(frame_t), sizeof(program_t), sizeof(gates_t), sizeof(call_t), sizeof(blend_t), sizeof(fetch_t), sizeof(copy_t)};
    return sizes[which];
}

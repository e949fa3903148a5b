// What every kernel of this folder stands on: scratch memory, the loop over blocks of rows in torch's own threads, the
// average of a block while it is still in the cache, and the gates of a softmax pair. Plain C with OpenMP.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <time.h>
#include <pthread.h>

// As HalideRuntime.h has them.
typedef struct { int32_t min, extent, stride; uint32_t flags; } dimension_t;
typedef struct {
    uint64_t device; const void *interface; uint8_t *host; uint64_t flags;
    uint32_t type; int32_t dimensions; dimension_t *dim; void *padding;
} buffer_t;

#define MAX_ARGS 48
#define MAX_DIMS 4
#define SLOTS 32

// ---- scratch: a thread keeps what its kernels gave back, so that no call maps fresh pages ----
typedef struct { void *raw; size_t size; int used; } slot_t;
typedef struct { slot_t slots[SLOTS]; } arena_t;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread arena_t *arena;

static void drop(void *p) {
    arena_t *a = p;
    for (int i = 0; i < SLOTS; i++) free(a->slots[i].raw);
    free(a);
}
static void make_key(void) { pthread_key_create(&key, drop); }

void *lc_malloc(void *context, size_t size) {
    (void)context;
    size = (size + 4095 + 256) & ~(size_t)4095;  // vectors may read past the end
    if (!arena) {
        pthread_once(&once, make_key);
        if (!(arena = calloc(1, sizeof(arena_t)))) return NULL;
        pthread_setspecific(key, arena);
    }
    int best = -1, empty = -1;
    for (int i = 0; i < SLOTS; i++) {
        slot_t *s = &arena->slots[i];
        if (s->used) continue;
        if (!s->raw) { if (empty < 0) empty = i; }
        else if (s->size >= size && (best < 0 || s->size < arena->slots[best].size)) best = i;
        else if (s->size < size && empty < 0) empty = i;  // too small: give it up for a larger one
    }
    if (best >= 0 && arena->slots[best].size <= 4 * size) { arena->slots[best].used = 1; return arena->slots[best].raw; }
    if (best >= 0 && empty < 0) { arena->slots[best].used = 1; return arena->slots[best].raw; }
    void *raw = NULL;
    if (posix_memalign(&raw, 4096, size)) return NULL;
    if (empty < 0) return raw;  // every slot is in use: lc_free gives this one back to the system
    slot_t *s = &arena->slots[empty];
    free(s->raw);
    s->raw = raw; s->size = size; s->used = 1;
    return raw;
}

void lc_free(void *context, void *p) {
    (void)context;
    if (!p) return;
    if (arena) for (int i = 0; i < SLOTS; i++) if (arena->slots[i].raw == p) { arena->slots[i].used = 0; return; }
    free(p);
}

// ---- frames: one kernel with its arguments, made once for a shape; program.py has the same structures, and checks their sizes ----
typedef struct {
    int32_t pointer;      // index among the call's pointers
    int32_t dimensions;
    int32_t rows;         // 1: dimension `MAX_DIMS - 1` is cut to the block of rows
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
            last->min = y0; last->extent = y1 - y0;
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

static void fetch_block(const fetch_t *f, void *const *pointers, int64_t n, int y0, int y1) {
    int64_t from = last_row(f, y0) * f->pixels, pixels = last_row(f, y1) * f->pixels - from, bytes = f->bytes;
    const uint8_t *map = (const uint8_t *)pointers[f->pointer] + f->offset + n * f->sample + from * f->pixel;
    if (pixels <= 0) return;
    if (2 * bytes >= f->pixel) { bytes += (pixels - 1) * f->pixel; pixels = 1; }
    for (; pixels > 0; pixels--, map += f->pixel)
        for (int64_t i = 0; i < bytes; i += 64) (void)*(const volatile uint8_t *)(map + i);
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

typedef struct {
    const float *mean_a, *const *means;
    const int32_t *sizes;
    int32_t parts, samples, width;
    const float *weight /* C × width */, *bias, *scale, *shift;
    float *out;
} gates_t;

// exp, within two units in the last place; a loop over it becomes vectors. NaN stays NaN; below -87 it is taken there, above 88.4 it is infinite.
static inline __attribute__((always_inline)) float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : x;
    float turns = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
    float rest = (x - turns * 0.693359375f) + turns * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    uint32_t bits = turns == turns ? (uint32_t)((int32_t)turns + 127) << 23 : 0;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

// Gates of a softmax pair from the two averages, and the affine behind it: per sample three rows of `width` numbers,
// y = a·first + (W·x)·second + third. The averages of x come in `parts` pieces that stand for their concatenation.
int lc_gates(const gates_t *g) {
    int width = g->width;
    for (int n = 0; n < g->samples; n++) {
        float *first = g->out + (int64_t)n * 3 * width, *second = first + width, *third = second + width;
        if (g->bias) memcpy(third, g->bias, sizeof(float) * width); else memset(third, 0, sizeof(float) * width);
        const float *w = g->weight;
        for (int p = 0; p < g->parts; p++) {
            const float *m = g->means[p] + (int64_t)n * g->sizes[p];
            int c = 0;
            for (; c + 4 <= g->sizes[p]; c += 4, m += 4, w += 4 * (int64_t)width)
                for (int o = 0; o < width; o++)
                    third[o] += (m[0] * w[o] + m[1] * w[o + width]) + (m[2] * w[o + 2 * width] + m[3] * w[o + 3 * width]);
            for (; c < g->sizes[p]; c++, m++, w += width)
                for (int o = 0; o < width; o++) third[o] += m[0] * w[o];
        }
        for (int o = 0; o < width; o++) {
            float gate = 1.0f / (1.0f + exp_of(third[o] - g->mean_a[(int64_t)n * width + o])), s = g->scale ? g->scale[o] : 1.0f;
            first[o] = gate * s;
            second[o] = (1.0f - gate) * s;
            third[o] = (g->bias ? g->bias[o] * second[o] : 0.0f) + (g->shift ? g->shift[o] : 0.0f);
        }
    }
    return 0;
}

// ---- a gated sum from its maps, and perhaps the kernel before it that makes the first: one call ----
#define MAX_PIECES (MAX_ARGS / 2)
typedef struct { int64_t sample, pixel; int32_t channels, rows, columns, half; } piece_t;
typedef struct {
    const program_t *program, *before;
    const float *weight, *bias, *scale, *shift;  // of the gates
    int32_t samples, width, parts;               // pieces behind the first map
    int32_t gates, averages, first;              // indices among the pointers: of the gates, of the averages (a null: it is computed), of what `before` takes
    piece_t piece[MAX_PIECES];                   // the maps, which are the first pointers
} blend_t;

int lc_blend(const blend_t *b, void **pointers, int threads) {
    int maps = b->parts + 1, numbers = 3 * b->width;
    for (int i = 0; i < maps; i++) numbers += b->piece[i].channels;
    float *room = lc_malloc(NULL, sizeof(float) * numbers * b->samples);
    if (!room) return -1;
    float *next = room + (int64_t)3 * b->width * b->samples, *means[MAX_PIECES];
    int32_t sizes[MAX_PIECES];
    int failed = 0;
    pointers[b->gates] = room;
    for (int i = 0; i < maps && !failed; i++) {
        const piece_t *p = &b->piece[i];
        means[i] = pointers[b->averages + i];
        sizes[i] = p->channels;
        if (means[i]) continue;
        means[i] = next;
        next += (int64_t)p->channels * b->samples;
        if (!i && b->before) {
            pointers[b->first + b->before->sums] = means[i];
            failed = lc_run(b->before, pointers + b->first, threads);
        } else
            failed = lc_average(pointers[i], p->half, p->sample, p->columns * p->pixel, p->pixel, b->samples, p->rows, p->columns, p->channels, means[i], threads);
    }
    gates_t gates = {means[0], (const float *const *)means + 1, sizes + 1, b->parts, b->samples, b->width, b->weight, b->bias, b->scale, b->shift, room};
    if (!failed) failed = lc_gates(&gates);
    if (!failed) failed = lc_run(b->program, pointers, threads);
    lc_free(NULL, room);
    return failed;
}

// ---- what a plan runs between two steps of PyTorch: programs and gates, one after the other ----
typedef struct { const program_t *program; void **pointers; const gates_t *gates; } call_t;

// `seconds`: where it is given, the time of each call is put there; of one thread the time that it computed.
int lc_calls(const call_t *calls, int count, int threads, double *seconds) {
    struct timespec before, after;
    clockid_t clock = threads > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    for (int i = 0; i < count; i++) {
        if (seconds) clock_gettime(clock, &before);
        int failed = calls[i].gates ? lc_gates(calls[i].gates) : lc_run(calls[i].program, calls[i].pointers, threads);
        if (failed) return failed;
        if (!seconds) continue;
        clock_gettime(clock, &after);
        seconds[i] = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    }
    return 0;
}

int lc_sizes(int which) {
    const int sizes[] = {sizeof(argument_t), sizeof(frame_t), sizeof(program_t), sizeof(gates_t), sizeof(call_t), sizeof(blend_t), sizeof(fetch_t)};
    return sizes[which];
}

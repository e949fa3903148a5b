// Depthwise convolutions for training: result, gradient of the data, gradient of weights and bias. Any taps, stride,
// dilation and padding; maps of float32 or bfloat16 with channels innermost; sums in float32.
//
// A task has one sample (or a range of rows) and a block of channels. It copies the rows that it reads into a ring in
// the cache: as float32, with zeros for columns outside the map, each pixel whole vectors. The loops over taps then
// have no borders, no tails and no types. With the vectors of GCC and Clang, of no machine in particular.
#include "taps.h"

// The rows of a map that a task reads: columns first..first+columns-1, of which those outside the map are zero.
typedef struct {
    const map_t *map;
    int rows, width;             // of the map
    int slots, first, columns, wide, c, c0;
    int64_t line;                // floats of a slot
    float *data;
    int *row;                    // the row that each slot holds, of sample n
    int64_t n;
} ring_t;

// Whole cache lines; may be more than an int counts.
static size_t ring_bytes(const ring_t *k) {
    return (sizeof(float) * k->line * k->slots + sizeof(int) * k->slots + 63) / 64 * 64;
}

static void ring_start(ring_t *k, void *memory) {
    k->data = memory;
    k->row = (int *)(k->data + k->line * k->slots);
    k->n = -1;
    int from = least(most(-k->first, 0), k->columns), to = most(from, least(k->columns, k->width - k->first));
    for (int i = 0; i < k->slots; i++) {
        memset(k->data + i * k->line, 0, sizeof(float) * from * k->wide);
        memset(k->data + i * k->line + (int64_t)to * k->wide, 0, sizeof(float) * (k->columns - to) * k->wide);
    }
}

static void ring_sample(ring_t *k, int64_t n) {
    if (k->n != n) for (int i = 0; i < k->slots; i++) k->row[i] = -1;
    k->n = n;
}

// Where in the ring a row of the map begins; it is read if it is not there yet.
static int64_t ring_row(ring_t *k, int row) {
    int slot = row % k->slots;
    if (k->row[slot] != row) {
        int from = most(-k->first, 0), to = least(k->columns, k->width - k->first);
        const map_t *m = k->map;
        int64_t at = k->n * m->sample + row * m->row + (from + k->first) * m->pixel + k->c0;
        if (to > from) read_pixels(k->data + slot * k->line + (int64_t)from * k->wide, k->wide, m, at, m->pixel, to - from, k->c);
        k->row[slot] = row;
    }
    return slot * k->line;
}

// Results first, first + out_step, ... of a row: all have the same taps, in_step columns apart.
typedef struct { int first, count, taps, *s, *offset; } phase_t;

typedef struct {
    const depthwise_t *d;
    const map_t *from, *to;
    int backward, in_rows, in_columns, out_rows, out_columns;
    int slots, first, columns, in_step, out_step, phases, row_blocks, blocks, channels;  // channels: whole vectors
    phase_t *phase;
    float *weight, *bias;        // taps × channels; channels
} plan_t;

// The row of the source that tap r reads for a row of the result, -1 for none.
static int source_row(const plan_t *k, int row, int r) {
    const depthwise_t *d = k->d;
    int at = k->backward ? row + d->top - r * d->dh : row * d->sh + r * d->dh - d->top;
    if (k->backward) {
        if (at % d->sh) return -1;
        at /= d->sh;
    }
    return at >= 0 && at < k->in_rows ? at : -1;
}

static void plan_columns(plan_t *k, int *memory) {
    const depthwise_t *d = k->d;
    for (int i = 0; i < k->phases; i++) {
        phase_t *f = &k->phase[i];
        *f = (phase_t){i, (k->out_columns - i + k->phases - 1) / k->phases, 0, memory, memory + d->s};
        memory += 2 * d->s;
        for (int s = 0; s < d->s; s++) {
            int at = k->backward ? i + d->left - s * d->dw : s * d->dw - d->left;
            if (k->backward && at % d->sw) continue;
            f->s[f->taps] = s;
            f->offset[f->taps++] = (k->backward ? at / d->sw : at) - k->first;
        }
    }
}

static void pack(const plan_t *k) {
    const depthwise_t *d = k->d;
    int taps = d->r * d->s;
    memset(k->weight, 0, sizeof(float) * (taps + 1) * k->channels);
    for (int c = 0; c < d->channels; c++)
        for (int t = 0; t < taps; t++) k->weight[(int64_t)t * k->channels + c] = d->weight[(int64_t)c * taps + t];
    if (d->bias) memcpy(k->bias, d->bias, sizeof(float) * d->channels);
}

// A row of results of one block of channels: straight into the map where it takes whole vectors, else through `line`.
static void run_row(const plan_t *k, ring_t *ring, tap_t *taps, float *line, int row) {
    const depthwise_t *d = k->d;
    const map_t *to = k->to;
    int64_t at = ring->n * to->sample + row * to->row + ring->c0;
    int straight = to->element == FLOAT32 && ring->c == ring->wide;
    for (int f = 0; f < k->phases; f++) {
        const phase_t *phase = &k->phase[f];
        int count = 0;
        for (int r = 0; r < d->r; r++) {
            int from = source_row(k, row, r);
            if (from < 0 || !phase->taps) continue;
            int64_t x = ring_row(ring, from);
            for (int s = 0; s < phase->taps; s++)
                taps[count++] = (tap_t){x + (int64_t)phase->offset[s] * ring->wide, ((int64_t)r * d->s + phase->s[s]) * k->channels};
        }
        int64_t start = at + phase->first * to->pixel, next = k->out_step * to->pixel;
        float *out = straight ? (float *)to->data + start : line;
        int64_t step = (int64_t)k->in_step * ring->wide, out_step = straight ? next : ring->wide;
        for (int v = 0; v < ring->wide && phase->count; v += 2 * LANES)
            run_tiles(ring->data + v, k->weight + ring->c0 + v, taps, count, step, k->bias + ring->c0 + v, out + v,
                      out_step, phase->count, v + LANES < ring->wide ? 2 : 1);
        if (!straight) write_pixels(line, ring->wide, to, start, next, phase->count, ring->c);
    }
}

static ring_t ring_of(const map_t *map, int rows, int width, int slots, int first, int columns, const depthwise_t *d, int block) {
    int c0 = block * d->block, c = least(d->block, d->channels - c0), wide = up(c, LANES);
    return (ring_t){map, rows, width, slots, first, columns, wide, c, c0, (int64_t)columns * wide, NULL, NULL, -1};
}

static int run_task(const plan_t *k, int64_t task) {
    const depthwise_t *d = k->d;
    int block = (int)(task % k->blocks), part = (int)(task / k->blocks % k->row_blocks);
    ring_t ring = ring_of(k->from, k->in_rows, k->in_columns, k->slots, k->first, k->columns, d, block);
    size_t bytes = ring_bytes(&ring), taps = sizeof(tap_t) * d->r * d->s;
    char *memory = lc_malloc(NULL, bytes + taps + sizeof(float) * ring.wide * k->phase[0].count);
    if (!memory) return -1;
    ring_start(&ring, memory);
    ring_sample(&ring, task / k->blocks / k->row_blocks);
    int end = (int)((int64_t)k->out_rows * (part + 1) / k->row_blocks);
    for (int row = (int)((int64_t)k->out_rows * part / k->row_blocks); row < end; row++)
        run_row(k, &ring, (tap_t *)(memory + bytes), (float *)(memory + bytes + taps), row);
    lc_free(NULL, memory);
    return 0;
}

// The result in y from x; `backward`: the gradient of x from that of y. Any number of threads gives the same bits.
int lc_depthwise(const depthwise_t *d, int backward, int threads) {
    plan_t k = {.d = d, .from = backward ? &d->y : &d->x, .to = backward ? &d->x : &d->y, .backward = backward};
    k.in_rows = backward ? d->p : d->h, k.in_columns = backward ? d->q : d->w;
    k.out_rows = backward ? d->h : d->p, k.out_columns = backward ? d->w : d->q;
    int high = d->dh * (d->r - 1), wide = d->dw * (d->s - 1);
    k.slots = most(1, least(backward ? high / d->sh + 1 : high + 1, k.in_rows));
    k.first = backward ? floor_div(d->left - wide, d->sw) : -d->left;
    k.columns = (backward ? floor_div(d->w - 1 + d->left, d->sw) : (d->q - 1) * d->sw + wide - d->left) - k.first + 1;
    k.in_step = backward ? 1 : d->sw, k.out_step = k.phases = backward ? d->sw : 1;
    k.blocks = (d->channels + d->block - 1) / d->block, k.channels = up(d->channels, LANES);
    int64_t tasks = (int64_t)d->samples * k.blocks;
    if (!tasks) return 0;
    k.row_blocks = tasks >= 4 * threads || threads < 2 ? 1 : most(1, least((int)(4 * threads / tasks), k.out_rows / (2 * k.slots)));
    tasks *= k.row_blocks;
    size_t floats = sizeof(float) * (d->r * d->s + 1) * k.channels, phases = sizeof(phase_t) * k.phases;
    char *memory = lc_malloc(NULL, floats + phases + sizeof(int) * 2 * d->s * k.phases);
    if (!memory) return -1;
    k.weight = (float *)memory, k.bias = k.weight + d->r * d->s * k.channels, k.phase = (phase_t *)(memory + floats);
    pack(&k);
    plan_columns(&k, (int *)(memory + floats + phases));
    int failed = 0;
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_task(&k, t);
    } else
        for (int64_t t = 0; t < tasks; t++) failed |= run_task(&k, t);
    lc_free(NULL, memory);
    return failed;
}

// Sums of so many pixels at the least stay in float32; those are added up in float64.
#define EXACT_AFTER 128

// The sums of one range of rows and block of channels, in double: taps × channels, then the bias's.
static int sum_task(const depthwise_t *d, double *sums, int64_t task, int blocks, int channels) {
    int taps = d->r * d->s, wide_columns = (d->q - 1) * d->sw + d->dw * (d->s - 1) + 1;
    int slots = most(1, least(d->dh * (d->r - 1) + 1, d->h));
    ring_t ring = ring_of(&d->x, d->h, d->w, slots, -d->left, wide_columns, d, (int)(task % blocks));
    int64_t group = task / blocks, rows = (int64_t)d->samples * d->p, end = rows * (group + 1) / d->groups;
    int wide = ring.wide, straight = d->y.element == FLOAT32 && ring.c == wide, pending = 0;
    size_t bytes = ring_bytes(&ring), lists = sizeof(tap_t) * taps;
    char *memory = lc_malloc(NULL, bytes + lists + sizeof(float) * wide * (taps + 1 + d->q));
    if (!memory) return -1;
    tap_t *list = (tap_t *)(memory + bytes);
    float *kept = (float *)(memory + bytes + lists), *line = kept + (taps + 1) * wide;
    memset(kept, 0, sizeof(float) * wide * (taps + 1));
    sums += group * (taps + 1) * channels + ring.c0;
    ring_start(&ring, memory);
    for (int64_t at = rows * group / d->groups; at < end; at++) {
        int64_t n = at / d->p, y = n * d->y.sample + at % d->p * d->y.row + ring.c0;
        int count = 0;
        ring_sample(&ring, n);
        for (int r = 0; r < d->r; r++) {
            int row = (int)(at % d->p) * d->sh + r * d->dh - d->top;
            if (row < 0 || row >= d->h) continue;
            int64_t x = ring_row(&ring, row);
            for (int s = 0; s < d->s; s++)
                list[count++] = (tap_t){x + (int64_t)s * d->dw * wide, (int64_t)(r * d->s + s) * wide};
        }
        if (!straight) read_pixels(line, wide, &d->y, y, d->y.pixel, d->q, ring.c);
        const float *g = straight ? (const float *)d->y.data + y : line;
        int64_t g_step = straight ? d->y.pixel : wide, step = (int64_t)d->sw * wide;
        for (int v = 0; v < wide; v += 2 * LANES) {
            int vectors = v + LANES < wide ? 2 : 1, parts = d->weight_sum ? (count + TAPS(vectors) - 1) / TAPS(vectors) : 0;
            for (int part = 0; part < parts; part++) {
                int from = count * part / parts, to = count * (part + 1) / parts;
                SUMS[vectors - 1][to - from](ring.data + v, list + from, step, g + v, g_step, d->q, kept + v);
            }
        }
        for (int v = 0; v < wide; v += LANES) {
            if (!d->bias_sum) continue;
            vec total = *(vec *)(kept + taps * wide + v);
            for (int q = 0; q < d->q; q++) total += *(const vec *)(g + q * g_step + v);
            *(vec *)(kept + taps * wide + v) = total;
        }
        if ((pending += d->q) < EXACT_AFTER && at + 1 < end) continue;
        for (int t = 0; t <= taps; t++)
            for (int c = 0; c < wide; c++) sums[(int64_t)t * channels + c] += kept[t * wide + c];
        memset(kept, 0, sizeof(float) * wide * (taps + 1));
        pending = 0;
    }
    lc_free(NULL, memory);
    return 0;
}

// The gradients of weights and bias from x and the gradient of y. Any number of threads gives the same bits: each
// group of rows has its own sums, and they are added in order.
int lc_depthwise_weight(const depthwise_t *d, int threads) {
    int taps = d->r * d->s, blocks = (d->channels + d->block - 1) / d->block, channels = up(d->channels, LANES);
    size_t bytes = sizeof(double) * d->groups * (taps + 1) * channels;
    int64_t tasks = (int64_t)d->groups * blocks;
    double *sums = lc_malloc(NULL, bytes);
    if (!sums) return -1;
    memset(sums, 0, bytes);
    int failed = 0;
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= sum_task(d, sums, t, blocks, channels);
    } else
        for (int64_t t = 0; t < tasks; t++) failed |= sum_task(d, sums, t, blocks, channels);
    for (int c = 0; c < d->channels; c++)
        for (int t = 0; t <= taps; t++) {
            double sum = 0;
            for (int g = 0; g < d->groups; g++) sum += sums[((int64_t)g * (taps + 1) + t) * channels + c];
            if (t < taps) { if (d->weight_sum) d->weight_sum[(int64_t)c * taps + t] = (float)sum; }
            else if (d->bias_sum) d->bias_sum[c] = (float)sum;
        }
    lc_free(NULL, sums);
    return failed;
}

int lc_training_size(int which) {
    const int sizes[] = {
        sizeof(depthwise_t), sizeof(gated_sum_t), sizeof(norm_gate_t), sizeof(pointwise_t), sizeof(norm_act_t),
        sizeof(branch_t), sizeof(hetconv_t)};
    return sizes[which];
}

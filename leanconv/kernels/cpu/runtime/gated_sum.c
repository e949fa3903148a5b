// The softmax-pair blend for training, and its gradient. A task has one sample, or some of its channels: it sums over
// the pixels and then passes over them again, as far as possible while they are in the cache. A channel is summed in
// the same order by any number of threads.
#include <math.h>
#include "rows.h"

typedef struct {
    const gated_sum_t *p;
    int64_t n;
    int c0, c, wide;
    float *lines, *gate, *slope;  // three rows of pixels; a channel's numbers, whole vectors
    double *sums;
} task_t;

INLINE int64_t place(const task_t *t, const map_t *m, int row) { return t->n * m->sample + row * m->row + t->c0; }

// sums[c] += over a row of pixels of (a - b)·g, or of a - b where g is NULL: in float over 256 pixels, four sums of each.
static void sum_row(const task_t *t, const float *a, int64_t a_step, const float *b, int64_t b_step, const float *g,
                    int64_t g_step, int count) {
    for (int v = 0; v < t->wide; v += LANES)
        for (int from = 0; from < count; from += 256) {
            vec sum[4] = {{0}};
            int64_t q = from, to = least(from + 256, count);
            for (; q + 4 <= to; q += 4)
                _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
                    vec d = *(const vec *)(a + (q + j) * a_step + v) - *(const vec *)(b + (q + j) * b_step + v);
                    if (g) d *= *(const vec *)(g + (q + j) * g_step + v);
                    sum[j] += d;
                }
            for (; q < to; q++) {
                vec d = *(const vec *)(a + q * a_step + v) - *(const vec *)(b + q * b_step + v);
                if (g) d *= *(const vec *)(g + q * g_step + v);
                sum[0] += d;
            }
            vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            for (int i = 0; i < LANES; i++) t->sums[v + i] += all[i];
        }
}

static void sum_rows(const task_t *t, int backward) {
    const gated_sum_t *p = t->p;
    int64_t line = (int64_t)p->columns * t->wide, a_step, b_step, g_step = 0;
    memset(t->sums, 0, sizeof(double) * t->wide);
    for (int row = 0; row < p->rows; row++) {
        const float *a = row_of(&p->a, place(t, &p->a, row), p->columns, t->c, t->wide, t->lines, &a_step);
        const float *b = row_of(&p->b, place(t, &p->b, row), p->columns, t->c, t->wide, t->lines + line, &b_step), *g = NULL;
        if (backward) g = row_of(&p->y, place(t, &p->y, row), p->columns, t->c, t->wide, t->lines + 2 * line, &g_step);
        sum_row(t, a, a_step, b, b_step, g, g_step, p->columns);
    }
}

static void blend(const task_t *t) {
    const gated_sum_t *p = t->p;
    int64_t line = (int64_t)p->columns * t->wide, a_step, b_step, y_step;
    float *gates = p->gate + t->n * p->channels + t->c0;
    sum_rows(t, 0);
    for (int c = 0; c < t->c; c++) {
        double mean = t->sums[c] / ((double)p->rows * p->columns);
        t->gate[c] = gates[c] = (float)(1 / (1 + exp(-mean)));
    }
    for (int row = 0; row < p->rows; row++) {
        const float *a = row_of(&p->a, place(t, &p->a, row), p->columns, t->c, t->wide, t->lines, &a_step);
        const float *b = row_of(&p->b, place(t, &p->b, row), p->columns, t->c, t->wide, t->lines + line, &b_step);
        float *y = row_for(&p->y, place(t, &p->y, row), t->c, t->wide, t->lines + 2 * line, &y_step), *out = y;
        for (int q = 0; q < p->columns; q++, a += a_step, b += b_step, out += y_step)
            for (int v = 0; v < t->wide; v += LANES) {
                vec g = *(vec *)(t->gate + v);
                *(vec *)(out + v) = g * *(const vec *)(a + v) + (1.0f - g) * *(const vec *)(b + v);
            }
        row_done(&p->y, place(t, &p->y, row), p->columns, t->c, t->wide, y);
    }
}

// The gate's own gradient is one number of each channel, which every pixel of both maps gets.
static void gradients(const task_t *t) {
    const gated_sum_t *p = t->p;
    int64_t line = (int64_t)p->columns * t->wide, a_step, b_step, g_step;
    sum_rows(t, 1);
    for (int c = 0; c < t->c; c++) {
        double g = t->gate[c] = p->gate[t->n * p->channels + t->c0 + c];
        t->slope[c] = (float)(t->sums[c] * g * (1 - g) / ((double)p->rows * p->columns));
    }
    for (int row = 0; row < p->rows; row++) {
        const float *g = row_of(&p->y, place(t, &p->y, row), p->columns, t->c, t->wide, t->lines, &g_step);
        float *a = row_for(&p->a_grad, place(t, &p->a_grad, row), t->c, t->wide, t->lines + line, &a_step), *to_a = a;
        float *b = row_for(&p->b_grad, place(t, &p->b_grad, row), t->c, t->wide, t->lines + 2 * line, &b_step), *to_b = b;
        for (int q = 0; q < p->columns; q++, g += g_step, to_a += a_step, to_b += b_step)
            for (int v = 0; v < t->wide; v += LANES) {
                vec gate = *(vec *)(t->gate + v), slope = *(vec *)(t->slope + v), value = *(const vec *)(g + v);
                *(vec *)(to_a + v) = gate * value + slope;
                *(vec *)(to_b + v) = (1.0f - gate) * value - slope;
            }
        row_done(&p->a_grad, place(t, &p->a_grad, row), p->columns, t->c, t->wide, a);
        row_done(&p->b_grad, place(t, &p->b_grad, row), p->columns, t->c, t->wide, b);
    }
}

static int run_one(const gated_sum_t *p, int backward, int64_t index, int parts) {
    int each = up((p->channels + parts - 1) / parts, 16), c0 = (int)(index % parts) * each, c = least(each, p->channels - c0);
    if (c <= 0) return 0;
    int wide = up(c, LANES);
    size_t lines = sizeof(float) * 3 * p->columns * wide, numbers = sizeof(float) * wide;
    char *memory = lc_malloc(NULL, lines + 2 * numbers + sizeof(double) * wide);
    if (!memory) return -1;
    float *gate = (float *)(memory + lines);
    memset(gate, 0, 2 * numbers);
    task_t t = {p, index / parts, c0, c, wide, (float *)memory, gate, gate + wide, (double *)(gate + 2 * wide)};
    if (backward) gradients(&t);
    else blend(&t);
    lc_free(NULL, memory);
    return 0;
}

int lc_gated_sum(const gated_sum_t *p, int backward, int threads) {
    int failed = 0, parts = threads > 1 && p->samples < 2 * threads ? least(threads, (p->channels + 15) / 16) : 1;
    int64_t tasks = (int64_t)p->samples * parts;
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_one(p, backward, t, parts);
    } else
        for (int64_t t = 0; t < tasks; t++) failed |= run_one(p, backward, t, parts);
    return failed;
}

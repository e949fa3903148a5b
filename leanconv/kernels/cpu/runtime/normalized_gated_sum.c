// The end of SPConv and SPLConv for training: BatchNorm of one branch or both, ReLU of the first or none, and the gated
// sum, in one result; and its gradient. The normalised maps are written nowhere: a pass computes them from the branches.
//
//     a = act((x - mean)·s + bias), s = weight / √(variance + eps);  b likewise, or as it is;  y = g·a + (1 - g)·b
//
// Passes over the maps: result 2 to read and 1 to write (3 over the first branch if it has a ReLU), gradient 2 to read.
// A task has one sample, or some of its channels. Each sample's sums are added in order: any number of threads gives the
// same bits.
#include <math.h>
#include "rows.h"

#define SUMS 7

// Pixels of few or odd channels that lie densely are read as wider ones: `joined` of them are one of whole vectors, whose
// sums are added up behind each pass over a sample.
typedef struct {
    const norm_gate_t *p, *given;                   // with joined pixels; as it was given
    int joined;
    double each;                                    // pixels of a sample
    int rows, columns, run;                         // rows of pixels that lie evenly; pixels whose sums stay in float
    int channels, parts;                            // whole units of 16; ranges of channels
    double *kept;                                   // samples × SUMS × channels
    float *mean[2], *scale[2], *bias[2], *flat[2], *slope[2];  // of each branch; flat and slope: of the gradient
} plan_t;

typedef struct {
    const plan_t *k;
    int64_t n;
    int c0, c, wide;
    float *lines[5], *numbers;                      // runs of pixels; of each channel, whole vectors
    double *sums;
} task_t;

INLINE int64_t place(const task_t *t, const map_t *m, int row, int from) {
    return t->n * m->sample + row * m->row + from * m->pixel + t->c0;
}

INLINE const float *read_run(const task_t *t, const map_t *m, int row, int from, int count, int line, int64_t *step) {
    return row_of(m, place(t, m, row, from), count, t->c, t->wide, t->lines[line], step);
}

INLINE vec positive(vec value) { return (vec)((bits_t)value & ~(bits_t)(value < 0.0f)); }
INLINE vec at(const float *of, int v) { return *(const vec *)(of + v); }

// Mean and sum of squared distances from it, of each channel of a sample: a run's in float, around its own mean.
static void moments(const task_t *t, const map_t *m, double *mean, double *squares) {
    const plan_t *k = t->k;
    int64_t done = 0, step;
    memset(mean, 0, sizeof(double) * t->wide);
    memset(squares, 0, sizeof(double) * t->wide);
    for (int row = 0; row < k->rows; row++)
        for (int from = 0; from < k->columns; from += k->run) {
            int count = least(k->run, k->columns - from);
            const float *x = read_run(t, m, row, from, count, 0, &step);
            for (int v = 0; v < t->wide; v += LANES) {
                vec sum = {0}, other = {0};
                int q = 0;
                for (; q + 2 <= count; q += 2) sum += at(x + q * step, v), other += at(x + (q + 1) * step, v);
                if (q < count) sum += at(x + q * step, v);
                vec own = (sum + other) / (float)count, rest = {0}, all = {0};
                sum = other = (vec){0};
                for (q = 0; q + 2 <= count; q += 2) {
                    vec d = at(x + q * step, v) - own, e = at(x + (q + 1) * step, v) - own;
                    rest += d, sum += e, all += d * d, other += e * e;
                }
                if (q < count) {
                    vec d = at(x + q * step, v) - own;
                    rest += d, all += d * d;
                }
                all += other, rest += sum;  // rest: what rounding took from the mean
                for (int i = 0; i < LANES; i++) {
                    double mend = (double)rest[i] / count, off = own[i] + mend - mean[v + i];
                    double share = (double)count / (done + count);
                    mean[v + i] += off * share;
                    squares[v + i] += all[i] - mend * rest[i] + off * off * share * done;
                }
            }
            done += count;
        }
}

// The mean of joined pixels' means for each of them, and one sum of squared distances from it.
static void fold_moments(const plan_t *k, double *mean, double *squares) {
    int channels = k->given->channels;
    for (int c = 0; c < channels && k->joined > 1; c++) {
        double sum = 0, all = 0;
        for (int i = c; i < channels * k->joined; i += channels) sum += mean[i];
        double own = sum / k->joined;
        for (int i = c; i < channels * k->joined; i += channels) {
            all += squares[i] + (mean[i] - own) * (mean[i] - own) * (k->each / k->joined);
            mean[i] = own;
        }
        squares[c] = all;
    }
}

// The sum of joined pixels' sums for each of them.
static void fold_sums(const plan_t *k, double *sums) {
    int channels = k->given->channels;
    for (int c = 0; c < channels && k->joined > 1; c++) {
        double sum = 0;
        for (int i = c; i < channels * k->joined; i += channels) sum += sums[i];
        for (int i = c; i < channels * k->joined; i += channels) sums[i] = sum;
    }
}

static void repeat(const plan_t *k, float *numbers) {
    int channels = k->given->channels;
    for (int i = channels; i < channels * k->joined; i++) numbers[i] = numbers[i - channels];
}

static void moments_task(const task_t *t) {
    const norm_gate_t *p = t->k->p;
    const map_t *maps[] = {&p->a, &p->b};
    for (int which = 0; which < 2; which++) {
        double *mean = t->sums + 2 * which * t->k->channels, *squares = mean + t->k->channels;
        moments(t, maps[which], mean, squares);
        fold_moments(t->k, mean, squares);
    }
}

// The statistics of the batch from those of its samples, and of each branch what the loops multiply with.
static void merge_moments(const plan_t *k) {
    const norm_gate_t *p = k->given;
    double each = k->each;
    for (int which = 0; which < 2; which++)
        for (int c = 0; c < p->channels; c++) {
            double mean = 0, squares = p->weight[which] ? 0 : each * p->samples;
            for (int64_t n = 0; n < p->samples && p->weight[which]; n++) {
                const double *own = k->kept + (n * SUMS + 2 * which) * k->channels + c;
                double off = own[0] - mean, share = 1.0 / (n + 1);
                mean += off * share;
                squares += own[k->channels] + off * off * share * n * each;
            }
            p->statistics[2 * which * p->channels + c] = (float)mean;
            p->statistics[(2 * which + 1) * p->channels + c] = (float)(squares / (each * p->samples));
        }
}

static void coefficients(const plan_t *k) {
    const norm_gate_t *p = k->given;
    for (int which = 0; which < 2; which++) {
        for (int c = 0; c < p->channels; c++) {
            int norm = p->weight[which] != NULL;
            double root = norm ? 1 / sqrt((double)p->statistics[(2 * which + 1) * p->channels + c] + p->eps[which]) : 1;
            k->mean[which][c] = norm ? p->statistics[2 * which * p->channels + c] : 0;
            k->scale[which][c] = norm ? (float)(p->weight[which][c] * root) : 1;
            k->bias[which][c] = norm ? p->bias[which][c] : 0;
        }
        repeat(k, k->mean[which]), repeat(k, k->scale[which]), repeat(k, k->bias[which]);
    }
}

// The sum of the first branch over a sample's pixels, as it is after its ReLU.
static void sum_positive(const task_t *t) {
    const plan_t *k = t->k;
    int64_t step;
    memset(t->sums, 0, sizeof(double) * t->wide);
    for (int row = 0; row < k->rows; row++)
        for (int from = 0; from < k->columns; from += k->run) {
            int count = least(k->run, k->columns - from);
            const float *x = read_run(t, &k->p->a, row, from, count, 0, &step);
            for (int v = 0; v < t->wide; v += LANES) {
                vec mean = at(k->mean[0] + t->c0, v), scale = at(k->scale[0] + t->c0, v), bias = at(k->bias[0] + t->c0, v);
                vec all = {0}, other = {0};
                int q = 0;
                for (; q + 2 <= count; q += 2) {
                    all += positive((at(x + q * step, v) - mean) * scale + bias);
                    other += positive((at(x + (q + 1) * step, v) - mean) * scale + bias);
                }
                if (q < count) all += positive((at(x + q * step, v) - mean) * scale + bias);
                all += other;
                for (int i = 0; i < LANES; i++) t->sums[v + i] += all[i];
            }
        }
    fold_sums(k, t->sums);
}

static void blend_task(const task_t *t) {
    const plan_t *k = t->k;
    const norm_gate_t *p = k->p;
    float *gates = p->gate + t->n * k->given->channels + t->c0;
    int64_t a_step, b_step, y_step;
    if (p->relu) sum_positive(t);
    for (int c = 0; c < t->c; c++) {
        int at = t->c0 + c;
        double a = p->relu ? t->sums[c] / k->each
                           : (t->sums[c] - k->mean[0][at]) * k->scale[0][at] + k->bias[0][at];
        double b = (t->sums[2 * k->channels + c] - k->mean[1][at]) * k->scale[1][at] + k->bias[1][at];
        t->numbers[c] = (float)(1 / (1 + exp(b - a)));
        if (at < k->given->channels) gates[c] = t->numbers[c];
    }
    for (int row = 0; row < k->rows; row++)
        for (int from = 0; from < k->columns; from += k->run) {
            int count = least(k->run, k->columns - from);
            const float *a = read_run(t, &p->a, row, from, count, 0, &a_step);
            const float *b = read_run(t, &p->b, row, from, count, 1, &b_step);
            float *y = row_for(&p->y, place(t, &p->y, row, from), t->c, t->wide, t->lines[2], &y_step);
            for (int v = 0; v < t->wide; v += LANES) {
                vec g = at(t->numbers, v), m0 = at(k->mean[0] + t->c0, v), s0 = at(k->scale[0] + t->c0, v);
                vec b0 = at(k->bias[0] + t->c0, v), m1 = at(k->mean[1] + t->c0, v), s1 = at(k->scale[1] + t->c0, v);
                vec b1 = at(k->bias[1] + t->c0, v), low = (vec){0} - (p->relu ? 0.0f : INFINITY);
                for (int q = 0; q < count; q++) {
                    vec first = (at(a + q * a_step, v) - m0) * s0 + b0, second = (at(b + q * b_step, v) - m1) * s1 + b1;
                    first = (vec)(((bits_t)first & ~(bits_t)(first < low)));
                    *(vec *)(y + q * y_step + v) = g * first + (1.0f - g) * second;
                }
            }
            row_done(&p->y, place(t, &p->y, row, from), count, t->c, t->wide, y);
        }
}

// Over a sample's pixels, with d and e the distances of both branches from their means: of g, g·d, 1 and d where the
// ReLU lets the gradient through; of g, g·e and e.
static void sums_task(const task_t *t) {
    const plan_t *k = t->k;
    const norm_gate_t *p = k->p;
    int64_t a_step, b_step, g_step;
    for (int i = 0; i < SUMS; i++) memset(t->sums + (int64_t)i * k->channels, 0, sizeof(double) * t->wide);
    for (int row = 0; row < k->rows; row++)
        for (int from = 0; from < k->columns; from += k->run) {
            int count = least(k->run, k->columns - from);
            const float *a = read_run(t, &p->a, row, from, count, 0, &a_step);
            const float *b = read_run(t, &p->b, row, from, count, 1, &b_step);
            const float *y = read_run(t, &p->y, row, from, count, 2, &g_step);
            for (int v = 0; v < t->wide; v += LANES) {
                vec m0 = at(k->mean[0] + t->c0, v), s0 = at(k->scale[0] + t->c0, v), b0 = at(k->bias[0] + t->c0, v);
                vec m1 = at(k->mean[1] + t->c0, v), low = (vec){0} - (p->relu ? 0.0f : INFINITY);
                vec sum[SUMS] = {{0}}, one = (vec){0} + 1.0f;
                for (int q = 0; q < count; q++) {
                    vec d = at(a + q * a_step, v) - m0, e = at(b + q * b_step, v) - m1, g = at(y + q * g_step, v);
                    bits_t open = ~(bits_t)(d * s0 + b0 <= low);
                    vec passed = (vec)((bits_t)g & open);
                    sum[0] += passed;
                    sum[1] += passed * d;
                    sum[2] += (vec)((bits_t)one & open);
                    sum[3] += (vec)((bits_t)d & open);
                    sum[4] += g;
                    sum[5] += g * e;
                    sum[6] += e;
                }
                for (int j = 0; j < SUMS; j++)
                    for (int i = 0; i < LANES; i++) t->sums[(int64_t)j * k->channels + v + i] += sum[j][i];
            }
        }
    for (int i = 0; i < SUMS; i++) fold_sums(k, t->sums + (int64_t)i * k->channels);
}

// Each sample's gradient through its gate, which every pixel gets: kept as its first number. Then the gradients of
// weights and biases, and what they take off the gradients of the maps.
static void merge_sums(const plan_t *k) {
    const norm_gate_t *p = k->given;
    double each = k->each, all = each * p->samples;
    for (int c = 0; c < p->channels; c++) {
        double weight[2] = {0}, bias[2] = {0};
        for (int64_t n = 0; n < p->samples; n++) {
            double *s = k->kept + n * SUMS * k->channels + c, g = p->gate[n * p->channels + c];
            int64_t w = k->channels;
            double a = s[w] * k->scale[0][c] + s[0] * k->bias[0][c], b = s[5 * w] * k->scale[1][c] + s[4 * w] * k->bias[1][c];
            double slope = g * (1 - g) * (a - b) / each;
            weight[0] += g * s[w] + slope * s[3 * w], bias[0] += g * s[0] + slope * s[2 * w];
            weight[1] += (1 - g) * s[5 * w] - slope * s[6 * w], bias[1] += (1 - g) * s[4 * w] - slope * each;
            s[0] = slope;
        }
        for (int which = 0; which < 2; which++) {
            int norm = p->weight[which] != NULL;
            double root = norm ? 1 / sqrt((double)p->statistics[(2 * which + 1) * p->channels + c] + p->eps[which]) : 1;
            p->sums[2 * which * p->channels + c] = norm ? (float)(weight[which] * root) : 0;
            p->sums[(2 * which + 1) * p->channels + c] = norm ? (float)bias[which] : 0;
            k->flat[which][c] = norm ? (float)(bias[which] / all) : 0;
            k->slope[which][c] = norm ? (float)(weight[which] * root * root / all) : 0;
        }
    }
    for (int which = 0; which < 2; which++) repeat(k, k->flat[which]), repeat(k, k->slope[which]);
}

static void gradients_task(const task_t *t) {
    const plan_t *k = t->k;
    const norm_gate_t *p = k->p;
    int64_t a_step, b_step, g_step, to_a, to_b;
    float *gates = t->numbers, *slopes = t->numbers + t->wide;
    for (int c = 0; c < t->c; c++) {
        int own = c % k->given->channels;
        gates[c] = p->gate[t->n * k->given->channels + t->c0 + own], slopes[c] = (float)t->sums[own];
    }
    for (int row = 0; row < k->rows; row++)
        for (int from = 0; from < k->columns; from += k->run) {
            int count = least(k->run, k->columns - from);
            const float *a = read_run(t, &p->a, row, from, count, 0, &a_step);
            const float *b = read_run(t, &p->b, row, from, count, 1, &b_step);
            const float *y = read_run(t, &p->y, row, from, count, 2, &g_step);
            float *a_grad = row_for(&p->a_grad, place(t, &p->a_grad, row, from), t->c, t->wide, t->lines[3], &to_a);
            float *b_grad = row_for(&p->b_grad, place(t, &p->b_grad, row, from), t->c, t->wide, t->lines[4], &to_b);
            for (int v = 0; v < t->wide; v += LANES) {
                int c = t->c0 + v;
                vec m0 = at(k->mean[0], c), s0 = at(k->scale[0], c), b0 = at(k->bias[0], c), f0 = at(k->flat[0], c);
                vec m1 = at(k->mean[1], c), s1 = at(k->scale[1], c), f1 = at(k->flat[1], c);
                vec d0 = at(k->slope[0], c), d1 = at(k->slope[1], c), gate = at(gates, v), slope = at(slopes, v);
                vec low = (vec){0} - (p->relu ? 0.0f : INFINITY);
                for (int q = 0; q < count; q++) {
                    vec d = at(a + q * a_step, v) - m0, e = at(b + q * b_step, v) - m1, g = at(y + q * g_step, v);
                    vec through = (vec)((bits_t)(gate * g + slope) & ~(bits_t)(d * s0 + b0 <= low));
                    *(vec *)(a_grad + q * to_a + v) = s0 * (through - f0 - d * d0);
                    *(vec *)(b_grad + q * to_b + v) = s1 * ((1.0f - gate) * g - slope - f1 - e * d1);
                }
            }
            row_done(&p->a_grad, place(t, &p->a_grad, row, from), count, t->c, t->wide, a_grad);
            row_done(&p->b_grad, place(t, &p->b_grad, row, from), count, t->c, t->wide, b_grad);
        }
}

static int run_one(const plan_t *k, void (*run)(const task_t *), int64_t index) {
    const norm_gate_t *p = k->p;
    int each = up((p->channels + k->parts - 1) / k->parts, 16), c0 = (int)(index % k->parts) * each;
    int c = least(each, p->channels - c0), wide = up(c, LANES);
    if (c <= 0) return 0;
    size_t line = sizeof(float) * k->run * wide, numbers = sizeof(float) * 2 * wide;
    char *memory = lc_malloc(NULL, 5 * line + numbers);
    if (!memory) return -1;
    task_t t = {k, index / k->parts, c0, c, wide, {NULL}, (float *)(memory + 5 * line), NULL};
    for (int i = 0; i < 5; i++) t.lines[i] = (float *)(memory + i * line);
    t.sums = k->kept + t.n * SUMS * k->channels + c0;
    memset(t.numbers, 0, numbers);
    run(&t);
    lc_free(NULL, memory);
    return 0;
}

static int run_all(const plan_t *k, void (*run)(const task_t *), int threads) {
    int failed = 0;
    int64_t tasks = (int64_t)k->p->samples * k->parts;
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t i = 0; i < tasks; i++) failed |= run_one(k, run, i);
    } else
        for (int64_t i = 0; i < tasks; i++) failed |= run_one(k, run, i);
    return failed;
}

// How many pixels are joined to one of whole vectors; 1 where they do not lie densely, or would not come out even.
static int joined_in(const norm_gate_t *p) {
    const map_t *maps[] = {&p->a, &p->b, &p->y, &p->a_grad, &p->b_grad};
    int joined = LANES;
    while (joined > 1 && p->channels * (joined / 2) % LANES == 0) joined /= 2;
    if (joined == 1 || p->channels * joined > 256 || (int64_t)p->rows * p->columns % joined) return 1;
    for (int i = 0; i < 5; i++)
        if (maps[i]->data && (maps[i]->pixel != p->channels || maps[i]->row != (int64_t)p->columns * p->channels)) return 1;
    return joined;
}

static norm_gate_t joined_maps(const norm_gate_t *p, int joined) {
    norm_gate_t q = *p;
    map_t *maps[] = {&q.a, &q.b, &q.y, &q.a_grad, &q.b_grad};
    q.columns = (int)((int64_t)p->rows * p->columns / joined);
    q.rows = 1, q.channels = p->channels * joined;
    for (int i = 0; i < 5; i++) maps[i]->pixel = q.channels, maps[i]->row = (int64_t)q.columns * q.channels;
    return q;
}

int lc_normalized_gated_sum(const norm_gate_t *given, int backward, int threads) {
    int joined = joined_in(given);
    norm_gate_t wider = joined > 1 ? joined_maps(given, joined) : *given;
    const norm_gate_t *p = &wider;
    plan_t k = {.p = p, .given = given, .joined = joined, .rows = p->rows, .columns = p->columns, .channels = up(p->channels, 16)};
    k.each = (double)given->rows * given->columns;
    const map_t *maps[] = {&p->a, &p->b, &p->y, &p->a_grad, &p->b_grad};
    int even = 1;
    for (int i = 0; i < (backward ? 5 : 3); i++) even &= maps[i]->row == p->columns * maps[i]->pixel;
    if (even) k.rows = 1, k.columns = p->rows * p->columns;
    k.parts = joined == 1 && threads > 1 && p->samples < 2 * threads ? least(threads, (p->channels + 15) / 16) : 1;
    k.run = least(k.columns, most(16, least(64, 16384 / k.channels)));
    size_t doubles = sizeof(double) * p->samples * SUMS * k.channels, floats = sizeof(float) * 10 * k.channels;
    char *memory = lc_malloc(NULL, doubles + floats);
    if (!memory) return -1;
    k.kept = (double *)memory;
    memset(memory + doubles, 0, floats);
    float *numbers = (float *)(memory + doubles);
    for (int which = 0; which < 2; which++, numbers += k.channels) {
        k.mean[which] = numbers, k.scale[which] = numbers + 2 * k.channels, k.bias[which] = numbers + 4 * k.channels;
        k.flat[which] = numbers + 6 * k.channels, k.slope[which] = numbers + 8 * k.channels;
    }
    int failed = 0;
    if (!backward) {
        failed = run_all(&k, moments_task, threads);
        if (!failed) merge_moments(&k);
    }
    coefficients(&k);
    if (backward && !failed) {
        failed = run_all(&k, sums_task, threads);
        if (!failed) merge_sums(&k);
    }
    if (!failed) failed = run_all(&k, backward ? gradients_task : blend_task, threads);
    lc_free(NULL, memory);
    return failed;
}

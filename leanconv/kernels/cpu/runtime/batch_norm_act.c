// BatchNorm with the batch's statistics, a residual and an activation for training; and its gradient. Neither the
// normalised map nor a mask is written: the gradient computes them from x, with a residual the mask from y.
//
//     y = act(d·scale + bias + residual), d = x - mean, scale = weight / √(variance + eps)
//
// Passes over maps: result 2 to read and 1 to write, gradient 4 to read and 1 to write; a residual once more each. The
// second pass runs backwards, for what the first one read last is still in a cache. The map is cut into runs of pixels,
// and those into ranges whose sums are added in order: any number of threads gives the same bits.
#include <math.h>
#include "rows.h"

typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#include "elementary.h"

#define RUN 128    // pixels at the most: so many are summed in float32, those sums in float64
#define RANGES 16

// Pixels of few or odd channels that lie densely are read as wider ones: `joined` of them are one of whole vectors, whose
// sums are added up in the end.
typedef struct {
    const norm_act_t *p, *given;       // with joined pixels; as it was given
    int joined;
    int rows, columns, run, per_row;   // rows of pixels that lie evenly; pixels of a run; runs of a row
    int wide, ranges, fold;            // channels as whole vectors; pixels that are computed as one wide one
    int64_t runs, samples;
    double *kept;                      // ranges × 2 × wide
    float *mean, *scale, *bias, *flat, *slope;  // fold × wide
} plan_t;

typedef struct {
    const plan_t *k;
    float *lines[5];                   // runs of pixels
    float *pivot, *sums;               // wide; 2 × wide
} task_t;

typedef void pass_t(const task_t *t, int64_t first, int64_t end, double *kept);

INLINE vec at(const float *of, int v) { return *(const vec *)(of + v); }
INLINE bits_t between(vec x, float low, float high) { return ~((bits_t)(x <= low) | (bits_t)(x >= high)); }

// The first pixel of a run in a map, and how many it has.
INLINE int64_t place(const plan_t *k, const map_t *m, int64_t run, int *count) {
    int64_t row = run / k->per_row;
    int from = (int)(run % k->per_row) * k->run;
    *count = least(k->run, k->columns - from);
    return row / k->rows * m->sample + row % k->rows * m->row + from * m->pixel;
}

INLINE const float *read_run(const task_t *t, const map_t *m, int64_t run, int line, int64_t *step) {
    int count;
    int64_t from = place(t->k, m, run, &count);
    return row_of(m, from, count, t->k->p->channels, t->k->wide, t->lines[line], step);
}

INLINE float *write_run(const task_t *t, const map_t *m, int64_t run, int line, int64_t *step) {
    int count;
    int64_t to = place(t->k, m, run, &count);
    return row_for(m, to, t->k->p->channels, t->k->wide, t->lines[line], step);
}

INLINE void written(const task_t *t, const map_t *m, int64_t run, const float *line) {
    int count;
    int64_t to = place(t->k, m, run, &count);
    row_done(m, to, count, t->k->p->channels, t->k->wide, line);
}

// Sums of x - pivot and of its square over a run, of V vectors of channels, U pixels at a time.
INLINE void deviations(const task_t *t, const float *x, int64_t step, int count, int v0, const int V, const int U) {
    vec sum[4] = {{0}}, squares[4] = {{0}}, pivot[4];
    for (int v = 0; v < V; v++) pivot[v] = at(t->pivot, v0 + v * LANES);
    int q = 0;
    for (; q + U <= count; q += U)
        for (int u = 0; u < U; u++)
            for (int v = 0; v < V; v++) {
                vec d = at(x + (q + u) * step, v0 + v * LANES) - pivot[v];
                sum[u * V + v] += d, squares[u * V + v] += d * d;
            }
    for (; q < count; q++)
        for (int v = 0; v < V; v++) {
            vec d = at(x + q * step, v0 + v * LANES) - pivot[v];
            sum[v] += d, squares[v] += d * d;
        }
    for (int u = 1; u < U; u++)
        for (int v = 0; v < V; v++) sum[v] += sum[u * V + v], squares[v] += squares[u * V + v];
    for (int v = 0; v < V; v++) {
        *(vec *)(t->sums + v0 + v * LANES) = sum[v];
        *(vec *)(t->sums + t->k->wide + v0 + v * LANES) = squares[v];
    }
}

// The pivot of a range's first run: its average.
static void average(const task_t *t, const float *x, int64_t step, int count) {
    memset(t->pivot, 0, sizeof(float) * t->k->wide);
    for (int q = 0; q < count; q++)
        for (int v = 0; v < t->k->wide; v += LANES) *(vec *)(t->pivot + v) += at(x + q * step, v);
    for (int v = 0; v < t->k->wide; v += LANES) *(vec *)(t->pivot + v) /= (float)count;
}

// Mean and sum of squared distances from it, of each channel of a range. A run's pivot is the mean of the run before,
// so numbers far from zero leave the squares their digits.
static void moments(const task_t *t, int64_t first, int64_t end, double *kept) {
    const plan_t *k = t->k;
    double *mean = kept, *squares = kept + k->wide;
    int64_t done = 0, step;
    for (int64_t run = first; run < end; run++) {
        int count, v = 0;
        place(k, &k->p->x, run, &count);
        const float *x = read_run(t, &k->p->x, run, 0, &step);
        if (run == first) average(t, x, step, count);
        for (; v + 4 * LANES <= k->wide; v += 4 * LANES) deviations(t, x, step, count, v, 4, 1);
        for (; v + 2 * LANES <= k->wide; v += 2 * LANES) deviations(t, x, step, count, v, 2, 2);
        for (; v < k->wide; v += LANES) deviations(t, x, step, count, v, 1, 4);
        double share = (double)count / (double)(done + count), part = 1.0 / count;
        for (int c = 0; c < k->wide; c++) {
            double sum = t->sums[c], own = t->pivot[c] + sum * part, off = own - mean[c];
            mean[c] += off * share;
            squares[c] += t->sums[k->wide + c] - sum * sum * part + off * off * share * (double)done;
            t->pivot[c] = (float)own;
        }
        done += count;
    }
}

INLINE int64_t range_at(const plan_t *k, int range) { return k->runs * range / k->ranges; }

// The statistics of the batch from those of its ranges.
static void merge_moments(const plan_t *k) {
    const norm_act_t *p = k->given;
    for (int c = 0; c < p->channels; c++) {
        double mean = 0, squares = 0, done = 0;
        for (int i = 0; i < k->ranges * k->joined; i++) {
            int range = i / k->joined, part = i % k->joined;
            int64_t first = range_at(k, range), end = range_at(k, range + 1);
            int64_t whole_rows = end / k->per_row - first / k->per_row;
            double count = (double)whole_rows * k->columns
                + (double)((end % k->per_row) - (first % k->per_row)) * k->run;
            const double *own = k->kept + (int64_t)range * 2 * k->wide + part * p->channels + c;
            double off = own[0] - mean, share = count / (done + count);
            mean += off * share;
            squares += own[k->wide] + off * off * share * done;
            done += count;
        }
        p->statistics[c] = (float)mean;
        p->statistics[p->channels + c] = (float)((squares < 0 ? 0 : squares) / done);
    }
}

static void coefficients(const plan_t *k) {
    const norm_act_t *p = k->given;
    for (int i = 0; i < p->channels * k->joined; i++) {
        int c = i % p->channels;
        double root = 1 / sqrt((double)p->statistics[p->channels + c] + p->eps);
        k->mean[i] = p->statistics[c];
        k->scale[i] = (float)(p->weight ? p->weight[c] * root : root);
        k->bias[i] = p->bias ? p->bias[c] : 0;
    }
}

static void repeat(const plan_t *k, float *numbers) {
    for (int i = 1; i < k->fold; i++) memcpy(numbers + i * k->wide, numbers, sizeof(float) * k->wide);
}

INLINE void results(const task_t *t, int64_t first, int64_t end, const int act, const int added) {
    const plan_t *k = t->k;
    const norm_act_t *p = k->p;
    int64_t x_step, r_step = 0, y_step;
    for (int64_t run = end - 1; run >= first; run--) {
        int count;
        place(k, &p->x, run, &count);
        const float *x = read_run(t, &p->x, run, 0, &x_step);
        const float *r = added ? read_run(t, &p->residual, run, 1, &r_step) : NULL;
        float *y = write_run(t, &p->y, run, 2, &y_step);
        for (int q = 0; q < count; q += k->fold)
            for (int v = 0, n = least(k->fold, count - q) * k->wide; v < n; v += LANES) {
                vec z = (at(x + q * x_step, v) - at(k->mean, v)) * at(k->scale, v) + at(k->bias, v);
                if (added) z += at(r + q * r_step, v);
                *(vec *)(y + q * y_step + v) = activated(z, act);
            }
        written(t, &p->y, run, y);
    }
}

static void results_pass(const task_t *t, int64_t first, int64_t end, double *kept) {
    (void)kept;
    if (t->k->p->residual.data) switch (t->k->p->activation) {
        case RELU: results(t, first, end, RELU, 1); break;
        default: results(t, first, end, NONE, 1);
    } else switch (t->k->p->activation) {
        case RELU: results(t, first, end, RELU, 0); break;
        case RELU6: results(t, first, end, RELU6, 0); break;
        case SILU: results(t, first, end, SILU, 0); break;
        case HARDSWISH: results(t, first, end, HARDSWISH, 0); break;
        default: results(t, first, end, NONE, 0);
    }
}

// What of a gradient passes an activation with the input z.
INLINE vec through(vec g, vec z, const int act) {
    vec open;
    switch (act) {
        case RELU: return (vec)((bits_t)g & ~(bits_t)(z <= 0.0f));
        case RELU6: return (vec)((bits_t)g & between(z, 0.0f, 6.0f));
        case SILU:
            open = sigmoid_of(z);
            return g * (open * (1.0f + z * (1.0f - open)));
        case HARDSWISH: return g * where((ivec)(z < -3.0f), all(0.0f), where((ivec)(z > 3.0f), all(1.0f), z * 0.33333334f + 0.5f));
        default: return g;
    }
}

// Sums of what passes the activation, and of that times d, over a run. With `masked` the result tells what passes, and
// it is written: the gradient of the residual.
INLINE void products(
    const task_t *t, const float *x, int64_t x_step, const float *g, int64_t g_step, const float *y, int64_t y_step, float *m,
    int64_t m_step, int count, int v0, const int V, const int U, const int act, const int masked) {
    const plan_t *k = t->k;
    vec sum[4] = {{0}}, product[4] = {{0}};
    int q = 0;
#define ADD(PIXEL, INTO)                                                                                               \
    for (int v = 0; v < V; v++) {                                                                                      \
        int c = v0 + v * LANES;                                                                                        \
        vec d = at(x + (PIXEL) * x_step, c) - at(k->mean, c), passed = at(g + (PIXEL) * g_step, c);                    \
        if (masked) {                                                                                                  \
            passed = through(passed, at(y + (PIXEL) * y_step, c), act);                                                \
            *(vec *)(m + (PIXEL) * m_step + c) = passed;                                                               \
        } else if (act != NONE)                                                                                        \
            passed = through(passed, d * at(k->scale, c) + at(k->bias, c), act);                                       \
        sum[(INTO) + v] += passed, product[(INTO) + v] += passed * d;                                                  \
    }
    for (; q + U <= count; q += U)
        for (int u = 0; u < U; u++) ADD(q + u, u * V)
    for (; q < count; q++) ADD(q, 0)
#undef ADD
    for (int u = 1; u < U; u++)
        for (int v = 0; v < V; v++) sum[v] += sum[u * V + v], product[v] += product[u * V + v];
    for (int v = 0; v < V; v++) {
        *(vec *)(t->sums + v0 + v * LANES) = sum[v];
        *(vec *)(t->sums + k->wide + v0 + v * LANES) = product[v];
    }
}

INLINE void sums(const task_t *t, int64_t first, int64_t end, double *kept, const int act, const int masked) {
    const plan_t *k = t->k;
    const norm_act_t *p = k->p;
    int64_t x_step, g_step, y_step = 0, m_step = 0;
    for (int64_t run = first; run < end; run++) {
        int count, v = 0;
        place(k, &p->x, run, &count);
        const float *x = read_run(t, &p->x, run, 0, &x_step), *g = read_run(t, &p->grad, run, 1, &g_step);
        const float *y = masked ? read_run(t, &p->y, run, 2, &y_step) : NULL;
        float *m = masked ? write_run(t, &p->residual_grad, run, 3, &m_step) : NULL;
        for (; v + 4 * LANES <= k->wide; v += 4 * LANES)
            products(t, x, x_step, g, g_step, y, y_step, m, m_step, count, v, 4, 1, act, masked);
        for (; v + 2 * LANES <= k->wide; v += 2 * LANES)
            products(t, x, x_step, g, g_step, y, y_step, m, m_step, count, v, 2, 2, act, masked);
        for (; v < k->wide; v += LANES)
            products(t, x, x_step, g, g_step, y, y_step, m, m_step, count, v, 1, 4, act, masked);
        if (masked) written(t, &p->residual_grad, run, m);
        for (int c = 0; c < 2 * k->wide; c++) kept[c] += t->sums[c];
    }
}

static void sums_pass(const task_t *t, int64_t first, int64_t end, double *kept) {
    if (t->k->p->y.data) sums(t, first, end, kept, RELU, 1);
    else switch (t->k->p->activation) {
        case RELU: sums(t, first, end, kept, RELU, 0); break;
        case RELU6: sums(t, first, end, kept, RELU6, 0); break;
        case SILU: sums(t, first, end, kept, SILU, 0); break;
        case HARDSWISH: sums(t, first, end, kept, HARDSWISH, 0); break;
        default: sums(t, first, end, kept, NONE, 0);
    }
}

// The gradients of weight and bias, and what they take off the gradient of the map.
static void merge_sums(const plan_t *k) {
    const norm_act_t *p = k->given;
    double all = (double)p->samples * p->rows * p->columns;
    for (int c = 0; c < p->channels; c++) {
        double bias = 0, weight = 0, root = 1 / sqrt((double)p->statistics[p->channels + c] + p->eps);
        for (int i = 0; i < k->ranges * k->joined; i++) {
            const double *own = k->kept + (int64_t)(i / k->joined) * 2 * k->wide + i % k->joined * p->channels + c;
            bias += own[0], weight += own[k->wide];
        }
        p->sums[c] = (float)(weight * root);
        p->sums[p->channels + c] = (float)bias;
        for (int i = c; i < p->channels * k->joined; i += p->channels) {
            k->flat[i] = (float)(bias / all);
            k->slope[i] = (float)(weight * root * root / all);
        }
    }
}

INLINE void gradients(const task_t *t, int64_t first, int64_t end, const map_t *from, const int act) {
    const plan_t *k = t->k;
    const norm_act_t *p = k->p;
    int64_t x_step, g_step, to_step;
    for (int64_t run = end - 1; run >= first; run--) {
        int count;
        place(k, &p->x, run, &count);
        const float *x = read_run(t, &p->x, run, 0, &x_step), *g = read_run(t, from, run, 1, &g_step);
        float *to = write_run(t, &p->x_grad, run, 2, &to_step);
        for (int q = 0; q < count; q += k->fold)
            for (int v = 0, n = least(k->fold, count - q) * k->wide; v < n; v += LANES) {
                vec d = at(x + q * x_step, v) - at(k->mean, v), scale = at(k->scale, v), passed = at(g + q * g_step, v);
                if (act != NONE) passed = through(passed, d * scale + at(k->bias, v), act);
                *(vec *)(to + q * to_step + v) = scale * (passed - at(k->flat, v) - d * at(k->slope, v));
            }
        written(t, &p->x_grad, run, to);
    }
}

static void gradients_pass(const task_t *t, int64_t first, int64_t end, double *kept) {
    const norm_act_t *p = t->k->p;
    (void)kept;
    if (p->y.data) gradients(t, first, end, &p->residual_grad, NONE);
    else switch (p->activation) {
        case RELU: gradients(t, first, end, &p->grad, RELU); break;
        case RELU6: gradients(t, first, end, &p->grad, RELU6); break;
        case SILU: gradients(t, first, end, &p->grad, SILU); break;
        case HARDSWISH: gradients(t, first, end, &p->grad, HARDSWISH); break;
        default: gradients(t, first, end, &p->grad, NONE);
    }
}

static int run_range(const plan_t *k, pass_t *pass, int range) {
    size_t line = sizeof(float) * k->run * k->wide, numbers = sizeof(float) * 3 * k->wide;
    char *memory = lc_malloc(NULL, 5 * line + numbers);
    if (!memory) return -1;
    task_t t = {.k = k, .pivot = (float *)(memory + 5 * line)};
    for (int i = 0; i < 5; i++) t.lines[i] = (float *)(memory + i * line);
    t.sums = t.pivot + k->wide;
    pass(&t, range_at(k, range), range_at(k, range + 1), k->kept + (int64_t)range * 2 * k->wide);
    lc_free(NULL, memory);
    return 0;
}

// `backwards`: the last range first.
static int run_all(const plan_t *k, pass_t *pass, int threads, int backwards) {
    int failed = 0;
    if (threads > 1 && k->ranges > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int i = 0; i < k->ranges; i++) failed |= run_range(k, pass, backwards ? k->ranges - 1 - i : i);
    } else
        for (int i = 0; i < k->ranges; i++) failed |= run_range(k, pass, backwards ? k->ranges - 1 - i : i);
    return failed;
}

// How many pixels are joined to one of whole vectors; 1 where they do not lie densely, or would not come out even.
static int joined_in(const norm_act_t *p) {
    const map_t *maps[] = {&p->x, &p->y, &p->residual, &p->grad, &p->x_grad, &p->residual_grad};
    int joined = LANES;
    while (joined > 1 && p->channels * (joined / 2) % LANES == 0) joined /= 2;
    int64_t pixels = (int64_t)p->samples * p->rows * p->columns;
    if (joined == 1 || pixels % joined || pixels / joined >= INT32_MAX || p->channels * joined > 256) return 1;
    for (int i = 0; i < 6; i++)
        if (maps[i]->data
            && (maps[i]->pixel != p->channels || maps[i]->row != (int64_t)p->columns * p->channels
                || maps[i]->sample != (int64_t)p->rows * p->columns * p->channels))
            return 1;
    return joined;
}

static norm_act_t joined_maps(const norm_act_t *p, int joined) {
    norm_act_t q = *p;
    map_t *maps[] = {&q.x, &q.y, &q.residual, &q.grad, &q.x_grad, &q.residual_grad};
    q.columns = (int)((int64_t)p->samples * p->rows * p->columns / joined);
    q.samples = q.rows = 1, q.channels = p->channels * joined;
    for (int i = 0; i < 6; i++)
        maps[i]->pixel = q.channels, maps[i]->row = maps[i]->sample = (int64_t)q.columns * q.channels;
    return q;
}

static plan_t plan_of(const norm_act_t *p, const norm_act_t *given, int joined) {
    plan_t k = {.p = p, .given = given, .joined = joined, .rows = p->rows, .columns = p->columns, .samples = p->samples, .wide = up(p->channels, LANES)};
    const map_t *maps[] = {&p->x, &p->y, &p->residual, &p->grad, &p->x_grad, &p->residual_grad};
    int even = 1, whole = 1, dense = 1;
    for (int i = 0; i < 6; i++) {
        if (!maps[i]->data) continue;
        even &= maps[i]->row == p->columns * maps[i]->pixel;
        whole &= maps[i]->sample == (int64_t)p->rows * p->columns * maps[i]->pixel;
        dense &= maps[i]->element != FLOAT32 || k.wide != p->channels || maps[i]->pixel == k.wide;
    }
    if (even) k.columns *= k.rows, k.rows = 1;
    if (even && whole && (int64_t)k.columns * k.samples < INT32_MAX) k.columns *= (int)k.samples, k.samples = 1;
    k.run = least(k.columns, most(16, least(RUN, 16384 / k.wide)));
    k.per_row = (k.columns + k.run - 1) / k.run;
    k.runs = k.samples * k.rows * k.per_row;
    k.ranges = (int)(k.runs < RANGES ? k.runs : RANGES);
    k.fold = dense ? most(1, 64 / k.wide) : 1;
    return k;
}

int lc_batch_norm_act(const norm_act_t *p, int backward, int threads) {
    int joined = joined_in(p);
    norm_act_t wider = joined > 1 ? joined_maps(p, joined) : *p;
    plan_t k = plan_of(&wider, p, joined);
    size_t doubles = sizeof(double) * k.ranges * 2 * k.wide, numbers = (size_t)k.fold * k.wide;
    char *memory = lc_malloc(NULL, doubles + sizeof(float) * 5 * numbers);
    if (!memory) return -1;
    memset(memory, 0, doubles + sizeof(float) * 5 * numbers);
    k.kept = (double *)memory;
    float **of[] = {&k.mean, &k.scale, &k.bias, &k.flat, &k.slope};
    for (int i = 0; i < 5; i++) *of[i] = (float *)(memory + doubles) + i * numbers;
    int failed = 0;
    if (!backward) {
        failed = run_all(&k, moments, threads, 0);
        if (!failed) merge_moments(&k);
    }
    coefficients(&k);
    if (backward && !failed) {
        failed = run_all(&k, sums_pass, threads, 0);
        if (!failed) merge_sums(&k);
    }
    for (int i = 0; i < 5; i++) repeat(&k, *of[i]);
    if (!failed) failed = run_all(&k, backward ? gradients_pass : results_pass, threads, 1);
    lc_free(NULL, memory);
    return failed;
}

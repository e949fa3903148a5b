// BatchNorm of a batch's own statistics, with or without a ReLU behind it, and its gradient. Two passes over the maps
// each. Nothing but the input is kept for the gradient: where the ReLU let a number pass is computed again.
#include <math.h>
#include "rows.h"

#define CHUNK 64   // pixels whose sums stay in float32
#define GROUPS 16  // ranges of chunks whose sums are combined in order: the same bits with any threads

// Of a range of pixels: mean and sum of squared differences (forward), or the two sums of the gradient.
typedef struct { double count, *first, *second; } sums_t;

typedef struct {
    const batch_norm_t *p;
    int wide, groups;
    int64_t chunks;
    float *scale, *shift, *mean, *k0, *k1;  // of each channel, whole vectors
    sums_t group[GROUPS];
} pass_t;

INLINE vec relu_passed(vec z, vec g) {
    bits_t blocked = (bits_t)(z <= 0.0f);  // a NaN passes, as in PyTorch
    return (vec)(~blocked & (bits_t)g);
}

// Means and squared differences of one chunk, from its first pixel on so that little cancels, added to the range's.
static void add_statistics(const pass_t *k, sums_t *s, const float *x, int64_t step, int count) {
    double total = s->count + count, share = count / total, cross = s->count * share;
    for (int v = 0; v < k->wide; v += LANES) {
        vec pivot = *(const vec *)(x + v), sum = {0}, squares = {0};
        for (int64_t i = 0; i < count; i++) {
            vec d = *(const vec *)(x + i * step + v) - pivot;
            sum += d, squares += d * d;
        }
        for (int i = 0; i < LANES; i++) {
            double off = (double)sum[i] / count, delta = pivot[i] + off - s->first[v + i];
            s->first[v + i] += delta * share;
            s->second[v + i] += squares[i] - off * sum[i] + delta * delta * cross;
        }
    }
    s->count = total;
}

static void add_gradient(const pass_t *k, sums_t *s, const float *x, int64_t step, const float *g, int64_t g_step, int count) {
    for (int v = 0; v < k->wide; v += LANES) {
        vec scale = *(vec *)(k->scale + v), shift = *(vec *)(k->shift + v), mean = *(vec *)(k->mean + v);
        vec sum = {0}, product = {0};
        for (int64_t i = 0; i < count; i++) {
            vec value = *(const vec *)(x + i * step + v), grad = *(const vec *)(g + i * g_step + v);
            if (k->p->relu) grad = relu_passed(value * scale + shift, grad);
            sum += grad, product += grad * (value - mean);
        }
        for (int i = 0; i < LANES; i++) s->first[v + i] += sum[i], s->second[v + i] += product[i];
    }
}

// First pass: the sums of one range of chunks.
static int sum_group(const pass_t *k, sums_t *s, int group, int backward) {
    const batch_norm_t *p = k->p;
    int64_t step, g_step;
    float *line = lc_malloc(NULL, sizeof(float) * 2 * CHUNK * k->wide);
    if (!line) return -1;
    for (int64_t chunk = k->chunks * group / k->groups; chunk < k->chunks * (group + 1) / k->groups; chunk++) {
        int64_t at = chunk * CHUNK;
        int count = p->pixels - at < CHUNK ? (int)(p->pixels - at) : CHUNK;
        const float *x = row_of(&p->x, at * p->x.pixel, count, p->channels, k->wide, line, &step);
        if (!backward) { add_statistics(k, s, x, step, count); continue; }
        const float *g = row_of(&p->y, at * p->y.pixel, count, p->channels, k->wide, line + CHUNK * k->wide, &g_step);
        add_gradient(k, s, x, step, g, g_step, count);
    }
    lc_free(NULL, line);
    return 0;
}

// Second pass: the results of one chunk.
static int write_chunk(const pass_t *k, int64_t chunk, int backward) {
    const batch_norm_t *p = k->p;
    int64_t at = chunk * CHUNK, step, g_step = 0, out_step;
    int count = p->pixels - at < CHUNK ? (int)(p->pixels - at) : CHUNK, wide = k->wide;
    float *line = lc_malloc(NULL, sizeof(float) * 3 * CHUNK * wide);
    if (!line) return -1;
    const map_t *to = backward ? &p->x_grad : &p->y;
    const float *x = row_of(&p->x, at * p->x.pixel, count, p->channels, wide, line, &step), *g = NULL;
    if (backward) g = row_of(&p->y, at * p->y.pixel, count, p->channels, wide, line + CHUNK * wide, &g_step);
    float *out = row_for(to, at * to->pixel, p->channels, wide, line + 2 * CHUNK * wide, &out_step);
    for (int64_t i = 0; i < count; i++)
        for (int v = 0; v < wide; v += LANES) {
            vec value = *(const vec *)(x + i * step + v), z = value * *(vec *)(k->scale + v) + *(vec *)(k->shift + v);
            if (backward) {
                vec grad = *(const vec *)(g + i * g_step + v);
                if (p->relu) grad = relu_passed(z, grad);
                z = grad * *(vec *)(k->scale + v) + (value - *(vec *)(k->mean + v)) * *(vec *)(k->k1 + v) + *(vec *)(k->k0 + v);
            } else if (p->relu) {
                bits_t negative = (bits_t)(z < 0.0f);
                z = (vec)(~negative & (bits_t)z);
            }
            *(vec *)(out + i * out_step + v) = z;
        }
    row_done(to, at * to->pixel, count, p->channels, wide, out);
    lc_free(NULL, line);
    return 0;
}

static void combine(const pass_t *k, int backward) {
    sums_t *s = (sums_t *)&k->group[0];
    for (int g = 1; g < k->groups; g++) {
        const sums_t *t = &k->group[g];
        double total = s->count + t->count, share = t->count / total;
        for (int c = 0; c < k->wide; c++) {
            double delta = t->first[c] - s->first[c];
            s->first[c] += backward ? t->first[c] : delta * share;
            s->second[c] += backward ? t->second[c] : t->second[c] + delta * delta * s->count * share;
        }
        s->count = total;
    }
}

// What the second pass multiplies and adds: forward from the statistics, backward from the sums as well.
static void factors(const pass_t *k, int backward, int summed) {
    const batch_norm_t *p = k->p;
    for (int c = 0; c < p->channels; c++) {
        if (!backward) p->mean[c] = (float)k->group[0].first[c], p->var[c] = (float)(k->group[0].second[c] / p->pixels);
        double inverse = 1 / sqrt((double)p->var[c] + p->eps), scale = (p->weight ? p->weight[c] : 1) * inverse;
        k->mean[c] = p->mean[c];
        k->scale[c] = (float)scale;
        k->shift[c] = (float)((p->bias ? p->bias[c] : 0) - p->mean[c] * scale);
        if (!summed) continue;
        double sum = k->group[0].first[c], product = k->group[0].second[c];
        p->bias_sum[c] = (float)sum, p->weight_sum[c] = (float)(product * inverse);
        k->k0[c] = (float)(-scale * sum / p->pixels);
        k->k1[c] = (float)(-scale * product * inverse * inverse / p->pixels);
    }
}

int lc_batch_norm(const batch_norm_t *p, int backward, int threads) {
    int wide = up(p->channels, LANES), failed = 0;
    pass_t k = {.p = p, .wide = wide, .chunks = (p->pixels + CHUNK - 1) / CHUNK};
    k.groups = k.chunks < GROUPS ? (int)k.chunks : GROUPS;
    size_t doubles = sizeof(double) * 2 * wide * k.groups, floats = sizeof(float) * 5 * wide;
    char *memory = lc_malloc(NULL, doubles + floats);
    if (!memory) return -1;
    memset(memory, 0, doubles + floats);
    for (int g = 0; g < k.groups; g++)
        k.group[g].first = (double *)memory + 2 * wide * g, k.group[g].second = k.group[g].first + wide;
    k.scale = (float *)(memory + doubles), k.shift = k.scale + wide, k.mean = k.shift + wide;
    k.k0 = k.mean + wide, k.k1 = k.k0 + wide;
    if (backward) factors(&k, 1, 0);
    if (threads > 1 && k.groups > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int g = 0; g < k.groups; g++) failed |= sum_group(&k, &k.group[g], g, backward);
    } else
        for (int g = 0; g < k.groups; g++) failed |= sum_group(&k, &k.group[g], g, backward);
    combine(&k, backward);
    factors(&k, backward, backward);
    if (threads > 1 && k.chunks > 1) {
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < k.chunks; t++) failed |= write_chunk(&k, t, backward);
    } else
        for (int64_t t = 0; t < k.chunks; t++) failed |= write_chunk(&k, t, backward);
    lc_free(NULL, memory);
    return failed;
}

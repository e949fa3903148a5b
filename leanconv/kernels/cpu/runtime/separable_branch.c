// Depthwise convolutions that keep the map's size and a 1×1 after them, for training: the result, and every gradient.
//
// What lies between x and y is written nowhere: a task keeps the rows that it needs of it in rings in the cache, and the
// gradient computes them from x again. A row of a ring is computed when it is asked for and is not there. Rows have zeros
// at both ends, so that the loops over taps have no borders; pixels of few channels lie next to each other in a vector.
#include "products.h"
#include "taps.h"

#define MOST_GROUPS 16
#define EXACT_AFTER 64  // sums of so many pixels at the least stay in float32; those are added up in float64

typedef struct {
    const branch_t *p;
    int wide;                    // channels of a pixel in a ring
    int step, vectors;           // floats from a vector of a row to the next one of its channels; how many
    int inner, outer;            // channels and outputs as the products have them
    int groups;                  // ranges of rows whose sums are added in order
    int64_t numbers;             // of a range: taps × step, inputs × outer, outer
    int64_t at[3];               // where among them each tensor's begin, the bias's last
    const float *taps[2], *matrix, *bias, *back, *zeros;
} plan_t;

typedef struct { int64_t data, line; int *row, slots, left, right; } ring_t;

typedef struct {
    const plan_t *k;
    float *memory, *in, *out;    // rings; a row of a map on its way in, and out
    ring_t value[3], grad[3];    // x and what follows it; the gradients with respect to these
    tap_t *list[4];              // the products of a row: of values, of gradients
    int64_t n;
} task_t;

static int width_of(int channels) {
    int wide = 1;
    while (wide < channels && wide < LANES) wide *= 2;
    return wide < LANES ? wide : up(channels, LANES);
}

static int span_of(const branch_t *p, int i) { return p->dh[i] * (p->r[i] - 1); }

static float *slot(const task_t *t, const ring_t *k, int row) {
    return t->memory + k->data + row % k->slots * k->line + (int64_t)k->left * t->k->wide;
}

static const float *value_row(task_t *t, int i, int row);
static const float *grad_row(task_t *t, int i, int row);

// A row behind stencil `i`; `back`: of the gradient before it.
static void run_stencil(task_t *t, int i, int back, int row, float *to, int64_t to_step) {
    const plan_t *k = t->k;
    const branch_t *p = k->p;
    tap_t *list = t->list[2 * back + i];
    int count = 0;
    for (int r = 0; r < p->r[i]; r++) {
        int from = back ? row + p->top[i] - r * p->dh[i] : row + r * p->dh[i] - p->top[i];
        if (from < 0 || from >= p->h) continue;
        int64_t x = (back ? grad_row(t, i + 1, from) : value_row(t, i, from)) - t->memory;
        for (int s = 0; s < p->s[i]; s++) {
            int off = s * p->dw[i] - p->left[i];
            list[count++] = (tap_t){x + (int64_t)(back ? -off : off) * k->wide, (int64_t)(r * p->s[i] + s) * k->step};
        }
    }
    for (int v = 0; v < k->step; v += 2 * LANES)
        run_tiles(t->memory + v, k->taps[i] + v, list, count, k->step, k->zeros + v, to + v, to_step, k->vectors,
                  v + LANES < k->step ? 2 : 1);
}

// Zeros again behind a row whose last vector went beyond it.
static float *ended(const task_t *t, float *row) {
    memset(row + (int64_t)t->k->p->w * t->k->wide, 0, sizeof(float) * LANES);
    return row;
}

static int64_t place(const task_t *t, const map_t *m, int row) { return t->n * m->sample + (int64_t)row * m->row; }

static const float *value_row(task_t *t, int i, int row) {
    const branch_t *p = t->k->p;
    ring_t *k = &t->value[i];
    float *to = slot(t, k, row);
    if (k->row[row % k->slots] == row) return to;
    if (i) run_stencil(t, i - 1, 0, row, to, t->k->step);
    else read_pixels(to, t->k->wide, &p->x, place(t, &p->x, row), p->x.pixel, p->w, p->channels);
    k->row[row % k->slots] = row;
    return ended(t, to);
}

static const float *result_grad(task_t *t, int row, int64_t *step) {
    const branch_t *p = t->k->p;
    return row_of(&p->y, place(t, &p->y, row), p->w, p->outputs, t->k->outer, t->in, step);
}

// The gradient before the 1×1.
static void product_back(task_t *t, int row, float *to, int64_t to_step) {
    int64_t step;
    const float *g = result_grad(t, row, &step);
    dots(g, step, t->k->back, t->k->inner, t->k->p->outputs, t->k->zeros, to, to_step, t->k->p->w);
}

static const float *grad_row(task_t *t, int i, int row) {
    ring_t *k = &t->grad[i];
    float *to = slot(t, k, row);
    if (k->row[row % k->slots] == row) return to;
    if (i < t->k->p->stencils) run_stencil(t, i, 1, row, to, t->k->step);
    else product_back(t, row, to, t->k->wide);
    k->row[row % k->slots] = row;
    return ended(t, to);
}

// The input of the 1×1: where it lies, if it is a map of float32 itself.
static const float *product_row(task_t *t, int row, int64_t *step) {
    const branch_t *p = t->k->p;
    *step = t->k->wide;
    if (p->stencils || p->x.element != FLOAT32) return value_row(t, p->stencils, row);
    *step = p->x.pixel;
    return (const float *)p->x.data + place(t, &p->x, row);
}

static void result_row(task_t *t, int row) {
    const plan_t *k = t->k;
    const branch_t *p = k->p;
    int64_t x_step, y_step, to = place(t, &p->y, row);
    const float *x = product_row(t, row, &x_step);
    float *y = row_for(&p->y, to, p->outputs, k->outer, t->out, &y_step);
    dots(x, x_step, k->matrix, k->outer, p->channels, k->bias, y, y_step, p->w);
    row_done(&p->y, to, p->w, p->outputs, k->outer, y);
}

static void x_grad_row(task_t *t, int row) {
    const plan_t *k = t->k;
    const branch_t *p = k->p;
    const map_t *m = &p->x_grad;
    int64_t to = place(t, m, row);
    int straight = m->element == FLOAT32 && p->channels == (p->stencils ? k->wide : k->inner);
    if (p->stencils && k->wide < LANES) straight &= m->pixel == k->wide && p->w * k->wide % LANES == 0;
    float *line = straight ? (float *)m->data + to : t->out;
    if (p->stencils) run_stencil(t, 0, 1, row, line, straight && k->wide >= LANES ? m->pixel : k->step);
    else product_back(t, row, line, straight ? m->pixel : k->wide);
    if (!straight) write_pixels(line, k->wide, m, to, m->pixel, p->w, p->channels);
}

// Ask for what the next row needs: it comes while this one is computed.
static void fetch_next(const task_t *t, int row, int backward) {
    const branch_t *p = t->k->p;
    int behind = row + 1, ahead = 0;
    for (int i = 0; i < p->stencils; i++) ahead += span_of(p, i) - p->top[i];
    if (behind + ahead < p->h) fetch(&p->x, place(t, &p->x, behind + ahead), p->w, 0);
    if (behind < p->h && !backward) fetch(&p->y, place(t, &p->y, behind), p->w, 1);
    if (!backward) return;
    for (int i = ahead = 0; i < p->stencils; i++) ahead += p->top[i];
    if (behind + ahead < p->h) fetch(&p->y, place(t, &p->y, behind + ahead), p->w, 0);
    if (behind < p->h && p->x_grad.data) fetch(&p->x_grad, place(t, &p->x_grad, behind), p->w, 1);
}

// What a row of results adds to the gradients of the taps, the matrix and the bias.
static void add_sums(task_t *t, int row, float *kept) {
    const plan_t *k = t->k;
    const branch_t *p = k->p;
    if (p->matrix_sum || p->bias_sum) {
        int64_t x_step, g_step;
        const float *x = product_row(t, row, &x_step), *g = result_grad(t, row, &g_step);
        if (p->matrix_sum) outers(x, x_step, g, g_step, p->w, p->channels, kept + k->at[2], k->outer);
        if (p->bias_sum) totals(g, g_step, p->w, kept + k->at[2] + (int64_t)p->channels * k->outer, k->outer);
    }
    for (int i = p->stencils - 1; i >= 0; i--) {
        if (!p->taps_sum[i]) continue;
        const float *g = grad_row(t, i + 1, row);
        tap_t *list = t->list[i];
        int count = 0;
        for (int r = 0; r < p->r[i]; r++) {
            int from = row + r * p->dh[i] - p->top[i];
            if (from < 0 || from >= p->h) continue;
            int64_t x = value_row(t, i, from) - t->memory;
            for (int s = 0; s < p->s[i]; s++)
                list[count++] = (tap_t){x + (int64_t)(s * p->dw[i] - p->left[i]) * k->wide, (int64_t)(r * p->s[i] + s) * k->step};
        }
        for (int v = 0; v < k->step; v += 2 * LANES) {
            int vectors = v + LANES < k->step ? 2 : 1, parts = (count + TAPS(vectors) - 1) / TAPS(vectors);
            for (int part = 0; part < parts; part++) {
                int from = count * part / parts, to = count * (part + 1) / parts;
                SUMS[vectors - 1][to - from](t->memory + v, list + from, k->step, g + v, k->step, k->vectors, kept + k->at[i] + v);
            }
        }
    }
}

// Rows of each ring that are of use at a time; rings, lists and lines of a task, as offsets, and their bytes.
static size_t lay_out(task_t *t, int backward) {
    const plan_t *k = t->k;
    const branch_t *p = k->p;
    int behind = 1, before = 1, most_taps = 1;
    int64_t floats = 0, rows = 0;
    for (int i = p->stencils; i >= 0; i--) {
        t->value[i].slots = least(behind, p->h);
        if (i) behind += span_of(p, i - 1);
    }
    for (int i = 0; i <= p->stencils; i++) {
        t->grad[i].slots = i && backward ? least(before, p->h) : 0;
        if (i < p->stencils) before += span_of(p, i), most_taps = most(most_taps, p->r[i] * p->s[i]);
    }
    // The first gradient is written into its map: rings begin behind the first stencil, with that one's span.
    for (int i = 0; i <= p->stencils; i++)
        for (int back = 0; back < 2; back++) {
            ring_t *ring = back ? &t->grad[i] : &t->value[i];
            int next = back ? i - 1 : i, has = next >= 0 && next < p->stencils;
            int left = has ? p->left[next] : 0, right = has ? p->dw[next] * (p->s[next] - 1) - left : 0;
            ring->left = back ? right : left, ring->right = back ? left : right;
            ring->line = ((int64_t)(left + p->w + right) * k->wide + 2 * LANES) / LANES * LANES;
            ring->data = floats;
            floats += ring->slots * ring->line, rows += ring->slots;
        }
    int64_t line = (int64_t)p->w * most(most(k->outer, k->inner), k->wide) + 2 * LANES;
    size_t lists = sizeof(tap_t) * 4 * most_taps;
    if (t->memory) {
        char *at = (char *)(t->memory + floats);
        memset(t->memory, 0, sizeof(float) * floats);
        t->in = (float *)at, t->out = t->in + line, at += sizeof(float) * 2 * line;
        for (int i = 0; i < 4; i++) t->list[i] = (tap_t *)at + i * most_taps;
        int *row = (int *)(at + lists);
        for (int i = 0; i <= p->stencils; i++)
            for (int back = 0; back < 2; back++) {
                ring_t *ring = back ? &t->grad[i] : &t->value[i];
                ring->row = row, row += ring->slots;
            }
    }
    return sizeof(float) * (floats + 2 * line) + lists + sizeof(int) * rows;
}

static void begin_sample(task_t *t, int64_t n) {
    t->n = n;
    for (int i = 0; i <= t->k->p->stencils; i++) {
        for (int j = 0; j < t->value[i].slots; j++) t->value[i].row[j] = -1;
        for (int j = 0; j < t->grad[i].slots; j++) t->grad[i].row[j] = -1;
    }
}

// A range of rows; `sums`: theirs in double, NULL for results.
static int run_range(const plan_t *k, int64_t from, int64_t end, double *sums) {
    const branch_t *p = k->p;
    task_t t = {.k = k, .n = -1};
    size_t bytes = (lay_out(&t, sums != NULL) + 63) / 64 * 64;
    t.memory = lc_malloc(NULL, bytes + (sums ? sizeof(float) * k->numbers : 0));
    if (!t.memory) return -1;
    lay_out(&t, sums != NULL);
    float *kept = (float *)((char *)t.memory + bytes);
    if (sums) memset(kept, 0, sizeof(float) * k->numbers);
    int pending = 0;
    for (int64_t at = from; at < end; at++) {
        int row = (int)(at % p->h);
        if (at / p->h != t.n) begin_sample(&t, at / p->h);
        fetch_next(&t, row, sums != NULL);
        if (!sums) {
            result_row(&t, row);
            continue;
        }
        add_sums(&t, row, kept);
        if (p->x_grad.data) x_grad_row(&t, row);
        if ((pending += p->w) < EXACT_AFTER && at + 1 < end) continue;
        for (int64_t i = 0; i < k->numbers; i++) sums[i] += kept[i];
        memset(kept, 0, sizeof(float) * k->numbers);
        pending = 0;
    }
    lc_free(NULL, t.memory);
    return 0;
}

// Weights as the loops read them. Returns the memory that they are in; NULL: none was found.
static char *packed(plan_t *k) {
    const branch_t *p = k->p;
    int taps[2] = {0, 0};
    for (int i = 0; i < p->stencils; i++) taps[i] = p->r[i] * p->s[i];
    k->wide = width_of(p->channels), k->step = most(k->wide, LANES);
    k->vectors = k->wide < LANES ? (int)(((int64_t)p->w * k->wide + LANES - 1) / LANES) : p->w;
    k->inner = product_width(p->channels), k->outer = product_width(p->outputs);
    k->at[1] = (int64_t)taps[0] * k->step, k->at[2] = k->at[1] + (int64_t)taps[1] * k->step;
    k->numbers = k->at[2] + (int64_t)(p->channels + 1) * k->outer;
    int64_t zeros = most(k->step, k->inner), floats = k->numbers + (int64_t)p->outputs * k->inner + zeros;
    char *memory = lc_malloc(NULL, sizeof(float) * floats);
    if (!memory) return NULL;
    float *own = (float *)memory;
    memset(own, 0, sizeof(float) * floats);
    for (int i = 0; i < p->stencils; i++) {
        k->taps[i] = own + k->at[i];
        for (int t = 0; t < taps[i]; t++)
            for (int j = 0; j < k->step; j++)
                if (j % k->wide < p->channels) own[k->at[i] + (int64_t)t * k->step + j] = p->taps[i][(int64_t)(j % k->wide) * taps[i] + t];
    }
    float *matrix = own + k->at[2], *bias = matrix + (int64_t)p->channels * k->outer, *back = bias + k->outer;
    for (int o = 0; o < p->outputs; o++) {
        for (int c = 0; c < p->channels; c++)
            matrix[(int64_t)c * k->outer + o] = back[(int64_t)o * k->inner + c] = p->matrix[(int64_t)o * p->channels + c];
        if (p->bias) bias[o] = p->bias[o];
    }
    k->matrix = matrix, k->bias = bias, k->back = back, k->zeros = back + (int64_t)p->outputs * k->inner;
    return memory;
}

// y from x. Any number of threads gives the same bits.
int lc_branch(const branch_t *p, int threads) {
    plan_t k = {.p = p};
    int64_t rows = (int64_t)p->samples * p->h;
    char *memory = packed(&k);
    if (!memory) return -1;
    int failed = 0, parts = threads < 2 ? 1 : rows < 4 * threads ? (int)rows : 4 * threads;
    if (parts > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int i = 0; i < parts; i++) failed |= run_range(&k, rows * i / parts, rows * (i + 1) / parts, NULL);
    } else
        failed = run_range(&k, 0, rows, NULL);
    lc_free(NULL, memory);
    return failed;
}

// The sum of a number over the ranges, in order; `sums` points to it in the first one.
static double over_ranges(const plan_t *k, const double *sums) {
    double sum = 0;
    for (int i = 0; i < k->groups; i++) sum += sums[i * k->numbers];
    return sum;
}

// The gradients from x and that of y. Any number of threads gives the same bits: the ranges' sums are added in order.
int lc_branch_gradients(const branch_t *p, int threads) {
    plan_t k = {.p = p};
    int span = 1;
    int64_t rows = (int64_t)p->samples * p->h;
    for (int i = 0; i < p->stencils; i++) span += span_of(p, i);
    k.groups = most(1, rows / span < MOST_GROUPS ? (int)(rows / span) : MOST_GROUPS);
    char *memory = packed(&k);
    double *sums = lc_malloc(NULL, sizeof(double) * k.groups * k.numbers);
    if (!memory || !sums) {
        if (memory) lc_free(NULL, memory);
        if (sums) lc_free(NULL, sums);
        return -1;
    }
    memset(sums, 0, sizeof(double) * k.groups * k.numbers);
    int failed = 0;
    if (threads > 1 && k.groups > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int i = 0; i < k.groups; i++)
            failed |= run_range(&k, rows * i / k.groups, rows * (i + 1) / k.groups, sums + i * k.numbers);
    } else
        for (int i = 0; i < k.groups; i++)
            failed |= run_range(&k, rows * i / k.groups, rows * (i + 1) / k.groups, sums + i * k.numbers);
    for (int i = 0; i < p->stencils; i++) {
        int taps = p->r[i] * p->s[i];
        for (int c = 0; c < p->channels && p->taps_sum[i]; c++)
            for (int t = 0; t < taps; t++) {
                double sum = 0;
                for (int j = c; j < k.step; j += k.wide) sum += over_ranges(&k, sums + k.at[i] + (int64_t)t * k.step + j);
                p->taps_sum[i][(int64_t)c * taps + t] = (float)sum;
            }
    }
    for (int o = 0; o < p->outputs; o++)
        for (int c = 0; c <= p->channels; c++) {
            double sum = over_ranges(&k, sums + k.at[2] + (int64_t)c * k.outer + o);
            if (c == p->channels) { if (p->bias_sum) p->bias_sum[o] = (float)sum; }
            else if (p->matrix_sum) p->matrix_sum[(int64_t)o * p->channels + c] = (float)sum;
        }
    lc_free(NULL, sums);
    lc_free(NULL, memory);
    return failed;
}

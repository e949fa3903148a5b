// 1×1 convolutions of few channels for training: result (and, with the weights transposed, the gradient of the data), and
// the gradients of weights and bias. Maps of float32 or bfloat16 with channels innermost; sums in float32.
//
// The map is cut into runs of pixels. Output channels are the vectors' lanes, and an input is one number for all of them,
// so there is no tail on the input's side.
#include "products.h"

#define RUN 128  // pixels: so many are summed in float32 for the gradient of weights, those sums in float64

typedef struct {
    const pointwise_t *p;
    int rows, columns, per_row;  // rows of pixels that lie evenly; runs of one
    int wide;                    // output channels as whole vectors, or as half a one
    int64_t runs;
    const float *weight, *bias;  // inputs × wide; wide
} plan_t;

// Where run `i` begins in a map, and its pixels.
INLINE int64_t run_at(const plan_t *k, const map_t *m, int64_t i, int *count) {
    int64_t row = i / k->per_row;
    int from = (int)(i % k->per_row) * RUN;
    *count = least(RUN, k->columns - from);
    return row / k->rows * m->sample + row % k->rows * m->row + from * m->pixel;
}

// A run of the input as floats: its numbers are read one by one, so those of float32 always lie well.
INLINE const float *inputs_of(const plan_t *k, int64_t at, int count, float *line, int64_t *step) {
    const map_t *m = &k->p->x;
    if (m->element == FLOAT32) {
        *step = m->pixel;
        return (const float *)m->data + at;
    }
    *step = up(k->p->inputs, LANES);
    read_pixels(line, (int)*step, m, at, m->pixel, count, k->p->inputs);
    return line;
}

static void result_run(const plan_t *k, int64_t i, float *lines) {
    const pointwise_t *p = k->p;
    int count;
    int64_t x_step, y_step, from = run_at(k, &p->x, i, &count), to = run_at(k, &p->y, i, &count);
    const float *x = inputs_of(k, from, count, lines, &x_step);
    float *y = row_for(&p->y, to, p->outputs, k->wide, lines + RUN * up(p->inputs, LANES), &y_step);
    dots(x, x_step, k->weight, k->wide, p->inputs, k->bias, y, y_step, count);
    row_done(&p->y, to, count, p->outputs, k->wide, y);
}

// One range of runs: its sums in double, inputs × wide, then the bias's.
static void sums_range(const plan_t *k, int64_t first, int64_t end, double *total, float *kept, float *lines) {
    const pointwise_t *p = k->p;
    int64_t x_step, g_step, numbers = (int64_t)(p->inputs + 1) * k->wide;
    for (int64_t i = first; i < end; i++) {
        int count;
        int64_t from_x = run_at(k, &p->x, i, &count), from_g = run_at(k, &p->y, i, &count);
        const float *x = inputs_of(k, from_x, count, lines, &x_step);
        const float *g = row_of(&p->y, from_g, count, p->outputs, k->wide, lines + RUN * up(p->inputs, LANES), &g_step);
        memset(kept, 0, sizeof(float) * numbers);
        outers(x, x_step, g, g_step, count, p->inputs, kept, k->wide);
        totals(g, g_step, count, kept + (int64_t)p->inputs * k->wide, k->wide);
        for (int64_t j = 0; j < numbers; j++) total[j] += kept[j];
    }
}

static plan_t plan_of(const pointwise_t *p) {
    plan_t k = {.p = p, .rows = p->rows, .columns = p->columns, .wide = product_width(p->outputs)};
    if (p->x.row == p->columns * p->x.pixel && p->y.row == p->columns * p->y.pixel) k.rows = 1, k.columns = p->rows * p->columns;
    k.per_row = (k.columns + RUN - 1) / RUN;
    k.runs = (int64_t)p->samples * k.rows * k.per_row;
    return k;
}

static size_t line_bytes(const plan_t *k) { return sizeof(float) * RUN * (up(k->p->inputs, LANES) + k->wide); }

// y = bias + weight · x. Any number of threads gives the same bits.
int lc_pointwise(const pointwise_t *p, int threads) {
    plan_t k = plan_of(p);
    size_t lines = line_bytes(&k);
    int parts = threads < 2 ? 1 : (int)(k.runs < 4 * threads ? k.runs : 4 * threads);
    char *memory = lc_malloc(NULL, sizeof(float) * (p->inputs + 1) * k.wide + parts * lines);
    if (!memory) return -1;
    float *weight = (float *)memory, *bias = weight + (int64_t)p->inputs * k.wide;
    char *scratch = (char *)(bias + k.wide);
    for (int c = 0; c < p->inputs; c++)
        for (int o = 0; o < k.wide; o++)
            weight[(int64_t)c * k.wide + o] = o < p->outputs ? p->weight[o * p->weight_out + c * p->weight_in] : 0.0f;
    for (int o = 0; o < k.wide; o++) bias[o] = p->bias && o < p->outputs ? p->bias[o] : 0.0f;
    k.weight = weight, k.bias = bias;
    if (parts > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int part = 0; part < parts; part++)
            for (int64_t i = k.runs * part / parts; i < k.runs * (part + 1) / parts; i++)
                result_run(&k, i, (float *)(scratch + part * lines));
    } else
        for (int64_t i = 0; i < k.runs; i++) result_run(&k, i, (float *)scratch);
    lc_free(NULL, memory);
    return 0;
}

// The gradients of weights and bias from x and the gradient of y. Sums of fixed ranges are added in order: any number of
// threads gives the same bits.
int lc_pointwise_weight(const pointwise_t *p, int threads) {
    plan_t k = plan_of(p);
    int groups = (int)(k.runs < p->groups ? k.runs : p->groups);
    int64_t numbers = (int64_t)(p->inputs + 1) * k.wide;
    size_t doubles = sizeof(double) * numbers, each = doubles + sizeof(float) * numbers + line_bytes(&k);
    char *memory = lc_malloc(NULL, each * most(groups, 1));
    if (!memory) return -1;
    if (threads > 1 && groups > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int i = 0; i < groups; i++) {
            char *own = memory + i * each;
            memset(own, 0, doubles);
            sums_range(&k, k.runs * i / groups, k.runs * (i + 1) / groups, (double *)own, (float *)(own + doubles),
                       (float *)(own + doubles) + numbers);
        }
    } else
        for (int i = 0; i < groups; i++) {
            char *own = memory + i * each;
            memset(own, 0, doubles);
            sums_range(&k, k.runs * i / groups, k.runs * (i + 1) / groups, (double *)own, (float *)(own + doubles),
                       (float *)(own + doubles) + numbers);
        }
    for (int o = 0; o < p->outputs; o++)
        for (int c = 0; c <= p->inputs; c++) {
            double sum = 0;
            for (int i = 0; i < groups; i++) sum += ((double *)(memory + i * each))[(int64_t)c * k.wide + o];
            if (c < p->inputs) p->weight_sum[(int64_t)o * p->inputs + c] = (float)sum;
            else p->bias_sum[o] = (float)sum;
        }
    lc_free(NULL, memory);
    return 0;
}

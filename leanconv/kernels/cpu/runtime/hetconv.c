// HetConv for training: filter o has a k×k kernel at the channels of its group, which are those with c mod P = o mod P or
// a block of them, and one number at the kernel's centre for every other channel, or for each. The result, the gradient of the data, and those of the weights.
//
// A band of rows is computed at a time, from lines of its own, one block of vectors after the other: their weights stay in
// the cache. The centre's tap of the k×k kernels is one of the numbers at the centre: a full product without gaps.
#include "hetconv_lines.h"

#define MOST_GROUPS 16
#define GROUP 512              // pixels of a range of rows whose weights' sums are added in order, at the least
#define EXACT_AFTER 64         // sums of about so many pixels stay in registers; those of a band are added up in float64
#define LEAST_BAND 256         // pixels of a band for the weights' gradient: it passes over all sums once more

// Whether rows of a kernel have three taps side by side, and are worth it: two vectors of filters are no longer held up by
// reading.
static int in_threes(const plan_t *k) {
    return k->p->s == 3 && k->p->dw == 1 && k->sw == 1 && k->uw == 1 && k->wide <= LANES;
}

// The row of the map that a line of a row of results has.
static int row_at(const plan_t *k, const target_t *t, int line) { return t->row * k->sh - k->top + line - t->line; }

// Which rows of the kernel lie on the map, and the phase, as one number: most rows of results have the same taps. 0: too
// many for one.
static uint64_t met_by(const plan_t *k, int row, int phase) {
    const hetconv_t *p = k->p;
    uint64_t key = phase + 1;
    if (p->r > 40 || phase > 1 << 20) return 0;
    for (int r = 0; r < p->r; r++) key = 2 * key + is_there(k, row * k->sh + r * p->dh - k->top);
    return key;
}

// Whether a row of float32 in the map is as the loops have it.
static int is_straight(const plan_t *k) { return k->to.element == FLOAT32 && k->outputs == k->wide && k->sorted; }

// The taps of a row of results that lie on the map, for every uw-th column from `phase` on.
static void list_taps(const plan_t *k, row_t *to, tap_t *threes, tap_t *list, int row, int phase, int lanes) {
    const hetconv_t *p = k->p;
    to->rows = to->count = 0, to->centre = to->two.x = -1;
    for (int r = 0, packed = 0; r < p->r; r++) {
        int there = is_there(k, row * k->sh + r * p->dh - k->top), centre = r == p->r / 2, three = there && in_threes(k);
        tap_t first = {r * p->dh * k->line, packed * to->tap};
        if (three && centre) to->two = first;
        else if (three) threes[to->rows++] = first;
        for (int s = 0; s < p->s; s++) {
            int middle = centre && s == p->s / 2, column = phase + s * p->dw - k->left, at = floor_div(column, k->uw);
            int64_t x = first.x + (int64_t)(at + k->zeros) * k->items, w = packed * to->tap;
            int met = there && at * k->uw == column;
            if (met && middle) to->centre = x;
            else if (met && !three)
                for (int j = 0; j < to->steps; j++) list[to->count++] = (tap_t){x + j * p->part, w + (int64_t)j * lanes};
            packed += !middle;
        }
    }
}

// Rows from..end of all samples' results.
static void product_band(const plan_t *k, int64_t from, int64_t end, float *memory) {
    const hetconv_t *p = k->p;
    int count = (int)(end - from);
    int straight = is_straight(k);
    float *lines = memory, *out = lines + k->lines * k->line, *spare = out + (int64_t)k->band * k->columns * k->wide;
    target_t *targets = (target_t *)(spare + spare_of(k));
    tap_t *threes = (tap_t *)(targets + k->band), *list = threes + p->r;
    lines_for(k, from, end, targets);
    for (int i = 0, next = 0; i < count; i++)
        for (int at = most(next, targets[i].line); at <= targets[i].line + span_h(p); next = ++at) {
            int row = row_at(k, &targets[i], at);
            if (is_there(k, row)) read_line(k, lines + at * k->line, targets[i].n, row, spare);
        }
    const float *w = k->taps, *centre_w = k->centre;
    for (int v = 0; v < k->wide; v += 2 * LANES) {
        int vectors = vectors_at(v, k->wide), lanes = lanes_of(vectors);
        row_t row = {.threes = threes, .taps = list, .w = w, .centre_w = centre_w, .bias = k->bias + v,
                     .step = (int64_t)k->sw * k->items, .tap = (int64_t)k->items / p->part * lanes,
                     .steps = k->items / p->part, .items = k->items};
        if (p->blocked && k->sorted && vectors == 2) row.apart = k->outputs / 2;
        if (p->blocked && k->sorted && vectors < 2) row.order = k->order;
        dot_fn *const *of = DOTS[k->pairs][log2_of(p->part)][vectors];
        uint64_t listed = 0;
        for (int i = 0; i < count; i++) {
            const target_t *t = &targets[i];
            const float *x = lines + t->line * k->line;
            float *y = straight ? (float *)k->to.data + place(&k->to, t->n, t->row) : out + (int64_t)i * k->columns * k->wide;
            int64_t pixel = straight ? k->to.pixel : k->wide;
            row.y_step = k->uw * pixel;
            for (int phase = 0; phase < least(k->uw, k->columns); phase++) {  // of the gradient of strided data
                uint64_t key = met_by(k, t->row, phase);
                if (!key || key != listed) list_taps(k, &row, threes, list, t->row, phase, lanes);
                listed = key;
                int columns = (k->columns - phase + k->uw - 1) / k->uw;
                for (int q = 0, size = LARGEST[vectors]; size >= 0; size--) {
                    int tiles = (columns - q) >> size;
                    if (tiles) of[size](&row, x + q * row.step, y + phase * pixel + q * row.y_step + (row.apart ? v / 2 : v), tiles);
                    q += tiles << size;
                }
            }
        }
        w += k->taps_size * lanes, centre_w += k->centre_size * lanes;
    }
    if (straight) return;
    for (int i = 0; i < count; i++)
        write_row(k, out + (int64_t)i * k->columns * k->wide, place(&k->to, targets[i].n, targets[i].row), spare);
}

static size_t product_bytes(const plan_t *k) {
    int64_t floats = k->lines * k->line + (int64_t)k->band * k->columns * k->wide + spare_of(k);
    int64_t taps = k->p->r + (int64_t)taps_of(k->p) * k->items / k->p->part;
    return sizeof(float) * floats + sizeof(target_t) * k->band + sizeof(tap_t) * taps;
}

static int product_range(const plan_t *k, int64_t from, int64_t end) {
    float *memory = lc_malloc(NULL, product_bytes(k));
    if (!memory) return -1;
    for (int64_t at = from; at < end; at += k->band)
        product_band(k, at, at + k->band < end ? at + k->band : end, memory);
    lc_free(NULL, memory);
    return 0;
}

// A weight's place: floats, or halves of items.
INLINE void put(const plan_t *k, float *to, int64_t step, int lanes, int lane, int channel, float value) {
    if (!k->pairs) to[step * lanes + lane] = value;
    else ((uint16_t *)to)[2 * (step * lanes + lane) + channel] = rounded(value);
}

// Where an output's lane is among the vectors: the first lane of its block, and the block's lanes.
typedef struct { int v, lanes, lane; } lane_t;

INLINE lane_t lane_of(int output, int wide) {
    int whole = wide / (2 * LANES) * (2 * LANES), v = output < whole ? output / (2 * LANES) * (2 * LANES) : whole;
    return (lane_t){v, lanes_of(vectors_at(v, wide)), output - v};
}

// Channels whose weights are put in place, or taken from there, for one filter after the other: lines of the cache are
// filled by the filters that share them.
#define RUN 32

// How many of filter o's own channels come before c (a multiple of P, where groups are no blocks).
static int owned_before(const hetconv_t *p, int o, int c) {
    int own = p->channels / p->part;
    return p->blocked ? least(own, most(0, c - o / (p->outputs / p->part) * own)) : c / p->part;
}

// Where filter o's weights begin from channel c on.
static int64_t others_at(const hetconv_t *p, int o, int c) {
    int others = p->full ? 0 : p->channels / p->part;
    return (int64_t)o * (p->channels - others) + c - (p->full ? 0 : owned_before(p, o, c));
}

static int64_t kernel_at(const hetconv_t *p, int o, int c) {
    return ((int64_t)o * (p->channels / p->part) + owned_before(p, o, c)) * taps_of(p);
}

// Weights as the loops read them: blocks of one or two vectors of outputs.
static void pack(plan_t *k) {
    const hetconv_t *p = k->p;
    int taps = taps_of(p), middle = middle_of(p), part = p->part, steps = k->items / part;
    for (int first = 0, o = 0; first < p->channels; first += ++o < p->outputs ? 0 : RUN, o %= p->outputs) {
        const float *one = p->pointwise + others_at(p, o, first), *kernel = p->spatial;
        if (kernel) kernel += kernel_at(p, o, first);
        for (int c = first, filter = position(p, o, p->outputs); c < least(first + RUN, p->channels); c++) {
            int channel = position(p, c, p->channels), in = k->back ? filter : channel;
            lane_t to = lane_of(k->back ? channel : filter, k->wide);
            int step = in >> log2_of(part), half = step & k->pairs, of = step >> k->pairs, j = in & (part - 1);
            int own = !((channel ^ filter) & (part - 1)), has_taps = own && kernel;
            float *w = k->taps + k->taps_size * to.v, *centre_w = k->centre + k->centre_size * to.v;
            float centre = (has_taps ? kernel[middle] : 0.0f) + (!own || p->full ? *one++ : 0.0f);
            put(k, centre_w, of * part + j, to.lanes, to.lane, half, centre);
            if (!has_taps) continue;
            for (int t = 0, packed = 0; t < taps; t++)
                if (t != middle)
                    put(k, w, (int64_t)packed++ * steps + of, to.lanes, to.lane, half, kernel[k->back ? taps - 1 - t : t]);
            kernel += taps;
        }
    }
    for (int o = 0; p->bias && !k->back && o < p->outputs; o++) k->bias[position(p, o, p->outputs)] = p->bias[o];
}

static plan_t plan_of(const hetconv_t *p, int back) {
    plan_t k = {.p = p, .back = back, .from = p->x, .to = p->y, .inputs = p->channels, .outputs = p->outputs, .h = p->h,
                .w = p->w, .rows = p->rows, .columns = p->columns, .sh = p->sh, .sw = p->sw, .uh = 1, .uw = 1,
                .top = p->top, .left = p->left};
    if (back) {
        k.from = p->y, k.to = p->x, k.inputs = p->outputs, k.outputs = p->channels;
        k.h = p->rows, k.w = p->columns, k.rows = p->h, k.columns = p->w;
        k.sh = k.sw = 1, k.uh = p->sh, k.uw = p->sw, k.top = span_h(p) - p->top, k.left = span_w(p) - p->left;
    }
    k.pairs = HAS_PAIRS && p->x.element == BFLOAT16;
    k.zeros = -floor_div(-k.left, k.uw);
    k.cols = floor_div((k.columns - 1) * k.sw + span_w(p) - k.left, k.uw) + k.zeros + 1;
    k.wide = wide_of(k.outputs, p->part);
    k.sorted = !p->blocked || k.wide <= LANES || (p->part == 2 && k.outputs % (2 * LANES) == 0);
    for (int i = 0; i < LANES; i++) k.order[i] = i < k.outputs ? position(p, i, k.outputs) : i;
    return k;
}

// y from x; `backward`: the gradient of x, into x, from that of y. Any number of threads gives the same bits.
int lc_hetconv(const hetconv_t *p, int backward, int threads) {
    plan_t k = plan_of(p, backward);
    int64_t rows = (int64_t)p->samples * k.rows;
    int steps = k.inputs / p->part;
    k.items = k.pairs ? (steps + 1) / 2 * p->part : k.inputs;
    k.line = ((int64_t)k.cols * k.items + LANES - 1) / LANES * LANES;
    fit_band(&k, (int64_t)k.columns * k.wide, rows, 1);
    k.taps_size = (int64_t)(taps_of(p) - 1) * (k.items / p->part), k.centre_size = k.items;
    int64_t floats = (k.taps_size + k.centre_size + 1) * k.wide;
    char *memory = lc_malloc(NULL, sizeof(float) * floats);
    if (!memory) return -1;
    memset(memory, 0, sizeof(float) * floats);
    k.taps = (float *)memory, k.centre = k.taps + k.taps_size * k.wide, k.bias = k.centre + k.centre_size * k.wide;
    pack(&k);
    int failed = 0;
    int64_t bands = (rows + k.band - 1) / k.band;
    int parts = threads < 2 ? 1 : (int)(bands < 4 * threads ? bands : 4 * threads);
    if (parts > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int i = 0; i < parts; i++) failed |= product_range(&k, rows * i / parts, rows * (i + 1) / parts);
    } else
        failed = product_range(&k, 0, rows);
    lc_free(NULL, memory);
    return failed;
}

// What a task of the weights' gradient needs: sums by vectors of filters, of taps × steps, then channels, then the bias.
typedef struct {
    plan_t k;
    int pixels;           // of a row of the gradient: pairs of them where items are
    int64_t weights;      // sums of a lane: taps × steps, channels; behind all of them the bias's
    const int64_t *at;    // where each weight's items are, behind those of its row
} sums_t;

// What a row of the gradient adds to the bias's sums.
static void totals(const sums_t *s, const float *g, int64_t step, float *sums) {
    const plan_t *k = &s->k;
    for (int v = 0; v < k->wide; v += LANES / 2) {
        part_t sum[2] = {{0}};
        for (int q = 0; q < s->pixels; q++) {
            part_t both = *(const part_t *)(g + q * step + v);
            if (k->pairs) {
                sum[0] += (part_t)((part_bits_t)both << 16);
                sum[1] += (part_t)((part_bits_t)both & 0xffff0000u);
            } else
                sum[q % 2] += both;
        }
        *(part_t *)(sums + v) += sum[0] + sum[1];
    }
}

// The weights from..end in tiles of up to 1 << largest of them.
static void run_sums(const rows_t *rows, const int64_t *at, sum_fn *const *of, int largest, int from, int end, int v,
                     int lanes, int count, int run, float *sums) {
    for (int size = largest; size >= 0; size--)
        for (; from + (1 << size) <= end; from += 1 << size)
            for (int i = 0; i < count; i += run)
                of[size](rows, v, i, least(i + run, count), at + from, sums + (int64_t)from * lanes);
}

// What rows from..end of all samples' gradients add to the sums.
static void sums_band(const sums_t *s, int64_t from, int64_t end, float *kept, float *memory) {
    const plan_t *k = &s->k;
    const hetconv_t *p = k->p;
    int count = (int)(end - from);
    int straight = is_straight(k) && !p->blocked;
    int times = log2_of(p->part);
    int64_t g_line = (int64_t)s->pixels * k->wide, pixel = 4 * (int64_t)k->inputs;
    int64_t chunks = chunks_of(k);
    float *lines = memory, *g = lines + k->lines * k->line, *spare = g + k->band * g_line;
    target_t *targets = (target_t *)(spare + spare_of(k));
    int64_t *x_at = (int64_t *)(targets + k->band), *g_at = x_at + k->band;
    lines_for(k, from, end, targets);
    for (int i = 0, next = 0; i < count; i++) {
        const target_t *t = &targets[i];
        x_at[i] = t->line * k->line;
        for (int at = most(next, t->line); at <= t->line + span_h(p); next = ++at) {
            int row = row_at(k, t, at);
            float *line = lines + at * k->line;
            int begin = most(0, k->zeros), first = begin - k->zeros, columns = least(k->cols - begin, k->w - first);
            if (!is_there(k, row) || columns < 1) memset(line, 0, sizeof(float) * k->line);
            else if (!k->pairs) read_line(k, line, t->n, row, spare);
            else {
                float *to = p->blocked ? spare + chunks : line;
                const uint16_t *from = (const uint16_t *)k->from.data + place(&k->from, t->n, row) + first * k->from.pixel;
                int64_t apart = k->from.pixel;
                if (apart != k->inputs && k->inputs < 32) {
                    from = squeezed((uint16_t *)(spare + chunks + row_of_spare(k)), from, apart, columns, k->inputs);
                    apart = k->inputs;
                }
                pair_line((item_t *)to, from, apart, begin, columns, k->inputs, k->cols, k->sw);
                if (p->blocked) deal_dense(line, k->inputs, to, pixel, k->cols, k->inputs, times, spare);
            }
        }
        int64_t at = place(&k->to, t->n, t->row);
        g_at[i] = straight ? at : i * g_line;
        if (k->pairs && p->blocked) {
            pair_row((item_t *)(spare + chunks), &k->to, at, k->columns, k->outputs, k->outputs);
            deal_dense(g + i * g_line, k->wide, spare + chunks, 4 * (int64_t)k->outputs, s->pixels, k->outputs, times, spare);
        } else if (k->pairs) pair_row((item_t *)g + i * g_line, &k->to, at, k->columns, k->outputs, k->wide);
        else if (p->blocked) deal_pixels(g + i * g_line, k->wide, &k->to, at, k->columns, k->outputs, times, spare);
        else if (!straight) read_pixels(g + i * g_line, k->wide, &k->to, at, k->to.pixel, k->columns, k->outputs);
    }
    int pair = k->pairs ? 2 : 1, run = most(1, EXACT_AFTER / k->columns), spatial = (int)k->taps_size;
    int steps = p->channels / p->part;
    rows_t rows = {.x = lines, .g = straight ? k->to.data : g, .x_at = x_at, .g_at = g_at, .pixels = s->pixels,
                   .step = (int64_t)pair * k->sw * k->inputs, .g_step = straight ? k->to.pixel : k->wide,
                   .next = k->inputs, .tap = steps};
    for (int v = 0; v < k->wide; v += 2 * LANES) {
        int vectors = vectors_at(v, k->wide), lanes = lanes_of(vectors);
        float *own = kept + s->weights * v;
        sum_fn *const *one = SUMS[k->pairs][log2_of(p->part)][vectors], *const *all = SUMS[k->pairs][0][vectors];
        int three = 3 * steps, centre = p->r / 2 * three, behind = spatial - centre;
        if (in_threes(k)) {
            sum_fn *const *threes = SUMS_OF_THREES[k->pairs][log2_of(p->part)][vectors];
            for (int at = 0; at < spatial; at += at == centre ? spatial - 2 * centre : three)
                if (at != centre) run_sums(&rows, s->at, threes, LARGEST_OF_THREES, at, at + steps, v, lanes, count, run, own);
            run_sums(&rows, s->at, one, LARGEST[vectors], centre, behind, v, lanes, count, run, own);
        } else
            run_sums(&rows, s->at, one, LARGEST[vectors], 0, spatial, v, lanes, count, run, own);
        run_sums(&rows, s->at, all, LARGEST[vectors], spatial, (int)s->weights, v, lanes, count, run, own);
    }
    float *bias = kept + s->weights * k->wide;
    if (p->bias_sum) for (int i = 0; i < count; i++) totals(s, rows.g + g_at[i], rows.g_step, bias);
}

static size_t sums_bytes(const sums_t *s) {
    const plan_t *k = &s->k;
    int64_t floats = k->lines * k->line + (int64_t)k->band * s->pixels * k->wide + spare_of(k);
    return sizeof(float) * floats + (sizeof(target_t) + 2 * sizeof(int64_t)) * k->band;
}

// Likewise a range of rows, band after band; `sums` begin at zero.
static int sums_range(const sums_t *s, int64_t from, int64_t end, double *sums) {
    int64_t numbers = (s->weights + 1) * s->k.wide;
    char *memory = lc_malloc(NULL, sums_bytes(s) + sizeof(float) * numbers);
    if (!memory) return -1;
    float *kept = (float *)memory;
    memset(sums, 0, sizeof(double) * numbers);
    for (int64_t at = from; at < end; at += s->k.band) {
        memset(kept, 0, sizeof(float) * numbers);
        sums_band(s, at, at + s->k.band < end ? at + s->k.band : end, kept, kept + numbers);
        for (int64_t i = 0; i < numbers; i++) sums[i] += kept[i];
    }
    lc_free(NULL, memory);
    return 0;
}

// The gradients of weights and bias from x and the gradient in y. Any number of threads gives the same bits: the groups'
// sums are added in order.
int lc_hetconv_weight(const hetconv_t *p, int threads) {
    sums_t s = {.k = plan_of(p, 0)};
    plan_t *k = &s.k;
    int taps = taps_of(p), middle = middle_of(p), own = p->channels / p->part;
    int64_t rows = (int64_t)p->samples * k->rows, pixels = rows * k->columns;
    k->items = p->channels;  // of a pixel, or of a pair of them
    k->line = ((int64_t)k->cols * k->items + LANES - 1) / LANES * LANES;
    s.pixels = k->pairs ? (k->columns + 1) / 2 : k->columns;
    fit_band(k, (int64_t)s.pixels * k->wide, rows, LEAST_BAND);
    k->taps_size = (int64_t)(taps - 1) * own;
    s.weights = k->taps_size + p->channels;
    int groups = (int)(pixels / GROUP < MOST_GROUPS ? pixels / GROUP : MOST_GROUPS);
    groups = least(most(groups, 1), (int)(rows < MOST_GROUPS ? rows : MOST_GROUPS));
    int64_t each = (s.weights + 1) * k->wide;
    char *memory = lc_malloc(NULL, sizeof(double) * each * groups + sizeof(int64_t) * s.weights);
    if (!memory) return -1;
    double *sums = (double *)memory;
    int64_t *at = (int64_t *)(sums + each * groups);
    s.at = at;
    for (int t = 0; t < taps; t++) {
        int64_t first = t / p->s * p->dh * k->line + (int64_t)(t % p->s) * p->dw * k->items;
        if (t == middle) for (int c = 0; c < p->channels; c++) at[k->taps_size + c] = first + c;
        else for (int j = 0; j < own; j++) at[(int64_t)(t - (t > middle)) * own + j] = first + (int64_t)j * p->part;
    }
    int failed = 0;
    if (threads > 1 && groups > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int i = 0; i < groups; i++) failed |= sums_range(&s, rows * i / groups, rows * (i + 1) / groups, sums + i * each);
    } else
        for (int i = 0; i < groups; i++) failed |= sums_range(&s, rows * i / groups, rows * (i + 1) / groups, sums + i * each);
    for (int i = 1; i < groups; i++)
        for (int64_t number = 0; number < each; number++) sums[number] += sums[i * each + number];
    for (int first = 0; first < p->channels; first += RUN)
        for (int o = 0; o < p->outputs; o++) {
            int filter = position(p, o, p->outputs);
            lane_t lane = lane_of(filter, k->wide);
            const double *of = sums + s.weights * lane.v + lane.lane;
            float *one = p->pointwise_sum + others_at(p, o, first), *kernel = p->spatial_sum;
            if (kernel) kernel += kernel_at(p, o, first);
            for (int c = first; c < least(first + RUN, p->channels); c++) {
                int channel = position(p, c, p->channels), is_own = !((channel ^ filter) & (p->part - 1));
                float centre = (float)of[(k->taps_size + channel) * lane.lanes];
                if (!is_own || p->full) *one++ = centre;
                if (!is_own || !kernel) continue;
                int step = channel >> log2_of(p->part);
                for (int t = 0; t < taps; t++)
                    *kernel++ = t == middle ? centre : (float)of[((int64_t)(t - (t > middle)) * own + step) * lane.lanes];
            }
        }
    for (int o = 0; o < p->outputs && p->bias_sum; o++)
        p->bias_sum[o] = (float)sums[s.weights * k->wide + position(p, o, p->outputs)];
    lc_free(NULL, memory);
    return failed;
}

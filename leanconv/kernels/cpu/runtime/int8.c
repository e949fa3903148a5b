// Primitives on 8-bit integers: the loop over blocks of rows in torch's own threads, factors, exact averages.
#include "int8_finish.h"

typedef uint16_t words __attribute__((vector_size(V), may_alias));

// Add vectors of bytes, `step` apart, to the sums of their channels; `valid` bytes of each count.
static void sum_vectors(const uint8_t *p, int64_t vectors, int64_t step, int valid, int channels, int64_t *sums) {
    for (int64_t done = 0; done < vectors;) {
        words even = {0}, odd = {0};
        int64_t end = done + 256 < vectors ? done + 256 : vectors;  // as many bytes as fit in 16 bits
        for (; done < end; done++, p += step) {
            words x = (words)(valid == V ? load(p) : load_some(p, valid));
            even += x & 255, odd += x >> 8;
        }
        for (int i = 0; i < valid; i++) sums[i % channels] += i % 2 ? odd[i / 2] : even[i / 2];
    }
}

// Sums of the bytes of rows y0..y1 of a dense map, for each channel.
static void sum_bytes(const place_t *p, const task8_t *t, int y0, int y1, int channels, int64_t *sums) {
    const uint8_t *from = row_at(p, t, y0);
    int64_t pixels = (int64_t)(y1 - y0) * p->w, count = pixels * channels;
    if (V % channels == 0) {
        sum_vectors(from, count / V, V, V, channels, sums);
        if (count % V) sum_vectors(from + count / V * V, 1, V, (int)(count % V), channels, sums);
    } else
        for (int c = 0; c < channels; c += V) {
            int valid = least(V, channels - c);
            sum_vectors(from + c, pixels, channels, valid, valid, sums + c);
        }
}

// The factors of every sample, in the order of sums; float32 step by step as ops/integer_reference.py has them.
static void gated_sum_factors(const int8_t_call *call, void *const *pointers, float *rows) {
    const factors8_t *f = &call->factors;
    const uint8_t *packed = pointers[call->packed];
    const int32_t *order = (const int32_t *)(packed + f->order), *bias = (const int32_t *)(packed + f->bias);
    const float *scale = (const float *)(packed + f->scale), *b_scale = (const float *)(packed + f->b_scale);
    const float *factor = (const float *)(packed + f->factor), *third = (const float *)(packed + f->third);
    float *total = rows + 3 * (int64_t)f->row * call->samples;  // of one sample; then two factors of each channel
    float *first = total + f->width, *second = first + f->width;
    for (int n = 0; n < call->samples; n++) {
        const float *mean_a = (const float *)pointers[f->first] + (int64_t)n * f->width;
        const int8_t *w = (const int8_t *)packed + f->weights;
        for (int o = 0; o < f->width; o++) total[o] = (float)bias[o];
        for (int part = 0; part < f->parts; part++) {
            const float *mean = (const float *)pointers[f->first + 1 + part] + (int64_t)n * f->sizes[part];
            for (int c = 0; c < f->sizes[part]; c++, w += f->width) {
                float steps = mean[c] * f->inverse[part];
                for (int o = 0; o < f->width; o++) total[o] = total[o] + steps * (float)w[o];
            }
        }
        for (int o = 0; o < f->width; o += LANES) {
            vec x = {0};
            int count = least(LANES, f->width - o);
            for (int i = 0; i < count; i++) ((float *)&x)[i] = mean_a[o + i] - total[o + i] * scale[o + i];
            x = sigmoid_of(x);
            for (int i = 0; i < count; i++) {
                float gate = ((float *)&x)[i], by = factor[o + i];
                first[o + i] = (gate * by) * f->a_scale;
                second[o + i] = ((1.0f - gate) * by) * b_scale[o + i];
            }
        }
        float *row = rows + 3 * (int64_t)f->row * n;
        for (int i = 0; i < f->row; i++) {
            int o = order[i];
            row[i] = o < 0 ? 0.0f : first[o];
            row[i + f->row] = o < 0 ? 0.0f : second[o];
            row[i + 2 * f->row] = o < 0 ? 0.0f : third[o];
        }
    }
}

static void gate_factors(const int8_t_call *call, void *const *pointers, float *rows) {
    const factors8_t *f = &call->factors;
    const uint8_t *packed = pointers[call->packed];
    const int32_t *order = (const int32_t *)(packed + f->order);
    const float *m = (const float *)(packed + f->multipliers);
    for (int n = 0; n < call->samples; n++) {
        const float *gate = (const float *)pointers[f->first] + (int64_t)n * f->width;
        float *row = rows + (int64_t)f->row * n;
        for (int i = 0; i < f->row; i++) row[i] = order[i] < 0 ? 0.0f : gate[order[i]] * m[i];
    }
}

static void run_steps(const task8_t *t) {
    const int8_t_call *call = t->call;
    for (int i = 0; i < call->steps; i++) {
        const void *what = call->step[i].what;
        int into = 0;
        switch (call->step[i].kind) {
            case COPY: lc_int8_copy(what, t); into = ((const copy8_t *)what)->into; break;
            case STENCIL: lc_int8_stencil(what, t, t->scratch); into = ((const stencil8_t *)what)->into; break;
            case PRODUCT: lc_int8_product(what, t); into = ((const product8_t *)what)->into; break;
            default: lc_int8_pool(what, t, t->scratch); into = ((const pool8_t *)what)->into;
        }
        if (call->place[into].border) lc_int8_border(&call->place[into], t);
    }
}

static int run_block(const int8_t_call *call, void *const *pointers, const float *factors, int64_t task, int blocks,
                     int64_t *sums) {
    uint8_t *scratch = lc_malloc(NULL, call->scratch + 4 * V);
    if (!scratch) return 1;
    int64_t n = task / blocks;
    int y0 = (int)(task % blocks) * call->block, y1 = least(call->rows, y0 + call->block);
    task8_t t = {call, (uint8_t *const *)pointers, pointers[call->packed], scratch, factors, n, y0, y1};
    if (factors) t.factors += n * call->factors.row * (call->factors.kind == 1 ? 3 : 1);
    run_steps(&t);
    if (sums)
        sum_bytes(&call->place[call->average], &t, y0 * call->repeat, y1 * call->repeat, call->channels,
                  sums + task * call->channels);
    lc_free(NULL, scratch);
    return 0;
}

static void divide(const int8_t_call *call, const int64_t *sums, int blocks, float *means) {
    int64_t pixels = (int64_t)call->place[call->average].h * call->place[call->average].w;
    for (int n = 0; n < call->samples; n++)
        for (int c = 0; c < call->channels; c++) {
            int64_t sum = -pixels * call->zero;
            for (int b = 0; b < blocks; b++) sum += sums[((int64_t)n * blocks + b) * call->channels + c];
            means[(int64_t)n * call->channels + c] = (float)((double)sum * (call->scale / (double)pixels));
        }
}

int lc_int8(const void *what, void **pointers, int threads) {
    const int8_t_call *call = what;
    int blocks = (call->rows + call->block - 1) / call->block, failed = 0;
    int64_t tasks = (int64_t)blocks * call->samples;
    int64_t *sums = NULL;
    float *factors = NULL;
    if (call->average >= 0) {
        if (!(sums = lc_malloc(NULL, sizeof(int64_t) * tasks * call->channels))) return -1;
        memset(sums, 0, sizeof(int64_t) * tasks * call->channels);
    }
    if (call->factors.kind) {
        const factors8_t *f = &call->factors;
        factors = lc_malloc(NULL, sizeof(float) * (3 * (int64_t)f->row * call->samples + 3 * (int64_t)f->width));
        if (!factors) { lc_free(NULL, sums); return -1; }
        if (f->kind == 1) gated_sum_factors(call, pointers, factors); else gate_factors(call, pointers, factors);
    }
    if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(call, pointers, factors, t, blocks, sums);
    } else
        for (int64_t t = 0; t < tasks; t++) failed |= run_block(call, pointers, factors, t, blocks, sums);
    if (sums) divide(call, sums, blocks, pointers[call->sums]);
    lc_free(NULL, sums);
    lc_free(NULL, factors);
    return failed;
}

int lc_int8_vector(void) { return V; }

int lc_int8_size(int which) {
    const int sizes[] = {
        sizeof(place_t), sizeof(segment_t), sizeof(copy8_t), sizeof(finish_t), sizeof(four_t), sizeof(tap_t),
        sizeof(stencil8_t), sizeof(run_t), sizeof(block_t), sizeof(product8_t), sizeof(pool8_t), sizeof(step8_t),
        sizeof(factors8_t), sizeof(int8_t_call),
    };
    return sizes[which];
}

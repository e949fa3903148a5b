// Copies of 8-bit maps into scratch, with a border and quantized where they are float32, and out of it; max-pooling.
#include "int8_finish.h"

#define LINE 256

// clamp(round(x · inverse) + zero, 0, 255); NaN is stored as zero.
INLINE uint8_t quantized(float x, float inverse, int zero) {
    x = x == x ? x * inverse : 0.0f;
    x = x < (float)-zero ? (float)-zero : x > (float)(255 - zero) ? (float)(255 - zero) : x;
    return (uint8_t)((int)((x + 12582912.0f) - 12582912.0f) + zero);
}

typedef uint8_t octets __attribute__((vector_size(LANES), aligned(1), may_alias));

static void quantize(const float *from, uint8_t *into, int count, float inverse, int zero) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec x = floats(from + i);
        x = where((ivec)(x == x), x * inverse, all(0.0f));
        x = at_most(at_least(x, (float)-zero), (float)(255 - zero));
        *(octets *)(into + i) = __builtin_convertvector(nearest(x) + zero, octets);
    }
    for (; i < count; i++) into[i] = quantized(from[i], inverse, zero);
}

// Pixels of `count` bytes, `from_step` and `into_step` bytes apart.
static void copy_bytes(const uint8_t *from, uint8_t *into, int pixels, int count, int64_t from_step, int64_t into_step) {
    if (from_step == count && into_step == count) memcpy(into, from, (size_t)pixels * count);
    else if (count == 16)
        for (int x = 0; x < pixels; x++, from += from_step, into += into_step) memcpy(into, from, 16);
    else if (count == 32)
        for (int x = 0; x < pixels; x++, from += from_step, into += into_step) memcpy(into, from, 32);
    else
        for (int x = 0; x < pixels; x++, from += from_step, into += into_step) memcpy(into, from, count);
}

// Up to four channels of float32 from `c` on: a part of a row of each, then their bytes to the pixels.
static void quantize_planes(const segment_t *s, const place_t *from, const place_t *into, const uint8_t *row,
                            uint8_t *to, int pixels, int64_t step, int c) {
    uint8_t line[4][LINE] = {{0}};
    float read[LINE];
    int channels = least(4, s->count - c);
    for (int x = 0; x < pixels; x += LINE) {
        int count = least(LINE, pixels - x);
        for (int i = 0; i < channels; i++) {
            const uint8_t *source = row + (c + i) * from->channel + x * step;
            const float *dense = (const float *)source;
            if (step != 4) {
                for (int k = 0; k < count; k++) memcpy(&read[k], source + k * step, 4);
                dense = read;
            }
            quantize(dense, line[i], count, s->inverse, s->zero);
        }
        uint8_t *target = to + c + x * into->pixel;
        if (into->pixel == 4 && s->at == 0) {  // what lies behind the channels counts as nothing
            uint32_t *four = (uint32_t *)target;
            for (int k = 0; k < count; k++)
                four[k] = line[0][k] | (uint32_t)line[1][k] << 8 | (uint32_t)line[2][k] << 16 | (uint32_t)line[3][k] << 24;
        } else
            for (int i = 0; i < channels; i++)
                for (int k = 0; k < count; k++) target[k * into->pixel + i] = line[i][k];
    }
}

// Columns `first`, first + split, ... of a row, which lie side by side in scratch.
static void copy_pixels(const segment_t *s, const place_t *from, const place_t *into, const task8_t *t,
                        const uint8_t *row, uint8_t *to, int pixels, int64_t step) {
    row += s->channel * from->channel;
    to += (int64_t)s->at * (into->element == FLOAT32 ? 4 : 1);
    if (s->order >= 0) {
        const int32_t *order = (const int32_t *)(t->packed + s->order);
        int bytes_each = into->element == FLOAT32 ? 4 : 1;
        for (int x = 0; x < pixels; x++, row += step, to += into->pixel)
            for (int c = 0; c < s->count; c++) {
                const uint8_t *one = row + order[c] * from->channel;
                if (from->element == into->element) memcpy(to + c * bytes_each, one, bytes_each);
                else { float value; memcpy(&value, one, 4); to[c] = quantized(value, s->inverse, s->zero); }
            }
    } else if (from->element == into->element)
        copy_bytes(row, to, pixels, s->count * (from->element == FLOAT32 ? 4 : 1), step, into->pixel);
    else if (from->channel == 4 && (s->count > 4 || pixels == 1))
        for (int x = 0; x < pixels; x++, row += step, to += into->pixel)
            quantize((const float *)row, to, s->count, s->inverse, s->zero);
    else
        for (int c = 0; c < s->count; c += 4) quantize_planes(s, from, into, row, to, pixels, step, c);
}

// What lies outside of a map in scratch: its zero points.
void lc_int8_border(const place_t *p, const task8_t *t) {
    const uint8_t *fill = t->packed + p->fill;
    int y0 = first_row(p, t), y1 = end_row(p, t), right = p->left + p->w;
    for (int y = y0; y < y1; y++) {
        uint8_t *row = row_at(p, t, y);
        int outside = y < 0 || y >= p->h;
        for (int x = 0; x < (outside ? p->columns : p->left); x++) memcpy(row + column_at(p, x), fill, p->pixel);
        for (int x = right; x < p->columns && !outside; x++) memcpy(row + column_at(p, x), fill, p->pixel);
    }
}

void lc_int8_copy(const copy8_t *c, const task8_t *t) {
    const place_t *into = &t->call->place[c->into];
    int y0 = first_row(into, t), y1 = end_row(into, t);
    if (y0 < 0) y0 = 0;
    if (y1 > into->h) y1 = into->h;
    for (int i = 0; i < c->segments; i++) {
        const segment_t *s = &c->segment[i];
        const place_t *from = &t->call->place[s->from];
        for (int y = y0; y < y1; y++) {
            const uint8_t *row = row_at(from, t, y) + column_at(from, from->left);
            uint8_t *to = row_at(into, t, y);
            for (int part = 0; part < into->split; part++) {
                int first = part >= into->left ? part - into->left : part - into->left + up(into->left - part, into->split);
                int pixels = first < into->w ? (into->w - first - 1) / into->split + 1 : 0;
                if (pixels > 0)
                    copy_pixels(s, from, into, t, row + first * from->pixel,
                                to + column_at(into, into->left + first), pixels, from->pixel * into->split);
            }
        }
    }
}

INLINE void keep_largest(uint8_t *largest, const uint8_t *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) largest[i] = x[i] > largest[i] ? x[i] : largest[i];
}

// The largest of each column of the rows under the kernel, into `line`; then of neighbouring columns.
void lc_int8_pool(const pool8_t *p, const task8_t *t, uint8_t *line) {
    const place_t *from = &t->call->place[p->from], *into = &t->call->place[p->into];
    int64_t c = into->pixel;
    for (int y = t->y0; y < t->y1; y++) {
        int r0 = most(0, y * p->sh - p->top), r1 = least(from->h, y * p->sh - p->top + p->r);
        for (int r = r0; r < r1; r++)
            for (int x = 0; x < from->w; x++) {
                const uint8_t *source = row_at(from, t, r) + x * from->pixel;
                int64_t count = c;
                if (from->pixel == c) count = c * from->w, x = from->w;  // the whole row
                uint8_t *target = from->pixel == c ? line : line + x * c;
                if (r == r0) memcpy(target, source, count); else keep_largest(target, source, count);
            }
        uint8_t *to = row_at(into, t, y);
        for (int x = 0; x < into->w; x++, to += c) {
            int s0 = most(0, x * p->sw - p->left), s1 = least(from->w, x * p->sw - p->left + p->s);
            memcpy(to, line + s0 * c, c);
            for (int s = s0 + 1; s < s1; s++) keep_largest(to, line + s * c, c);
        }
    }
}

// The panel of a product: the rows that a block reads, copied so that each tap of each pixel is a step away.
#pragma once
#include "tiles.h"

#define SLACK 16

// `w` pixels of a row, from pixel x on, into dense pixels of `wide` numbers.
static void copy_row(const buffer_t *b, int planes, int64_t row, int x, int w, uint16_t *to, int wide) {
    const dimension_t *channel = &b->dim[planes], *pixel = &b->dim[!planes];
    const uint16_t *from = (const uint16_t *)b->host + row + (int64_t)x * pixel->stride;
    int c = channel->extent;
    if (!planes && pixel->stride == c && wide == c) memcpy(to, from, sizeof *to * w * c);
    else if (!planes)
        for (int i = 0; i < w; i++) memcpy(to + (int64_t)i * wide, from + (int64_t)i * pixel->stride, sizeof *to * c);
    else
        for (int k = 0; k < c; k++)
            for (int i = 0; i < w; i++) to[(int64_t)i * wide + k] = from[(int64_t)k * channel->stride + i];
}

// Rows y0.. of the maps, `rows` of them; of each its pixels x.. x+w between zeros.
static void fill_rows(
    const panel_t *p, void *const *maps, int y0, int rows, int x, int w, int columns, uint16_t *to) {
    for (int y = y0; y < y0 + rows; y++, to += (int64_t)columns * p->wide) {
        const dimension_t *height = ((const buffer_t *)maps[0])->dimensions == 3 ? &((const buffer_t *)maps[0])->dim[2] : NULL;
        int row = height ? y - height->min : 0;  // rows of scratch begin with the block
        if (row < 0 || (height && row >= height->extent)) {
            memset(to, 0, sizeof *to * columns * p->wide);
            continue;
        }
        uint16_t *inside = to + (int64_t)p->left * p->wide, *end = inside + (int64_t)w * p->wide;
        int at = 0;
        for (int m = 0; m < p->maps; m++) {
            const buffer_t *b = maps[m];
            copy_row(b, p->planes, height ? (int64_t)row * b->dim[2].stride : 0, x, w, inside + at, p->wide);
            at += b->dim[p->planes].extent;
        }
        for (int i = 0; at < p->wide && i < w; i++)
            memset(inside + (int64_t)i * p->wide + at, 0, sizeof *to * (p->wide - at));
        memset(to, 0, sizeof *to * p->left * p->wide);
        memset(end, 0, sizeof *to * (columns - p->left - w) * p->wide);
    }
}

// The taps of each pixel of `rows` rows of `columns` pixels side by side. A copy takes SLACK numbers at a time: what it
// writes too much lies where the next taps go, the zeros, or the next pixel.
static void gather(const panel_t *p, const uint16_t *from, int rows, int columns, uint16_t *to) {
    const uint16_t *taps[MAX_OPERANDS];
    int together = p->dw == 1 ? p->s : 1, run = together * p->wide, runs = p->r * p->s / together;
    int64_t step = (int64_t)p->sw * p->wide, row = (int64_t)p->columns * p->wide;
    for (int y = 0; y < rows; y++) {
        for (int k = 0; k < runs; k++) {
            int tap = k * together;
            taps[k] = from + (y * p->sh + tap / p->s * p->dh) * row + (int64_t)(tap % p->s) * p->dw * p->wide;
        }
        for (int x = 0; x < columns; x++) {
            uint16_t *at = to, *end = to + p->gathered;
            for (int k = 0; k < runs; k++, at += run)
                for (int i = 0; i < run; i += SLACK) memcpy(at + i, taps[k] + x * step + i, sizeof *to * SLACK);
            while (at < end) *at++ = 0;
            to = end;
        }
    }
}

// The panel for rows y0.. y0+rows of a result of `columns` pixels (0: for pixels), or NULL without memory.
// `own` takes what must be given back.
static const uint16_t *panel(const panel_t *p, void **args, int y0, int rows, int columns, uint16_t **own) {
    int flat = !columns, read = flat ? 1 : (rows - 1) * p->sh + (p->r - 1) * p->dh + 1, across = flat ? rows : p->columns;
    int64_t numbers = (int64_t)read * across * p->wide + SLACK, gathered = (int64_t)rows * columns * p->gathered + SLACK;
    uint16_t *made = *own = lc_malloc(NULL, sizeof *made * (numbers + gathered));
    if (!made) return NULL;
    void *const *maps = args + p->first;
    const buffer_t *b = maps[0];
    fill_rows(p, maps, flat ? 0 : y0 * p->sh - p->top, read, flat ? y0 : 0, flat ? rows : b->dim[!p->planes].extent, across, made);
    if (!p->gathered) return made;
    gather(p, made, rows, columns, made + numbers);
    return made + numbers;
}

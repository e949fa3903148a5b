// Which order HetConv's channels have in lines and vectors. The tiles want those of all P groups by turns. Where groups are
// blocks of channels, their halves are taken by turns log2(P) times: so channel g·C/P + k comes to k·P + g. Back likewise.
#pragma once
#include "hetconv_tiles.h"

#define CHUNK 32           // pixels that are mixed at a time: they stay in the first cache
#define SPARE_CHUNKS 4     // what `gather_pixels` needs

typedef uint32_t words4 __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t words8 __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t words16 __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint32_t word_t __attribute__((aligned(2), may_alias));

// L numbers of each half by turns, and apart again.
#define TURNS(L, LOW, HIGH, EVEN, ODD)                                                                                 \
    INLINE void zip##L(word_t *to, const word_t *from, int half) {                                                     \
        words##L a = *(const words##L *)from, b = *(const words##L *)(from + half);                                    \
        *(words##L *)to = MIXED(words##L, a, b, LOW), *(words##L *)(to + L) = MIXED(words##L, a, b, HIGH);             \
    }                                                                                                                  \
    INLINE void unzip##L(word_t *to, const word_t *from, int half) {                                                   \
        words##L a = *(const words##L *)from, b = *(const words##L *)(from + L);                                       \
        *(words##L *)to = MIXED(words##L, a, b, EVEN), *(words##L *)(to + half) = MIXED(words##L, a, b, ODD);          \
    }
#define ALL(...) __VA_ARGS__
TURNS(4, ALL(0, 4, 1, 5), ALL(2, 6, 3, 7), ALL(0, 2, 4, 6), ALL(1, 3, 5, 7))
TURNS(8, ALL(0, 8, 1, 9, 2, 10, 3, 11), ALL(4, 12, 5, 13, 6, 14, 7, 15), ALL(0, 2, 4, 6, 8, 10, 12, 14),
      ALL(1, 3, 5, 7, 9, 11, 13, 15))
#if LANES == 16
TURNS(16, ALL(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
      ALL(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
      ALL(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
      ALL(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
#define BY_SIXTEEN(WHAT) for (; k + 16 <= half; k += 16) WHAT(16)
#else
#define BY_SIXTEEN(WHAT)
#endif
#undef TURNS

#define ZIP(L) zip##L(to + 2 * k, from + k, half)
#define UNZIP(L) unzip##L(to + k, from + 2 * k, half)

// A pixel: by STEP in vectors of its halves and by REST for the numbers that remain, or at once where it is one vector.
#define PIXEL(NAME, STEP, REST, EIGHT, SIXTEEN)                                                                        \
    INLINE void NAME##_pixel(word_t *to, const word_t *from, const int c) {                                            \
        const int half = c / 2;                                                                                        \
        int k = 0;                                                                                                     \
        if (c == 2) {                                                                                                  \
            memcpy(to, from, 8);                                                                                       \
            return;                                                                                                    \
        }                                                                                                              \
        if (c == 4) {                                                                                                  \
            words4 a = *(const words4 *)from;                                                                          \
            *(words4 *)to = MIXED(words4, a, a, 0, 2, 1, 3);                                                           \
            return;                                                                                                    \
        }                                                                                                              \
        if (c == 8) {                                                                                                  \
            words8 a = *(const words8 *)from;                                                                          \
            *(words8 *)to = MIXED(words8, a, a, EIGHT);                                                                \
            return;                                                                                                    \
        }                                                                                                              \
        ONE_OF_SIXTEEN(SIXTEEN)                                                                                        \
        BY_SIXTEEN(STEP);                                                                                              \
        for (; k + 8 <= half; k += 8) STEP(8);                                                                         \
        if (k + 4 <= half) STEP(4), k += 4;                                                                            \
        for (; k < half; k++) REST;                                                                                    \
    }
#if LANES == 16
#define ONE_OF_SIXTEEN(...)                                                                                            \
    if (c == 16) {                                                                                                     \
        words16 a = *(const words16 *)from;                                                                            \
        *(words16 *)to = MIXED(words16, a, a, __VA_ARGS__);                                                            \
        return;                                                                                                        \
    }
#else
#define ONE_OF_SIXTEEN(...)
#endif
PIXEL(zip, ZIP, ALL(to[2 * k] = from[k], to[2 * k + 1] = from[half + k]), ALL(0, 4, 1, 5, 2, 6, 3, 7),
      ALL(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15))
PIXEL(unzip, UNZIP, ALL(to[k] = from[2 * k], to[half + k] = from[2 * k + 1]), ALL(0, 2, 4, 6, 1, 3, 5, 7),
      ALL(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15))
#undef PIXEL
#undef ONE_OF_SIXTEEN
#undef ZIP
#undef UNZIP
#undef BY_SIXTEEN

// Pixels of `c` numbers of four bytes; steps in bytes.
#define PIXELS(NAME)                                                                                                   \
    INLINE void NAME##_all(char *to, int64_t to_step, const char *from, int64_t from_step, int count, const int c) {   \
        for (int i = 0; i < count; i++, to += to_step, from += from_step)                                              \
            NAME##_pixel((word_t *)to, (const word_t *)from, c);                                                       \
    }                                                                                                                  \
    static void NAME(char *to, int64_t to_step, const char *from, int64_t from_step, int count, int c) {               \
        switch (c) {                                                                                                   \
        case 2: NAME##_all(to, to_step, from, from_step, count, 2); break;                                             \
        case 4: NAME##_all(to, to_step, from, from_step, count, 4); break;                                             \
        case 8: NAME##_all(to, to_step, from, from_step, count, 8); break;                                             \
        case 16: NAME##_all(to, to_step, from, from_step, count, 16); break;                                           \
        case 32: NAME##_all(to, to_step, from, from_step, count, 32); break;                                           \
        default: NAME##_all(to, to_step, from, from_step, count, c);                                                   \
        }                                                                                                              \
    }
PIXELS(zip)
PIXELS(unzip)
#undef PIXELS

// Where a channel of `all` stands in a line, and a filter among the vectors.
INLINE int position(const hetconv_t *p, int at, int all) {
    int each = all / p->part;
    return p->blocked ? at % each * p->part + at / each : at;
}

// `times` times, from `from` by way of two spare chunks; the last time into `to`. At most CHUNK pixels.
INLINE void mix(void (*once)(char *, int64_t, const char *, int64_t, int, int), int times, void *to, int64_t to_step,
                const void *from, int64_t from_step, int count, int c, float *spare) {
    char *chunk[] = {(char *)spare, (char *)(spare + (int64_t)CHUNK * c)};
    const char *last = from;
    for (int i = 1; i < times; i++) {
        char *next = chunk[last == chunk[0]];
        once(next, 4 * (int64_t)c, last, from_step, count, c);
        last = next, from_step = 4 * (int64_t)c;
    }
    once(to, to_step, last, from_step, count, c);
}

// Dense pixels of blocks, or those of a map, dealt out into pixels of `wide`; numbers beyond c are zero.
static void deal_dense(float *to, int wide, const void *from, int64_t from_step, int count, int c, int times, float *spare) {
    for (int i = 0; i < count; i += CHUNK)
        mix(zip, times, to + (int64_t)i * wide, 4 * (int64_t)wide, (const char *)from + i * from_step, from_step,
            least(CHUNK, count - i), c, spare);
    for (int i = 0; i < count && c < wide; i++) memset(to + (int64_t)i * wide + c, 0, sizeof(float) * (wide - c));
}

static void deal_pixels(float *to, int wide, const map_t *m, int64_t at, int count, int c, int times, float *spare) {
    if (m->element == FLOAT32) {
        deal_dense(to, wide, (const float *)m->data + at, 4 * m->pixel, count, c, times, spare);
        return;
    }
    for (int i = 0; i < count; i += CHUNK) {
        int some = least(CHUNK, count - i);
        read_pixels(spare, c, m, at + i * m->pixel, m->pixel, some, c);
        deal_dense(to + (int64_t)i * wide, wide, spare, 4 * (int64_t)c, some, c, times, spare);
    }
}

#if HAS_PAIRS
// Numbers that lie densely, rounded by one instruction: of numbers below the least normal one it makes zeros.
static void round_dense(const float *from, uint16_t *to, int64_t numbers) {
    int64_t i = 0;
    for (; i + 16 <= numbers; i += 16) {
        __m256bh found = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
        memcpy(to + i, &found, sizeof found);
    }
    for (; i < numbers; i++) to[i] = rounded(from[i]);
}
#endif

// Pixels of a slice of a map, densely.
static const uint16_t *squeezed(uint16_t *to, const uint16_t *from, int64_t pixel, int count, int c) {
    uint16_t *at = to;
    switch (c) {
    case 4: for (int i = 0; i < count; i++, at += 4, from += pixel) memcpy(at, from, 8); break;
    case 8: for (int i = 0; i < count; i++, at += 8, from += pixel) memcpy(at, from, 16); break;
    default: for (int i = 0; i < count; i++, at += c, from += pixel) memcpy(at, from, sizeof(uint16_t) * c);
    }
    return to;
}

// Dense pixels into a map of bfloat16. `spare`: as many halves.
static void write_halves(const float *from, const map_t *m, int64_t at, int count, int c, uint16_t *spare) {
#if HAS_PAIRS
    uint16_t *to = (uint16_t *)m->data + at;
    if (m->pixel == c) {
        round_dense(from, to, (int64_t)count * c);
        return;
    }
    round_dense(from, spare, (int64_t)count * c);
    for (int i = 0; i < count; i++, to += m->pixel, spare += c) {
        if (c == 4) memcpy(to, spare, 8);
        else if (c == 8) memcpy(to, spare, 16);
        else memcpy(to, spare, sizeof(uint16_t) * c);
    }
#else
    write_pixels(from, c, m, at, m->pixel, count, c);
#endif
}

// The other way, into a map.
static void gather_pixels(const float *from, int wide, const map_t *m, int64_t at, int count, int c, int times,
                          float *spare) {
    float *last = spare + 2 * (int64_t)CHUNK * c;
    for (int i = 0; i < count; i += CHUNK, at += CHUNK * m->pixel) {
        int some = least(CHUNK, count - i);
        const float *own = from + (int64_t)i * wide;
        if (m->element == FLOAT32) {
            mix(unzip, times, (float *)m->data + at, 4 * m->pixel, own, 4 * (int64_t)wide, some, c, spare);
            continue;
        }
        mix(unzip, times, last, 4 * (int64_t)c, own, 4 * (int64_t)wide, some, c, spare);
        write_halves(last, m, at, some, c, (uint16_t *)(last + (int64_t)CHUNK * c));
    }
}

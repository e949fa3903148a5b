// Vectors of bytes and sums for the kernels on 8-bit integers: AVX-512 (with VNNI or without), AVX2, or those of GCC
// and Clang on any machine. `bytes` holds V numbers; four vectors of sums (`ivec`) go with it.
//
// A vector of bytes is spread over four of int32 inside each 16 bytes, and packed back likewise. So sums are not in the
// order of the bytes: number j of 16-byte lane l of vector v belongs to byte 16·l + 4·v + j. Weights, biases and factors
// are packed in the order of the sums.
#pragma once
#include <string.h>
#include "int8.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(LC_PORTABLE)
#include <immintrin.h>
#define V 64
#elif defined(__AVX2__) && !defined(LC_PORTABLE)
#include <immintrin.h>
#define V 32
#else
#define V 16
#endif
#define LANES (V / 4)

typedef float vec __attribute__((vector_size(V), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(V), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(V), aligned(1), may_alias));
typedef int16_t shorts __attribute__((vector_size(V), aligned(2), may_alias));

INLINE int up(int value, int unit) { return (value + unit - 1) / unit * unit; }
INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE ivec ints(const void *p) { return *(const ivec *)p; }
INLINE vec floats(const void *p) { return *(const vec *)p; }
INLINE bytes load(const uint8_t *p) { return *(const bytes *)p; }
INLINE vec as_floats(ivec x) { return __builtin_convertvector(x, vec); }

// Four bytes of `p`, again and again.
INLINE bytes repeat(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return (bytes)((ivec){0} + four);
}

#if V == 64
#define MM(name) _mm512_##name
typedef __m512i raw;
typedef __m512 real;
#elif V == 32
#define MM(name) _mm256_##name
typedef __m256i raw;
typedef __m256 real;
#endif

#ifdef MM  // what both widths of x86 have
INLINE ivec dot(ivec sum, bytes u, bytes s) {
#if V == 64 && defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((raw)sum, (raw)u, (raw)s);
#elif V == 32 && defined(__AVXVNNI__)
    return (ivec)_mm256_dpbusd_avx_epi32((raw)sum, (raw)u, (raw)s);
#else
    // Not vpmaddubsw: it saturates.
    raw even = (raw)((shorts)u & 255), odd = MM(srli_epi16)((raw)u, 8);
    raw first = MM(srai_epi16)(MM(slli_epi16)((raw)s, 8), 8), second = MM(srai_epi16)((raw)s, 8);
    return sum + (ivec)MM(madd_epi16)(even, first) + (ivec)MM(madd_epi16)(odd, second);
#endif
}
INLINE ivec nearest(vec x) { return (ivec)MM(cvtps_epi32)((real)x); }
INLINE bytes low8(bytes a, bytes b) { return (bytes)MM(unpacklo_epi8)((raw)a, (raw)b); }
INLINE bytes high8(bytes a, bytes b) { return (bytes)MM(unpackhi_epi8)((raw)a, (raw)b); }
INLINE bytes low16(bytes a, bytes b) { return (bytes)MM(unpacklo_epi16)((raw)a, (raw)b); }
INLINE bytes high16(bytes a, bytes b) { return (bytes)MM(unpackhi_epi16)((raw)a, (raw)b); }
INLINE shorts packed16(ivec a, ivec b) { return (shorts)MM(packs_epi32)((raw)a, (raw)b); }
INLINE shorts added(shorts a, shorts b) { return (shorts)MM(adds_epi16)((raw)a, (raw)b); }
INLINE bytes packed8(shorts a, shorts b) { return (bytes)MM(packus_epi16)((raw)a, (raw)b); }
INLINE bytes limited(bytes x, bytes low, bytes high) {
    return (bytes)MM(min_epu8)(MM(max_epu8)((raw)x, (raw)low), (raw)high);
}
#endif

#if V == 64
// The bytes of 4 / vectors pixels, after `packed`, one pixel after the other; and back.
INLINE bytes by_pixel(bytes x, int vectors) {
    if (vectors == 1)
        return (bytes)_mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), (__m512i)x);
    if (vectors == 2) return (bytes)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), (__m512i)x);
    return x;
}
INLINE bytes by_lane(bytes x, int vectors) {
    if (vectors == 2) return (bytes)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), (__m512i)x);
    return by_pixel(x, vectors);  // a transposition of 4 × 4 is its own inverse
}
INLINE void store_some(uint8_t *p, bytes x, int count) {
    if (count >= V) *(bytes *)p = x;
    else if (count > 0) _mm512_mask_storeu_epi8(p, ~0ull >> (64 - count), (__m512i)x);
}
INLINE bytes load_some(const uint8_t *p, int count) {
    if (count >= V) return load(p);
    return count > 0 ? (bytes)_mm512_maskz_loadu_epi8(~0ull >> (64 - count), p) : (bytes){0};
}
// The bytes of 4 / vectors pixels, `outputs` of each, as one vector; and back. Of `count` pixels only.
INLINE bytes load_pixels(const uint8_t *p, int64_t pixel, int vectors, int outputs, int count) {
    if (vectors == 4) return load_some(p, outputs);
    if (vectors == 2) {
        __mmask32 some = ~0u >> (32 - outputs), more = count > 1 ? some : 0;
        __m256i first = _mm256_maskz_loadu_epi8(some, p), second = _mm256_maskz_loadu_epi8(more, p + pixel);
        return (bytes)_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    }
    __m512i made = _mm512_setzero_si512();
    __mmask16 some = (__mmask16)(0xffff >> (16 - outputs));
    made = _mm512_inserti32x4(made, _mm_maskz_loadu_epi8(some, p), 0);
    made = _mm512_inserti32x4(made, _mm_maskz_loadu_epi8(count > 1 ? some : 0, p + pixel), 1);
    made = _mm512_inserti32x4(made, _mm_maskz_loadu_epi8(count > 2 ? some : 0, p + 2 * pixel), 2);
    return (bytes)_mm512_inserti32x4(made, _mm_maskz_loadu_epi8(count > 3 ? some : 0, p + 3 * pixel), 3);
}
INLINE void store_pixels(uint8_t *p, bytes x, int64_t pixel, int vectors, int outputs, int count) {
    if (vectors == 4) { store_some(p, x, outputs); return; }
    if (pixel == vectors * LANES && outputs == pixel && count * vectors == 4) { *(bytes *)p = x; return; }
    if (vectors == 2) {
        __mmask32 some = ~0u >> (32 - outputs);
        _mm256_mask_storeu_epi8(p, some, _mm512_castsi512_si256((__m512i)x));
        if (count > 1) _mm256_mask_storeu_epi8(p + pixel, some, _mm512_extracti64x4_epi64((__m512i)x, 1));
        return;
    }
    __mmask16 some = (__mmask16)(0xffff >> (16 - outputs));
    _mm_mask_storeu_epi8(p, some, _mm512_castsi512_si128((__m512i)x));
    if (count > 1) _mm_mask_storeu_epi8(p + pixel, some, _mm512_extracti32x4_epi32((__m512i)x, 1));
    if (count > 2) _mm_mask_storeu_epi8(p + 2 * pixel, some, _mm512_extracti32x4_epi32((__m512i)x, 2));
    if (count > 3) _mm_mask_storeu_epi8(p + 3 * pixel, some, _mm512_extracti32x4_epi32((__m512i)x, 3));
}
#elif V == 32
INLINE bytes by_pixel(bytes x, int vectors) {
    if (vectors == 1)
        return (bytes)_mm256_permutevar8x32_epi32((__m256i)x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (vectors == 2) return (bytes)_mm256_permute4x64_epi64((__m256i)x, 0xd8);
    return x;
}
INLINE bytes by_lane(bytes x, int vectors) {
    if (vectors == 1)
        return (bytes)_mm256_permutevar8x32_epi32((__m256i)x, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    return by_pixel(x, vectors);
}
#else
INLINE ivec dot(ivec sum, bytes u, bytes s) {
    shorts even = (shorts)u & 255, odd = (shorts)((typeof((bytes){0}))u) >> 8 & 255;
    shorts first = even * (((shorts)s << 8) >> 8), second = odd * ((shorts)s >> 8);  // 255 · 127 fits in 16 bits
    ivec a = (ivec)first, b = (ivec)second;
    return sum + ((a << 16) >> 16) + (a >> 16) + ((b << 16) >> 16) + (b >> 16);
}
INLINE ivec nearest(vec x) {
    vec near = (x + 12582912.0f) - 12582912.0f;  // exact below 2²²; above, only that it is large counts
    vec held = (vec)(((ivec)x & (ivec)((x < -4e6f) | (x > 4e6f))) | ((ivec)near & ~(ivec)((x < -4e6f) | (x > 4e6f))));
    return __builtin_convertvector(held, ivec);
}
#define SHUFFLE __builtin_shufflevector
typedef uint16_t words __attribute__((vector_size(V), aligned(2), may_alias));
INLINE bytes low8(bytes a, bytes b) { return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE bytes high8(bytes a, bytes b) {
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
INLINE bytes low16(bytes a, bytes b) { return (bytes)SHUFFLE((words)a, (words)b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE bytes high16(bytes a, bytes b) { return (bytes)SHUFFLE((words)a, (words)b, 4, 12, 5, 13, 6, 14, 7, 15); }
INLINE ivec between(ivec x, int low, int high) {
    ivec below = x < low, above = x > high;
    return (x & ~(below | above)) | (below & low) | (above & high);
}
INLINE shorts packed16(ivec a, ivec b) {
    a = between(a, -32768, 32767), b = between(b, -32768, 32767);
    return SHUFFLE((shorts)a, (shorts)b, 0, 2, 4, 6, 8, 10, 12, 14);
}
INLINE shorts added(shorts a, shorts b) {
    shorts above = a > 32767 - b;  // b is from 0 to 255
    return ((a + b) & ~above) | (above & 32767);
}
INLINE bytes packed8(shorts a, shorts b) {
    a &= ~(a < 0), b &= ~(b < 0);
    shorts c = a > 255, d = b > 255;
    a = (a & ~c) | (c & 255), b = (b & ~d) | (d & 255);
    return SHUFFLE((bytes)a, (bytes)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
INLINE bytes limited(bytes x, bytes low, bytes high) {
    bytes below = (bytes)(x < low), above = (bytes)(x > high);
    return (x & ~(below | above)) | (below & low) | (above & high);
}
INLINE bytes by_pixel(bytes x, int vectors) { (void)vectors; return x; }
INLINE bytes by_lane(bytes x, int vectors) { (void)vectors; return x; }
#endif
#if V != 64
INLINE void store_some(uint8_t *p, bytes x, int count) {
    if (count >= V) *(bytes *)p = x;
    else if (count > 0) memcpy(p, &x, count);
}
INLINE bytes load_some(const uint8_t *p, int count) {
    bytes x = {0};
    if (count >= V) return load(p);
    if (count > 0) memcpy(&x, p, count);
    return x;
}
INLINE bytes load_pixels(const uint8_t *p, int64_t pixel, int vectors, int outputs, int count) {
    int whole = vectors * LANES;
    if (vectors == 4) return load_some(p, outputs);
    if (pixel == whole && outputs == whole && count * vectors == 4) return load(p);
    uint8_t made[V] = {0};
    for (int i = 0; i < count; i++) memcpy(made + i * whole, p + i * pixel, outputs);
    return load(made);
}
INLINE void store_pixels(uint8_t *p, bytes x, int64_t pixel, int vectors, int outputs, int count) {
    int whole = vectors * LANES;
    if (vectors == 4) store_some(p, x, outputs);
    else if (pixel == whole && outputs == whole && count * vectors == 4) *(bytes *)p = x;
    else {
        uint8_t made[V];
        *(bytes *)made = x;
        for (int i = 0; i < count; i++) memcpy(p + i * pixel, made + i * whole, outputs);
    }
}
#endif

// Four vectors of bytes, interleaved: the four bytes of each sum side by side.
INLINE void interleave(bytes a, bytes b, bytes c, bytes d, bytes *out) {
    bytes ab = low8(a, b), cd = low8(c, d), ba = high8(a, b), dc = high8(c, d);
    out[0] = low16(ab, cd), out[1] = high16(ab, cd), out[2] = low16(ba, dc), out[3] = high16(ba, dc);
}

// A vector of bytes as four of numbers, in the order of sums.
INLINE void spread(bytes x, ivec *out) {
    bytes zero = {0}, low = low8(x, zero), high = high8(x, zero);
    out[0] = (ivec)low16(low, zero), out[1] = (ivec)high16(low, zero);
    out[2] = (ivec)low16(high, zero), out[3] = (ivec)high16(high, zero);
}

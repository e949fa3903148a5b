// Activations in the elementary steps of ops/elementary.py, each rounded by itself: build without fused products
// (-ffp-contract=off). `vec` is a vector of float32, `ivec` one of int32, of the file that includes this.
#pragma once

enum { NONE, RELU, RELU6, SILU, HARDSWISH, HARDSIGMOID, SIGMOID, GELU };

INLINE vec all(float value) { return (vec){0} + value; }
INLINE vec where(ivec condition, vec a, vec b) {
    return (vec)(((ivec)a & condition) | ((ivec)b & ~condition));
}
INLINE vec at_least(vec x, float low) { return where((ivec)(x < low), all(low), x); }
INLINE vec at_most(vec x, float high) { return where((ivec)(x > high), all(high), x); }

// To the nearest whole number, ties to even, for |x| < 2²².
INLINE vec whole(vec x) { return (x + 12582912.0f) - 12582912.0f; }

INLINE vec exp_of(vec x) {
    x = at_most(at_least(x, -87.0f), 88.0f);
    vec turns = whole(x * 1.44269504f);
    vec rest = (x - turns * 0.693359375f) - turns * -2.12194440e-4f;
    vec value = all(1.9875691500e-4f);
    value = value * rest + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = (value * rest) * rest + rest + 1.0f;
    return value * (vec)((__builtin_convertvector(turns, ivec) + 127) << 23);
}

INLINE vec sigmoid_of(vec x) { return 1.0f / (1.0f + exp_of(-x)); }

INLINE vec gelu_of(vec x) {
    vec z = x * 0.70710678f, size = where((ivec)(z < 0.0f), -z, z);
    vec t = 1.0f / (1.0f + size * 0.3275911f), value = all(1.061405429f);
    value = value * t + -1.453152027f;
    value = value * t + 1.421413741f;
    value = value * t + -0.284496736f;
    value = value * t + 0.254829592f;
    vec erf = 1.0f - (value * t) * exp_of(-(size * size));
    return (x * 0.5f) * (1.0f + where((ivec)(z < 0.0f), -erf, erf));
}

INLINE vec activated(vec x, int activation) {
    switch (activation) {
        case RELU: return at_least(x, 0.0f);
        case RELU6: return at_most(at_least(x, 0.0f), 6.0f);
        case SILU: return x * sigmoid_of(x);
        case HARDSWISH: return (x * at_most(at_least(x + 3.0f, 0.0f), 6.0f)) * 0.16666667163372039794921875f;
        case HARDSIGMOID: return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * 0.16666667163372039794921875f;
        case SIGMOID: return sigmoid_of(x);
        case GELU: return gelu_of(x);
        default: return x;
    }
}

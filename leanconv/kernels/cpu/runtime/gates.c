// Gates of a softmax pair. Plain C.
#include <string.h>
#include "runtime.h"

// exp, within two units in the last place; a loop over it becomes vectors. NaN stays NaN; below -87 it is that of -87,
// above 88.4 it is infinite.
static inline __attribute__((always_inline)) float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : x;
    float turns = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
    float rest = (x - turns * 0.693359375f) + turns * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    uint32_t bits = turns == turns ? (uint32_t)((int32_t)turns + 127) << 23 : 0;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

// Gates of a softmax pair from the two averages, and the affine that follows. Per sample three rows of `width` numbers:
// y = a·first + (W·x)·second + third. The averages of x come in `parts` vectors that stand for their concatenation.
int lc_gates(const gates_t *g) {
    int width = g->width;
    for (int n = 0; n < g->samples; n++) {
        float *first = g->out + (int64_t)n * 3 * width, *second = first + width, *third = second + width;
        if (g->bias) memcpy(third, g->bias, sizeof(float) * width); else memset(third, 0, sizeof(float) * width);
        const float *w = g->weight;
        for (int p = 0; p < g->parts; p++) {
            const float *m = g->means[p] + (int64_t)n * g->sizes[p];
            int c = 0;
            for (; c + 4 <= g->sizes[p]; c += 4, m += 4, w += 4 * (int64_t)width)
                for (int o = 0; o < width; o++)
                    third[o] += (m[0] * w[o] + m[1] * w[o + width])
                        + (m[2] * w[o + 2 * width] + m[3] * w[o + 3 * width]);
            for (; c < g->sizes[p]; c++, m++, w += width)
                for (int o = 0; o < width; o++) third[o] += m[0] * w[o];
        }
        for (int o = 0; o < width; o++) {
            float gate = 1.0f / (1.0f + exp_of(third[o] - g->mean_a[(int64_t)n * width + o]));
            float s = g->scale ? g->scale[o] : 1.0f;
            first[o] = gate * s;
            second[o] = (1.0f - gate) * s;
            third[o] = (g->bias ? g->bias[o] * second[o] : 0.0f) + (g->shift ? g->shift[o] : 0.0f);
        }
    }
    return 0;
}

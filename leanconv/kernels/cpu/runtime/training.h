// Kernels for training: the structures of a call. training_abi.py has the same, and checks their sizes.
#pragma once
#include "runtime.h"

// A map with channels innermost; steps in numbers.
typedef struct { void *data; int64_t sample, row, pixel; int32_t element, unused; } map_t;

// y[n,p,q,c] = bias[c] + sum over r, s of weight[c,r,s] * x[n, p*sh + r*dh - top, q*sw + s*dw - left, c]
typedef struct {
    map_t x, y;                    // N H W C and N P Q C
    const float *weight, *bias;    // C × R·S; C or NULL
    float *weight_sum, *bias_sum;  // where the gradients of both go; NULL: not asked for
    int32_t samples, channels, h, w, p, q, r, s, sh, sw, dh, dw, top, left;
    int32_t block;                 // channels that are computed together: a multiple of 16
    int32_t groups;                // ranges of rows whose sums are added in order: the same bits with any threads
} depthwise_t;

// y = g·a + (1 - g)·b, g[n,c] = sigmoid(average of a - average of b); backward: a_grad and b_grad from the gradient in y.
typedef struct {
    map_t a, b, y, a_grad, b_grad;  // N H W C
    float *gate;                    // N × C: a result, and given to the gradient
    int32_t samples, channels, rows, columns;
} gated_sum_t;

// The same blend of a branch after its norm and ReLU, and of another after its norm, or as it is.
typedef struct {
    map_t a, b, y, a_grad, b_grad;            // N H W C
    const float *weight[2], *bias[2];         // C each, of the norms; weight[1] NULL: the second branch has none
    float *gate;                              // N × C: a result, and given to the gradient
    float *statistics;                        // 4 × C likewise: mean and variance of a, of b
    float *sums;                              // 4 × C: gradients of weight and bias of the first norm, of the second
    double eps[2];
    int32_t samples, channels, rows, columns, relu, unused;
} norm_gate_t;

// y = act((x - mean)·weight/√(variance + eps) + bias + residual), statistics of the batch; backward: x_grad, residual_grad.
// A map without data is not there; y is given to the gradient where it tells the activation's slope.
typedef struct {
    map_t x, y, residual, grad, x_grad, residual_grad;  // N H W C
    const float *weight, *bias;                         // C; NULL: ones, zeros
    float *statistics;                                  // 2 × C: mean, variance; a result, and given to the gradient
    float *sums;                                        // 2 × C: gradients of weight and bias
    double eps;
    int32_t samples, channels, rows, columns, activation, unused;
} norm_act_t;

// y[n,p,q,o] = bias[o] + sum over c of weight[o,c] * x[n,p,q,c]
typedef struct {
    map_t x, y;
    const float *weight, *bias;       // the numbers are weight_out and weight_in apart; bias NULL: none
    float *weight_sum, *bias_sum;     // O × C and O: where the gradients of both go
    int64_t weight_out, weight_in;
    int32_t samples, inputs, outputs, rows, columns, groups;
} pointwise_t;

// y[n,p,q,o] = bias[o] + sum over c of matrix[o,c] * t[n,p,q,c], where t is x after none, one or two depthwise convolutions
// of stride 1 that keep its size.
typedef struct {
    map_t x, y, x_grad;                     // N H W C, N H W O (its gradient where gradients are asked for), N H W C
    const float *taps[2], *matrix, *bias;   // C × R·S each; O × C; O or NULL
    float *taps_sum[2], *matrix_sum, *bias_sum;  // where their gradients go; NULL: not asked for
    int32_t samples, channels, outputs, h, w, stencils;
    int32_t r[2], s[2], dh[2], dw[2], top[2], left[2];
} branch_t;

// y[n,p,q,o] = bias[o] + sum over c of w1[o,c] * x[n, c under the kernel's centre] + sum over the c of o's group of the other
// taps of spatial[o,c]. Groups: by number mod `part`, or `blocked`. w1 is pointwise[o,c] of other groups' c, and of o's own
// the centre's tap; if `full` that tap and pointwise[o,c]. spatial NULL: zeros.
typedef struct {
    map_t x, y;                                      // N H W C and N P Q O; what is a result in one call is given in another
    const float *spatial, *pointwise, *bias;         // O × C/part × R·S; O × (C - C/part), or O × C; O, or NULL
    float *spatial_sum, *pointwise_sum, *bias_sum;   // where their gradients go; NULL: not asked for
    int32_t samples, channels, outputs, h, w, rows, columns, part, r, s, sh, sw, dh, dw, top, left, blocked, full;
} hetconv_t;

int lc_branch(const branch_t *p, int threads);
int lc_branch_gradients(const branch_t *p, int threads);
int lc_depthwise(const depthwise_t *d, int backward, int threads);
int lc_depthwise_weight(const depthwise_t *d, int threads);
int lc_hetconv(const hetconv_t *p, int backward, int threads);
int lc_hetconv_weight(const hetconv_t *p, int threads);
int lc_gated_sum(const gated_sum_t *p, int backward, int threads);
int lc_normalized_gated_sum(const norm_gate_t *p, int backward, int threads);
int lc_batch_norm_act(const norm_act_t *p, int backward, int threads);
int lc_pointwise(const pointwise_t *p, int threads);
int lc_pointwise_weight(const pointwise_t *p, int threads);
int lc_training_size(int which);

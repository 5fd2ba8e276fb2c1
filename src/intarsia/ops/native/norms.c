/* Norms in bfloat16 on a CPU with the residual sum before them, forward and backward; norms.py beside this file calls it,
 * compiled.py has it compiled.
 *
 * A row is summed, normed and written while it is in the cache; backward adds up the gradients of two readers while it reads them.
 * All between is float32.
 */
#include <omp.h>

#include "matrices.h"

typedef struct {
    long rows, width; /* width: a multiple of 32 */
    float eps;
    int centre; /* whether the mean is subtracted */
} shape;

/* The frozen gain, or none, and the task's own, rounded to bfloat16 as it is kept. */
INLINE vec both(const bf16 *frozen, const float *own, long j) {
    vec found = frozen ? load(frozen + j) : all(0);
    if (own) {
        bf16 rounded[LANES];
        vec some;
        memcpy(&some, own + j, sizeof some);
        store(rounded, some);
        found += load(rounded);
    }
    return found;
}

/* to <- n(row), without gain; returns what the row was divided by, turned over. */
INLINE float normal(float *to, const bf16 *row, const shape *z) {
    vec sum = all(0), squares = all(0);
    for (long j = 0; j < z->width; j += LANES) sum += AT(to + j) = load(row + j);
    const vec mean = all(z->centre ? total(sum) / z->width : 0);
    for (long j = 0; j < z->width; j += LANES) {
        AT(to + j) -= mean;
        squares += AT(to + j) * AT(to + j);
    }
    const float scale = 1 / sqrtf(total(squares) / z->width + z->eps);
    for (long j = 0; j < z->width; j += LANES) AT(to + j) *= scale;
    return scale;
}

/* out = (frozen_gain + gain) n(x + residual) + frozen_bias + bias; what is 0 is left out. summed: x + residual, where there is one.
 * room: 3 width numbers for each thread, at multiples of 64 bytes. */
int norm_forward(const shape *z, const bf16 *x, const bf16 *residual, const bf16 *frozen_gain, const bf16 *frozen_bias,
                 const float *gain, const float *bias, bf16 *out, bf16 *summed, float *room) {
    const long W = z->width;
#pragma omp parallel
    {
        float *to = room + 3 * W * omp_get_thread_num(), *gains = to + W, *biases = gains + W;
        for (long j = 0; j < W; j += LANES) AT(gains + j) = both(frozen_gain, gain, j), AT(biases + j) = both(frozen_bias, bias, j);
#pragma omp for schedule(static)
        for (long i = 0; i < z->rows; i++) {
            const bf16 *row = x + i * W;
            if (residual) {
                for (long j = 0; j < W; j += LANES) store(summed + i * W + j, load(row + j) + load(residual + i * W + j));
                row = summed + i * W;
            }
            normal(to, row, z);
            for (long j = 0; j < W; j += LANES) store(out + i * W + j, AT(to + j) * AT(gains + j) + AT(biases + j));
        }
    }
    return 0;
}

/* The gradient of x (and of residual) from those of out's readers; again: the second one's, or 0. dgain, dbias: the sums, or 0.
 * room: 5 width numbers for each thread. */
int norm_backward(const shape *z, const bf16 *grad, const bf16 *again, const bf16 *summed, const bf16 *frozen_gain,
                  const float *gain, bf16 *dx, float *dgain, float *dbias, float *room) {
    const long W = z->width;
#pragma omp parallel
    {
        const int threads = omp_get_num_threads();
        float *to = room + 5 * W * omp_get_thread_num(), *own = to + W, *gains = own + W;
        float *of_gain = gains + W, *of_bias = of_gain + W;
        memset(of_gain, 0, 2 * W * sizeof(float));
        for (long j = 0; j < W; j += LANES) AT(gains + j) = both(frozen_gain, gain, j);
#pragma omp for schedule(static)
        for (long i = 0; i < z->rows; i++) {
            const float scale = normal(to, summed + i * W, z);
            vec sum = all(0), along = all(0);
            for (long j = 0; j < W; j += LANES) {
                vec flow = load(grad + i * W + j);
                if (again) flow += load(again + i * W + j);
                if (dgain) AT(of_gain + j) += flow * AT(to + j);
                if (dbias) AT(of_bias + j) += flow;
                sum += flow *= AT(gains + j);
                along += flow * AT(to + j);
                AT(own + j) = flow;
            }
            const vec mean = all(z->centre ? total(sum) / W : 0), share = all(total(along) / W);
            for (long j = 0; j < W; j += LANES)
                store(dx + i * W + j, (AT(own + j) - mean - AT(to + j) * share) * scale);
        }
        /* In the threads' order, so that the sums are the same each time. */
#pragma omp for schedule(static)
        for (long j = 0; j < (dgain || dbias ? W : 0); j += LANES) {
            vec gains_sum = all(0), biases_sum = all(0);
            for (int k = 0; k < threads; k++) {
                gains_sum += AT(room + (5 * k + 3) * W + j);
                biases_sum += AT(room + (5 * k + 4) * W + j);
            }
            if (dgain) memcpy(dgain + j, &gains_sum, sizeof gains_sum);
            if (dbias) memcpy(dbias + j, &biases_sum, sizeof biases_sum);
        }
    }
    return 0;
}

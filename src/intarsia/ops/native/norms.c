/* Norms in bfloat16 on a CPU with the residual sum before them, forward and backward; norms.py beside this file calls it,
 * compiled.py has it compiled.
 *
 * A row is summed, normed and written while it is in the cache; backward adds up the gradients of two readers while it reads them.
 * All between is float32.
 */
#include "matrices.h"
#include "threads.h"

typedef struct {
    long rows, width; /* width: a multiple of 32 */
    float eps;
    int centre; /* whether the mean is subtracted */
} shape;

/* The frozen gain, or none, and the task's own, rounded to bfloat16 as it is kept. */
INLINE vec sum_of(const bf16 *frozen, const float *own, long j) {
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

#define SOME 16 /* rows at a time */

/* out = (frozen_gain + gain) n(x + residual) + frozen_bias + bias; what is 0 is left out. summed: x + residual, where there is one.
 * 0: done; 1: no memory. */
int norm_forward(const shape *z, const bf16 *x, const bf16 *residual, const bf16 *frozen_gain, const bf16 *frozen_bias,
                 const float *gain, const float *bias, bf16 *out, bf16 *summed) {
    const long W = z->width, threads = omp_get_max_threads();
    part *parts = parted((z->rows + SOME - 1) / SOME, threads, 3 * W * threads * sizeof(float));
    if (!parts) return 1;
    float *room = (float *)(parts + threads);
#pragma omp parallel
    {
        worker own = {.at = omp_get_thread_num()};
        float *to = room + 3 * W * omp_get_thread_num(), *gains = to + W, *biases = gains + W;
        for (long j = 0; j < W; j += LANES) AT(gains + j) = sum_of(frozen_gain, gain, j), AT(biases + j) = sum_of(frozen_bias, bias, j);
        for (long at; (at = taken(parts, threads, &own)) >= 0;)
            for (long i = at * SOME; i < (at + 1) * SOME && i < z->rows; i++) {
                const bf16 *row = x + i * W;
                if (residual) {
                    for (long j = 0; j < W; j += LANES) store(summed + i * W + j, load(row + j) + load(residual + i * W + j));
                    row = summed + i * W;
                }
                normal(to, row, z);
                for (long j = 0; j < W; j += LANES) store(out + i * W + j, AT(to + j) * AT(gains + j) + AT(biases + j));
            }
    }
    free(parts);
    return 0;
}

/* The gradient of x (and of residual) from those of out's readers; again: the second one's, or 0. dgain, dbias: the sums, or 0.
 * 0: done; 1: no memory. */
int norm_backward(const shape *z, const bf16 *grad, const bf16 *again, const bf16 *summed, const bf16 *frozen_gain,
                  const float *gain, bf16 *dx, float *dgain, float *dbias) {
    const long W = z->width, threads = omp_get_max_threads();
    const int sums = dgain || dbias; /* of the same rows each time, so that they are the same: nobody helps */
    part *parts = parted((z->rows + SOME - 1) / SOME, threads, 5 * W * threads * sizeof(float));
    if (!parts) return 1;
    float *room = (float *)(parts + threads);
    memset(room, 0, 5 * W * threads * sizeof(float));
#pragma omp parallel
    for (long k = omp_get_thread_num(); k < threads; k += omp_get_num_threads()) {
        worker own = {.at = k};
        float *to = room + 5 * W * k, *flows = to + W, *gains = flows + W, *of_gain = gains + W, *of_bias = of_gain + W;
        for (long j = 0; j < W; j += LANES) AT(gains + j) = sum_of(frozen_gain, gain, j);
        for (long at; (at = taken(parts, sums ? 1 : threads, &own)) >= 0;)
            for (long i = at * SOME; i < (at + 1) * SOME && i < z->rows; i++) {
                const float scale = normal(to, summed + i * W, z);
                vec sum = all(0), along = all(0);
                for (long j = 0; j < W; j += LANES) {
                    vec flow = load(grad + i * W + j);
                    if (again) flow += load(again + i * W + j);
                    if (dgain) AT(of_gain + j) += flow * AT(to + j);
                    if (dbias) AT(of_bias + j) += flow;
                    sum += flow *= AT(gains + j);
                    along += flow * AT(to + j);
                    AT(flows + j) = flow;
                }
                const vec mean = all(z->centre ? total(sum) / W : 0), share = all(total(along) / W);
                for (long j = 0; j < W; j += LANES)
                    store(dx + i * W + j, (AT(flows + j) - mean - AT(to + j) * share) * scale);
            }
    }
    for (long j = 0; j < (sums ? W : 0); j += LANES) { /* in the parts' order */
        vec gains_sum = all(0), biases_sum = all(0);
        for (long k = 0; k < threads; k++) {
            gains_sum += AT(room + (5 * k + 3) * W + j);
            biases_sum += AT(room + (5 * k + 4) * W + j);
        }
        if (dgain) memcpy(dgain + j, &gains_sum, sizeof gains_sum);
        if (dbias) memcpy(dbias + j, &biases_sum, sizeof biases_sum);
    }
    free(parts);
    return 0;
}

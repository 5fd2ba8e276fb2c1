/* Bottlenecks in bfloat16 on a CPU: y + scale (up f(down x + down_bias) + up_bias), forward and backward; bottleneck.py beside this
 * file calls it, compiled.py has it compiled. Adapters and LoRA's products are such.
 *
 * A pass reads each row once, and the narrow side never leaves the cache. The weights are float32, as a task keeps them, and are
 * rounded here; so is the narrow side. Their gradients are float32, summed by each thread over its rows.
 */
#include "matrices.h"
#include "threads.h"

#include "activations.h"

#define BLOCK 64 /* rows at a time */

typedef struct {
    long rows, reads, writes, width; /* of x (rows, reads) and y (rows, writes), multiples of 32; of the narrow side, any */
    long stride;                     /* from row to row of y and of its gradient, which may be columns of something wider */
    int kind;
    float scale;
    int same; /* whether x is y, so that its gradient has y's in it */
} shape;

/* (rows, columns) float32 -> (rows, across) bfloat16, the last columns zeros. */
INLINE void round_rows(bf16 *to, long across, const float *from, long rows, long columns) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < across; j += LANES) {
            float some[LANES] __attribute__((aligned(4 * LANES))) = {0};
            if (j < columns) memcpy(some, from + i * columns + j, (columns - j < LANES ? columns - j : LANES) * sizeof(float));
            store(to + i * across + j, AT(some));
        }
}

/* What one thread works with. */
typedef struct {
    bf16 *down, *up, *rows, *grads, *inner, *hidden;
    uint32_t *for_down, *for_up, *pairs, *turned, *row_pairs;
    float *narrow, *wide, *down_bias, *up_bias, *of_down, *of_up, *of_down_bias, *of_up_bias;
} desk;

/* Where its parts are from `at` on; returns their bytes, which are a multiple of 64. */
static long furnish(desk *x, const shape *z, char *at) {
    const long M = padded(z->width), most = z->reads > z->writes ? z->reads : z->writes;
    const char *begin = at;
#define PLACE(name, count, type) x->name = (type *)at, at += (count) * sizeof(type)
    PLACE(down, M * z->reads, bf16), PLACE(up, M * z->writes, bf16);
    PLACE(for_down, M / 2 * z->reads, uint32_t), PLACE(for_up, M / 2 * z->writes, uint32_t);
    PLACE(rows, BLOCK * z->reads, bf16), PLACE(grads, BLOCK * z->writes, bf16);
    PLACE(inner, BLOCK * M, bf16), PLACE(hidden, BLOCK * M, bf16);
    PLACE(pairs, BLOCK / 2 * M, uint32_t), PLACE(turned, BLOCK / 2 * M, uint32_t), PLACE(row_pairs, BLOCK / 2 * most, uint32_t);
    PLACE(narrow, BLOCK * M, float), PLACE(wide, BLOCK * most, float);
    PLACE(down_bias, M, float), PLACE(up_bias, z->writes, float);
    PLACE(of_down, M * z->reads, float), PLACE(of_up, M * z->writes, float);
    PLACE(of_down_bias, M, float), PLACE(of_up_bias, z->writes, float);
#undef PLACE
    return at - begin;
}

/* Both matrices, the narrow side filled up with zeros. */
INLINE void round_weights(desk *d, const shape *z, const float *down, const float *up) {
    const long M = padded(z->width);
    round_rows(d->down, z->reads, down, z->width, z->reads);
    memset(d->down + z->width * z->reads, 0, (M - z->width) * z->reads * sizeof(bf16));
    round_rows(d->up, M, up, z->writes, z->width);
}

/* n rows from t on as (padded(n), width), the last of them zeros: where they are, or brought to `room`. */
INLINE const bf16 *block_of(const bf16 *x, long stride, bf16 *room, long t, long n, long width) {
    if (n == padded(n) && stride == width) return x + t * width;
    gather(room, x + t * stride, stride, n, width, x + t * stride);
    return room;
}

/* out: (rows, writes), may be y. kept: (rows, padded(width)), down x + down_bias, or 0. Biases may be 0.   0: done; 1: no
 * memory. */
int bottleneck_forward(const shape *z, const bf16 *y, const bf16 *x, const float *down, const float *down_bias, const float *up,
                       const float *up_bias, bf16 *out, bf16 *kept) {
    const long M = padded(z->width), R = z->reads, W = z->writes;
    desk first;
    const long size = furnish(&first, z, 0), threads = omp_get_max_threads();
    part *parts = parted((z->rows + BLOCK - 1) / BLOCK, threads, size * threads);
    if (!parts) return 1;
#pragma omp parallel
    {
        worker mine = {.at = omp_get_thread_num()};
        desk own, *d = &own;
        tiles before;
        furnish(d, z, (char *)(parts + threads) + size * omp_get_thread_num());
        memset(d->down_bias, 0, M * sizeof(float)), memset(d->up_bias, 0, W * sizeof(float));
        if (down_bias) memcpy(d->down_bias, down_bias, z->width * sizeof(float));
        if (up_bias) memcpy(d->up_bias, up_bias, W * sizeof(float));
        round_weights(d, z, down, up);
        turn(d->for_down, d->down, M, R / 2);
        turn(d->for_up, d->up, W, M / 2);
        enter(&before);
        for (long at; (at = taken(parts, threads, &mine)) >= 0;) {
            const long t = at * BLOCK, n = z->rows - t < BLOCK ? z->rows - t : BLOCK, high = padded(n);
            product(0, d->narrow, M, block_of(x, R, d->rows, t, n, R), R, d->for_down, M, high, M, R);
            for (long i = 0; i < high; i++)
                for (long j = 0; j < M; j += LANES) {
                    store(d->inner + i * M + j, AT(d->narrow + i * M + j) + AT(d->down_bias + j));
                    store(d->hidden + i * M + j, activated(z->kind, load(d->inner + i * M + j), 0));
                }
            if (kept) memcpy(kept + t * M, d->inner, n * M * sizeof(bf16));
            product(0, d->wide, W, d->hidden, M, d->for_up, W, high, W, M);
            for (long i = 0; i < n; i++)
                for (long j = 0; j < W; j += LANES) {
                    const vec change = AT(d->wide + i * W + j) + AT(d->up_bias + j);
                    store(out + (t + i) * W + j, load(y + (t + i) * z->stride + j) + z->scale * change);
                }
        }
        leave(&before);
    }
    free(parts);
    return 0;
}

/* What belongs to grad, (rows, writes): the gradients of x and of the weights; those of the biases may be 0, and so may
 * dx. kept: what forward left. */
int bottleneck_backward(const shape *z, const bf16 *grad, const bf16 *x, const bf16 *kept, const float *down,
                        const float *up, bf16 *dx, float *ddown, float *ddown_bias, float *dup, float *dup_bias) {
    const long M = padded(z->width), R = z->reads, W = z->writes;
    desk first;
    const long size = furnish(&first, z, 0);
    char *memory = aligned_alloc(64, size * omp_get_max_threads());
    if (!memory) return 1;
#pragma omp parallel
    {
        const int threads = omp_get_num_threads();
        desk own, *d = &own;
        tiles before;
        furnish(d, z, memory + size * omp_get_thread_num());
        memset(d->of_down, 0, (M * R + M * W + M + W) * sizeof(float));
        round_weights(d, z, down, up);
        pair(d->for_down, d->down, M, R);
        pair(d->for_up, d->up, W, M);
        enter(&before);
#pragma omp for schedule(static)
        for (long t = 0; t < z->rows; t += BLOCK) {
            const long n = z->rows - t < BLOCK ? z->rows - t : BLOCK, high = padded(n);
            const bf16 *g = block_of(grad, z->stride, d->grads, t, n, W), *rows = block_of(x, R, d->rows, t, n, R);
            const bf16 *inner = block_of(kept, M, d->inner, t, n, M);
            product(0, d->narrow, M, g, W, d->for_up, M, high, M, W);
            for (long j = 0; j < M; j += LANES) {
                vec sum = all(0);
                for (long i = 0; i < high; i++) {
                    vec slope, found = activated(z->kind, load(inner + i * M + j), &slope);
                    vec flow = z->scale * slope * AT(d->narrow + i * M + j);
                    sum += flow;
                    store(d->hidden + i * M + j, found);
                    AT(d->narrow + i * M + j) = flow;
                }
                AT(d->of_down_bias + j) += sum;
            }
            if (dup_bias)
                for (long j = 0; j < W; j += LANES) {
                    vec sum = all(0);
                    for (long i = 0; i < n; i++) sum += load(g + i * W + j);
                    AT(d->of_up_bias + j) += sum;
                }
            pair(d->pairs, d->hidden, high, M);
            turn(d->turned, d->pairs, high / 2, M);
            pair(d->row_pairs, g, high, W);
            product(1, d->of_up, W, (bf16 *)d->turned, high, d->row_pairs, W, M, W, high);
            narrow(d->hidden, M, d->narrow, high, M);
            pair(d->pairs, d->hidden, high, M);
            turn(d->turned, d->pairs, high / 2, M);
            pair(d->row_pairs, rows, high, R);
            product(1, d->of_down, R, (bf16 *)d->turned, high, d->row_pairs, R, M, R, high);
            if (!dx) continue;
            product(0, d->wide, R, d->hidden, M, d->for_down, R, high, R, M);
            for (long i = 0; i < n; i++)
                for (long j = 0; j < R; j += LANES) {
                    vec sum = AT(d->wide + i * R + j);
                    store(dx + (t + i) * R + j, z->same ? sum + load(g + i * W + j) : sum);
                }
        }
        leave(&before);
        /* Of thread 0 the first part, and so on: in their order, so that the sums are the same each time. */
        const long across = size / sizeof(float);
        furnish(d, z, memory);
#define TOTAL(what, index) \
    ({ \
        float sum = 0; \
        for (int k = 0; k < threads; k++) sum += d->what[k * across + (index)]; \
        sum; \
    })
#pragma omp for schedule(static) nowait
        for (long m = 0; m < z->width; m++) {
            for (long j = 0; j < R; j++) ddown[m * R + j] = TOTAL(of_down, m * R + j);
            for (long j = 0; j < W; j++) dup[j * z->width + m] = z->scale * TOTAL(of_up, m * W + j);
            if (ddown_bias) ddown_bias[m] = TOTAL(of_down_bias, m);
        }
#pragma omp for schedule(static)
        for (long j = 0; j < (dup_bias ? W : 0); j++) dup_bias[j] = z->scale * TOTAL(of_up_bias, j);
    }
    free(memory);
    return 0;
}

/* Attention in bfloat16 on a CPU, forward and backward; attention.py beside this file calls it, compiled.py has it compiled.
 *
 * One thread computes whole heads, so nothing depends on the threads. Queries and keys are filled up with zeros to
 * multiples of 32.
 */
#include "matrices.h"
#include "threads.h"

#define BLOCK 64 /* queries at a time */
#define HIDDEN -1e38f
#define NOTHING -3e38f /* behind the last key */

typedef struct {
    long rows, heads, queries, keys, width;
    long before, each;           /* of the keys, those that stand before a row's own; they are the same for so many neighbouring rows */
    long q[3], k[3], v[3], o[3]; /* strides of row, head and position, in numbers */
    long prefix[3];              /* and of what stands before: of keys and of values */
    long mask[4];                /* of row, head, query and key, in bytes */
    float scale;
} shape;

INLINE const bf16 *head_of(const bf16 *x, const long *stride, long row, long head) {
    return x + row * stride[0] + head * stride[1];
}

#define FEW 128 /* keys whose scores stay in registers, where the compiler knows how many there are */

#define FOR_WIDTH(call) \
    switch (across) { \
    case 32: call(32, 1); break; \
    case 64: call(64, 1); break; \
    case 96: call(96, 1); break; \
    case 128: call(128, 1); break; \
    default: call(across, 0); \
    }

/* What a query's scores are at most. A query that sees nothing has equal ones. */
INLINE void limits(float *to, const uint8_t *mask, long step, long keys, long across) {
    for (long j = 0; j < keys; j++) to[j] = !mask || mask[j * step] ? INFINITY : HIDDEN;
    for (long j = keys; j < across; j++) to[j] = NOTHING;
}

/* The scores of `rows` queries, (rows, across) -> their probabilities in `to`, and here, unless it is for the first time. kept: each
 * one's largest score, and one over its sum; found where `first`, and used where the same scores come again. limit: `step` from one
 * to the next. Two at a time keep the processor busy where one's steps wait for one another. */
INLINE void softmax(bf16 *to, float *s, float *kept, int first, float scale, const float *limit, long step, long across, int few,
                    int rows) {
    vec held[2][FEW / LANES], most[2] = {all(-INFINITY), all(-INFINITY)}, sum[2] = {};
#define OWN(r, j) (*(few ? &held[r][(j) / LANES] : (vec *)(s + (r) * across + (j))))
#pragma GCC unroll 8
    for (long j = 0; j < across; j += LANES)
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            /* e^x = 2^(x log2 e) */
            OWN(r, j) = smaller(AT(limit + r * step + j), AT(s + r * across + j) * (scale * 1.44269504f));
            if (first) most[r] = larger(most[r], OWN(r, j));
        }
    if (first)
        for (int r = 0; r < rows; r++) {
            const float own = largest(most[r]);
            kept[2 * r] = own < HIDDEN ? NAN : own; /* minus infinity, but for what is behind the last key */
        }
#pragma GCC unroll 8
    for (long j = 0; j < across; j += LANES)
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            OWN(r, j) = power(OWN(r, j) - kept[2 * r], 1);
            if (first) sum[r] += OWN(r, j);
        }
    if (first)
        for (int r = 0; r < rows; r++) kept[2 * r + 1] = 1 / total(sum[r]);
#pragma GCC unroll 8
    for (long j = 0; j < across; j += LANES)
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            const vec found = OWN(r, j) * kept[2 * r + 1];
            store(to + r * across + j, found);
            if (!first) AT(s + r * across + j) = found;
        }
#undef OWN
}

/* That of n queries. */
INLINE void probabilities(bf16 *to, float *s, float *kept, int first, float scale, const float *limit, long step, long n, long across,
                          int few) {
    long i = 0;
    for (; i + 2 <= n; i += 2)
        softmax(to + i * across, s + i * across, kept + 2 * i, first, scale, limit + i * step, step, across, few, 2);
    if (i < n) softmax(to + i * across, s + i * across, kept + 2 * i, first, scale, limit + i * step, step, across, few, 1);
}

/* n queries' probabilities and the gradients of them -> those of their products with the keys. n: even. */
INLINE void of_scores(bf16 *to, const float *seen, const float *flow, float scale, long n, long across) {
    for (long i = 0; i < n; i += 2, to += 2 * across, seen += 2 * across, flow += 2 * across) {
        vec sum[2] = {};
#pragma GCC unroll 8
        for (long j = 0; j < across; j += LANES)
#pragma GCC unroll 2
            for (int r = 0; r < 2; r++) sum[r] += AT(seen + r * across + j) * AT(flow + r * across + j);
        for (int r = 0; r < 2; r++) sum[r] = all(total(sum[r]));
#pragma GCC unroll 8
        for (long j = 0; j < across; j += LANES)
#pragma GCC unroll 2
            for (int r = 0; r < 2; r++) {
                const long at = r * across + j;
                store(to + at, AT(seen + at) * (AT(flow + at) - sum[r]) * scale);
            }
    }
}

/* Places of a head that will be written: memory gives them meanwhile. */
INLINE void fetch(const bf16 *to, const long *stride, long row, long head, long count, long width) {
    if (to)
        for (long i = 0; i < count; i++)
            for (long j = 0; j < width; j += 32) __builtin_prefetch(head_of(to, stride, row, head) + i * stride[2] + j, 1);
}

/* What one thread works with for one head. */
typedef struct {
    bf16 *some, *asked, *seen, *given, *inner;
    uint32_t *keys, *turned_keys, *values, *pairs, *turned, *queries, *grads;
    float *scores, *limit, *kept, *flow, *narrow, *for_k, *for_v;
    void *memory;
} desk;

static int furnished(desk *x, long across, long D, int backward) {
    const long wide = across * D * 4, high = BLOCK * across * 4, small = BLOCK * (D > 2 ? D : 2) * 4; /* bytes, at 4 a number */
    char *at = x->memory = aligned_alloc(64, (backward ? 6 : 3) * wide + (backward ? 7 : 3) * high + (backward ? 6 : 3) * small);
    if (!at) return 0;
#define PLACE(name, size) x->name = (void *)at, at += size
    PLACE(some, wide), PLACE(turned_keys, wide), PLACE(values, wide);
    PLACE(scores, high), PLACE(limit, high), PLACE(seen, high);
    PLACE(asked, small), PLACE(kept, small), PLACE(narrow, small);
    if (backward) {
        PLACE(keys, wide), PLACE(for_k, wide), PLACE(for_v, wide);
        PLACE(flow, high), PLACE(inner, high), PLACE(pairs, high), PLACE(turned, high);
        PLACE(given, small), PLACE(queries, small), PLACE(grads, small);
    }
#undef PLACE
    return 1;
}

/* A head's keys, or values, with those before its own, filled up. */
INLINE void collect(bf16 *to, const shape *z, const bf16 *own, const long *stride, const bf16 *prefix, long row, long head, long below,
                    long beside) {
    const long P = z->before, S = z->keys, D = z->width;
    if (P)
        gather(to, head_of(prefix, z->prefix, row / z->each, head), z->prefix[2], P, D,
               head_of(prefix, z->prefix, below / z->each, beside));
    gather(to + P * D, head_of(own, stride, row, head), stride[2], S - P, D, head_of(own, stride, below, beside));
    if (P) memset(to + S * D, 0, (padded(S) - S) * D * sizeof(bf16)); /* the other one was filled up by itself */
}

/* The gradients of them: those before its own are float32, (rows, heads, before, width). */
INLINE void spread(const shape *z, const float *from, bf16 *own, const long *stride, float *prefix, long row, long head) {
    const long size = z->before * z->width;
    if (prefix) memcpy(prefix + (row * z->heads + head) * size, from, size * sizeof(float));
    if (own) narrow(own + row * stride[0] + head * stride[1], stride[2], from + size, z->keys - z->before, z->width);
}

/* The probabilities of n queries from t on, in x->scores and x->seen; the rows up to a multiple of 32 are zeros in the latter. */
INLINE void look(desk *x, const shape *z, const bf16 *q, const uint8_t *mask, float *kept, int first, long row, long head,
                 const bf16 *ahead, long t, long n, long across) {
    const long high = padded(n);
    gather(x->asked, head_of(q, z->q, row, head) + t * z->q[2], z->q[2], n, z->width, ahead + t * z->q[2]);
    product(0, x->scores, across, x->asked, z->width, x->turned_keys, across, high, across, z->width);
    const uint8_t *shown = mask ? mask + row * z->mask[0] + head * z->mask[1] + t * z->mask[2] : 0;
    const long each = mask && z->mask[2] ? n : t == 0; /* or one for all */
    for (long i = 0; i < each; i++)
        limits(x->limit + i * across, shown ? shown + i * z->mask[2] : 0, z->mask[3], z->keys, across);
#define CALL(across, few) \
    probabilities(x->seen, x->scores, kept, first, z->scale, x->limit, mask && z->mask[2] ? across : 0, n, across, few)
    FOR_WIDTH(CALL)
#undef CALL
    memset(x->scores + n * across, 0, (high - n) * across * sizeof(float));
    memset(x->seen + n * across, 0, (high - n) * across * sizeof(bf16));
}

/* out = softmax(scale q k^T, hidden where mask is 0) v. mask may be 0, as may kept: (rows, heads, queries, 2), what backward wants.
 * 0: done; 1: no memory. */
int attention_forward(const shape *z, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *prefix_k, const bf16 *prefix_v,
                      const uint8_t *mask, bf16 *out, float *kept) {
    const long S = z->keys, D = z->width, across = padded(S);
    const long threads = omp_get_max_threads();
    part *parts = parted(z->rows * z->heads, threads, 0);
    int failed = !parts;
    if (failed) return failed;
#pragma omp parallel reduction(| : failed)
    {
        worker own = {.at = omp_get_thread_num()};
        desk x = {};
        tiles before;
        failed = !furnished(&x, across, D, 0);
        enter(&before);
        for (long at; !failed && (at = taken(parts, threads, &own)) >= 0;) {
            const long row = at / z->heads, head = at % z->heads;
            const long then = at + 1 < z->rows * z->heads ? at + 1 : at, below = then / z->heads, beside = then % z->heads;
            fetch(out, z->o, row, head, z->queries, D);
            collect(x.some, z, k, z->k, prefix_k, row, head, below, beside);
            turn(x.turned_keys, x.some, across, D / 2);
            collect(x.some, z, v, z->v, prefix_v, row, head, below, beside);
            pair(x.values, x.some, across, D);
            for (long t = 0; t < z->queries; t += BLOCK) {
                const long n = z->queries - t < BLOCK ? z->queries - t : BLOCK;
                look(&x, z, q, mask, kept ? kept + 2 * (at * z->queries + t) : x.kept, 1, row, head, head_of(q, z->q, below, beside),
                     t, n, across);
                product(0, x.narrow, D, x.seen, across, x.values, D, padded(n), D, across);
                narrow(out + row * z->o[0] + head * z->o[1] + t * z->o[2], z->o[2], x.narrow, n, D);
            }
        }
        leave(&before);
        free(x.memory);
    }
    free(parts);
    return failed;
}

/* The gradients of q, k and v, each with the strides in `to`, and of the prefix, from that of out, with those in z->o. Each may be
 * 0. The probabilities are computed again: it is quicker than to keep them, and long texts have room. */
int attention_backward(const shape *z, const shape *to, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *prefix_k,
                       const bf16 *prefix_v, const uint8_t *mask, float *kept, const bf16 *grad, bf16 *dq, bf16 *dk, bf16 *dv,
                       float *prefix_dk, float *prefix_dv) {
    const long S = z->keys, D = z->width, across = padded(S);
    const long threads = omp_get_max_threads();
    part *parts = parted(z->rows * z->heads, threads, 0);
    int failed = !parts;
    if (failed) return failed;
#pragma omp parallel reduction(| : failed)
    {
        worker own = {.at = omp_get_thread_num()};
        desk x = {};
        tiles before;
        failed = !furnished(&x, across, D, 1);
        enter(&before);
        for (long at; !failed && (at = taken(parts, threads, &own)) >= 0;) {
            const long row = at / z->heads, head = at % z->heads;
            const long then = at + 1 < z->rows * z->heads ? at + 1 : at, below = then / z->heads, beside = then % z->heads;
            fetch(dq, to->q, row, head, z->queries, D);
            fetch(dk, to->k, row, head, S - z->before, D), fetch(dv, to->v, row, head, S - z->before, D);
            collect(x.some, z, v, z->v, prefix_v, row, head, below, beside);
            turn(x.values, x.some, across, D / 2);
            collect(x.some, z, k, z->k, prefix_k, row, head, below, beside);
            turn(x.turned_keys, x.some, across, D / 2);
            pair(x.keys, x.some, across, D);
            for (long t = 0; t < z->queries; t += BLOCK) {
                const long n = z->queries - t < BLOCK ? z->queries - t : BLOCK, high = padded(n);
                look(&x, z, q, mask, kept + 2 * (at * z->queries + t), 0, row, head, head_of(q, z->q, below, beside), t, n,
                     across);
                gather(x.given, head_of(grad, z->o, row, head) + t * z->o[2], z->o[2], n, D,
                       head_of(grad, z->o, below, beside) + t * z->o[2]);
                product(0, x.flow, across, x.given, D, x.values, across, high, across, D);
#define CALL(across, few) of_scores(x.inner, x.scores, x.flow, z->scale, high, across)
                FOR_WIDTH(CALL)
#undef CALL
                if (dq) {
                    product(0, x.narrow, D, x.inner, across, x.keys, D, high, D, across);
                    narrow(dq + row * to->q[0] + head * to->q[1] + t * to->q[2], to->q[2], x.narrow, n, D);
                }
                if (dk || prefix_dk) {
                    pair(x.queries, x.asked, high, D);
                    pair(x.pairs, x.inner, high, across);
                    turn(x.turned, x.pairs, high / 2, across);
                    product(t > 0, x.for_k, D, (bf16 *)x.turned, high, x.queries, D, across, D, high);
                }
                if (dv || prefix_dv) {
                    pair(x.grads, x.given, high, D);
                    pair(x.pairs, x.seen, high, across);
                    turn(x.turned, x.pairs, high / 2, across);
                    product(t > 0, x.for_v, D, (bf16 *)x.turned, high, x.grads, D, across, D, high);
                }
            }
            spread(z, x.for_k, dk, to->k, prefix_dk, row, head);
            spread(z, x.for_v, dv, to->v, prefix_dv, row, head);
        }
        leave(&before);
        free(x.memory);
    }
    free(parts);
    return failed;
}

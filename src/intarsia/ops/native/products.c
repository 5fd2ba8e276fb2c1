/* Products with frozen matrices in bfloat16 on a CPU; products.py beside this file calls it, compiled.py has it compiled.
 *
 * A matrix is kept in panels of 32 outputs, each as AMX reads it. A thread multiplies a run of rows with one panel after the other:
 * the rows stay in its core's cache from one kernel to the next, and each panel is read once. A row's numbers do not depend on the
 * others, nor on the number of threads.
 */
#include "matrices.h"
#include "threads.h"

#include "activations.h"

typedef struct {
    long rows, reads, writes; /* the last two are multiples of 32 */
    int kind;                 /* of the activation */
} shape;

/* (writes, reads) -> panels (writes / 32, reads / 2, 32) of pairs. */
int pack(const shape *z, const bf16 *weight, uint32_t *panels) {
#pragma omp parallel for schedule(static)
    for (long j = 0; j < z->writes; j += 32)
        turn(panels + j * z->reads / 2, weight + j * z->reads, 32, z->reads / 2);
    return 0;
}

/* What is done with a sum: nothing more; it is multiplied by an activation's slope; an activation of it is written beside it. */
enum { PLAIN, SLOPES, VALUES };

/* A block of 32 outputs of up to 32 rows whose sums are there, and wait for their bias and to be written. */
typedef struct {
    float sums[32 * 32] __attribute__((aligned(64)));
    bf16 *out, *bent;
    const bf16 *inner;
    long stride, rows, done;
    vec bias[32 / LANES];
} pending;

/* Some rows of it. */
INLINE void finish(pending *x, long rows, int how, int kind) {
    const long stride = x->stride, begin = x->done, end = begin + rows < x->rows ? begin + rows : x->rows;
    bf16 *out = x->out, *bent = x->bent;
    const bf16 *inner = x->inner;
    for (long i = begin; i < end; i++)
        for (long k = 0; k < 32 / LANES; k++) {
            const long at = i * stride + k * LANES;
            vec found = AT(x->sums + i * 32 + k * LANES) + x->bias[k], slope;
            if (how == SLOPES) {
                activated(kind, load(inner + at), &slope);
                found *= slope;
            }
            store(out + at, found);
            if (how == VALUES) store(bent + at, activated(kind, load(out + at), 0));
        }
    x->done = end;
}

/* The sums of 32 rows with a panel; meanwhile the block before is finished, which takes other parts of the core, and what this one will
 * want is fetched, which may be far away. */
INLINE void sums(pending *x, pending *before, const bf16 *rows, long stride, const uint32_t *panel, long reads, int how,
                 int kind) {
#if defined(__AMX_BF16__)
    const long share = (32 * 32 + reads - 1) / reads;
    long ahead = 0;
    __asm__ volatile("" ::: "memory"); /* compilers do not know that tiles are read from memory */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 0; i < reads; i += 32, panel += 16 * 32) {
        _tile_loadd(4, rows + i, 2 * stride);
        _tile_loadd(6, panel, 4 * 32);
        _tile_loadd(7, panel + 16, 4 * 32);
        _tile_loadd(5, rows + 16 * stride + i, 2 * stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        for (const long end = ahead + share; ahead < end && ahead < x->rows; ahead++) {
            __builtin_prefetch(x->out + ahead * x->stride, 1);
            if (how == SLOPES) __builtin_prefetch(x->inner + ahead * x->stride);
            if (how == VALUES) __builtin_prefetch(x->bent + ahead * x->stride, 1);
        }
        finish(before, share, how, kind);
    }
    _tile_stored(0, x->sums, 4 * 32);
    _tile_stored(1, x->sums + 16, 4 * 32);
    _tile_stored(2, x->sums + 16 * 32, 4 * 32);
    _tile_stored(3, x->sums + 16 * 32 + 16, 4 * 32);
    __asm__ volatile("" ::: "memory");
#else
    product(0, x->sums, 32, rows, stride, panel, 32, 32, 32, reads);
    finish(before, 32, how, kind);
#endif
}

INLINE int multiplied(const shape *z, const bf16 *x, const uint32_t *panels, const bf16 *bias, const bf16 *inner, bf16 *out, bf16 *bent,
                      int how, int kind) {
    const long R = z->reads, W = z->writes, blocks = (z->rows + 31) / 32, left = z->rows % 32, whole = z->rows - left;
    /* A part has two blocks of rows, or more; threads that are left over share the panels. */
    const long threads = omp_get_max_threads(), across = blocks / 2 < 1 ? 1 : blocks / 2 < threads ? blocks / 2 : threads;
    const long down = threads / across, count = across * down;
    part *parts = aligned_alloc(64, count * sizeof(part) + 32 * R * sizeof(bf16));
    if (!parts) return 1;
    bf16 *rest = (bf16 *)(parts + count); /* the last rows, with zeros behind them */
    if (left) gather(rest, x + whole * R, R, left, R, x);
    for (long k = 0; k < count; k++) parts[k].next = W / 32 * (k / across) / down, parts[k].end = W / 32 * (k / across + 1) / down;
#pragma omp parallel
    {
        worker own = {.at = omp_get_thread_num() % count};
        pending two[2] = {};
        int now = 0;
        tiles before;
        enter(&before);
        for (long j; (j = taken(parts, count, &own)) >= 0;)
            for (long mine = own.at % across, i = blocks * mine / across; i < blocks * (mine + 1) / across; i++, now = !now) {
                const int inside = i * 32 < whole;
                pending *next = two + now;
                next->out = out + i * 32 * W + j * 32, next->stride = W, next->rows = inside ? 32 : left, next->done = 0;
                if (how == SLOPES) next->inner = inner + i * 32 * W + j * 32;
                if (how == VALUES) next->bent = bent + i * 32 * W + j * 32;
                for (long k = 0; k < 32 / LANES; k++) next->bias[k] = bias ? load(bias + j * 32 + k * LANES) : all(0);
                sums(next, two + !now, inside ? x + i * 32 * R : rest, R, panels + j * 16 * R, R, how, kind);
            }
        finish(two + !now, 32, how, kind);
        leave(&before);
    }
    free(parts);
    return 0;
}

/* out (rows, writes) = x (rows, reads) weight^T + bias, times f'(inner), (rows, writes); bent: f(out). bias may be 0, and so may inner
 * and bent, of which one is.   0: done; 1: no memory; 2: of this activation it knows nothing. */
int multiply(const shape *z, const bf16 *x, const uint32_t *panels, const bf16 *bias, const bf16 *inner, bf16 *out, bf16 *bent) {
#define CALL(how, kind) return multiplied(z, x, panels, bias, inner, out, bent, how, kind)
    if (!inner && !bent) CALL(PLAIN, LINEAR);
    switch (z->kind) { /* a loop for each: choosing within it takes as long as it does */
    case GELU: if (inner) CALL(SLOPES, GELU); CALL(VALUES, GELU);
    case GELU_NEW: if (inner) CALL(SLOPES, GELU_NEW); CALL(VALUES, GELU_NEW);
    case SILU: if (inner) CALL(SLOPES, SILU); CALL(VALUES, SILU);
    default: return 2;
    }
#undef CALL
}

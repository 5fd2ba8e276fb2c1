/* Activations of bfloat16 on a CPU, forward and backward; activations.py beside this file calls it, compiled.py has it compiled. */
#include "matrices.h"

#include "activations.h"

typedef struct {
    long count;
    int kind;
} shape;

/* LANES numbers, or the last of them. */
INLINE vec some(const bf16 *from, long left) {
    bf16 room[LANES] = {0};
    if (left >= LANES) return load(from);
    memcpy(room, from, left * sizeof(bf16));
    return load(room);
}

INLINE void put(bf16 *to, vec x, long left) {
    bf16 room[LANES];
    if (left >= LANES) return store(to, x);
    store(room, x);
    memcpy(to, room, left * sizeof(bf16));
}

INLINE void forward(int kind, long count, const bf16 *x, bf16 *out) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i += LANES) put(out + i, activated(kind, some(x + i, count - i), 0), count - i);
}

INLINE void backward(int kind, long count, const bf16 *grad, const bf16 *x, bf16 *dx) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i += LANES) {
        vec slope;
        activated(kind, some(x + i, count - i), &slope);
        put(dx + i, slope * some(grad + i, count - i), count - i);
    }
}

/* A loop for each kind: choosing within it would take as long as it does. */
#define EACH(call) \
    switch (z->kind) { \
    case GELU: call(GELU); break; \
    case GELU_NEW: call(GELU_NEW); break; \
    case SILU: call(SILU); break; \
    default: return 2; \
    } \
    return 0;

int activation_forward(const shape *z, const bf16 *x, bf16 *out) {
#define CALL(kind) forward(kind, z->count, x, out)
    EACH(CALL)
#undef CALL
}

int activation_backward(const shape *z, const bf16 *grad, const bf16 *x, bf16 *dx) {
#define CALL(kind) backward(kind, z->count, grad, x, dx)
    EACH(CALL)
#undef CALL
}

/* How the threads of a kernel share its work. */
#include <omp.h>
#include <stdlib.h>

/* A part of the work: what comes next of it, and its end. Each thread begins with its own, whose rows are in its core's cache, and
 * whoever is done helps the others: neighbours on a machine slow down one core and not the other. */
typedef struct {
    long next, end, none[6]; /* a cache line for each */
} part;

/* Where a thread is: the part it works at, and how many it has seen the end of. */
typedef struct {
    int at, seen;
} worker;

/* 0 ... count - 1, as a part for each thread, and room for `more` bytes, a multiple of 64, behind them; 0 where there is no memory. */
INLINE part *parted(long count, long threads, long more) {
    part *parts = aligned_alloc(64, threads * sizeof(part) + more);
    for (long k = 0; parts && k < threads; k++) parts[k].next = count * k / threads, parts[k].end = count * (k + 1) / threads;
    return parts;
}

/* What is to be done next, of x->at's part; -1: nothing. The last that is left of a part is its own thread's, if that came: OpenMP may
 * give fewer than it was asked for. */
INLINE long taken(part *parts, long count, worker *x) {
    for (; x->seen < count; x->seen++, x->at = x->at + 1 < count ? x->at + 1 : 0) {
        part *own = parts + x->at;
        const int spared = x->seen > 0 && x->at < omp_get_num_threads();
        if (__atomic_load_n(&own->next, __ATOMIC_RELAXED) + spared < own->end) {
            const long found = __atomic_fetch_add(&own->next, 1, __ATOMIC_RELAXED);
            if (found < own->end) return found;
        }
    }
    return -1;
}

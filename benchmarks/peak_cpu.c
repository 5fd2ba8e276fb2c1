/* What the processor multiplies in bfloat16 at most: `count` times four tiles a thread, that are in its registers all the while. Without
 * AMX, blocks that are in its first cache. */
#include <omp.h>

#include "matrices.h"

int peak(long count) {
#pragma omp parallel
    {
        tiles before;
        bf16 rows[32 * 32] __attribute__((aligned(64))) = {};
        uint32_t pairs[16 * 32] __attribute__((aligned(64))) = {};
        float sums[32 * 32] __attribute__((aligned(64)));
        enter(&before);
        product(0, sums, 32, rows, 32, pairs, 32, 32, 32, 32);
        for (long i = 0; i < count; i++) {
#if defined(__AMX_BF16__)
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
#else
            product(1, sums, 32, rows, 32, pairs, 32, 32, 32, 32);
#endif
        }
        leave(&before);
    }
    return 0;
}

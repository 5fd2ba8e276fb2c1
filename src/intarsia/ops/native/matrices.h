/* Matrices in bfloat16 on a CPU: vectors as wide as the processor's (GCC's extension), products, layouts.
 *
 * Products are of bfloat16 with sums in float32, by AMX where it is there and else by loops that say what AMX does; all else is
 * float32, rounded to nearest even where it is stored. NaN stays NaN.
 *
 * Sizes are multiples of 32. A product's left matrix is (rows, k) as it is; its right one has pairs, two rows' numbers side by side
 * in each 32-bit word, (k / 2, columns), as AMX reads it.
 */
#if defined(__clang__)
#error GCC is needed: the threads of clang's OpenMP are not torch's
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
/* Also what they are not: pairs of bfloat16 are read as words. */
typedef uint16_t bf16 __attribute__((may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((aligned(2), may_alias));
typedef uint16_t both __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

#define AT(pointer) (*(vec *)(pointer))

INLINE vec all(float x) { return x - (vec){}; }

INLINE vec load(const bf16 *from) { return (vec)(__builtin_convertvector(*(const halves *)from, bits) << 16); }

INLINE vec polynomial(vec r) { /* 2^r for |r| <= 0.5, to some 1e-7 (Cephes) */
    vec y = (1.535336188e-4f * r + 1.339887440e-3f) * r + 9.618437357e-3f;
    return (((y * r + 5.550332471e-2f) * r + 2.402264791e-1f) * r + 6.931472028e-1f) * r + 1.f;
}

INLINE vec short_polynomial(vec r) { /* to 3e-6, where bfloat16 has 4e-3; fitted as those of activations.h */
    return (((0.00956051052f * r + 0.0559170395f) * r + 0.240249813f) * r + 0.69312197f) * r + 0.999999166f;
}

INLINE vec either(ints condition, vec yes, vec no) {
    return (vec)(((bits)yes & (bits)condition) | ((bits)no & ~(bits)condition));
}

#if LANES == 16

/* b where one of them is NaN. */
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE float total(vec x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float largest(vec x) { return _mm512_reduce_max_ps((__m512)x); }

/* 2^x for x <= 0. rough: to 3e-6. */
INLINE vec power(vec x, int rough) {
    vec n = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (vec)_mm512_scalef_ps((__m512)(rough ? short_polynomial(x - n) : polynomial(x - n)), (__m512)n);
}

#else

INLINE vec smaller(vec a, vec b) { return either(a < b, a, b); }
INLINE vec larger(vec a, vec b) { return either(a > b, a, b); }

INLINE float total(vec x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

INLINE float largest(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = most > x[i] ? most : x[i];
    return most;
}

INLINE vec power(vec x, int rough) {
    const float magic = 12582912.f; /* what is added to it is rounded */
    ints tiny = x < all(-126.f);
    vec own = either(tiny, all(0), x), n = own + magic - magic;
    return either(tiny, all(0), (rough ? short_polynomial(own - n) : polynomial(own - n)) * (vec)((__builtin_convertvector(n, ints) + 127) << 23));
}

#endif

#if defined(__AVX512BF16__)
INLINE void store(bf16 *to, vec x) {
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &rounded, sizeof rounded);
}
#else
INLINE void store(bf16 *to, vec x) {
    bits raw = (bits)x, even = raw + 0x7fff + ((raw >> 16) & 1), nan = (bits)(x != x);
    *(halves *)to = __builtin_convertvector(((even & ~nan) | ((raw | 0x400000) & nan)) >> 16, halves);
}
#endif

/* -- products ------------------------------------------------------------------------------------------------------- */

#if defined(__AMX_BF16__)

/* Whether the kernel of the system lets this process use AMX's registers. */
static int tiles_ready(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

typedef struct {
    uint8_t palette, start, none[14];
    uint16_t width[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64))) tiles;

/* This thread's tiles are ours until `leave`; oneDNN counts on finding them as it had left them. */
INLINE void enter(tiles *before) {
    tiles ours = {.palette = 1};
    for (int i = 0; i < 8; i++) ours.width[i] = 64, ours.rows[i] = 16;
    _tile_storeconfig(before);
    __asm__ volatile("" ::"r"(&ours), "r"(before) : "memory"); /* compilers know of their first eight bytes only */
    _tile_loadconfig(&ours);
}

INLINE void leave(const tiles *before) {
    if (before->palette) _tile_loadconfig(before);
    else _tile_release();
}

/* c (32, 32) = or += a (32, k) b (k / 2, 32). */
INLINE void block(int add, float *c, long ldc, const bf16 *a, long lda, const uint32_t *b, long ldb, long k) {
    if (add) {
        _tile_loadd(0, c, 4 * ldc);
        _tile_loadd(1, c + 16, 4 * ldc);
        _tile_loadd(2, c + 16 * ldc, 4 * ldc);
        _tile_loadd(3, c + 16 * ldc + 16, 4 * ldc);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long i = 0; i < k; i += 32, b += 16 * ldb) {
        _tile_loadd(4, a + i, 2 * lda);
        _tile_loadd(6, b, 4 * ldb);
        _tile_loadd(7, b + 16, 4 * ldb);
        _tile_loadd(5, a + 16 * lda + i, 2 * lda);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 4 * ldc);
    _tile_stored(1, c + 16, 4 * ldc);
    _tile_stored(2, c + 16 * ldc, 4 * ldc);
    _tile_stored(3, c + 16 * ldc + 16, 4 * ldc);
}

#else

typedef int tiles;
static int tiles_ready(void) { return 1; }
INLINE void enter(tiles *before) {}
INLINE void leave(const tiles *before) {}

INLINE float as_float(uint32_t raw) {
    float x;
    memcpy(&x, &raw, 4);
    return x;
}

INLINE void block(int add, float *c, long ldc, const bf16 *a, long lda, const uint32_t *b, long ldb, long k) {
    for (int i = 0; i < 32; i += 4)
        for (int j = 0; j < 32; j += LANES) {
            vec sum[4];
            for (int r = 0; r < 4; r++) sum[r] = add ? AT(c + (i + r) * ldc + j) : all(0);
            for (long p = 0; p < k / 2; p++) {
                bits both = *(const bits *)(b + p * ldb + j);
                vec first = (vec)(both << 16), second = (vec)(both & 0xffff0000);
                for (int r = 0; r < 4; r++) {
                    const bf16 *own = a + (i + r) * lda + 2 * p;
                    sum[r] += as_float((uint32_t)own[0] << 16) * first + as_float((uint32_t)own[1] << 16) * second;
                }
            }
            for (int r = 0; r < 4; r++) AT(c + (i + r) * ldc + j) = sum[r];
        }
}

#endif

/* Whether the system lets this process use AMX's registers, if these are what it was compiled for. */
int ready(void) { return tiles_ready(); }

/* c (m, n) = or += a (m, k) b (k / 2, n); all multiples of 32. */
static __attribute__((noinline, unused)) void product(int add, float *c, long ldc, const bf16 *a, long lda, const uint32_t *b,
                                                      long ldb, long m, long n, long k) {
    __asm__ volatile("" ::: "memory"); /* compilers do not know that tiles are read from memory */
    for (long i = 0; i < m; i += 32)
        for (long j = 0; j < n; j += 32) block(add, c + i * ldc + j, ldc, a + i * lda, lda, b + j, ldb, k);
    __asm__ volatile("" ::: "memory");
}

/* -- layouts -------------------------------------------------------------------------------------------------------- */

INLINE long padded(long n) { return (n + 31) / 32 * 32; }

/* `count` positions of a head as (padded(count), width), the last of them zeros. `ahead`: those that will be wanted next, as far from
 * each other; memory can send them meanwhile. */
INLINE void gather(bf16 *to, const bf16 *from, long stride, long count, long width, const bf16 *ahead) {
    for (long i = 0; i < count; i++)
        for (long j = 0; j < width; j += 2 * LANES) {
            *(both *)(to + i * width + j) = *(const both *)(from + i * stride + j);
            __builtin_prefetch(ahead + i * stride + j);
        }
    memset(to + count * width, 0, (padded(count) - count) * width * sizeof(bf16));
}

/* (rows, width) -> pairs (rows / 2, width). */
INLINE void pair(uint32_t *to, const bf16 *from, long rows, long width) {
    for (long i = 0; i < rows; i += 2, from += 2 * width, to += width)
        for (long j = 0; j < width; j += LANES)
            *(bits *)(to + j) = (bits)load(from + j) >> 16 | (bits)load(from + width + j);
}

/* (16, 16) words -> transposed. */
INLINE void turn_block(uint32_t *to, long ldt, const words *from, long ldf) {
#if LANES == 16
    __m512i x[16], y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(from + i * ldf);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]), y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]), x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]), x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* x[4 g + i] has column 4 l + i of rows 4 g to 4 g + 3 in its quarter l */
        __m512i a = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), b = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88), d = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
        _mm512_storeu_si512(to + i * ldt, _mm512_shuffle_i32x4(a, c, 0x88));
        _mm512_storeu_si512(to + (8 + i) * ldt, _mm512_shuffle_i32x4(a, c, 0xdd));
        _mm512_storeu_si512(to + (4 + i) * ldt, _mm512_shuffle_i32x4(b, d, 0x88));
        _mm512_storeu_si512(to + (12 + i) * ldt, _mm512_shuffle_i32x4(b, d, 0xdd));
    }
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[j * ldt + i] = from[i * ldf + j];
#endif
}

/* (rows, width) words, which may be pairs of bfloat16 -> (width, rows); multiples of 16. */
INLINE void turn(uint32_t *to, const void *from, long rows, long width) {
    for (long i = 0; i < rows; i += 16)
        for (long j = 0; j < width; j += 16) turn_block(to + j * rows + i, rows, (const words *)from + i * width + j, width);
}

INLINE void narrow(bf16 *to, long stride, const float *from, long count, long width) {
    for (long i = 0; i < count; i++)
        for (long d = 0; d < width; d += LANES) store(to + i * stride + d, AT(from + i * width + d));
}

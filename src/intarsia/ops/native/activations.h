/* Activations and their slopes in float32, numbered as the kernels for GPUs number them: to some 1e-7 of the largest, GELU's and their
 * slopes to 3e-6, where bfloat16 has 4e-3. */

enum { RELU, GELU, GELU_NEW, SILU, TANH, LINEAR };

#define LOG2E 1.44269504f

INLINE vec size_of(vec z) { return (vec)((bits)z & 0x7fffffff); }

INLINE vec bent(vec z) { /* tanh */
    vec fade = power(size_of(z) * (-2 * LOG2E), 0), found = (1 - fade) / (1 + fade);
    found = (vec)((bits)found | ((bits)z & 0x80000000));
    return either(size_of(z) < 0.03f, z - z * z * z * (1 / 3.f), found); /* one minus nearly one has few digits */
}

INLINE vec share_of(vec z) { /* sigmoid */
    vec fade = power(size_of(z) * -LOG2E, 0);
    return either(z < 0, fade, all(1)) / (1 + fade);
}

/* What GELU multiplies z by, and its slopes, are one half plus an odd function, flat far out. Here as polynomials in z^2, without
 * exponentials and divisions: fits in Chebyshev's polynomials of degree 13 over z^2 from 0 to FAR^2, weighted by z, written as powers
 * of 2 z^2 / FAR^2 - 1. */
#define FAR 5.25f
#define TERMS 14

static const float gelu_share[TERMS] = {0.134659365f, -0.0671266094f, 0.0496441461f, -0.0397699736f, 0.0320609733f,
                                        -0.0249829032f, 0.0183417797f, -0.0130001213f, 0.00903656706f, -0.00503625954f,
                                        0.00190249365f, -0.00139932299f, 0.00144459691f, -0.000536655076f};
static const float gelu_slope[TERMS] = {0.135065496f, -0.0699204877f, 0.0592450276f, -0.0619719997f, 0.0707806945f,
                                        -0.0769935325f, 0.074783206f, -0.0737024322f, 0.0720055401f, -0.0438184403f,
                                        0.0110697541f, -0.0153703392f, 0.0236064885f, -0.00954070408f};
static const float gelu_new_share[TERMS] = {0.134668276f, -0.0671761259f, 0.0497690067f, -0.0399274044f, 0.0320590399f,
                                            -0.0247416329f, 0.0181974676f, -0.0127643077f, 0.00788982678f, -0.00406428147f,
                                            0.00278903428f, -0.00276348507f, 0.00171827804f, -0.000415592338f};
static const float gelu_new_slope[TERMS] = {0.1349843f, -0.0696309432f, 0.0590496138f, -0.0628681108f, 0.0731740817f,
                                            -0.079239279f, 0.0760642439f, -0.0752895847f, 0.0688598156f, -0.0304588228f,
                                            0.000562082743f, -0.0207615811f, 0.033869829f, -0.0130777145f};

INLINE vec odd(vec z, const float *terms) {
    const vec near = larger(all(-FAR), smaller(all(FAR), z)), t = near * near * (2 / (FAR * FAR)) - 1;
    vec found = all(terms[TERMS - 1]);
#pragma GCC unroll 16
    for (int k = TERMS - 2; k >= 0; k--) found = found * t + terms[k];
    return near * found + 0.5f;
}

/* f(z); f'(z) in *slope, if it is wanted. */
INLINE vec activated(int kind, vec z, vec *slope) {
    vec share, inner;
    switch (kind) {
    case RELU:
        share = either(z > 0, all(1), all(0));
        if (slope) *slope = share;
        return either((z > 0) | (z != z), z, all(0));
    case GELU: /* the normal distribution */
        share = odd(z, gelu_share);
        if (slope) *slope = odd(z, gelu_slope);
        return z * either(z < -FAR, all(0), share);
    case GELU_NEW: /* (1 + tanh x) / 2 */
        share = odd(z, gelu_new_share);
        if (slope) *slope = odd(z, gelu_new_slope);
        return z * either(z < -FAR, all(0), share);
    case SILU:
        share = share_of(z);
        if (slope) *slope = share * (1 + z * (1 - share));
        return z * share;
    case TANH:
        inner = bent(z);
        if (slope) *slope = 1 - inner * inner;
        return inner;
    default:
        if (slope) *slope = all(1);
        return z;
    }
}

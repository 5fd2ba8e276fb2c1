/* Activations and their slopes in float32, to some 1e-7 of the largest; numbered as the kernels for GPUs number them. */

enum { RELU, GELU, GELU_NEW, SILU, TANH, LINEAR };

#define LOG2E 1.44269504f

INLINE vec size_of(vec z) { return (vec)((bits)z & 0x7fffffff); }

INLINE vec bent(vec z) { /* tanh */
    vec fade = power(size_of(z) * (-2 * LOG2E)), found = (1 - fade) / (1 + fade);
    found = (vec)((bits)found | ((bits)z & 0x80000000));
    return either(size_of(z) < 0.03f, z - z * z * z * (1 / 3.f), found); /* one minus nearly one has few digits */
}

INLINE vec share_of(vec z) { /* sigmoid */
    vec fade = power(size_of(z) * -LOG2E);
    return either(z < 0, fade, all(1)) / (1 + fade);
}

/* f(z); f'(z) in *slope, if it is wanted. */
INLINE vec activated(int kind, vec z, vec *slope) {
    vec share, inner, fade;
    switch (kind) {
    case RELU:
        share = either(z > 0, all(1), all(0));
        if (slope) *slope = share;
        return either((z > 0) | (z != z), z, all(0));
    case GELU: /* the normal distribution by Abramowitz and Stegun 7.1.26, whose exponential is its density, too */
        fade = power(z * z * (-0.5f * LOG2E));
        inner = 1 / (1 + 0.23164190f * size_of(z));
        share = (inner * (inner * 1.061405429f - 1.453152027f) + 1.421413741f) * inner;
        share = inner * (inner * (share - 0.284496736f) + 0.254829592f);
        share *= 0.5f * fade;
        share = either(z < 0, share, 1 - share);
        if (slope) *slope = share + z * fade * 0.3989422804f;
        return z * share;
    case GELU_NEW: /* (1 + tanh x) / 2 is the sigmoid of 2 x */
        inner = 0.7978845608f * (z + 0.044715f * z * z * z);
        share = share_of(2 * inner);
        if (slope) *slope = share + 2 * z * share * (1 - share) * 0.7978845608f * (1 + 0.134145f * z * z);
        return z * share;
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

/* A vector of float32 lanes as wide as the target has, and the few functions of it that the kernels need.
 *
 * GCC and Clang vector extensions throughout; intrinsics only where C has no operator. Nothing here may be
 * compiled with -ffast-math: the rounding trick and the handling of NaN depend on IEEE semantics. */
#ifndef QMAMBA_SIMD_H
#define QMAMBA_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif
#define INLINE static inline __attribute__((always_inline))

/* What a variant exports ends in its name. */
#ifndef QM_SUFFIX
#error "compile with -DQM_SUFFIX=name"
#endif
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));

INLINE vf v_load(const float *p) { return *(const vf_any *)p; }
INLINE void v_store(float *p, vf v) { *(vf_any *)p = v; }
INLINE vf v_set(float s) { return s - (vf){0}; }

/* The larger and the smaller of two; NaN where b is NaN, so that it gets through a clamp. */
INLINE vf v_max(vf a, vf b) {
#if VL == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif VL == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(__ARM_NEON)
    return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
    vi above = a > b;
    return (vf)((above & (vi)a) | (~above & (vi)b));
#endif
}

INLINE vf v_min(vf a, vf b) {
#if VL == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif VL == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#elif defined(__ARM_NEON)
    return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b);
#else
    vi below = a < b;
    return (vf)((below & (vi)a) | (~below & (vi)b));
#endif
}

/* Adding this rounds a float of less than 2^22 to an integer, left in the lowest bits. */
#define ROUNDER 12582912.0f /* 1.5 · 2^23 */

/* 2^x for x in [-126, 127]; beyond, the value at the limit: 1.2e-38 stands for 0. About 1 ulp. */
INLINE vf v_exp2(vf x) {
    x = v_min(v_set(127.0f), v_max(v_set(-126.0f), x));
    vf shifted = x + ROUNDER;
    vf f = x - (shifted - ROUNDER); /* exact, in [-1/2, 1/2] */
    vf p = f * 1.535231713205576e-4f + 1.3400170719251037e-3f;
    p = p * f + 9.618449956178665e-3f;
    p = p * f + 5.550329387187958e-2f;
    p = p * f + 2.4022647738456726e-1f;
    p = p * f + 6.931471824645996e-1f;
    p = p * f + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

/* e^x for x in [-87.3, 0]; below, 1.2e-38. The argument is reduced in two pieces, so that the relative
 * error stays about 1 ulp where x is far from 0. */
INLINE vf v_exp_nonpositive(vf x) {
    x = v_max(v_set(-87.3f), x);
    vf shifted = x * 1.44269504088896341f + ROUNDER;
    vf n = shifted - ROUNDER;
    vf r = x - n * 0.693359375f; /* log 2 to 9 bits: the product is exact */
    r = r + n * 2.12194440e-4f;  /* and the rest of it, with its sign turned */
    vf q = r * 1.3813144760206342e-3f + 8.369418792426586e-3f;
    q = q * r + 4.166845604777336e-2f;
    q = q * r + 1.6666515171527863e-1f;
    q = q * r + 4.999999403953552e-1f;
    q = q * (r * r) + r + 1.0f;
    return (vf)((vi)q + ((vi)shifted << 23));
}

/* log(1 + u) for u in [0, 1], with a small relative error down to u = 0: u times a polynomial. */
INLINE vf v_log1p_unit(vf u) {
    vf v = u - 0.5f;
    vf p = v * -3.2440247014164925e-3f + 5.253351293504238e-3f;
    p = p * v - 6.7499116994440556e-3f;
    p = p * v + 1.1576150543987751e-2f;
    p = p * v - 2.0570294931530952e-2f;
    p = p * v + 3.663547337055206e-2f;
    p = p * v - 6.768769770860672e-2f;
    p = p * v + 1.3260900974273682e-1f;
    p = p * v - 2.8852710127830505e-1f;
    p = p * v + 8.109301924705505e-1f;
    return u * p;
}

/* softplus(x) = max(x, 0) + log1p(e^-|x|), and in *u that exponential. */
INLINE vf v_softplus(vf x, vf *u) {
    vi sign = {0};
    sign += INT32_MIN;
    *u = v_exp_nonpositive((vf)((vi)x | sign));
    return v_max(v_set(0.0f), x) + v_log1p_unit(*u);
}

/* sigmoid(x), the slope of softplus, from x and e^-|x|. */
INLINE vf v_sigmoid_of(vf x, vf u) {
    vi negative = (vi)x >> 31;
    vf over = (vf)(((vi)u & negative) | ((vi)v_set(1.0f) & ~negative));
    return over / (u + 1.0f);
}

/* --- sums across lanes ---------------------------------------------------------------------------------- */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* Adds neighbouring groups of lanes: those of a go to even groups of the result, those of b to odd ones. */
#if VL == 16
#define PAIR1(a, b)                                                                   \
    (SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +       \
     SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#define PAIR2(a, b)                                                                   \
    (SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +        \
     SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define PAIR4(a, b)                                                                   \
    (SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +        \
     SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define PAIR8(a, b)                                                                   \
    (SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +          \
     SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#elif VL == 8
#define PAIR1(a, b) \
    (SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15))
#define PAIR2(a, b) \
    (SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define PAIR4(a, b) \
    (SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#else
#define PAIR1(a, b) (SHUFFLE(a, b, 0, 4, 2, 6) + SHUFFLE(a, b, 1, 5, 3, 7))
#define PAIR2(a, b) (SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7))
#endif

/* Lane i of the result is the sum over the lanes of v[i]; v is used up. */
INLINE vf v_sums(vf v[VL]) {
    for (int i = 0; i < VL / 2; i++) v[i] = PAIR1(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < VL / 4; i++) v[i] = PAIR2(v[2 * i], v[2 * i + 1]);
#if VL >= 8
    for (int i = 0; i < VL / 8; i++) v[i] = PAIR4(v[2 * i], v[2 * i + 1]);
#endif
#if VL >= 16
    v[0] = PAIR8(v[0], v[1]);
#endif
    return v[0];
}

#endif

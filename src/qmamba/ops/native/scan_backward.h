/* The backward of a walk. It keeps nothing of the forward: it recomputes Δ and the states, chunk by chunk from
 * the last, from states that a first pass left at the chunks' starts. */
#ifndef QMAMBA_SCAN_BACKWARD_H
#define QMAMBA_SCAN_BACKWARD_H

#include "scan_walk.h"

/* What the backward of a walk keeps, in rows. */
typedef struct {
    row *delta, *slope, *decay, *h; /* CHUNK of each, and one more state */
    row *starts;                    /* (chunks, N): states at the chunks' starts */
    row *carry;                     /* (N): gradients of the states, on the way back */
    row *g_weight;                  /* (R) */
    row *g_A;                       /* (N) */
    row g_bias, g_D;
    vf *sum_B, *sum_C;              /* (CHUNK): products to be summed over their lanes */
} adjoint;

/* The state n after `count` steps that start from *h, without an output. */
INLINE void skip_steps(const walk *w, int64_t n, row A, int64_t t0, int64_t count, const row *delta, row *h) {
    const qm_scan *s = w->s;
    row state = *h;
    for (int64_t t = 0; t < count; t++) {
        const int64_t at = w->order[t0 + t];
        const float B = w->B[at * s->B_position + n];
        row x = row_load(w->x + at * s->channels, w->lanes);
        for (int v = 0; v < NV; v++)
            state.v[v] = v_exp2(delta[t].v[v] * A.v[v]) * state.v[v] + delta[t].v[v] * x.v[v] * B;
    }
    h[s->states] = state; /* the start of the next chunk */
}

/* Decays and states of a chunk, kept for the way back; h[0] is the state before it. */
INLINE void keep_steps(const walk *w, adjoint *a, int64_t n, row A, int64_t t0, int64_t count) {
    const qm_scan *s = w->s;
    row state = a->h[0];
    for (int64_t t = 0; t < count; t++) {
        const int64_t at = w->order[t0 + t];
        const float B = w->B[at * s->B_position + n];
        row x = row_load(w->x + at * s->channels, w->lanes);
        for (int v = 0; v < NV; v++) {
            vf decay = v_exp2(a->delta[t].v[v] * A.v[v]);
            a->decay[t].v[v] = decay;
            state.v[v] = decay * state.v[v] + a->delta[t].v[v] * x.v[v] * B;
        }
        a->h[t + 1] = state;
    }
}

/* Back through a chunk for state n. With g = ∂loss/∂h and kept = a_t h_{t-1}:
 * ∂Δ = g (A kept + B x),  ∂A = Σ g kept Δ,  ∂B = Σ_d g Δ x,  ∂C = Σ_d ∂y h,  ∂x = g Δ B + ∂y D.
 * ∂Δ is summed over the states in g_delta; with the last one, ∂Δ · slope is left in place of the slope. */
INLINE void back_steps(const walk *w, adjoint *a, int64_t n, row A, int64_t t0, int64_t count, row *g_delta) {
    const qm_scan *s = w->s;
    const int64_t D = s->channels;
    const int lanes = w->lanes, first = n == 0, last = n == s->states - 1, fresh = first && w->first_route;
    row carry = a->carry[n], g_A = a->g_A[n], g_bias = a->g_bias, g_D = a->g_D, skip = w->skip;
    if (!first) memset(&skip, 0, sizeof skip);
    for (int64_t t = count - 1; t >= 0; t--) {
        const int64_t at = w->order[t0 + t];
        const float B = w->B[at * s->B_position + n], C = w->C[at * s->C_position + n];
        row x = row_load(w->x + at * D, lanes), gy = row_load(w->gy + at * D, lanes);
        row g_x, g_step;
        vf sum_B = {0}, sum_C = {0};
        for (int v = 0; v < NV; v++) {
            vf delta = a->delta[t].v[v], decay = a->decay[t].v[v];
            vf g = carry.v[v] + gy.v[v] * C;
            vf kept = g * decay * a->h[t].v[v];
            carry.v[v] = g * decay;
            sum_C += gy.v[v] * a->h[t + 1].v[v];
            sum_B += g * (delta * x.v[v]);
            g_A.v[v] += kept * delta;
            vf gB = g * B;
            g_step.v[v] = kept * A.v[v] + gB * x.v[v];
            g_x.v[v] = gB * delta + gy.v[v] * skip.v[v];
            if (first) g_D.v[v] += gy.v[v] * x.v[v];
        }
        a->sum_B[t] = sum_B;
        a->sum_C[t] = sum_C;
        if (!first)
            for (int v = 0; v < NV; v++) g_step.v[v] += g_delta[t].v[v];
        if (last) {
            for (int v = 0; v < NV; v++) {
                g_step.v[v] *= a->slope[t].v[v];
                g_bias.v[v] += g_step.v[v];
            }
            a->slope[t] = g_step;
        } else
            g_delta[t] = g_step;
        if (!fresh) {
            row before = row_load(w->g_x + at * D, lanes);
            for (int v = 0; v < NV; v++) g_x.v[v] += before.v[v];
        }
        row_store(w->g_x + at * D, g_x, lanes);
    }
    a->carry[n] = carry;
    a->g_A[n] = g_A;
    a->g_bias = g_bias;
    a->g_D = g_D;
}

/* Sums products over their lanes and adds them to out[position · stride], or writes them there. */
INLINE void spread(const walk *w, vf *products, int64_t t0, int64_t count, float *out, int64_t stride) {
    for (int64_t t = 0; t < count; t += VL) {
        float sums[VL];
        v_store(sums, v_sums(products + t)); /* beyond `count`: whatever, and not used */
        const int64_t here = count - t < VL ? count - t : VL;
        for (int64_t i = 0; i < here; i++) {
            float *to = out + w->order[t0 + t + i] * stride;
            *to = w->first_block ? sums[i] : *to + sums[i];
        }
    }
}

/* ∂dt = ∂pre · dt_weight: sums over the block's channels. */
INLINE void rank_gradient(const walk *w, const row *g_pre, int64_t t0, int64_t count) {
    const int64_t R = w->s->rank, stride = w->s->routes * R;
    for (int64_t t = 0; t < count; t += VL) {
        const int64_t here = count - t < VL ? count - t : VL;
        for (int64_t r = 0; r < R; r++) {
            row weight = w->weight[r];
            vf products[VL];
            for (int i = 0; i < VL; i++) {
                vf p = g_pre[t + i].v[0] * weight.v[0];
                for (int v = 1; v < NV; v++) p += g_pre[t + i].v[v] * weight.v[v];
                products[i] = p;
            }
            float sums[VL];
            v_store(sums, v_sums(products));
            for (int64_t i = 0; i < here; i++) {
                float *to = w->g_dt + w->order[t0 + t + i] * stride + r;
                *to = w->first_block ? sums[i] : *to + sums[i];
            }
        }
    }
}

/* ∂dt_weight = Σ_t ∂pre_t dt_t for `many` ranks from r. */
INLINE void weight_gradient_of(
    const walk *w, adjoint *a, const row *g_pre, int64_t t0, int64_t count, int64_t r, const int many
) {
    row sum[8];
    for (int i = 0; i < many; i++) sum[i] = a->g_weight[r + i];
    for (int64_t t = 0; t < count; t++) {
        const float *dt = w->dt + w->order[t0 + t] * w->s->dt_position + r;
        for (int i = 0; i < many; i++)
            for (int v = 0; v < NV; v++) sum[i].v[v] += g_pre[t].v[v] * dt[i];
    }
    for (int i = 0; i < many; i++) a->g_weight[r + i] = sum[i];
}

INLINE void weight_gradient(const walk *w, adjoint *a, const row *g_pre, int64_t t0, int64_t count) {
    int64_t r = 0;
    for (; r + 8 <= w->s->rank; r += 8) weight_gradient_of(w, a, g_pre, t0, count, r, 8);
    for (; r + 2 <= w->s->rank; r += 2) weight_gradient_of(w, a, g_pre, t0, count, r, 2);
    for (; r < w->s->rank; r++) weight_gradient_of(w, a, g_pre, t0, count, r, 1);
}

INLINE void back_chunk(const walk *w, adjoint *a, int64_t chunk) {
    const qm_scan *s = w->s;
    const int64_t t0 = chunk * CHUNK, count = s->length - t0 < CHUNK ? s->length - t0 : CHUNK;
    row *g_delta = a->h + CHUNK + 1; /* only there with more than one state */
    step_sizes(w, t0, count, a->delta, a->slope);
    for (int64_t n = 0; n < s->states; n++) {
        row A = load_A(w, n);
        row A_e = A;
        for (int v = 0; v < NV; v++) A_e.v[v] *= 0.693147180559945309f; /* A without its log2 e */
        a->h[0] = a->starts[chunk * s->states + n];
        keep_steps(w, a, n, A, t0, count);
        back_steps(w, a, n, A_e, t0, count, g_delta);
        const int64_t stride = s->routes * s->states;
        spread(w, a->sum_B, t0, count, w->g_B + n, stride);
        spread(w, a->sum_C, t0, count, w->g_C + n, stride);
    }
    const int64_t padded = (count + VL - 1) / VL * VL;
    memset(a->slope + count, 0, (size_t)(padded - count) * sizeof(row));
    rank_gradient(w, a->slope, t0, count);
    weight_gradient(w, a, a->slope, t0, count);
}

/* Adds a block's gradient of a weight to its image group's sum, or writes it there. */
INLINE void flush(const walk *w, float *out, row g) {
    if (!w->first_image) {
        row before = row_load(out, w->lanes);
        for (int v = 0; v < NV; v++) g.v[v] += before.v[v];
    }
    row_store(out, g, w->lanes);
}

INLINE int64_t chunks_of(const qm_scan *s) { return (s->length + CHUNK - 1) / CHUNK; }

INLINE void backward_walk(const walk *w, row *scratch, int64_t image_group) {
    const qm_scan *s = w->s;
    const int64_t N = s->states, R = s->rank, D = s->channels, chunks = chunks_of(s);
    adjoint a = {0};
    a.delta = scratch;
    a.slope = a.delta + CHUNK;
    a.decay = a.slope + CHUNK;
    a.h = a.decay + CHUNK; /* then g_delta, with more than one state */
    a.starts = a.h + CHUNK + 1 + (N > 1 ? CHUNK : 0);
    a.carry = a.starts + chunks * N;
    a.g_weight = a.carry + N;
    a.g_A = a.g_weight + R;
    a.sum_B = (vf *)(a.g_A + N);
    a.sum_C = a.sum_B + CHUNK;
    memset(a.starts, 0, (size_t)N * sizeof(row));
    memset(a.carry, 0, (size_t)(2 * N + R) * sizeof(row)); /* and g_weight, g_A */
    for (int64_t chunk = 0; chunk + 1 < chunks; chunk++) {
        step_sizes(w, chunk * CHUNK, CHUNK, a.delta, NULL);
        for (int64_t n = 0; n < N; n++)
            skip_steps(w, n, load_A(w, n), chunk * CHUNK, CHUNK, a.delta, a.starts + chunk * N + n);
    }
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) back_chunk(w, &a, chunk);
    const int64_t route = image_group * s->routes + w->k;
    for (int64_t r = 0; r < R; r++) flush(w, s->g_weight + (route * R + r) * D + w->c, a.g_weight[r]);
    for (int64_t n = 0; n < N; n++) flush(w, s->g_A + (route * N + n) * D + w->c, a.g_A[n]);
    flush(w, s->g_bias + route * D + w->c, a.g_bias);
    flush(w, s->g_D + route * D + w->c, a.g_D);
}

#endif

/* The selective scan over routes of a grid, forward and backward, for one instruction set.
 *
 * Channels lie in the lanes of a few vectors and walk a route together; positions are read through the
 * route's order, so nothing is permuted. Step sizes Δ are expanded from their rank-R form in short chunks.
 * The backward keeps nothing of the forward: it recomputes Δ and the states, chunk by chunk from the last,
 * from states that a first pass left at the chunks' starts. */
#include "scan.h"
#include "simd.h"

#define NV 4            /* vectors that are worked on together: enough to hide what each waits for */
#define LANES (NV * VL) /* channels of a block */
#define STEPS 64        /* steps of a chunk in the forward: Δ stays in the nearest cache */
#define CHUNK 1024      /* steps of a chunk in the backward: its four arrays stay about in the second cache */
#define TILE 4          /* steps whose Δ are made together */
_Static_assert(QM_BLOCK % LANES == 0, "a task's channels are whole blocks");
_Static_assert(CHUNK % VL == 0 && CHUNK % TILE == 0 && STEPS % TILE == 0, "chunks are whole tiles");

typedef struct {
    vf v[NV];
} row; /* one position's channels of a block */

INLINE row row_load(const float *p, int n) {
    row r;
    if (n == LANES) {
        for (int i = 0; i < NV; i++) r.v[i] = v_load(p + i * VL);
    } else {
        memset(&r, 0, sizeof r);
        memcpy(&r, p, (size_t)n * sizeof(float));
    }
    return r;
}

INLINE void row_store(float *p, row r, int n) {
    if (n == LANES)
        for (int i = 0; i < NV; i++) v_store(p + i * VL, r.v[i]);
    else
        memcpy(p, &r, (size_t)n * sizeof(float));
}

/* One route of one image for one block of channels. */
typedef struct {
    const qm_scan *s;
    const int32_t *order;
    const float *x, *dt, *B, *C; /* of this image (and route) */
    float *y, *g_x;
    const float *gy;
    float *g_dt, *g_B, *g_C;
    int64_t image, k, c; /* image, route, first channel */
    int lanes;           /* channels of the block that exist */
    int first_route, first_block, first_image;
    row *weight;         /* (R): this block's part of dt_weight */
    row bias, skip;
} walk;

/* --- step sizes ------------------------------------------------------------------------------------------ */

/* Δ of steps t0 .. t0 + count, and with `slope` its derivative, at delta[0 ..]; count rounded up to TILE. */
INLINE void step_sizes(const walk *w, int64_t t0, int64_t count, row *delta, row *slope) {
    const int64_t R = w->s->rank, stride = w->s->dt_position;
    for (int64_t t = 0; t < count; t += TILE) {
        row pre[TILE];
        const float *dt[TILE];
        for (int i = 0; i < TILE; i++) {
            int64_t step = t + i < count ? t + i : count - 1;
            dt[i] = w->dt + w->order[t0 + step] * stride;
            pre[i] = w->bias;
        }
        for (int64_t r = 0; r < R; r++) {
            row weight = w->weight[r];
            for (int i = 0; i < TILE; i++)
                for (int v = 0; v < NV; v++) pre[i].v[v] += weight.v[v] * dt[i][r];
        }
        for (int i = 0; i < TILE; i++)
            for (int v = 0; v < NV; v++) {
                vf u;
                delta[t + i].v[v] = v_softplus(pre[i].v[v], &u);
                if (slope) slope[t + i].v[v] = v_sigmoid_of(pre[i].v[v], u);
            }
    }
}

/* --- forward --------------------------------------------------------------------------------------------- */

/* State n over `count` steps: adds its part of y, or writes it there if it is the first. */
INLINE void scan_steps(const walk *w, int64_t n, row A, int64_t t0, int64_t count, const row *delta, row *h) {
    const qm_scan *s = w->s;
    const int lanes = w->lanes, fresh = n == 0 && (w->first_route || !s->merge);
    const int64_t D = s->channels;
    row state = *h, skip = w->skip;
    if (n) memset(&skip, 0, sizeof skip);
    for (int64_t t = 0; t < count; t++) {
        const int64_t at = w->order[t0 + t];
        const float B = w->B[at * s->B_position + n], C = w->C[at * s->C_position + n];
        row x = row_load(w->x + at * D, lanes), y;
        for (int v = 0; v < NV; v++) {
            vf decay = v_exp2(delta[t].v[v] * A.v[v]);
            state.v[v] = decay * state.v[v] + delta[t].v[v] * x.v[v] * B;
            y.v[v] = state.v[v] * C + skip.v[v] * x.v[v];
        }
        if (!fresh) {
            row before = row_load(w->y + at * D, lanes);
            for (int v = 0; v < NV; v++) y.v[v] += before.v[v];
        }
        row_store(w->y + at * D, y, lanes);
    }
    *h = state;
}

INLINE row load_A(const walk *w, int64_t n) {
    const qm_scan *s = w->s;
    return row_load(s->A + (w->k * s->states + n) * s->channels + w->c, w->lanes);
}

INLINE void forward_walk(const walk *w, row *scratch) {
    const qm_scan *s = w->s;
    row *delta = scratch, *h = delta + STEPS;
    memset(h, 0, (size_t)s->states * sizeof(row));
    for (int64_t t0 = 0; t0 < s->length; t0 += STEPS) {
        int64_t count = s->length - t0 < STEPS ? s->length - t0 : STEPS;
        step_sizes(w, t0, count, delta, NULL);
        for (int64_t n = 0; n < s->states; n++) scan_steps(w, n, load_A(w, n), t0, count, delta, h + n);
    }
}

/* --- backward -------------------------------------------------------------------------------------------- */

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

/* --- tasks ----------------------------------------------------------------------------------------------- */

static int64_t scratch_floats(const qm_scan *s) {
    const int64_t N = s->states;
    int64_t rows = 4 * CHUNK + 1 + (N > 1 ? CHUNK : 0) + chunks_of(s) * N + 2 * N + 2 * s->rank;
    return rows * LANES + 2 * CHUNK * VL + 2 * STEPS * LANES;
}

/* The part of `total` that group g of `groups` has. */
INLINE void part(int64_t total, int64_t g, int64_t groups, int64_t *from, int64_t *to) {
    *from = total * g / groups;
    *to = total * (g + 1) / groups;
}

INLINE walk walk_of(const qm_scan *s, int64_t image, int64_t k, int64_t c, int lanes, row *weight) {
    const int64_t D = s->channels, L = s->length, R = s->rank;
    const int64_t plane = (s->merge ? image : image * s->routes + k) * L * D + c;
    walk w = {.s = s, .image = image, .k = k, .c = c, .lanes = lanes, .first_route = k == 0};
    w.order = s->order + k * L;
    w.x = s->x + image * L * D + c;
    w.dt = s->dt + image * s->dt_image + k * s->dt_route;
    w.B = s->B + image * s->B_image + k * s->B_route;
    w.C = s->C + image * s->C_image + k * s->C_route;
    w.y = s->y ? s->y + plane : NULL;
    w.gy = s->gy ? s->gy + plane : NULL;
    w.weight = weight;
    for (int64_t r = 0; r < R; r++) weight[r] = row_load(s->dt_weight + (k * R + r) * D + c, lanes);
    w.bias = row_load(s->dt_bias + k * D + c, lanes);
    w.skip = row_load(s->D + k * D + c, lanes);
    return w;
}

INLINE void backward_block(
    const qm_scan *s, walk *w, int64_t image_group, int64_t channel_group, row *scratch
) {
    const int64_t at = (channel_group * s->images + w->image) * s->length * s->routes + w->k;
    w->g_x = s->g_x + w->image * s->length * s->channels + w->c;
    w->g_dt = s->g_dt + at * s->rank;
    w->g_B = s->g_B + at * s->states;
    w->g_C = s->g_C + at * s->states;
    backward_walk(w, scratch, image_group);
}

static __attribute__((noinline)) void block(
    const qm_scan *s, walk *w, int64_t image_group, int64_t channel_group, row *scratch, int backward
) {
    /* Each case is compiled for itself: full blocks without a thought for lanes that do not exist. */
    if (w->lanes == LANES) {
        walk full = *w;
        full.lanes = LANES;
        if (backward) backward_block(s, &full, image_group, channel_group, scratch);
        else forward_walk(&full, scratch);
    } else {
        if (backward) backward_block(s, w, image_group, channel_group, scratch);
        else forward_walk(w, scratch);
    }
}

static void task(const qm_scan *s, int64_t index, row *scratch, int backward) {
    const int64_t D = s->channels, blocks = (D + QM_BLOCK - 1) / QM_BLOCK;
    const int64_t route_group = index % s->route_groups;
    const int64_t channel_group = index / s->route_groups % s->channel_groups;
    const int64_t image_group = index / s->route_groups / s->channel_groups;
    int64_t image0, image1, c0, c1, k0, k1;
    part(s->images, image_group, s->image_groups, &image0, &image1);
    part(blocks, channel_group, s->channel_groups, &c0, &c1);
    part(s->routes, route_group, s->route_groups, &k0, &k1);
    c0 *= QM_BLOCK;
    c1 = c1 * QM_BLOCK < D ? c1 * QM_BLOCK : D;
    row *weight = scratch;
    for (int64_t image = image0; image < image1; image++)
        for (int64_t c = c0; c < c1; c += LANES) {
            const int lanes = c1 - c < LANES ? (int)(c1 - c) : LANES;
            for (int64_t k = k0; k < k1; k++) {
                walk w = walk_of(s, image, k, c, lanes, weight);
                w.first_block = c == c0;
                w.first_image = image == image0;
                block(s, &w, image_group, channel_group, scratch + s->rank, backward);
            }
        }
}

static void work(qm_scan *s, float *scratch, int backward) {
    const int64_t tasks = s->image_groups * s->channel_groups * s->route_groups;
#if defined(__SSE2__)
    /* States that fade away become denormal numbers, which some processors are slow with: 0 does as well. */
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
#endif
    int64_t index;
    while ((index = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < tasks)
        task(s, index, (row *)scratch, backward);
#if defined(__SSE2__)
    _mm_setcsr(mode);
#endif
}

static void forward(qm_scan *s, float *scratch) { work(s, scratch, 0); }
static void backward(qm_scan *s, float *scratch) { work(s, scratch, 1); }

const qm_scan_functions JOIN(qm_scan_, QM_SUFFIX) = {scratch_floats, forward, backward};

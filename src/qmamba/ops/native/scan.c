/* The selective scan over routes of a grid, forward and backward, for one instruction set.
 *
 * Channels lie in the lanes of a few vectors and walk a route together; positions are read through the
 * route's order, so nothing is permuted. Step sizes Δ are expanded from their rank-R form in short chunks. */
#include "scan.h"
#include "scan_backward.h"
#include "scan_walk.h"
#include "simd.h"

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
    /* States that fade away become denormal numbers, which some CPUs are slow with: 0 does as well. */
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

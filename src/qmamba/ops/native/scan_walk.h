/* One walk: a route of one image for one block of channels, position by position; and its step sizes. */
#ifndef QMAMBA_SCAN_WALK_H
#define QMAMBA_SCAN_WALK_H

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

INLINE row load_A(const walk *w, int64_t n) {
    const qm_scan *s = w->s;
    return row_load(s->A + (w->k * s->states + n) * s->channels + w->c, w->lanes);
}

#endif

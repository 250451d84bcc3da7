/* LQMamba's route gate, without the small network in its middle, for one instruction set.
 *
 * Each of its passes over the routes takes a tile of as many positions as a vector has lanes: the tile stays
 * in the nearest cache while it is read again, and sums over channels, one for each position, fill a vector. */
#include "gate.h"
#include "simd.h"

#define EPS 1e-5f

/* A number for each position of a tile. */
typedef struct {
    float of[VL];
} __attribute__((aligned(4 * VL))) numbers;

typedef struct {
    const qm_gate *s;
    int64_t image, at;      /* image and first position */
    int64_t D, plane;       /* channels; floats from a route to the next */
    int count;              /* positions that exist */
    int whole;              /* the channels are whole vectors */
    const float *y, *g_out; /* of the first position; y of the first route */
    float *sums;            /* (K, D): of the tile's chunk */
} tile;

/* --- channels, a vector at a time ------------------------------------------------------------------------ */

INLINE int64_t lanes_at(const tile *t, int64_t d) { return t->whole || t->D - d > VL ? VL : t->D - d; }

/* v with 0 in the lanes beyond the last channel. */
INLINE vf existing(const tile *t, int64_t d, vf v) {
    if (lanes_at(t, d) == VL) return v;
    vf part = {0};
    memcpy(&part, &v, (size_t)lanes_at(t, d) * sizeof(float));
    return part;
}

INLINE vf load(const tile *t, const float *p, int64_t d) {
    if (lanes_at(t, d) == VL) return v_load(p + d);
    vf part = {0};
    memcpy(&part, p + d, (size_t)lanes_at(t, d) * sizeof(float));
    return part;
}

INLINE void store(const tile *t, float *p, int64_t d, vf v) {
    if (lanes_at(t, d) == VL) v_store(p + d, v);
    else memcpy(p + d, &v, (size_t)lanes_at(t, d) * sizeof(float));
}

INLINE void add(const tile *t, float *p, int64_t d, vf v) { store(t, p, d, load(t, p, d) + v); }

/* Row i of a tile; the last one again where there are fewer. */
INLINE const float *row(const tile *t, const float *y, int i) {
    return y + (i < t->count ? i : t->count - 1) * t->D;
}

/* --- forward --------------------------------------------------------------------------------------------- */

/* Mean and 1/σ of each row: the variance from the centred row, since y may be far from 0. */
INLINE void row_moments(const tile *t, const float *y, numbers *mean, numbers *rstd) {
    const float D = (float)t->D;
    vf sum[VL];
    memset(sum, 0, sizeof sum);
    for (int i = 0; i < VL; i++)
        for (int64_t d = 0; d < t->D; d += VL) sum[i] += load(t, row(t, y, i), d);
    v_store(mean->of, v_sums(sum) / D);
    memset(sum, 0, sizeof sum);
    for (int64_t d = 0; d < t->D; d += VL)
        for (int i = 0; i < VL; i++) {
            vf centred = existing(t, d, load(t, row(t, y, i), d) - mean->of[i]);
            sum[i] += centred * centred;
        }
    v_store(rstd->of, v_sums(sum) / D + EPS);
    for (int i = 0; i < VL; i++) rstd->of[i] = 1.0f / __builtin_sqrtf(rstd->of[i]);
}

INLINE void moments(const tile *t) {
    const qm_gate *s = t->s;
    for (int64_t k = 0; k < s->routes; k++) {
        const float *y = t->y + k * t->plane;
        numbers mean, rstd;
        row_moments(t, y, &mean, &rstd);
        for (int64_t d = 0; d < t->D; d += VL) {
            vf sum = {0}; /* of the tile alone first: sums of sums lose less */
            for (int i = 0; i < t->count; i++)
                sum += (load(t, y + i * t->D, d) - mean.of[i]) * rstd.of[i];
            add(t, t->sums + k * t->D, d, sum);
        }
        const int64_t first = (t->image * s->routes + k) * s->length + t->at;
        memcpy(s->mean + first, mean.of, (size_t)t->count * sizeof(float));
        memcpy(s->rstd + first, rstd.of, (size_t)t->count * sizeof(float));
    }
}

INLINE void gated_sum(const tile *t) {
    const qm_gate *s = t->s;
    const float *gates = s->gates + t->image * s->routes * t->D;
    float *out = s->out + (t->image * s->length + t->at) * t->D;
    for (int i = 0; i < t->count; i++)
        for (int64_t d = 0; d < t->D; d += VL) {
            vf sum = {0};
            if (s->onto) sum = load(t, out + i * t->D, d);
            for (int64_t k = 0; k < s->routes; k++)
                sum += load(t, t->y + k * t->plane + i * t->D, d) * load(t, gates + k * t->D, d);
            store(t, out + i * t->D, d, sum);
        }
}

/* --- backward -------------------------------------------------------------------------------------------- */

INLINE void g_gates(const tile *t) {
    for (int i = 0; i < t->count; i++)
        for (int64_t d = 0; d < t->D; d += VL) {
            vf g = load(t, t->g_out + i * t->D, d);
            for (int64_t k = 0; k < t->s->routes; k++)
                add(t, t->sums + k * t->D, d, load(t, t->y + k * t->plane + i * t->D, d) * g);
        }
}

/* What the normalisation of a row takes back along the centred row: -(centred · c) rstd³ / D. */
INLINE void taken_back(
    const tile *t, const float *y, const float *c, const numbers *mean, const numbers *rstd, numbers *along
) {
    vf sum[VL];
    memset(sum, 0, sizeof sum);
    for (int i = 0; i < VL; i++)
        for (int64_t d = 0; d < t->D; d += VL)
            sum[i] += (load(t, row(t, y, i), d) - mean->of[i]) * load(t, c, d);
    const vf r = v_load(rstd->of);
    v_store(along->of, v_sums(sum) * (r * r * r) / -(float)t->D);
}

INLINE void g_y(const tile *t) {
    const qm_gate *s = t->s;
    for (int64_t k = 0; k < s->routes; k++) {
        const int64_t route = t->image * s->routes + k, first = route * s->length + t->at;
        const float *y = t->y + k * t->plane, *gates = s->gates + route * t->D, *c = s->g_norm + route * t->D;
        float *grad = s->g_y + first * t->D;
        numbers mean = {{0}}, rstd = {{0}}, along;
        memcpy(mean.of, s->mean + first, (size_t)t->count * sizeof(float));
        memcpy(rstd.of, s->rstd + first, (size_t)t->count * sizeof(float));
        taken_back(t, y, c, &mean, &rstd, &along);
        for (int i = 0; i < t->count; i++)
            for (int64_t d = 0; d < t->D; d += VL) {
                vf g = load(t, t->g_out + i * t->D, d) * load(t, gates, d) + load(t, c, d) * rstd.of[i];
                g += (load(t, y + i * t->D, d) - mean.of[i]) * along.of[i];
                store(t, grad + i * t->D, d, g);
            }
    }
}

/* --- tasks ----------------------------------------------------------------------------------------------- */

INLINE void do_tile(const tile *t, int pass) {
    switch (pass) {
    case QM_GATE_MOMENTS: moments(t); break;
    case QM_GATE_OUT: gated_sum(t); break;
    case QM_GATE_G_GATES: g_gates(t); break;
    case QM_GATE_G_Y: g_y(t); break;
    }
}

static int64_t chunks_of(const qm_gate *s) { return (s->length + s->chunk - 1) / s->chunk; }

static void do_chunk(const qm_gate *s, int64_t index, int pass) {
    const int64_t D = s->channels, K = s->routes, L = s->length, chunks = chunks_of(s);
    const int64_t image = index / chunks, from = index % chunks * s->chunk;
    const int64_t to = from + s->chunk < L ? from + s->chunk : L;
    tile t = {.s = s, .image = image, .D = D, .plane = L * D};
    if (pass == QM_GATE_MOMENTS || pass == QM_GATE_G_GATES) {
        t.sums = s->sums + index * K * D;
        memset(t.sums, 0, (size_t)(K * D) * sizeof(float));
    }
    for (t.at = from; t.at < to; t.at += VL) {
        t.y = s->y + (image * K * L + t.at) * D;
        if (s->g_out) t.g_out = s->g_out + (image * L + t.at) * D;
        t.count = to - t.at < VL ? (int)(to - t.at) : VL;
        if (t.count == VL && D % VL == 0) { /* most are like this: compiled for itself */
            tile full = t;
            full.count = VL;
            full.whole = 1;
            do_tile(&full, pass);
        } else {
            do_tile(&t, pass);
        }
    }
}

/* Neighbours first, then pairs, and so on: no sum has many roundings. */
static void add_up(const qm_gate *s, int64_t image) {
    const int64_t size = s->routes * s->channels, chunks = chunks_of(s);
    float *sums = s->sums + image * chunks * size;
    for (int64_t step = 1; step < chunks; step *= 2)
        for (int64_t c = 0; c + step < chunks; c += 2 * step)
            for (int64_t i = 0; i < size; i++) sums[c * size + i] += sums[(c + step) * size + i];
}

static void work(qm_gate *s, int pass) {
    const int64_t tasks = pass == QM_GATE_ADD_UP ? s->images : s->images * chunks_of(s);
    /* Every other pass begins where the one before it ended: something of that is still in a cache. */
    const int backwards = pass == QM_GATE_MOMENTS || pass == QM_GATE_G_GATES;
    int64_t index;
    while ((index = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < tasks) {
        if (pass == QM_GATE_ADD_UP) add_up(s, index);
        else do_chunk(s, backwards ? tasks - 1 - index : index, pass);
    }
}

const qm_gate_function JOIN(qm_gate_, QM_SUFFIX) = work;

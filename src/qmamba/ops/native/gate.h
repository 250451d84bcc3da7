/* The arguments of the route gate, the same for all its passes. All arrays are float32; route_gate/native.py has
 * the same structure, field by field. */
#ifndef QMAMBA_GATE_H
#define QMAMBA_GATE_H

#include <stdint.h>

typedef struct {
    int64_t images, routes, length, channels;
    int64_t chunk;       /* positions of a task; sums are made per chunk, so it must depend on shapes alone */
    int64_t next;        /* the next task, an atomic counter that starts at 0 */
    int64_t onto;        /* whether QM_GATE_OUT adds to what is there */
    const float *y;      /* (images, K, L, D) */
    float *mean, *rstd;  /* (images, K, L): of LayerNorm over the channels */
    float *sums;         /* (images, chunks, K, D): what the first pass of either direction adds up */
    const float *gates;  /* (images, K, D) */
    float *out;          /* (images, L, D) */
    const float *g_out;  /* like out */
    const float *g_norm; /* (images, K, D): the cotangent of each position's normalised row, less its mean */
    float *g_y;          /* like y */
} qm_gate;

enum {
    QM_GATE_MOMENTS, /* y → mean, rstd, and in sums the normalised rows */
    QM_GATE_OUT,     /* y, gates → out */
    QM_GATE_G_GATES, /* y, g_out → in sums the gradient of the gates */
    QM_GATE_ADD_UP,  /* sums → in its first chunk, the sum of all */
    QM_GATE_G_Y      /* y, mean, rstd, gates, g_out, g_norm → g_y */
};

typedef void (*qm_gate_function)(qm_gate *, int pass); /* work on tasks until none is left */

#endif

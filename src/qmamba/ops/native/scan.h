/* The arguments of the scan, the same for its forward and backward. All arrays are float32 unless they say
 * otherwise; selective_scan/native.py has the same
 * structure, field by field. */
#ifndef QMAMBA_SCAN_H
#define QMAMBA_SCAN_H

#include <stdint.h>

typedef struct {
    int64_t images, length, channels, routes, rank, states;
    int64_t merge;          /* sum the routes' outputs */
    int64_t image_groups;   /* tasks = image_groups · channel_groups · route_groups: their number and */
    int64_t channel_groups; /* their limits must not depend on the number of threads, since sums are */
    int64_t route_groups;   /* made per group; more than one group of routes only in a forward without merge */
    int64_t next;           /* the next task, an atomic counter that starts at 0 */
    int64_t dt_image, dt_position, dt_route; /* strides of dt, in floats; its last is 1 */
    int64_t B_image, B_position, B_route;
    int64_t C_image, C_position, C_route;
    const int32_t *order;   /* (K, L): the position that route k visits at step t */
    const float *x;         /* (images, L, D) */
    const float *dt, *B, *C;
    const float *dt_weight; /* (K, R, D) */
    const float *dt_bias;   /* (K, D) */
    const float *A;         /* (K, N, D), times log2 e */
    const float *D;         /* (K, D) */
    float *y;               /* (images, L, D), or (images, K, L, D) without merge */
    const float *gy;        /* like y */
    float *g_x;             /* like x */
    float *g_dt;            /* (channel_groups, images, L, K, R): the groups' sums, to be added up */
    float *g_B, *g_C;       /* (channel_groups, images, L, K, N) */
    float *g_weight;        /* (image_groups, K, R, D) */
    float *g_bias;          /* (image_groups, K, D) */
    float *g_A;             /* (image_groups, K, N, D) */
    float *g_D;             /* (image_groups, K, D) */
} qm_scan;

/* Channels are divided among tasks in blocks of this many, whatever the width of the vectors. */
#define QM_BLOCK 64

typedef struct {
    int64_t (*scratch)(const qm_scan *);        /* floats that each thread needs, 64-byte aligned */
    void (*forward)(qm_scan *, float *scratch); /* work on tasks until none is left */
    void (*backward)(qm_scan *, float *scratch);
} qm_scan_functions;

#endif

/* Which of the compiled variants this processor can run, and the library's few exported functions. */
#include <stddef.h>

#include "gate.h"
#include "scan.h"

#define EXPORT __attribute__((visibility("default")))
#define ABI 5 /* raised whenever a structure or a function changes; whoever loads the library checks it */

extern const qm_scan_functions qm_scan_baseline;
extern const qm_gate_function qm_gate_baseline;
#if defined(__x86_64__)
extern const qm_scan_functions qm_scan_avx2, qm_scan_avx512;
extern const qm_gate_function qm_gate_avx2, qm_gate_avx512;
#endif

/* The variants, best first. */
static const struct {
    const char *name;
    const qm_scan_functions *scan;
    const qm_gate_function *gate;
} VARIANTS[] = {
#if defined(__x86_64__)
    {"avx512", &qm_scan_avx512, &qm_gate_avx512},
    {"avx2", &qm_scan_avx2, &qm_gate_avx2},
#endif
    {"baseline", &qm_scan_baseline, &qm_gate_baseline},
};
#define COUNT ((int)(sizeof VARIANTS / sizeof VARIANTS[0]))

EXPORT int qm_abi(void) { return ABI; }

EXPORT int64_t qm_scan_size(void) { return (int64_t)sizeof(qm_scan); }
EXPORT int64_t qm_gate_size(void) { return (int64_t)sizeof(qm_gate); }

/* The name of variant i, best first, or NULL where there is none. */
EXPORT const char *qm_variant(int i) { return i >= 0 && i < COUNT ? VARIANTS[i].name : NULL; }

/* Whether this processor can run variant i. */
EXPORT int qm_runs(int i) {
    if (i < 0 || i >= COUNT) return 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (i == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    if (i == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return 1;
}

/* Calls a function in each thread of a team, like the GOMP_parallel of OpenMP's libraries, which torch's own
 * threads come from. Teams of others would fight with those for the processor. */
typedef void (*qm_parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static void together(void (*function)(void *), void *data, unsigned threads, qm_parallel parallel) {
    if (threads > 1 && parallel) parallel(function, data, threads, 0);
    else function(data);
}

typedef struct {
    void (*work)(qm_scan *, float *);
    qm_scan *s;
    float *scratch; /* of all threads */
    int64_t floats; /* of each */
    int64_t taken;  /* by how many threads, an atomic counter */
} scan_job;

static void scan_worker(void *data) {
    scan_job *job = data;
    int64_t mine = __atomic_fetch_add(&job->taken, 1, __ATOMIC_RELAXED);
    job->work(job->s, job->scratch + mine * job->floats);
}

/* Floats that each thread needs: whole cache lines. */
EXPORT int64_t qm_scan_scratch(int i, const qm_scan *s) { return (VARIANTS[i].scan->scratch(s) + 15) / 16 * 16; }

/* `scratch` is 64-byte aligned and enough for all threads. */
EXPORT void qm_scan_run(int i, qm_scan *s, int backward, float *scratch, unsigned threads, qm_parallel parallel) {
    const qm_scan_functions *scan = VARIANTS[i].scan;
    scan_job job = {backward ? scan->backward : scan->forward, s, scratch, qm_scan_scratch(i, s), 0};
    together(scan_worker, &job, threads, parallel);
}

typedef struct {
    qm_gate_function work;
    qm_gate *s;
    int pass;
} gate_job;

static void gate_worker(void *data) {
    gate_job *job = data;
    job->work(job->s, job->pass);
}

EXPORT void qm_gate_run(int i, qm_gate *s, int pass, unsigned threads, qm_parallel parallel) {
    gate_job job = {*VARIANTS[i].gate, s, pass};
    together(gate_worker, &job, threads, parallel);
}

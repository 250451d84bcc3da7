/* Which of the compiled variants this CPU can run, and the library's few exported functions. */
#include <stddef.h>

#include "cpu.h"
#include "gate.h"
#include "scan.h"
#include "team.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define ABI 6 /* raised whenever a structure or a function changes; checked by the code that loads the library */

extern const qm_scan_functions qm_scan_baseline;
extern const qm_gate_function qm_gate_baseline;
#if defined(__x86_64__)
extern const qm_scan_functions qm_scan_avx2, qm_scan_avx512;
extern const qm_gate_function qm_gate_avx2, qm_gate_avx512;
#endif

static int runs_always(void) { return 1; }

/* The variants, best first. */
static const struct {
    const char *name;
    int (*runs)(void);
    const qm_scan_functions *scan;
    const qm_gate_function *gate;
} VARIANTS[] = {
#if defined(__x86_64__)
    {"avx512", runs_avx512, &qm_scan_avx512, &qm_gate_avx512},
    {"avx2", runs_avx2, &qm_scan_avx2, &qm_gate_avx2},
#endif
#if defined(__ARM_NEON) /* which every 64-bit Arm has */
    {"neon", runs_always, &qm_scan_baseline, &qm_gate_baseline},
#else
    {"baseline", runs_always, &qm_scan_baseline, &qm_gate_baseline},
#endif
};
#define COUNT ((int)(sizeof VARIANTS / sizeof VARIANTS[0]))

EXPORT int qm_abi(void) { return ABI; }

EXPORT int64_t qm_scan_size(void) { return (int64_t)sizeof(qm_scan); }
EXPORT int64_t qm_gate_size(void) { return (int64_t)sizeof(qm_gate); }

/* The name of variant i, best first, or NULL where there is none. */
EXPORT const char *qm_variant(int i) { return i >= 0 && i < COUNT ? VARIANTS[i].name : NULL; }

/* Whether this CPU can run variant i. */
EXPORT int qm_runs(int i) { return i >= 0 && i < COUNT && VARIANTS[i].runs(); }

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
EXPORT void qm_scan_run(int i, qm_scan *s, int backward, float *scratch, unsigned threads, const qm_team *team) {
    const qm_scan_functions *scan = VARIANTS[i].scan;
    scan_job job = {backward ? scan->backward : scan->forward, s, scratch, qm_scan_scratch(i, s), 0};
    together(scan_worker, &job, threads, team);
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

EXPORT void qm_gate_run(int i, qm_gate *s, int pass, unsigned threads, const qm_team *team) {
    gate_job job = {*VARIANTS[i].gate, s, pass};
    together(gate_worker, &job, threads, team);
}

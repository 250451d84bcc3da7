/* Threads of an OpenMP library that is loaded already: torch's own. Teams of others would fight with those for
 * the CPU. Nothing is linked against: the caller looks the functions up. */
#ifndef QMAMBA_TEAM_H
#define QMAMBA_TEAM_H

#include <stddef.h>
#include <stdint.h>

typedef void (*qm_task)(void *data);
typedef void (*qm_microtask)(int32_t *global_thread, int32_t *bound_thread, qm_task *task, void *data);

/* The address of GOMP_parallel, which GNU's library has and LLVM's too, except on Windows; or else of the three
 * functions that LLVM's and Intel's compilers call. */
typedef struct {
    void (*gomp_parallel)(qm_task task, void *data, unsigned threads, unsigned flags);
    int32_t (*global_thread_num)(const void *location);
    void (*push_num_threads)(const void *location, int32_t global_thread, int32_t threads);
    void (*fork_call)(const void *location, int32_t count, qm_microtask microtask, ...);
} qm_team;

/* Where in a source file a parallel region begins, which LLVM's and Intel's libraries want to be told. */
static const struct {
    int32_t reserved_1, flags, reserved_2, reserved_3;
    const char *source;
} QM_LOCATION = {0, 2 /* the library's kmpc functions are called */, 0, 0, ";qmamba;run;0;0;;"};

static inline void qm_microtask_of(int32_t *global_thread, int32_t *bound_thread, qm_task *task, void *data) {
    (void)global_thread, (void)bound_thread;
    (*task)(data);
}

/* Call a task in each thread of a team, or in this thread alone where there is none. */
static inline void together(qm_task task, void *data, unsigned threads, const qm_team *team) {
    if (threads <= 1 || !team) {
        task(data);
    } else if (team->gomp_parallel) {
        team->gomp_parallel(task, data, threads, 0);
    } else {
        const int32_t mine = team->global_thread_num(&QM_LOCATION);
        team->push_num_threads(&QM_LOCATION, mine, (int32_t)threads);
        team->fork_call(&QM_LOCATION, 2, qm_microtask_of, &task, data);
    }
}

#endif

/* Runs a native kernel outside Python on the cases that kernel_cases.py wrote, and compares what comes out with
 * the reference's results in float64:
 *
 *     run_kernel LIBRARY CASES [OPENMP]
 *
 * Every variant that the CPU runs goes through every case, once in one thread and, with an OpenMP library, once
 * in a team of three, which must give the same bits. Prints a line for each variant; the exit code is 1 where a
 * result is off. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"

#if defined(_WIN32)
#include <windows.h>
static void *load(const char *path) { return (void *)LoadLibraryA(path); }
static void *find(void *library, const char *name) { return (void *)GetProcAddress(library, name); }
#else
#include <dlfcn.h>
static void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "%s\n", dlerror());
    return library;
}
static void *find(void *library, const char *name) { return dlsym(library, name); }
#endif

enum { NUMBER, COUNTER, NOTHING, FLOATS, INT32S, EXPECTED }; /* the kinds of an argument */
enum { SCAN, GATE };                                           /* the functions */
enum { WORDS = 64, PASSES = 8, THREADS = 3 };

/* Both argument structures consist of 64-bit integers and pointers alone: words. */
typedef struct {
    char name[64];
    int64_t function, passes, words;
    float tolerance; /* relative to the largest magnitude of an output, and that to 0.1 at least */
    int64_t pass[PASSES], kind[WORDS], value[WORDS], length[WORDS];
    void *array[WORDS]; /* an input, or what an output should be; NaN where that is open */
} run_case;

typedef struct {
    const char *(*variant)(int);
    int (*runs)(int);
    int64_t (*scratch)(int, const void *);
    void (*scan)(int, void *, int, float *, unsigned, const qm_team *);
    void (*gate)(int, void *, int, unsigned, const qm_team *);
} kernel;

static void fail(const char *why, const char *what) {
    fprintf(stderr, "run_kernel: %s %s\n", why, what);
    exit(2);
}

static void *allocate(int64_t bytes) {
    const size_t padded = ((size_t)bytes + 127) / 64 * 64;
    char *memory = malloc(padded + 64);
    if (!memory) fail("no memory for", "a case");
    memory += 64 - (uintptr_t)memory % 64;
    memset(memory, 0xff, padded); /* NaN: what is never written shows */
    return memory;
}

/* --- cases ----------------------------------------------------------------------------------------------- */

static void take(FILE *file, void *to, int64_t bytes) {
    if (bytes && fread(to, (size_t)bytes, 1, file) != 1) fail("the cases end", "too early");
}

static int64_t take_number(FILE *file) {
    int64_t number;
    take(file, &number, sizeof number);
    return number;
}

static run_case read_case(FILE *file) {
    run_case c;
    memset(&c, 0, sizeof c);
    take(file, c.name, sizeof c.name - 1);
    take(file, &c.tolerance, sizeof c.tolerance);
    c.function = take_number(file);
    c.passes = take_number(file);
    if (c.passes > PASSES) fail("too many passes in", c.name);
    for (int64_t i = 0; i < c.passes; i++) c.pass[i] = take_number(file);
    c.words = take_number(file);
    if (c.words > WORDS) fail("too many arguments in", c.name);
    for (int64_t i = 0; i < c.words; i++) {
        c.kind[i] = take_number(file);
        if (c.kind[i] == NUMBER) c.value[i] = take_number(file);
        if (c.kind[i] < FLOATS) continue;
        c.length[i] = take_number(file);
        c.array[i] = allocate(4 * c.length[i]);
        take(file, c.array[i], 4 * c.length[i]);
    }
    return c;
}

/* --- runs ------------------------------------------------------------------------------------------------ */

typedef struct {
    int64_t word[WORDS];
} arguments;

static arguments arguments_of(const run_case *c) {
    arguments a = {{0}};
    for (int64_t i = 0; i < c->words; i++) {
        a.word[i] = c->value[i];
        if (c->kind[i] == FLOATS || c->kind[i] == INT32S) a.word[i] = (int64_t)(intptr_t)c->array[i];
        if (c->kind[i] == EXPECTED) a.word[i] = (int64_t)(intptr_t)allocate(4 * c->length[i]);
    }
    return a;
}

static void run(const kernel *k, int variant, const run_case *c, arguments *a, unsigned threads, const qm_team *team) {
    for (int64_t p = 0; p < c->passes; p++) {
        for (int64_t i = 0; i < c->words; i++)
            if (c->kind[i] == COUNTER) a->word[i] = 0;
        if (c->function == SCAN) {
            float *scratch = allocate(4 * k->scratch(variant, a) * threads);
            k->scan(variant, a, (int)c->pass[p], scratch, threads, team);
        } else {
            k->gate(variant, a, (int)c->pass[p], threads, team);
        }
    }
}

/* The largest error of an output, relative to its largest magnitude; NaN where there is one. */
static float error_of(const float *got, const float *want, int64_t length) {
    float error = 0, scale = 0.1f;
    for (int64_t i = 0; i < length; i++)
        if (!isnan(want[i])) {
            if (isnan(got[i])) return NAN;
            error = fmaxf(error, fabsf(got[i] - want[i]));
            scale = fmaxf(scale, fabsf(want[i]));
        }
    return error / scale;
}

/* Returns whether a case came out right, and raises *largest to its error. */
static int check(const kernel *k, int variant, const run_case *c, const qm_team *team, float *largest) {
    arguments alone = arguments_of(c), together = arguments_of(c);
    int right = 1;
    run(k, variant, c, &alone, 1, NULL);
    if (team) run(k, variant, c, &together, THREADS, team);
    for (int64_t i = 0; i < c->words; i++) {
        if (c->kind[i] != EXPECTED) continue;
        const float *got = (const float *)(intptr_t)alone.word[i];
        const float error = error_of(got, c->array[i], c->length[i]);
        if (!(error <= *largest)) *largest = error;
        if (!(error <= c->tolerance)) {
            printf("  %s: argument %d is off by %.1e\n", c->name, (int)i, error);
            right = 0;
        }
        if (team && memcmp(got, (const void *)(intptr_t)together.word[i], 4 * (size_t)c->length[i])) {
            printf("  %s: argument %d has other bits in a team of %d\n", c->name, (int)i, THREADS);
            right = 0;
        }
    }
    return right;
}

static void *needed(void *library, const char *name) {
    void *found = find(library, name);
    if (!found) fail("the library has no function", name);
    return found;
}

static qm_team team_of(const char *path) {
    void *library = load(path);
    if (!library) fail("cannot load", path);
    qm_team team = {0};
    *(void **)&team.gomp_parallel = find(library, "GOMP_parallel");
    if (team.gomp_parallel) return team;
    *(void **)&team.global_thread_num = needed(library, "__kmpc_global_thread_num");
    *(void **)&team.push_num_threads = needed(library, "__kmpc_push_num_threads");
    *(void **)&team.fork_call = needed(library, "__kmpc_fork_call");
    return team;
}

int main(int count, char **words) {
    if (count < 3) fail("usage:", "run_kernel LIBRARY CASES [OPENMP]");
    void *library = load(words[1]);
    if (!library) fail("cannot load", words[1]);
    kernel k;
    *(void **)&k.variant = needed(library, "qm_variant");
    *(void **)&k.runs = needed(library, "qm_runs");
    *(void **)&k.scratch = needed(library, "qm_scan_scratch");
    *(void **)&k.scan = needed(library, "qm_scan_run");
    *(void **)&k.gate = needed(library, "qm_gate_run");
    qm_team team = {0};
    if (count > 3) team = team_of(words[3]);

    FILE *file = fopen(words[2], "rb");
    if (!file) fail("cannot read", words[2]);
    const int64_t cases = take_number(file);
    run_case *all = calloc((size_t)cases, sizeof *all);
    for (int64_t i = 0; i < cases; i++) all[i] = read_case(file);

    int wrong = 0;
    const char *name;
    for (int variant = 0; (name = k.variant(variant)); variant++) {
        if (!k.runs(variant)) continue;
        float largest = 0;
        int right = 0;
        for (int64_t i = 0; i < cases; i++) right += check(&k, variant, &all[i], count > 3 ? &team : NULL, &largest);
        printf("%s: %d of %d cases right, largest error %.1e\n", name, right, (int)cases, largest);
        wrong |= right != cases;
    }
    return wrong;
}

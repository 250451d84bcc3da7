/* Which instruction sets the CPU, and the system that must save their registers, allow. */
#ifndef QMAMBA_CPU_H
#define QMAMBA_CPU_H

#if defined(__x86_64__)
#include <cpuid.h>

/* Asked of the CPU itself: __builtin_cpu_supports needs a compiler's run-time library, which not all have. */
typedef struct {
    unsigned features, extended; /* leaf 1, ecx; leaf 7, ebx */
    unsigned saved;              /* registers that the system saves: XCR0 */
} qm_cpu;

static qm_cpu cpu(void) {
    qm_cpu found = {0};
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) found.features = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) found.extended = ebx;
    if (found.features & bit_OSXSAVE) {
        __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
        found.saved = eax;
    }
    return found;
}

static int all_of(unsigned flags, unsigned mask) { return (flags & mask) == mask; }

static int runs_avx2(void) {
    const qm_cpu found = cpu();
    return all_of(found.features, bit_AVX | bit_FMA) && all_of(found.extended, bit_AVX2) &&
           all_of(found.saved, 0x06); /* xmm and ymm */
}

static int runs_avx512(void) {
    const qm_cpu found = cpu();
#if defined(__APPLE__)
    const unsigned saved = 0x06; /* macOS turns the rest of them on when they are first used */
#else
    const unsigned saved = 0xe6; /* mask registers and zmm, too */
#endif
    return runs_avx2() && all_of(found.saved, saved) &&
           all_of(found.extended, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL);
}
#endif

#endif

// Chooses, once, the best instruction set that was compiled in and that this machine runs.
#include <string>
#include <vector>

#include "verifier/network.h"
#include "verifier/planes.h"
#include "verifier/row_kernels.h"

namespace verifier {

#define VERIFIER_DECLARE_ISA(NAME)             \
    namespace NAME {                           \
    const Isa<float>& isa_float();             \
    const Isa<double>& isa_double();           \
    const RowKernels<float>& rows_float();     \
    const RowKernels<double>& rows_double();   \
    const PlaneKernel& planes();               \
    }

VERIFIER_DECLARE_ISA(baseline)
#if defined(VERIFIER_HAVE_AVX2)
VERIFIER_DECLARE_ISA(avx2)
#endif
#if defined(VERIFIER_HAVE_AVX512)
VERIFIER_DECLARE_ISA(avx512)
#endif

namespace {

enum class Level { kBaseline, kAvx2, kAvx512 };

Level machine_level() {
#if defined(VERIFIER_HAVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return Level::kAvx512;
#endif
#if defined(VERIFIER_HAVE_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::kAvx2;
#endif
    return Level::kBaseline;
}

}  // namespace

// The named function of the best instruction set.
#if defined(VERIFIER_HAVE_AVX512)
#define VERIFIER_TRY_AVX512(NAME) \
    if (level == Level::kAvx512) return avx512::NAME();
#else
#define VERIFIER_TRY_AVX512(NAME)
#endif
#if defined(VERIFIER_HAVE_AVX2)
#define VERIFIER_TRY_AVX2(NAME) \
    if (level == Level::kAvx2) return avx2::NAME();
#else
#define VERIFIER_TRY_AVX2(NAME)
#endif
#define VERIFIER_BEST(NAME)                       \
    static const Level level = machine_level();   \
    (void)level;                                  \
    VERIFIER_TRY_AVX512(NAME)                     \
    VERIFIER_TRY_AVX2(NAME)                       \
    return baseline::NAME()

template <>
const Isa<float>& best_isa<float>() {
    VERIFIER_BEST(isa_float);
}

template <>
const Isa<double>& best_isa<double>() {
    VERIFIER_BEST(isa_double);
}

template <>
const RowKernels<float>& best_row_kernels<float>() {
    VERIFIER_BEST(rows_float);
}

template <>
const RowKernels<double>& best_row_kernels<double>() {
    VERIFIER_BEST(rows_double);
}

const PlaneKernel& best_plane_kernel() {
    VERIFIER_BEST(planes);
}

std::vector<std::string> compiled_isas() {
    std::vector<std::string> names;
#if defined(VERIFIER_HAVE_AVX512)
    names.push_back("avx512");
#endif
#if defined(VERIFIER_HAVE_AVX2)
    names.push_back("avx2");
#endif
    names.push_back("baseline");
    return names;
}

}  // namespace verifier

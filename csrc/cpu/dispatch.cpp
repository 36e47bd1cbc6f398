// Chooses, once, the best instruction set that was compiled in and that this machine runs.
#include <string>
#include <vector>

#include "verifier/network.h"

namespace verifier {

#define VERIFIER_DECLARE_ISA(NAME)       \
    namespace NAME {                     \
    const Isa<float>& isa_float();       \
    const Isa<double>& isa_double();     \
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

template <>
const Isa<float>& best_isa<float>() {
    static const Level level = machine_level();
#if defined(VERIFIER_HAVE_AVX512)
    if (level == Level::kAvx512) return avx512::isa_float();
#endif
#if defined(VERIFIER_HAVE_AVX2)
    if (level == Level::kAvx2) return avx2::isa_float();
#endif
    return baseline::isa_float();
}

template <>
const Isa<double>& best_isa<double>() {
    static const Level level = machine_level();
#if defined(VERIFIER_HAVE_AVX512)
    if (level == Level::kAvx512) return avx512::isa_double();
#endif
#if defined(VERIFIER_HAVE_AVX2)
    if (level == Level::kAvx2) return avx2::isa_double();
#endif
    return baseline::isa_double();
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

// The CPU engine for one instruction set; CMake compiles this file once for each.
#include "box.h"
#include "points.h"

#define VERIFIER_TEXT_(x) #x
#define VERIFIER_TEXT(x) VERIFIER_TEXT_(x)

namespace verifier::VERIFIER_ISA {

template <typename T>
static constexpr Isa<T> kIsa{VERIFIER_TEXT(VERIFIER_ISA), packed_size<T>, pack<T>, bound_box<T>, evaluate<T>, gradient<T>};

const Isa<float>& isa_float() { return kIsa<float>; }
const Isa<double>& isa_double() { return kIsa<double>; }

}  // namespace verifier::VERIFIER_ISA

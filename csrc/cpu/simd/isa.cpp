// The CPU engine for one instruction set; CMake compiles this file once for each.
#include "box.h"
#include "domain_rows.h"
#include "planes.h"
#include "points.h"
#include "rows.h"

#define VERIFIER_TEXT_(x) #x
#define VERIFIER_TEXT(x) VERIFIER_TEXT_(x)

namespace verifier::VERIFIER_ISA {

template <typename T>
static constexpr Isa<T> kIsa{VERIFIER_TEXT(VERIFIER_ISA), Lanes<T>::kCount, kPlanes, packed_size<T>, pack<T>, bound_box<T>, evaluate<T>,
                               pull_back<T>, enter_root<T>, forward_root<T>, relax_root<T>, bound_neurons<T>, bound_forms<T>,
                               row_costs<T>, bound_domain_rows<T>};

template <typename T>
static constexpr RowKernels<T> kRows{relax_row<T>,     concretise_row<T>, interval_dense_box<T>, interval_conv_map<T>,
                                     enclose_block<T>, ascend_row<T>,     split_scores_box<T>};

static constexpr PlaneKernel kPlaneKernel{climb_planes, plane_bytes};

const Isa<float>& isa_float() { return kIsa<float>; }
const Isa<double>& isa_double() { return kIsa<double>; }
const RowKernels<float>& rows_float() { return kRows<float>; }
const RowKernels<double>& rows_double() { return kRows<double>; }

const PlaneKernel& planes() { return kPlaneKernel; }

}  // namespace verifier::VERIFIER_ISA

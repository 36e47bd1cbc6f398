// The kernel to copy: its job, its formula, and one launcher a device. CONTRIBUTING.md walks through it.
//
// Formula of a normalisation layer on boxes: [lower, upper] * scale + shift, one number a feature.
#pragma once

#include <cstdint>

#include "verifier/functors.h"

namespace verifier {

// 1. The job: what one call reads and writes. Arrays are contiguous; B boxes, N features.
template <typename T>
struct ScaleBoxes {
    int64_t boxes, n;
    const T *lower, *upper;         // [B, N]
    const T *scale, *shift;         // [N]
    T *out_lower, *out_upper;       // [B, N]
};

// 2. The formula for one element, shared by both devices, with its rounding term.
//
// An end is fl(fl(x scale) + shift): two roundings, each at most unit times a result of at most (1 + unit) size, or
// underflow, flushed or not. The last subtraction rounds once more, and 4 units also cover the error's own rounding.
// NaN, infinities and what is too large to vouch for pass through `size`, a sum, and give (-inf, inf).
template <typename T>
VERIFIER_HD void scale_element(T lower, T upper, T scale, T shift, T& low, T& high) {
    const T a = lower * scale, b = upper * scale;
    const T size = size_of(a) + size_of(b) + size_of(shift);
    const T error = static_cast<T>(4 * Precision<T>::kUnit) * size + static_cast<T>(8 * Precision<T>::kTiny);
    const bool known = size <= static_cast<T>(Precision<T>::kHuge);
    low = known ? smaller(a, b) + shift - error : static_cast<T>(-HUGE_VAL);
    high = known ? larger(a, b) + shift + error : static_cast<T>(HUGE_VAL);
}

// 3. The body: output `i` of the job. A CPU loop or a CUDA thread calls it.
template <typename T>
VERIFIER_HD void scale_at(const ScaleBoxes<T>& job, int64_t i) {
    const int64_t feature = i % job.n;
    scale_element(job.lower[i], job.upper[i], job.scale[feature], job.shift[feature], job.out_lower[i], job.out_upper[i]);
}

// 4. The launchers, for float and double; scale_boxes.cpp, scale_boxes.cu, and cuda/absent.cpp in a build without CUDA.
template <typename T>
void scale_boxes_cpu(const ScaleBoxes<T>& job, intptr_t threads);
template <typename T>
void scale_boxes_cuda(const ScaleBoxes<T>& job, intptr_t stream);

}  // namespace verifier

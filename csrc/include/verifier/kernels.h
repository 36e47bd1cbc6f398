// Kernels over batches of subdomains: what each reads and writes. The CPU file and the CUDA file
// launch the same functors. Arrays are contiguous; B boxes, S rows a box, N features.
// Sums in a kernel's own type are charged to its outputs, so every bound is rigorous.
#pragma once

#include <cstdint>
#include <string>

#include "verifier/functors.h"
#include "verifier/lines.h"

namespace verifier {

// Backward relaxation step, one read and one write of the coefficients. See relax_element.
template <typename T>
struct RelaxStep {
    int64_t boxes, rows, n;
    int per_row;                                  // bit k: line k of the four is [B, S, N] instead of [B, N]
    const T* coeffs;                              // [B, S, N] on h
    const T *slope_lower, *offset_lower, *slope_upper, *offset_upper;
    const T* magnitude;                           // [B, N] >= |z|, or null with the two below: z is charged elsewhere
    const T* bias;                                // [N]
    const T* charge;                              // [B, N]
    const T* split_sign;                          // [B, N] in {-1, 0, 1} or null
    const T* multiplier;                          // [B, S, N] >= 0, with split_sign
    T* out;                                       // [B, S, N] on z
    double* offset;                               // [B, S], added to
    double* loss;                                 // [B, S], added to
};

enum class Norm : int { kBox = 0, kOne = 1, kTwo = 2, kInfinity = 3 };

// Least value of coeffs . x + offset - loss: over center +- radius (kBox), or over the ball
// ||(x - center) / radius||_p <= budget. Value rounded down, -inf where not finite.
template <typename T>
struct Concretise {
    int64_t boxes, rows, n;
    Norm norm;
    const T* coeffs;         // [B, S, N]
    const T* center;         // [B, N]
    const T* radius;         // [B, N] >= 0
    const T* budget;         // [B], for balls
    const double* offset;    // [B, S]
    const double* loss;      // [B, S]
    double* value;           // [B, S]
    T* minimiser;            // [B, S, N] or null; approximate, a candidate point
};

// Dense layer z = x W + b over boxes: |W| is never stored and W is read once.
// The deployed program's error is charged as deployed_gamma (|x||W| + bias_magnitude) + tiny.
template <typename T>
struct IntervalDense {
    int64_t boxes, inputs, outputs;
    const T *lower, *upper;                  // [B, inputs]
    const T* weight;                         // [inputs, outputs]
    const T *bias, *bias_magnitude;          // [outputs]
    T deployed_gamma, tiny;
    T *out_lower, *out_upper;                // [B, outputs]
};

// Convolution over [C, H, W] features, zero padding.
template <typename T>
struct IntervalConv {
    int64_t boxes, channels, height, width, out_channels, out_height, out_width, kernel_h, kernel_w;
    int64_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups;
    const T *lower, *upper;                  // [B, C, H, W]
    const T* weight;                         // [out_channels, C / groups, kernel_h, kernel_w]
    const T *bias, *bias_magnitude;          // [out_channels]
    T deployed_gamma, tiny;
    T *out_lower, *out_upper;                // [B, out_channels, out_height, out_width]
};

// Lines and intervals of an elementwise function over K elements.
template <typename T>
struct EncloseAll {
    int64_t count;
    Function function;
    double alpha, deviation;                 // see enclose
    const T *lower, *upper;                  // [K]
    const T* free_lower;                     // [K] in [0, 1] or null for the adaptive choice
    T *slope_lower, *offset_lower, *slope_upper, *offset_upper, *out_lower, *out_upper;  // [K]
};

// Gradient and projected step for slopes (coeffs given) or multipliers (split_sign given).
template <typename T>
struct Ascend {
    int64_t boxes, rows, n;
    const T* coeffs;                         // [B, S, N] on h, or null
    const T *lower, *upper;                  // [B, N] of z, with coeffs
    const T* split_sign;                     // [B, N], or null
    const T* point;                          // [B, S, N]: z at the minimiser
    AdamStep<T> step;
    T low, high;
    T *value, *first, *second;               // [B, S, N], updated
    T* gradient;                             // [B, S, N] or null
};

// Best split score of each neuron over the rows of its box.
template <typename T>
struct SplitScores {
    int64_t boxes, rows, n;
    const T* coeffs;                         // [B, S, N] on h
    const T *lower, *upper;                  // [B, N]
    const T* bias;                           // [N]
    T* score;                                // [B, N]
};

// Shrinks boxes to coeffs[b, s] . x <= limit[b, s], one half-space after the other, rounded outward.
// A box that a half-space misses becomes empty: lower = inf, upper = -inf.
struct ClipBoxes {
    int64_t boxes, rows, n;
    const double* coeffs;                    // [B, S, N]
    const double* limit;                     // [B, S]
    double *lower, *upper;                   // [B, N], updated
};

// Launchers of one device; `where` is a thread count on the CPU and a stream on the GPU.
template <typename T>
struct Kernels {
    void (*relax_step)(const RelaxStep<T>&, intptr_t where);
    void (*concretise)(const Concretise<T>&, intptr_t where);
    void (*interval_dense)(const IntervalDense<T>&, intptr_t where);
    void (*interval_conv)(const IntervalConv<T>&, intptr_t where);
    void (*enclose)(const EncloseAll<T>&, intptr_t where);
    void (*ascend)(const Ascend<T>&, intptr_t where);
    void (*split_scores)(const SplitScores<T>&, intptr_t where);
};

// The launchers of the best instruction set; of the GPU where it was compiled (null otherwise).
template <typename T>
const Kernels<T>& kernels_cpu();
template <typename T>
const Kernels<T>* kernels_cuda();
void clip_boxes_cpu(const ClipBoxes& job, intptr_t threads);
void clip_boxes_cuda(const ClipBoxes& job, intptr_t stream);
int cuda_device_count();                       // 0 without CUDA, without a driver or without a GPU
std::string cuda_device_name(int device);

// Shared by both devices.

// Terms that one lane adds in T before its sum goes on in double: the relaxation step's offset and loss.
constexpr int64_t kRelaxChain = 16;

// Relative error of a row's offset and loss over n elements, `steps` of which were added in T before going on in double.
template <typename T>
VERIFIER_HD double relax_gamma(int64_t n, int64_t steps) {
    return gamma_n(2.0 * static_cast<double>(steps) + 8, Precision<T>::kUnit) +
           (static_cast<double>(n) + 64) * Precision<double>::kUnit;
}

// Where line k of the four starts for a row of a box.
template <typename T>
VERIFIER_HD int64_t line_of(const RelaxStep<T>& job, int k, int64_t box, int64_t row) {
    return (job.per_row >> k & 1 ? row : box) * job.n;
}

// value = total - lost, rounded down; -inf where that is not a number.
VERIFIER_HD double settle(double total, double lost) {
    const double value = total - lost - 1e-14 * (size_of(total) + lost);
    return value >= -1.7e308 && value <= 1.7e308 ? value : -HUGE_VAL;
}

// Three sums behind one output of an affine layer over a box, and their enclosure.
template <typename T>
struct AffineSums {
    T center = 0, radius = 0, size = 0;

    VERIFIER_MEMBER void add(T lower, T upper, T weight) {
        const T middle = T(0.5) * lower + T(0.5) * upper;
        const T reach = larger(upper - middle, middle - lower), w = size_of(weight);
        center += middle * weight;
        radius += reach * w;
        size += larger(size_of(lower), size_of(upper)) * w;
    }

    // Outward ends for `terms` products, their inputs' own roundings included. A sum that overflows or
    // meets NaN gives (-inf, inf).
    VERIFIER_MEMBER void close(T bias, T bias_magnitude, double terms, T deployed_gamma, T tiny, T& low, T& high) const {
        const double gamma = gamma_n(terms + 12, Precision<T>::kUnit);
        const double most = static_cast<double>(size) * (1 + 2 * gamma) + larger(size_of(bias), bias_magnitude);
        const double error = (2 * gamma * (1 + 2 * gamma) + deployed_gamma * (1 + 1e-6)) * most + tiny +
                             (terms + 4) * 4 * Precision<T>::kTiny * (1 + most);
        const double middle = static_cast<double>(center) + bias, reach = radius + error;
        const bool known = most <= Precision<T>::kHuge;
        low = known ? round_down<T>((middle - reach) - 1e-14 * (size_of(middle) + reach)) : static_cast<T>(-HUGE_VAL);
        high = known ? round_up<T>((middle + reach) + 1e-14 * (size_of(middle) + reach)) : static_cast<T>(HUGE_VAL);
    }
};

}  // namespace verifier

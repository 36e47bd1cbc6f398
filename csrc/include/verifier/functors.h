// The formulas that CPU and CUDA kernels share, one element at a time.
// Every function is safe with or without fused multiply-adds.
#pragma once

#include <cstdint>

#include "verifier/rounding.h"

namespace verifier {

template <typename T>
VERIFIER_HD T larger(T a, T b) {
    return a > b ? a : b;
}

template <typename T>
VERIFIER_HD T smaller(T a, T b) {
    return a < b ? a : b;
}

template <typename T>
VERIFIER_HD T size_of(T x) {
    return x < 0 ? -x : x;
}

// One element of the backward relaxation step: a on h becomes p on z.
//
//   p = a+ slope_lower + a- slope_upper - push,   push = split sign * multiplier (beta),
//   offset += a+ offset_lower + a- offset_upper + p bias.
// Lost to rounding: the two roundings of p, at most unit (|a s| + |p|) |z|; the offset sum, gamma
// times its terms; and |p| charge for whatever the caller still owes for z (METHODS section 7).
// Infinite offsets count only where a is not 0.
// Source: Zhang et al. 2018, arXiv:1811.00866; multipliers: Wang et al. 2021, arXiv:2103.06624.
// V is T, or a vector of T.
template <typename T, typename V>
VERIFIER_HD V relax_element(V a, V slope_lower, V offset_lower, V slope_upper, V offset_upper, V bias, V push,
                            V magnitude, V charge, V gamma, V& offset, V& loss) {
    const V zero{};
    const auto positive = a > zero;
    const V scaled = a * (positive ? slope_lower : slope_upper);
    const V line = a == zero ? zero : a * (positive ? offset_lower : offset_upper);
    const V p = scaled - push;
    const V shift = p * bias, size = p < zero ? -p : p;
    const T unit = static_cast<T>(1.01 * Precision<T>::kUnit);
    offset += line + shift;
    loss += gamma * ((line < zero ? -line : line) + (shift < zero ? -shift : shift)) +
            unit * ((scaled < zero ? -scaled : scaled) + size) * magnitude + size * charge;
    return p;
}

// Projected Adam step uphill: the parameter moves along its gradient and is put back into [low, high].
// Any result in range is a valid multiplier or slope, so rounding is of no concern here; a NaN gradient
// leaves the parameter where it is.
// Source: Kingma & Ba 2015, arXiv:1412.6980.
template <typename T>
struct AdamStep {
    T rate, decay_first, decay_second, correct_first, correct_second, epsilon;
};

template <typename T>
VERIFIER_HD T ascend(T value, T gradient, T& first, T& second, const AdamStep<T>& step, T low, T high) {
    if (!(size_of(gradient) <= static_cast<T>(Precision<T>::kHuge))) return value;
    first = step.decay_first * first + (1 - step.decay_first) * gradient;
    second = step.decay_second * second + (1 - step.decay_second) * gradient * gradient;
    const T moved = value + step.rate * (first * step.correct_first) /
                                (static_cast<T>(sqrt(second * step.correct_second)) + step.epsilon);
    return smaller(larger(moved, low), high);
}

// d bound / d slope_lower of a crossing relu: a+ times z at the minimiser; 0 where the relu is fixed.
// Source: Xu et al. 2021, arXiv:2011.13824.
template <typename T>
VERIFIER_HD T slope_gradient(T a, T z, T lower, T upper) {
    return lower < 0 && upper > 0 && a > 0 ? a * z : T(0);
}

// d bound / d multiplier of a split neuron, sign +1 for z >= 0: -sign z at the minimiser.
// Source: Wang et al. 2021, arXiv:2103.06624.
template <typename T>
VERIFIER_HD T multiplier_gradient(T sign, T z) {
    return -sign * z;
}

// How much splitting a crossing relu is expected to raise the bound of a row with coefficient a on h.
//
//   |max((s - 1) b a, s b a) + a- t|, s = u / (u - l), t = -l u / (u - l), b the bias before the relu.
// Source: Bunel et al. 2020, JMLR 21(42), as written in METHODS section 3.
template <typename T>
VERIFIER_HD T split_score(T a, T lower, T upper, T bias) {
    if (!(lower < 0 && upper > 0)) return 0;
    const T s = upper / (upper - lower), t = -lower * s;
    const T gain = larger((s - 1) * bias * a, s * bias * a) + (a < 0 ? a * t : T(0));
    return size_of(gain);
}

// Certain lower bound of offset + min over the box of coeffs . x, with bounds of x in double.
template <typename T>
VERIFIER_HD double lowest(const T* coeffs, double offset, const double* lower, const double* upper, int64_t n) {
    double sum = offset, size = size_of(offset);
    for (int64_t i = 0; i < n; ++i) {
        const double a = coeffs[i], least = a > 0 ? a * lower[i] : a * upper[i];
        sum += least;
        size += size_of(least);
    }
    return sum - size * (n + 4) * 2.3e-16 - 1e-300;
}

// New ends of one input inside the half-space coeffs . x <= limit, rounded outward.
// `slack` >= limit - min over the box of coeffs . x.
// Source: Zhou et al. 2025, arXiv:2512.11087.
VERIFIER_HD void clip_element(double a, double slack, double& low, double& high) {
    if (a == 0 || !(slack >= 0) || slack == HUGE_VAL) return;
    const double reach = slack / size_of(a) * (1 + 1e-15) + 1e-15 * (size_of(low) + size_of(high));
    if (!(reach < HUGE_VAL)) return;
    if (a > 0) high = smaller(high, low + reach);
    else low = larger(low, high - reach);
}

}  // namespace verifier

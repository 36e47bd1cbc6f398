// Rounding as named functions. Bounds are computed in round-to-nearest and widened by proven terms,
// so no code switches the rounding mode, and every term holds with or without fused multiply-adds.
#pragma once

#include <cmath>

// Header functions never get a shared out-of-line copy: the linker could pick one that was compiled for
// an instruction set the machine lacks.
#if defined(__CUDACC__)
#define VERIFIER_MEMBER __host__ __device__ __forceinline__
#define VERIFIER_UNROLL _Pragma("unroll")
#define VERIFIER_HD static __host__ __device__ __forceinline__
#else
#define VERIFIER_MEMBER inline __attribute__((always_inline))
#define VERIFIER_UNROLL
#define VERIFIER_HD static inline __attribute__((always_inline))
#endif

namespace verifier {

// What the error terms need to know about a floating-point type.
template <typename T>
struct Precision;

template <>
struct Precision<float> {
    static constexpr double kUnit = 5.9604644775390625e-08;       // 2^-24, half an ulp of 1
    static constexpr double kTiny = 1.1754943508222875e-38;       // 2^-126: covers underflow, flushed or gradual
    static constexpr double kHuge = 1.0e30;                       // beyond it nothing is claimed
};

template <>
struct Precision<double> {
    static constexpr double kUnit = 1.1102230246251565e-16;       // 2^-53
    static constexpr double kTiny = 2.2250738585072014e-308;      // 2^-1022
    static constexpr double kHuge = 1.0e250;
};

// gamma_n = n u / (1 - n u): relative error of a sum of n products in any order; +inf where it says nothing.
VERIFIER_HD double gamma_n(double n, double unit) {
    const double x = n * unit;
    return x < 0.5 ? x / (1.0 - x) * (1.0 + 1e-14) : HUGE_VAL;
}

// Largest T not above x (one step lower than necessary at worst); NaN stays NaN.
template <typename T>
VERIFIER_HD T round_down(double x) {
    const T y = static_cast<T>(x);
    return static_cast<double>(y) > x ? static_cast<T>(y - std::fabs(y) * static_cast<T>(2 * Precision<T>::kUnit) -
                                                       static_cast<T>(Precision<T>::kTiny))
                                      : y;
}

// Smallest T not below x (one step higher than necessary at worst); NaN stays NaN.
template <typename T>
VERIFIER_HD T round_up(double x) {
    return -round_down<T>(-x);
}

// gamma_n with the factor that makes up for magnitudes which were themselves summed in T.
template <typename T>
VERIFIER_HD double safe_gamma(double n) {
    const double g = gamma_n(n, Precision<T>::kUnit);
    return g * (1 + 4 * g) * (1 + 1e-6);
}

// A charge in T that is certainly not below x, nor are a few operations with it.
template <typename T>
VERIFIER_HD T as_charge(double x) {
    return round_up<T>(x * (1 + 1e-6));
}

// Rounding of the deployed program's z = sum of n products + bias, summed in any order:
//     min(gamma size, whole size + part reach + constant bias), size = |W| hmax + bias_magnitude, reach >= |z|.
// A partial sum lies between minus the sum N of the negative terms and the sum P of the positive ones, and
// max(P, N) <= (size + reach) / 2: half of what gamma_n takes it for where terms cancel. The constant may be spread
// over the products, so any partial sum may hold all of it. Every product is rounded once, and once for each operation
// fused into it; terms of second order are below 4 n u of the whole.
struct SumError {
    double gamma = 0, whole = 0, part = 0, constant = 0;

    SumError() = default;  // of a program in real arithmetic
    VERIFIER_MEMBER SumError(double unit, double products, double fused) {
        if (unit == 0) return;
        const double roundings = products + 2 + fused;
        gamma = gamma_n(roundings - 1, unit) * (1 + 1e-9);
        const double each = roundings * unit < 0.1 ? unit * (1 + 8 * roundings * unit) * (1 + 1e-9) : HUGE_VAL;
        part = 0.5 * each * (products + 1);
        whole = each * (2 + fused) + part;
        constant = 2 * part;
    }

    VERIFIER_MEMBER double operator()(double size, double reach, double bias) const {
        const double usual = gamma * (size + bias), halved = whole * (size + bias) + part * reach + constant * bias;
        return halved < usual ? halved : usual;
    }
};

}  // namespace verifier

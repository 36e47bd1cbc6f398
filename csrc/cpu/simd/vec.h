// Portable vectors: GCC/Clang vector extensions, as wide as the instruction set this file is compiled for.
// Included once per instruction set, inside VERIFIER_ISA's namespace; no standard library templates.
#pragma once

#include <cstdint>
#include <cstring>

#include "verifier/plan.h"
#include "verifier/rounding.h"

#ifndef VERIFIER_ISA
#error "VERIFIER_ISA names the namespace of this instruction set"
#endif

#if defined(__AVX512F__)
#define VERIFIER_VECTOR_BYTES 64
#elif defined(__AVX__)
#define VERIFIER_VECTOR_BYTES 32
#else
#define VERIFIER_VECTOR_BYTES 16
#endif

#define VERIFIER_INLINE static inline __attribute__((always_inline))

namespace verifier::VERIFIER_ISA {

template <typename T>
struct Lanes {
    static constexpr int kCount = VERIFIER_VECTOR_BYTES / sizeof(T);
    typedef T Vec __attribute__((vector_size(VERIFIER_VECTOR_BYTES)));
    typedef double Wide __attribute__((vector_size(kCount * sizeof(double))));
    typedef decltype(Vec{} < Vec{}) Bits;  // signed integers of the same width
};

template <typename T>
using Vec = typename Lanes<T>::Vec;
template <typename T>
using Wide = typename Lanes<T>::Wide;

template <typename T>
VERIFIER_INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const Vec<T>*>(p);
}

template <typename T>
VERIFIER_INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<Vec<T>*>(p) = v;
}

template <typename T>
VERIFIER_INLINE Vec<T> spread(T x) {
    return x - Vec<T>{};
}

template <typename T>
VERIFIER_INLINE Vec<T> magnitude(Vec<T> v) {
    typedef typename Lanes<T>::Bits Bits;
    return (Vec<T>)((Bits)v & ~(Bits)(-Vec<T>{}));  // -0.0 is the sign bit alone
}

template <typename T>
VERIFIER_INLINE double lane_sum(const double* lanes) {
    double sum = 0;
    for (int i = 0; i < Lanes<T>::kCount; ++i) sum += lanes[i];
    return sum;
}

template <typename T>
VERIFIER_INLINE Vec<T> root_of(Vec<T> v) {
    Vec<T> root;
    for (int lane = 0; lane < Lanes<T>::kCount; ++lane) root[lane] = std::sqrt(v[lane]);
    return root;
}

VERIFIER_INLINE int64_t blocks_of(int64_t n, int64_t width) { return (n + width - 1) / width; }

}  // namespace verifier::VERIFIER_ISA

// Linear forms over a box cut by a Euclidean ball around a point c of it, one vector of rows at a time.
//
// Let size = |a|, h_i >= 0 the way from c to the face of the box that a_i descends to, and sign(a_i) d_i >= -h_i for
// every x = c + d of the box. For any v with 0 <= v <= size,
//     a . x >= a . c - sum (size_i - v_i) h_i - radius |v|,
// since the box bounds the part size - v of the coefficients and Cauchy-Schwarz the part v. The best v is
// min(size, pull h) for the pull at which the step min(size / pull, h) is as long as the radius; any other pull is sound.
#pragma once

#include "vec.h"
#include "verifier/compact.h"

namespace verifier::VERIFIER_ISA {

// Rounds of the search for the pull, each of which finds more faces of the box in the way.
constexpr int kPullRounds = 5;

template <typename T>
VERIFIER_INLINE Vec<T> way(const Ball<T>& ball, int64_t i, Vec<T> a) {
    return a > Vec<T>{} ? spread<T>(ball.below[i]) : spread<T>(ball.above[i]);
}

// The pull of each row of a plane [inputs, lanes], 0 where the whole box lies in the ball.
template <typename T>
static Vec<T> pull_of(const Ball<T>& ball, const T* plane, const int32_t* list, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Vec<T> zero{}, whole = spread<T>(static_cast<T>(ball.radius * ball.radius));
    Vec<T> pull = spread<T>(static_cast<T>(Precision<T>::kHuge));
    for (int round = 0; round <= kPullRounds; ++round) {
        Vec<T> stopped{}, squares{};
        for (int64_t k = 0; k < count; ++k) {
            const Vec<T> a = load(plane + list[k] * lanes), h = way<T>(ball, list[k], a);
            const auto free = magnitude<T>(a) < pull * h;
            squares += free ? a * a : zero;
            stopped += free ? zero : h * h;
        }
        // The first round stops only where there is no way at all.
        const Vec<T> left = whole - stopped, next = root_of<T>(squares / left);
        pull = left > zero ? (next < pull ? next : pull) : pull;
    }
    return pull;
}

// Length of the step against a coefficient, given its size, h and the row's pull.
template <typename V>
VERIFIER_INLINE V step_length(V size, V h, V pull) {
    return size < pull * h ? size / pull : h;
}

}  // namespace verifier::VERIFIER_ISA

// The network at points, and gradients of weighted outputs: the same products, no bounds.
//
// Points lie in planes as rows do in bundles.h: lane l of plane v is point v * lanes + l, and plane v of a stage is
// [neurons][lanes], neurons as the stage orders them.
#pragma once

#include "bundles.h"
#include "verifier/workspace.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
VERIFIER_INLINE Vec<T> activated(const Stage<T>& stage, Vec<T> z) {
    switch (stage.activation) {
        case Activation::kIdentity: return z;
        case Activation::kSigmoid:
            for (int l = 0; l < Lanes<T>::kCount; ++l) z[l] = T(0.5) + T(0.5) * static_cast<T>(std::tanh(T(0.5) * z[l]));
            return z;
        case Activation::kTanh:
            for (int l = 0; l < Lanes<T>::kCount; ++l) z[l] = static_cast<T>(std::tanh(z[l]));
            return z;
        default: return z > Vec<T>{} ? z : spread<T>(stage.alpha) * z;
    }
}

// f'(z) from h = f(z).
template <typename T>
VERIFIER_INLINE Vec<T> slope_at(const Stage<T>& stage, Vec<T> h) {
    const Vec<T> one = spread<T>(1);
    switch (stage.activation) {
        case Activation::kIdentity: return one;
        case Activation::kSigmoid: return h * (one - h);
        case Activation::kTanh: return one - h * h;
        default: return h > Vec<T>{} ? one : spread<T>(stage.alpha);
    }
}

constexpr int64_t kStrip = 16;  // numbers of a row that are turned at once

// One plane of the `present` rows [n] that begin `step` apart; the other lanes repeat the last of them.
template <typename T>
static void into_plane(const T* rows, int64_t step, int64_t present, int64_t n, T* plane) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    T strip[lanes][kStrip];
    for (int64_t begin = 0; begin < n; begin += kStrip) {
        const int64_t count = n - begin < kStrip ? n - begin : kStrip;
        for (int64_t l = 0; l < lanes; ++l)
            memcpy(strip[l], rows + (l < present ? l : present - 1) * step + begin, count * sizeof(T));
        for (int64_t i = 0; i < count; ++i)
            for (int64_t l = 0; l < lanes; ++l) plane[(begin + i) * lanes + l] = strip[l][i];
    }
}

template <typename T>
static void from_plane(const T* plane, int64_t n, int64_t present, T* rows, int64_t step) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    T strip[lanes][kStrip];
    for (int64_t begin = 0; begin < n; begin += kStrip) {
        const int64_t count = n - begin < kStrip ? n - begin : kStrip;
        for (int64_t i = 0; i < count; ++i)
            for (int64_t l = 0; l < lanes; ++l) strip[l][i] = plane[(begin + i) * lanes + l];
        for (int64_t l = 0; l < present; ++l) memcpy(rows + l * step + begin, strip[l], count * sizeof(T));
    }
}

// Points of plane v among `count` in all.
template <typename T>
VERIFIER_INLINE int64_t present_in(int64_t count, int64_t v) {
    const int64_t left = count - v * Lanes<T>::kCount;
    return left < Lanes<T>::kCount ? left : Lanes<T>::kCount;
}

// h of every stage at `count` points, stage s in planes from kept[s] on; the last stage also into `out`.
template <typename T>
static void evaluate(const Plan<T>& plan, const T* points, int64_t count, T* const* kept, T* out) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const int64_t planes = blocks_of(count, lanes);
    const auto rows_of = [&](int s) { return Planes<T>{kept[s], plan.stages[s].room * lanes, planes}; };
    const int top = plan.count - 1;
    const int64_t inputs = plan.stages[0].size, outputs = plan.stages[top].size;
    for (int64_t v = 0; v < planes; ++v)
        into_plane(points + v * lanes * inputs, inputs, present_in<T>(count, v), inputs, kept[0] + v * rows_of(0).stride);
    for (int s = 1; s < plan.count; ++s) {
        const Stage<T>& stage = plan.stages[s];
        const Planes<T> rows = rows_of(s);
        if (stage.term_count == 0) memset(rows.data, 0, planes * rows.stride * sizeof(T));
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const Planes<T> from = rows_of(term.source);
            carry<T>(term.at_points, term.kind == MapKind::kDiagonal, {from.data, from.stride, planes}, rows, t > 0);
        }
        for (int64_t v = 0; v < planes; ++v)
            for (int64_t i = 0; i < stage.size; ++i) {
                T* z = rows.data + v * rows.stride + i * lanes;
                store(z, activated(stage, load(z) + spread<T>(stage.bias[stage.order[i]])));
            }
    }
    for (int64_t v = 0; v < planes; ++v)
        from_plane(kept[top] + v * rows_of(top).stride, outputs, present_in<T>(count, v), out + v * lanes * outputs, outputs);
}

// Gradients of weights . y(x) for planes first .. first + planes - 1 of weights at `count` points, which were evaluated
// into `kept`. `each` planes in turn hold one plane of points: those of the first, second, ... of each point's weights.
template <typename T>
static void pull_back(const Plan<T>& plan, Workspace<T>& work, const T* weights, int64_t count, int64_t each,
                      int64_t first, int64_t planes, T* const* kept, T* out) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const int top = plan.count - 1;
    const int64_t inputs = plan.stages[0].size, outputs = plan.stages[top].size;
    const auto grads_of = [&](int s) { return Planes<T>{work.point_grads[s], plan.stages[s].room * lanes, planes}; };
    const auto row_of = [&](int64_t plane) { return plane / each * lanes * each + plane % each; };
    for (int64_t v = 0; v < planes; ++v)
        into_plane(weights + row_of(first + v) * outputs, each * outputs, present_in<T>(count, (first + v) / each), outputs,
                   work.point_grads[top] + v * grads_of(top).stride);
    memset(work.point_reached, 0, top);
    work.point_reached[top] = 1;
    for (int s = top; s >= 1; --s) {
        if (!work.point_reached[s]) continue;
        const Stage<T>& stage = plan.stages[s];
        const Planes<T> grads = grads_of(s);
        for (int64_t v = 0; stage.activation != Activation::kIdentity && v < planes; ++v)
            for (int64_t i = 0; i < stage.size; ++i) {
                T* grad = grads.data + v * grads.stride + i * lanes;
                const T* h = kept[s] + ((first + v) / each * stage.room + i) * lanes;
                store(grad, load(grad) * slope_at(stage, load(h)));
            }
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            carry<T>(term.back_from_points, term.kind == MapKind::kDiagonal, {grads.data, grads.stride, planes},
                     grads_of(term.source), work.point_reached[term.source]);
            work.point_reached[term.source] = 1;
        }
    }
    if (!work.point_reached[0]) memset(work.point_grads[0], 0, planes * grads_of(0).stride * sizeof(T));
    for (int64_t v = 0; v < planes; ++v)
        from_plane(work.point_grads[0] + v * grads_of(0).stride, inputs, present_in<T>(count, (first + v) / each),
                   out + row_of(first + v) * inputs, each * inputs);
}

}  // namespace verifier::VERIFIER_ISA

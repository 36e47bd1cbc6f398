// The network at points, and gradients of weighted outputs: the same products, no bounds.
#pragma once

#include "maps.h"
#include "verifier/workspace.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
static T activate(const Stage<T>& stage, T z) {
    switch (stage.activation) {
        case Activation::kIdentity: return z;
        case Activation::kSigmoid: return T(0.5) + T(0.5) * static_cast<T>(std::tanh(T(0.5) * z));
        case Activation::kTanh: return static_cast<T>(std::tanh(z));
        default: return z > 0 ? z : (z == z ? stage.alpha * z : z);
    }
}

// f'(z) from h = f(z).
template <typename T>
static T slope_at(const Stage<T>& stage, T h) {
    switch (stage.activation) {
        case Activation::kIdentity: return 1;
        case Activation::kSigmoid: return h * (1 - h);
        case Activation::kTanh: return 1 - h * h;
        default: return h > 0 ? T(1) : stage.alpha;
    }
}

// h of every stage at `count` points, stage s in kept[s] [count, stride]; the last stage also into `out` unless null.
template <typename T>
static void evaluate(const Plan<T>& plan, Workspace<T>& work, const double* points, int64_t count, T* const* kept,
                     double* out) {
    for (int s = 0; s < plan.count; ++s) {
        const Stage<T>& stage = plan.stages[s];
        T* rows = kept[s];
        for (int64_t r = 0; s == 0 && r < count; ++r)
            for (int64_t i = 0; i < stage.size; ++i) rows[r * stage.stride + i] = static_cast<T>(points[r * stage.size + i]);
        if (s == 0) continue;
        if (stage.term_count == 0) memset(rows, 0, count * stage.stride * sizeof(T));
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const int64_t stride = plan.stages[term.source].stride;
            apply_forward<T, false>(term, {kept[term.source], stride, count}, {work.every, term.cols},
                                    {rows, stage.stride, count}, {work.across, work.across_out}, t > 0);
        }
        for (int64_t r = 0; r < count; ++r) {
            T* z = rows + r * stage.stride;
            for (int64_t i = 0; i < stage.size; ++i) z[i] = activate(stage, z[i] + stage.bias[i]);
        }
    }
    const Stage<T>& stage = plan.stages[plan.count - 1];
    const T* rows = kept[plan.count - 1];
    for (int64_t r = 0; out != nullptr && r < count; ++r)
        for (int64_t i = 0; i < stage.size; ++i) out[r * stage.size + i] = rows[r * stage.stride + i];
}

// Gradients of weights[r] . y(x) for rows first .. first + count - 1 of weights, `each` of them in turn at one point of
// the evaluation that left `kept`.
template <typename T>
static void pull_back(const Plan<T>& plan, Workspace<T>& work, const double* weights, int64_t first, int64_t count,
                      int64_t each, T* const* kept, double* out) {
    const int top = plan.count - 1;
    const Stage<T>& input = plan.stages[0];
    for (int s = 0; s <= top; ++s)
        memset(work.point_grads[s], 0, count * plan.stages[s].stride * sizeof(T));
    for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < plan.stages[top].size; ++i)
            work.point_grads[top][r * plan.stages[top].stride + i] = static_cast<T>(weights[r * plan.stages[top].size + i]);
    for (int s = top; s >= 1; --s) {
        const Stage<T>& stage = plan.stages[s];
        T* grad = work.point_grads[s];
        for (int64_t r = 0; stage.activation != Activation::kIdentity && r < count; ++r) {
            const T* h = kept[s] + (first + r) / each * stage.stride;
            for (int64_t i = 0; i < stage.stride; ++i) grad[r * stage.stride + i] *= slope_at(stage, h[i]);
        }
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const int64_t stride = plan.stages[term.source].stride;
            apply_backward<T>(term, {grad, stage.stride, count}, {work.every, stage.size},
                              {work.point_grads[term.source], stride, count}, {work.across, work.across_out}, true);
        }
    }
    for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < input.size; ++i) out[r * input.size + i] = work.point_grads[0][r * input.stride + i];
}

}  // namespace verifier::VERIFIER_ISA

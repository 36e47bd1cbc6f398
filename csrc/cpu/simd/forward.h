// The forward pass over one box: interval bounds and linear forms in the inputs, stage by stage.
#pragma once

#include "maps.h"
#include "verifier/workspace.h"

namespace verifier::VERIFIER_ISA {

// Everything one box needs; `failed` once some value is too large or NaN, and nothing is claimed.
template <typename T>
struct Context {
    const Plan<T>& plan;
    Workspace<T>& work;
    FormRows rows;
    bool failed = false;

    Context(const Plan<T>& p, Workspace<T>& w) : plan(p), work(w), rows(p.forms, p.stages[0].size) {}
};

// gamma_n with the factor that makes up for magnitudes which were themselves summed in T.
template <typename T>
static double safe_gamma(double n) {
    const double g = gamma_n(n, Precision<T>::kUnit);
    return g * (1 + 4 * g) * (1 + 1e-6);
}

template <typename T>
static T as_charge(double x) {
    return round_up<T>(x * (1 + 1e-6));
}

// Fills stage 0: intervals in T that contain the box, and its normalised coordinates as forms.
template <typename T>
static void enter_box(Context<T>& at, const double* lower, const double* upper) {
    const Stage<T>& stage = at.plan.stages[0];
    StageState<T>& state = at.work.stages[0];
    const FormRows& rows = at.rows;
    const double limit = Precision<T>::kHuge;
    memset(state.mid, 0, rows.mid_rows * stage.stride * sizeof(T));
    memset(state.half, 0, rows.half_rows * stage.stride * sizeof(T));
    state.post_sum = 0;
    for (int64_t i = 0; i < stage.size; ++i) {
        if (!(lower[i] <= upper[i] && lower[i] >= -limit && upper[i] <= limit)) {
            at.failed = true;
            return;
        }
        const T center = static_cast<T>(0.5 * lower[i] + 0.5 * upper[i]);
        const double above = upper[i] - center, below = center - lower[i];
        const T radius = round_up<T>((above > below ? above : below) * (1 + 1e-15));
        const T most = as_charge<T>(std::fabs(static_cast<double>(center)) + radius);
        state.post_lower[i] = round_down<T>(lower[i]);
        state.post_upper[i] = round_up<T>(upper[i]);
        state.mid[rows.interval * stage.stride + i] = center;
        state.half[rows.interval * stage.stride + i] = radius;
        state.half[rows.magnitude * stage.stride + i] = most;
        state.post_sum += most;
        if (!at.plan.forms) continue;
        state.mid[i * stage.stride + i] = radius;
        state.mid[rows.constant * stage.stride + i] = center;
        state.half[rows.scale * stage.stride + i] = most;
    }
    state.tiny = 16 * Precision<T>::kTiny * (stage.size + 4) * (4 + state.post_sum);
}

// Coefficients of the error that each z of the deployed program may carry.
template <typename T>
struct StageError {
    Vec<T> own, magnitude_up, deployed, deployed_tiny, cast, underflow;

    StageError(const Stage<T>& stage, double tiny, int64_t inputs) {
        const double gamma = safe_gamma<T>(stage.row_terms + 10);
        own = spread<T>(as_charge<T>(gamma * (1 + 4 * Precision<T>::kUnit * (inputs + 4))));
        magnitude_up = spread<T>(as_charge<T>(1 + 2 * gamma));
        deployed = spread<T>(as_charge<T>(stage.deployed_gamma * (1 + 2 * gamma)));
        deployed_tiny = spread<T>(as_charge<T>(tiny));
        cast = spread<T>(as_charge<T>(stage.cast_error * (1 + 2 * gamma)));
        underflow = spread<T>(
            as_charge<T>(16 * Precision<T>::kTiny * (inputs + 4) * (stage.row_terms + 4 + stage.row_magnitude)));
    }
};

// Bounds of z from the mapped rows: the better of the interval and the forms, rounding included.
// Comparisons are written so that a NaN loses.
template <typename T>
static void bound_stage(Context<T>& at, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    StageState<T>& state = at.work.stages[index];
    const FormRows& rows = at.rows;
    const StageError<T> error(stage, state.deployed_tiny, rows.inputs);
    const Vec<T> concretise = spread<T>(as_charge<T>(safe_gamma<T>(rows.inputs + 10)));
    const Vec<T> limit = spread<T>(static_cast<T>(Precision<T>::kHuge));
    typename Lanes<T>::Bits good = limit > 0;
    for (int64_t i = 0; i < stage.size; i += Lanes<T>::kCount) {
        T* mid = state.mid + i;
        T* half = state.half + i;
        const Vec<T> bias = load(stage.bias + i), bias_size = magnitude<T>(bias);
        const Vec<T> size = load(half + rows.magnitude * stage.stride) * error.magnitude_up;
        const Vec<T> deployed = error.deployed * (size + load(stage.bias_magnitude + i)) + error.deployed_tiny +
                                error.cast * (size + bias_size) + error.underflow;
        const Vec<T> center = load(mid + rows.interval * stage.stride) + bias;
        const Vec<T> radius = load(half + rows.interval * stage.stride) + error.own * (size + bias_size) + deployed;
        Vec<T> low = center - radius, high = center + radius;
        if (at.plan.forms) {
            const Vec<T> scale = load(half + rows.scale * stage.stride) + bias_size;
            const Vec<T> mid_0 = load(mid + rows.constant * stage.stride) + bias;
            const Vec<T> half_0 = load(half + rows.constant * stage.stride) + error.own * scale + deployed;
            store(mid + rows.constant * stage.stride, mid_0);
            store(half + rows.constant * stage.stride, half_0);
            Vec<T> below{}, above{}, total = magnitude<T>(mid_0) + magnitude<T>(half_0);
            for (int64_t c = 0; c < rows.inputs; ++c) {
                const Vec<T> m = load(mid + c * stage.stride), h = load(half + c * stage.stride);
                below += magnitude<T>(m - h);
                above += magnitude<T>(m + h);
                total += magnitude<T>(m) + magnitude<T>(h);
            }
            const Vec<T> slack = concretise * total;
            const Vec<T> form_low = mid_0 - half_0 - below - slack, form_high = mid_0 + half_0 + above + slack;
            low = form_low > low ? form_low : low;
            high = form_high < high ? form_high : high;
        }
        store(state.weight_magnitude + i, size);
        store(state.lower + i, low);
        store(state.upper + i, high);
        good &= (low >= -limit) & (high <= limit) & (size + load(stage.bias_magnitude + i) <= limit);
    }
    for (int lane = 0; lane < Lanes<T>::kCount; ++lane) at.failed |= !good[lane];
}

// z of stage `index` from its sources' h.
template <typename T>
static void forward_stage(Context<T>& at, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    StageState<T>& state = at.work.stages[index];
    if (stage.term_count == 0) {
        memset(state.mid, 0, at.rows.mid_rows * stage.stride * sizeof(T));
        memset(state.half, 0, at.rows.half_rows * stage.stride * sizeof(T));
    }
    state.deployed_tiny = stage.deployed_tiny;
    const Across<T> across{at.work.across, at.work.across_out};
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const StageState<T>& source = at.work.stages[term.source];
        state.deployed_tiny += stage.flush * source.post_sum;
        const int64_t stride = at.plan.stages[term.source].stride;
        const Alive alive{source.alive, source.alive_count};
        apply_forward<T, false>(term, {source.mid, stride, at.rows.mid_rows}, alive,
                                {state.mid, stage.stride, at.rows.mid_rows}, across, t > 0);
        apply_forward<T, true>(term, {source.half, stride, at.rows.half_rows}, alive,
                               {state.half, stage.stride, at.rows.half_rows}, across, t > 0);
    }
    bound_stage(at, index);
}

}  // namespace verifier::VERIFIER_ISA

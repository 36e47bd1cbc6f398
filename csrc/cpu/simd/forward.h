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

template <typename T>
static SumError sum_error(const Stage<T>& stage, const StageState<T>& state) {
    return {stage.deployed_unit, state.products, stage.fused_roundings};
}

// The same for neuron i, from what is known of its z.
template <typename T>
static double sum_error_of(const SumError& error, const Stage<T>& stage, const StageState<T>& state, int64_t i) {
    const double low = std::fabs(static_cast<double>(state.lower[i])), high = std::fabs(static_cast<double>(state.upper[i]));
    const double found = error(state.weight_magnitude[i], low > high ? low : high, stage.bias_magnitude[i]);
    return state.sum_limit[i] < found ? static_cast<double>(state.sum_limit[i]) : found;
}

// The same for vectors of neurons, rounded up; `up` makes up for the rounding of its arguments.
template <typename T>
struct SumErrors {
    Vec<T> gamma, whole, part, constant;

    SumErrors(const SumError& error, double up)
        : gamma(spread<T>(as_charge<T>(error.gamma * up))), whole(spread<T>(as_charge<T>(error.whole * up))),
          part(spread<T>(as_charge<T>(error.part * up))), constant(spread<T>(as_charge<T>(error.constant * up))) {}

    Vec<T> operator()(Vec<T> size, Vec<T> reach, Vec<T> bias) const {
        const Vec<T> usual = gamma * (size + bias), halved = whole * (size + bias) + part * reach + constant * bias;
        return halved < usual ? halved : usual;
    }
};

// Coefficients of the errors of a stage's forward pass.
template <typename T>
struct StageError {
    Vec<T> own, magnitude_up, deployed_tiny, cast, underflow;
    SumErrors<T> deployed;

    StageError(const Stage<T>& stage, const StageState<T>& state, int64_t inputs)
        : deployed(sum_error(stage, state), 1 + 2 * safe_gamma<T>(stage.row_terms + 10)) {
        const double gamma = safe_gamma<T>(stage.row_terms + 10);
        own = spread<T>(as_charge<T>(gamma * (1 + 4 * Precision<T>::kUnit * (inputs + 4))));
        magnitude_up = spread<T>(as_charge<T>(1 + 2 * gamma));
        deployed_tiny = spread<T>(as_charge<T>(state.deployed_tiny));
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
    const StageError<T> error(stage, state, rows.inputs);
    const Vec<T> concretise = spread<T>(as_charge<T>(safe_gamma<T>(rows.inputs + 10)));
    const Vec<T> limit = spread<T>(static_cast<T>(Precision<T>::kHuge));
    typename Lanes<T>::Bits good = limit > 0;
    for (int64_t i = 0; i < stage.size; i += Lanes<T>::kCount) {
        T* mid = state.mid + i;
        T* half = state.half + i;
        const Vec<T> bias = load(stage.bias + i), bias_size = magnitude<T>(bias);
        const Vec<T> size = load(half + rows.magnitude * stage.stride) * error.magnitude_up;
        const Vec<T> center = load(mid + rows.interval * stage.stride) + bias;
        const Vec<T> exact = load(half + rows.interval * stage.stride) + error.own * (size + bias_size);
        const Vec<T> sums = error.deployed(size, magnitude<T>(center) + exact, load(stage.bias_magnitude + i));
        const Vec<T> limit_of_sums = load(state.sum_limit + i);
        const Vec<T> deployed = (limit_of_sums < sums ? limit_of_sums : sums) + error.deployed_tiny +
                                error.cast * (size + bias_size) + error.underflow;
        const Vec<T> radius = exact + deployed;
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

// Most products behind one z that are not identically 0: adding an exact zero rounds nothing. With operations fused
// into W, a product with h = 0 may have had a constant of its own.
template <typename T>
static double count_products(const Context<T>& at, const Stage<T>& stage) {
    if (stage.deployed_unit == 0 || stage.fused_roundings > 0) return stage.products;
    double most = 0;
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const StageState<T>& source = at.work.stages[term.source];
        if (term.kind != MapKind::kDense || term.source == 0) return stage.products;
        most += static_cast<double>(source.alive_count);
    }
    return most < stage.products ? most : stage.products;
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
    state.products = count_products(at, stage);
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

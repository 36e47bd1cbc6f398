// From bounds on z to lines, bounds and forms of h = f(z), and the charges of the backward pass.
#pragma once

#include "forward.h"
#include "verifier/lines.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
struct Lines {
    Vec<T> slope_lower, offset_lower, slope_upper, offset_upper, low, high;
};

// Encloses f(z) = max(z, alpha z), alpha in [0, 1], on [l, u] by one line below and one above.
//
// Crossing zero: slope_upper is the chord's, rounded as it falls; the offset is then computed from the
// slope actually stored and rounded up. slope_lower is 1 or alpha, whichever leaves less area.
// `deviation` |z| bounds what the deployed (or stored) f differs from f below zero.
// Source: Zhang et al. 2018, arXiv:1811.00866.
template <typename T>
VERIFIER_INLINE Lines<T> relax_leaky(Vec<T> l, Vec<T> u, Vec<T> alpha, Vec<T> deviation) {
    const Vec<T> zero{}, one = spread<T>(1), up = spread<T>(static_cast<T>(1 + 16 * Precision<T>::kUnit));
    const Vec<T> tiny = spread<T>(static_cast<T>(4 * Precision<T>::kTiny));
    Lines<T> line;
    Vec<T> chord = (u - alpha * l) / (u - l);
    chord = chord < one ? chord : one;
    chord = chord > alpha ? chord : alpha;
    const Vec<T> at_lower = (chord - alpha) * -l, at_upper = (one - chord) * u;
    const Vec<T> gap = (at_lower > at_upper ? at_lower : at_upper) * up + tiny;
    const Vec<T> best = u > -l ? one : alpha;
    line.slope_upper = l >= zero ? one : (u <= zero ? alpha : chord);
    line.slope_lower = l >= zero ? one : (u <= zero ? alpha : best);
    line.offset_upper = (l >= zero) | (u <= zero) ? zero : gap;
    line.offset_lower = zero;
    line.low = l >= zero ? l : zero;
    line.high = u > zero ? u : zero;
    const Vec<T> below = l < zero ? -l : zero;  // largest |z| on the negative side
    if (alpha[0] != 0 || deviation[0] != 0) {
        const Vec<T> wrong = below * deviation * up + (below > zero ? tiny : zero);
        line.offset_lower -= wrong;
        line.offset_upper = (line.offset_upper + wrong) * up;
        line.low = l >= zero ? l : (alpha * l - wrong) * up - tiny;
        line.high = u > zero ? u : (alpha * u + wrong);
        line.high += magnitude<T>(line.high) * (up - one) + (below > zero ? tiny : zero);
    }
    return line;
}

// Lines of a sigmoid or tanh, one lane after the other.
template <typename T>
static Lines<T> relax_curved(const Stage<T>& stage, Vec<T> l, Vec<T> u) {
    const Function f = stage.activation == Activation::kSigmoid ? Function::kSigmoid : Function::kTanh;
    Lines<T> line;
    for (int lane = 0; lane < Lanes<T>::kCount; ++lane) {
        const Enclosing<T> one = enclose<T>(f, l[lane], u[lane], 0, stage.activation_error, -1);
        line.slope_lower[lane] = one.slope_lower;
        line.offset_lower[lane] = one.offset_lower;
        line.slope_upper[lane] = one.slope_upper;
        line.offset_upper[lane] = one.offset_upper;
        line.low[lane] = one.low;
        line.high[lane] = one.high;
    }
    return line;
}

// Carries the forms of z through the lines: mid' = p mid + m half + ..., half' = m mid + p half + ...
// with p, m half the sum and half the difference of the slopes.
template <typename T>
VERIFIER_INLINE void relax_forms(Context<T>& at, const Stage<T>& stage, T* mid, T* half, const Lines<T>& line) {
    const FormRows& rows = at.rows;
    const int64_t stride = stage.stride;
    const T half_of = static_cast<T>(0.5);
    const Vec<T> zero{}, one = spread<T>(1);
    const Vec<T> p = (line.slope_upper + line.slope_lower) * half_of, m = (line.slope_upper - line.slope_lower) * half_of;
    const Vec<T> step = (line.offset_upper + line.offset_lower) * half_of;
    const Vec<T> spread_of = (line.offset_upper - line.offset_lower) * half_of;
    Vec<T> before{}, after{};
    for (int64_t c = 0; c <= rows.inputs; ++c) {
        const Vec<T> x = load(mid + c * stride), y = load(half + c * stride);
        before += magnitude<T>(x) + magnitude<T>(y);
        Vec<T> x_new = p * x + m * y, y_new = m * x + p * y;
        if (c == rows.constant) {
            x_new += step;
            y_new += spread_of;
            const Vec<T> scale = before * (p + magnitude<T>(m)) + magnitude<T>(step) + magnitude<T>(spread_of);
            const Vec<T> loss = scale * static_cast<T>(as_charge<T>(safe_gamma<T>(rows.inputs + 12))) +
                                static_cast<T>(64 * Precision<T>::kTiny) * static_cast<T>(rows.inputs + 4);
            const auto exact = (line.slope_lower == line.slope_upper) & (line.offset_upper == zero) &
                               (line.offset_lower == zero) & ((p == zero) | (p == one));
            y_new += exact ? zero : loss;
        }
        after += magnitude<T>(x_new) + magnitude<T>(y_new);
        store(mid + c * stride, x_new);
        store(half + c * stride, y_new);
    }
    store(half + rows.scale * stride, after);
}

// Stores the lines of one vector of neurons and h's interval, centre, radius and magnitude.
template <typename T>
VERIFIER_INLINE Vec<T> store_lines(Context<T>& at, const Stage<T>& stage, StageState<T>& state, int64_t i,
                                   const Lines<T>& line) {
    const FormRows& rows = at.rows;
    const Vec<T> up = spread<T>(static_cast<T>(1 + 8 * Precision<T>::kUnit));
    const Vec<T> center = (line.low + line.high) * static_cast<T>(0.5);
    const Vec<T> above = line.high - center, below = center - line.low;
    const Vec<T> most_low = magnitude<T>(line.low), most_high = magnitude<T>(line.high);
    const Vec<T> most = most_low > most_high ? most_low : most_high;
    store(state.slope_lower + i, line.slope_lower);
    store(state.offset_lower + i, line.offset_lower);
    store(state.slope_upper + i, line.slope_upper);
    store(state.offset_upper + i, line.offset_upper);
    store(state.post_lower + i, line.low);
    store(state.post_upper + i, line.high);
    store(state.mid + rows.interval * stage.stride + i, center);
    store(state.half + rows.interval * stage.stride + i, (above > below ? above : below) * up);
    store(state.half + rows.magnitude * stage.stride + i, most);
    return most;
}

template <typename T>
static void list_alive(const Stage<T>& stage, StageState<T>& state) {
    int64_t count = 0;
    for (int64_t i = 0; i < stage.size; ++i) {
        state.alive[count] = static_cast<int32_t>(i);
        count += !(state.slope_upper[i] == 0 && state.slope_lower[i] == 0 && state.post_lower[i] == 0 &&
                   state.post_upper[i] == 0);
    }
    state.alive_count = count;
}

// What a row with coefficients p on z loses here: see METHODS section 7. Own rounding of p W, of the
// slopes and of the offset sum; the deployed program's rounding of z.
template <typename T>
static void charge_stage(Context<T>& at, int index, double z_sum) {
    const Stage<T>& stage = at.plan.stages[index];
    StageState<T>& state = at.work.stages[index];
    const double unit = Precision<T>::kUnit;
    const int64_t vectors = blocks_of(stage.size, Lanes<T>::kCount), chain = vectors > kOffsetChunk ? vectors : kOffsetChunk;
    double column_terms = 0, source_sum = 0, source_size = 0;
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const double terms = term.kind == MapKind::kDense ? state.alive_count : term.column_terms;
        column_terms = terms > column_terms ? terms : column_terms;
        source_sum += at.work.stages[term.source].post_sum;
        source_size += term.cols;
    }
    state.row_gamma = gamma_n(2.0 * chain + 6 + at.plan.count + at.plan.wide_terms, unit) * (1 + 1e-6);
    const Vec<T> weight = spread<T>(as_charge<T>(gamma_n(column_terms + 4, unit) + stage.cast_error));
    const Vec<T> slope = spread<T>(as_charge<T>(3 * unit));
    const Vec<T> offset = spread<T>(as_charge<T>(state.row_gamma + stage.cast_error));
    const SumErrors<T> deployed(sum_error(stage, state), 1);
    const Vec<T> tiny = spread<T>(as_charge<T>(state.deployed_tiny));
    const Vec<T> up = spread<T>(static_cast<T>(1 + 16 * unit));
    for (int64_t i = 0; i < stage.size; i += Lanes<T>::kCount) {
        const Vec<T> low = magnitude<T>(load(state.lower + i)), high = magnitude<T>(load(state.upper + i));
        const Vec<T> size = load(state.weight_magnitude + i), reach = low > high ? low : high;
        const Vec<T> sums = deployed(size, reach, load(stage.bias_magnitude + i)), known = load(state.sum_limit + i);
        const Vec<T> sum = weight * size + slope * reach + offset * magnitude<T>(load(stage.bias + i)) +
                           (known < sums ? known : sums);
        store(state.charge + i, sum * up + tiny);
    }
    const double rows = static_cast<double>(stage.size) + 4;
    state.tiny = at.work.stages[index - 1].tiny +
                 16 * Precision<T>::kTiny * rows * (source_size + 4 + source_sum + z_sum);
}

// Lines and charges of stage `index` from its final bounds on z; forms too where they are propagated.
template <typename T>
static void relax_stage(Context<T>& at, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    StageState<T>& state = at.work.stages[index];
    const bool linear = stage.activation == Activation::kIdentity;
    const bool curved = curves(stage.activation);
    const Vec<T> alpha = spread<T>(linear ? T(1) : stage.alpha);
    const Vec<T> deviation = spread<T>(linear ? T(0) : as_charge<T>(stage.activation_error));
    Vec<T> z_sum{}, h_sum{};
    for (int64_t i = 0; i < stage.size; i += Lanes<T>::kCount) {
        const Vec<T> l = load(state.lower + i), u = load(state.upper + i);
        Lines<T> line;
        if (linear) {
            const Vec<T> zero{}, one = spread<T>(1);
            line = {one, zero, one, zero, l, u};
        } else if (curved) {
            line = relax_curved(stage, l, u);
        } else {
            line = relax_leaky<T>(l, u, alpha, deviation);
        }
        h_sum += store_lines(at, stage, state, i, line);
        const Vec<T> low = magnitude<T>(l), high = magnitude<T>(u);
        z_sum += low > high ? low : high;
        if (at.plan.forms) relax_forms(at, stage, state.mid + i, state.half + i, line);
    }
    double z_total = 0;
    state.post_sum = 0;
    for (int lane = 0; lane < Lanes<T>::kCount; ++lane) {
        z_total += 1.01 * z_sum[lane];
        state.post_sum += 1.01 * h_sum[lane];
    }
    list_alive(stage, state);
    charge_stage(at, index, z_total);
}

}  // namespace verifier::VERIFIER_ISA

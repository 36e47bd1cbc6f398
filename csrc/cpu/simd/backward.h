// The backward pass: rows of coefficients from a stage down to the inputs, many rows at a time.
#pragma once

#include "relax.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
static int acquire(Workspace<T>& work, int stage) {
    return work.owner[stage] = work.free_buffers[--work.free_count];
}

template <typename T>
static void release(Workspace<T>& work, int stage) {
    work.free_buffers[work.free_count++] = work.owner[stage];
    work.owner[stage] = -1;
}

// Rows A on h become rows p = A+ slope_lower + A- slope_upper on z, in one read and one write.
//
// Adds A+ offset_lower + A- offset_upper + p bias to the rows' offsets, and |p| charge plus the
// rounding of that sum to their losses.
template <typename T>
static void relax_rows(const Plan<T>& plan, Workspace<T>& work, int index, T* rows, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = plan.stages[index];
    const StageState<T>& state = work.stages[index];
    const bool linear = stage.activation == Activation::kIdentity;
    const Vec<T> zero{}, gamma = spread<T>(as_charge<T>(state.row_gamma));
    for (int64_t r = 0; r < count; ++r) {
        T* row = rows + r * stage.stride;
        Vec<T> offset{}, loss = load(work.losses + r * lanes);
        for (int64_t i = 0; i < stage.size; i += lanes) {
            Vec<T> p = load(row + i);
            if (!linear) {
                const auto positive = p > zero;
                const Vec<T> line = p * (positive ? load(state.offset_lower + i) : load(state.offset_upper + i));
                p *= positive ? load(state.slope_lower + i) : load(state.slope_upper + i);
                offset += line;
                loss += magnitude<T>(line) * gamma;
                store(row + i, p);
            }
            offset += p * load(stage.bias + i);
            loss += magnitude<T>(p) * load(state.charge + i);
        }
        Wide<T>* total = reinterpret_cast<Wide<T>*>(work.offsets + r * lanes);
        *total += __builtin_convertvector(offset, Wide<T>);
        store(work.losses + r * lanes, loss);
    }
}

// Rows already waiting at `source` are about to be added to: charge the rounding of that sum.
template <typename T>
static void charge_addition(const Plan<T>& plan, Workspace<T>& work, int source, const T* rows, int64_t count,
                            double terms) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = plan.stages[source];
    const FormRows layout(plan.forms, plan.stages[0].size);
    const T* most = work.stages[source].half + layout.magnitude * stage.stride;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms + 2, Precision<T>::kUnit)));
    for (int64_t r = 0; r < count; ++r) {
        Vec<T> loss = load(work.losses + r * lanes);
        for (int64_t i = 0; i < stage.size; i += lanes)
            loss += magnitude<T>(load(rows + r * stage.stride + i)) * load(most + i) * gamma;
        store(work.losses + r * lanes, loss);
    }
}

// Carries the rows waiting at stages `top`, `top` - 1, ..., 1 down to the inputs.
template <typename T>
static void sweep_rows(const Plan<T>& plan, Workspace<T>& work, int top, int64_t count) {
    for (int s = top; s >= 1; --s) {
        if (work.owner[s] < 0) continue;
        const Stage<T>& stage = plan.stages[s];
        T* rows = work.buffers[work.owner[s]];
        const Alive alive{work.stages[s].alive, work.stages[s].alive_count};
        relax_rows(plan, work, s, rows, count);
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const int64_t stride = plan.stages[term.source].stride;
            const bool waiting = work.owner[term.source] >= 0;
            T* below = work.buffers[waiting ? work.owner[term.source] : acquire(work, term.source)];
            const double terms = term.kind == MapKind::kDense ? alive.count : term.column_terms;
            if (waiting) charge_addition(plan, work, term.source, below, count, terms);
            apply_backward<T>(term, {rows, stage.stride, count}, alive, {below, stride, count}, waiting);
        }
        release(work, s);
    }
}

// Certain lower bound of offset - loss for row r, without the input's part.
template <typename T>
static double settled_offset(const Plan<T>& plan, const Workspace<T>& work, int top, int64_t r) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const double offset = lane_sum<T>(work.offsets + r * lanes);
    double loss = 0;
    for (int lane = 0; lane < lanes; ++lane) loss += work.losses[r * lanes + lane];
    loss = loss * plan.loss_factor + work.stages[top].tiny;
    return offset - loss - 1e-14 * (std::fabs(offset) + loss);
}

// Minimum over the box of each row waiting at stage 0, into work.values; frees the rows.
template <typename T>
static void concretise_rows(const Plan<T>& plan, Workspace<T>& work, int top, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = plan.stages[0];
    const StageState<T>& state = work.stages[0];
    const FormRows layout(plan.forms, stage.size);
    const T* center = state.mid + layout.interval * stage.stride;
    const T* radius = state.half + layout.interval * stage.stride;
    const T* most = state.half + layout.magnitude * stage.stride;
    const double terms = 2.0 * blocks_of(stage.size, lanes) + 6;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms, Precision<T>::kUnit)));
    for (int64_t r = 0; r < count; ++r) {
        if (work.owner[0] >= 0) {
            const T* row = work.buffers[work.owner[0]] + r * stage.stride;
            Vec<T> least{}, loss = load(work.losses + r * lanes);
            for (int64_t i = 0; i < stage.size; i += lanes) {
                const Vec<T> a = load(row + i), size = magnitude<T>(a);
                least += a * load(center + i) - size * load(radius + i);
                loss += size * load(most + i) * gamma;
            }
            *reinterpret_cast<Wide<T>*>(work.offsets + r * lanes) += __builtin_convertvector(least, Wide<T>);
            store(work.losses + r * lanes, loss);
        }
        work.values[r] = settled_offset(plan, work, top, r);
    }
    if (work.owner[0] >= 0) release(work, 0);
}

template <typename T>
static void clear_lanes(Workspace<T>& work, int64_t count) {
    memset(work.offsets, 0, count * Lanes<T>::kCount * sizeof(double));
    memset(work.losses, 0, count * Lanes<T>::kCount * sizeof(T));
}

// Rows +z_i and -z_i for `count` listed neurons of stage `index`, placed on the stage's sources.
template <typename T>
static void place_neurons(const Plan<T>& plan, Workspace<T>& work, int index, const int32_t* neurons, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = plan.stages[index];
    const StageState<T>& state = work.stages[index];
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const int64_t stride = plan.stages[term.source].stride;
        T* rows = work.buffers[acquire(work, term.source)];
        for (int64_t k = 0; k < count; ++k) {
            gather_row(term, neurons[k], T(1), rows + 2 * k * stride, stride);
            gather_row(term, neurons[k], T(-1), rows + (2 * k + 1) * stride, stride);
        }
    }
    clear_lanes(work, 2 * count);
    for (int64_t k = 0; k < count; ++k) {
        const int64_t i = neurons[k];
        const double size = state.weight_magnitude[i], bias = stage.bias[i];
        const double error = stage.deployed_gamma * (size + stage.bias_magnitude[i]) + state.deployed_tiny +
                             stage.cast_error * (size + std::fabs(bias));
        for (int side = 0; side < 2; ++side) {
            work.offsets[(2 * k + side) * lanes] = side ? -bias : bias;
            work.losses[(2 * k + side) * lanes] = as_charge<T>(error);
        }
    }
}

// Backward bounds for the neurons of stage `index` that cross zero, intersected with what is known.
template <typename T>
static void refine_stage(Context<T>& at, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    Workspace<T>& work = at.work;
    StageState<T>& state = work.stages[index];
    int64_t open = 0;
    for (int64_t i = 0; i < stage.size; ++i) {
        work.open[open] = static_cast<int32_t>(i);
        open += state.lower[i] < 0 && state.upper[i] > 0;
    }
    const int64_t block = at.plan.row_block / 2;
    for (int64_t begin = 0; begin < open; begin += block) {
        const int64_t count = open - begin < block ? open - begin : block;
        place_neurons(at.plan, work, index, work.open + begin, count);
        sweep_rows(at.plan, work, index - 1, 2 * count);
        concretise_rows(at.plan, work, index - 1, 2 * count);
        for (int64_t k = 0; k < count; ++k) {
            const int64_t i = work.open[begin + k];
            const T low = round_down<T>(work.values[2 * k]), high = round_up<T>(-work.values[2 * k + 1]);
            const T limit = static_cast<T>(Precision<T>::kHuge);
            if (low > state.lower[i] && low <= limit) state.lower[i] = low;
            if (high < state.upper[i] && high >= -limit) state.upper[i] = high;
        }
    }
}

}  // namespace verifier::VERIFIER_ISA

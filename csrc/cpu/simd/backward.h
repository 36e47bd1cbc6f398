// The backward pass: rows of coefficients from a stage down to the inputs, many rows at a time.
#pragma once

#include "relax.h"

namespace verifier::VERIFIER_ISA {

// One block of rows of one box on one thread.
template <typename T>
struct Sweep {
    const Plan<T>& plan;
    const StageState<T>* stages;
    RowScratch<T>& work;

    T* waiting(int stage) const { return work.owner[stage] < 0 ? nullptr : work.buffers[work.owner[stage]]; }
    T* acquire(int stage) {
        work.owner[stage] = work.free_buffers[--work.free_count];
        return work.buffers[work.owner[stage]];
    }
    void release(int stage) {
        work.free_buffers[work.free_count++] = work.owner[stage];
        work.owner[stage] = -1;
    }
};

// Rows A on h become rows p = A+ slope_lower + A- slope_upper on z, in one read and one write.
//
// Adds A+ offset_lower + A- offset_upper + p bias to the rows' offsets, and |p| charge plus the
// rounding of that sum to their losses.
template <typename T>
static void relax_rows(Sweep<T>& at, int index, T* rows, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.stages[index];
    const RowScratch<T>& work = at.work;
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
static void charge_addition(Sweep<T>& at, int source, const T* rows, int64_t count, double terms) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[source];
    const FormRows layout(at.plan.forms, at.plan.stages[0].size);
    const T* most = at.stages[source].half + layout.magnitude * stage.stride;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms + 2, Precision<T>::kUnit)));
    for (int64_t r = 0; r < count; ++r) {
        Vec<T> loss = load(at.work.losses + r * lanes);
        for (int64_t i = 0; i < stage.size; i += lanes)
            loss += magnitude<T>(load(rows + r * stage.stride + i)) * load(most + i) * gamma;
        store(at.work.losses + r * lanes, loss);
    }
}

// Carries the rows waiting at stages `top`, `top` - 1, ..., 1 down to the inputs.
template <typename T>
static void sweep_rows(Sweep<T>& at, int top, int64_t count) {
    for (int s = top; s >= 1; --s) {
        T* rows = at.waiting(s);
        if (rows == nullptr) continue;
        const Stage<T>& stage = at.plan.stages[s];
        const Alive alive{at.stages[s].alive, at.stages[s].alive_count};
        relax_rows(at, s, rows, count);
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const int64_t stride = at.plan.stages[term.source].stride;
            T* below = at.waiting(term.source);
            const bool waiting = below != nullptr;
            const double terms = term.kind == MapKind::kDense ? alive.count : term.column_terms;
            if (waiting) charge_addition(at, term.source, below, count, terms);
            else below = at.acquire(term.source);
            apply_backward<T>(term, {rows, stage.stride, count}, alive, {below, stride, count},
                              {at.work.across, at.work.across_out}, waiting);
        }
        at.release(s);
    }
}

// Certain lower bound of offset - loss for row r, without the input's part.
template <typename T>
static double settled_offset(const Sweep<T>& at, int top, int64_t r) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const double offset = lane_sum<T>(at.work.offsets + r * lanes);
    double loss = 0;
    for (int lane = 0; lane < lanes; ++lane) loss += at.work.losses[r * lanes + lane];
    loss = loss * at.plan.loss_factor + at.stages[top].tiny;
    return offset - loss - 1e-14 * (std::fabs(offset) + loss);
}

// Minimum over the box of each row waiting at stage 0, into `values`; frees the rows.
template <typename T>
static void concretise_rows(Sweep<T>& at, int top, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[0];
    const StageState<T>& state = at.stages[0];
    RowScratch<T>& work = at.work;
    const FormRows layout(at.plan.forms, stage.size);
    const T* center = state.mid + layout.interval * stage.stride;
    const T* radius = state.half + layout.interval * stage.stride;
    const T* most = state.half + layout.magnitude * stage.stride;
    const double terms = 2.0 * blocks_of(stage.size, lanes) + 6;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms, Precision<T>::kUnit)));
    for (int64_t r = 0; r < count; ++r) {
        if (at.waiting(0)) {
            const T* row = at.waiting(0) + r * stage.stride;
            Vec<T> least{}, loss = load(work.losses + r * lanes);
            for (int64_t i = 0; i < stage.size; i += lanes) {
                const Vec<T> a = load(row + i), size = magnitude<T>(a);
                least += a * load(center + i) - size * load(radius + i);
                loss += size * load(most + i) * gamma;
            }
            *reinterpret_cast<Wide<T>*>(work.offsets + r * lanes) += __builtin_convertvector(least, Wide<T>);
            store(work.losses + r * lanes, loss);
        }
        work.values[r] = settled_offset(at, top, r);
    }
    if (at.waiting(0)) at.release(0);
}

template <typename T>
static void clear_lanes(RowScratch<T>& work, int64_t count) {
    memset(work.offsets, 0, count * Lanes<T>::kCount * sizeof(double));
    memset(work.losses, 0, count * Lanes<T>::kCount * sizeof(T));
}

// Rows +z_i and -z_i for `count` listed neurons of stage `index`, placed on the stage's sources.
template <typename T>
static void place_neurons(Sweep<T>& at, int index, const int32_t* neurons, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.stages[index];
    RowScratch<T>& work = at.work;
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const int64_t stride = at.plan.stages[term.source].stride;
        T* rows = at.acquire(term.source);
        for (int64_t k = 0; k < count; ++k) {
            gather_row(term, neurons[k], T(1), rows + 2 * k * stride, stride);
            gather_row(term, neurons[k], T(-1), rows + (2 * k + 1) * stride, stride);
        }
    }
    clear_lanes(work, 2 * count);
    const SumError deployed = sum_error(stage, state);
    for (int64_t k = 0; k < count; ++k) {
        const int64_t i = neurons[k];
        const double size = state.weight_magnitude[i], bias = stage.bias[i];
        const double error = sum_error_of(deployed, stage, state, i) + state.deployed_tiny +
                             stage.cast_error * (size + std::fabs(bias));
        for (int side = 0; side < 2; ++side) {
            work.offsets[(2 * k + side) * lanes] = side ? -bias : bias;
            work.losses[(2 * k + side) * lanes] = as_charge<T>(error);
        }
    }
}

template <typename T>
struct Refinement {
    Context<T>& at;
    int index;
    int64_t open, block;
};

// Backward bounds for one block of the open neurons, intersected with what is known.
template <typename T>
static void refine_block(void* context, int thread, int64_t item) {
    const Refinement<T>& job = *static_cast<Refinement<T>*>(context);
    const int64_t begin = item * job.block, left = job.open - begin, count = left < job.block ? left : job.block;
    const int32_t* neurons = job.at.work.open + begin;
    Sweep<T> sweep{job.at.plan, job.at.work.stages, job.at.work.rows[thread]};
    StageState<T>& state = job.at.work.stages[job.index];
    place_neurons(sweep, job.index, neurons, count);
    sweep_rows(sweep, job.index - 1, 2 * count);
    concretise_rows(sweep, job.index - 1, 2 * count);
    const T limit = static_cast<T>(Precision<T>::kHuge);
    for (int64_t k = 0; k < count; ++k) {
        const double* value = sweep.work.values + 2 * k;
        const T low = round_down<T>(value[0]), high = round_up<T>(-value[1]);
        if (low > state.lower[neurons[k]] && low <= limit) state.lower[neurons[k]] = low;
        if (high < state.upper[neurons[k]] && high >= -limit) state.upper[neurons[k]] = high;
    }
}

// Runs items on the threads that share this box.
template <typename T>
static void share_blocks(Workspace<T>& work, int64_t items, Task task, void* context) {
    if (work.row_threads > 1 && items > 1) return work.share(items, work.row_threads, task, context);
    for (int64_t item = 0; item < items; ++item) task(context, 0, item);
}

// Backward bounds for the neurons of stage `index` whose function is not linear on what is known of them.
template <typename T>
static void refine_stage(Context<T>& at, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.work.stages[index];
    const bool curved = curves(stage.activation);
    int64_t open = 0;
    for (int64_t i = 0; i < stage.size; ++i) {
        at.work.open[open] = static_cast<int32_t>(i);
        open += curved ? state.lower[i] < state.upper[i] : state.lower[i] < 0 && state.upper[i] > 0;
    }
    Refinement<T> job{at, index, open, at.plan.row_block / 2};
    share_blocks(at.work, blocks_of(open, job.block), refine_block<T>, &job);
}

}  // namespace verifier::VERIFIER_ISA

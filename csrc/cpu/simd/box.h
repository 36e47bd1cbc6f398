// One box from start to end: forward, refine, relax each stage, then the rows asked for.
#pragma once

#include "backward.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
static void give_up(const BoxQuery& query, const BoxResult& result, int64_t inputs) {
    for (int64_t s = 0; s < query.row_count; ++s) {
        result.lower[s] = -HUGE_VAL;
        if (result.coeffs == nullptr) continue;
        result.offset[s] = -HUGE_VAL;
        memset(result.coeffs + s * inputs, 0, inputs * sizeof(double));
    }
    memset(result.sensitivity, 0, inputs * sizeof(double));
}

// Places rows of the query on the outputs; what the cast to T changes is charged.
template <typename T>
static void place_rows(Sweep<T>& at, const double* rows, int64_t count) {
    const int top = at.plan.count - 1;
    const Stage<T>& stage = at.plan.stages[top];
    const StageState<T>& state = at.stages[top];
    T* out = at.acquire(top);
    clear_lanes(at.work, count);
    memset(out, 0, count * stage.stride * sizeof(T));
    for (int64_t r = 0; r < count; ++r) {
        double cast = 0;
        for (int64_t i = 0; i < stage.size; ++i) {
            const double exact = rows[r * stage.size + i];
            const T stored = static_cast<T>(exact);
            const double low = std::fabs(state.lower[i]), high = std::fabs(state.upper[i]);
            out[r * stage.stride + i] = stored;
            cast += std::fabs(exact - stored) * (low > high ? low : high);
        }
        at.work.losses[r * Lanes<T>::kCount] = as_charge<T>(cast);
    }
}

// Writes a row's minimum over the box, and its offset where forms are kept; no claim where the minimum is too large.
template <typename T>
static void store_form(const BoxQuery& query, const BoxResult& result, int64_t row, double* coeffs, double offset, int64_t n) {
    double low = lowest(coeffs, offset, query.lower, query.upper, n);
    if (!(std::fabs(low) <= Precision<T>::kHuge)) {
        low = offset = -HUGE_VAL;
        memset(coeffs, 0, n * sizeof(double));
    }
    result.lower[row] = low;
    if (result.coeffs) result.offset[row] = offset;
}

// Reads the rows waiting at the inputs as linear forms, writes them and their minimum.
template <typename T>
static void read_forms(Sweep<T>& at, const BoxQuery& query, const BoxResult& result, int64_t begin, int64_t count) {
    const Stage<T>& input = at.plan.stages[0];
    const int64_t n = input.size;
    for (int64_t r = 0; r < count; ++r) {
        const T* row = at.waiting(0) ? at.waiting(0) + r * input.stride : nullptr;
        double* coeffs = result.coeffs ? result.coeffs + (begin + r) * n : at.work.form;
        for (int64_t i = 0; i < n; ++i) coeffs[i] = row ? static_cast<double>(row[i]) : 0.0;
        store_form<T>(query, result, begin + r, coeffs, settled_offset(at, at.plan.count - 1, r), n);
    }
    if (at.waiting(0)) at.release(0);
}

template <typename T>
struct RowsAsked {
    Context<T>& at;
    const BoxQuery& query;
    const BoxResult& result;
};

template <typename T>
static void bound_rows(void* context, int thread, int64_t item) {
    const RowsAsked<T>& job = *static_cast<RowsAsked<T>*>(context);
    const Plan<T>& plan = job.at.plan;
    const int64_t begin = item * plan.row_block, left = job.query.row_count - begin;
    const int64_t count = left < plan.row_block ? left : plan.row_block;
    Sweep<T> sweep{plan, job.at.work.stages, job.at.work.rows[thread]};
    place_rows(sweep, job.query.rows + begin * plan.stages[plan.count - 1].size, count);
    sweep_rows(sweep, plan.count - 1, count);
    read_forms(sweep, job.query, job.result, begin, count);
}

// Summed input coefficients of the last hidden layer's lower and upper forms, per unit of x.
template <typename T>
static void read_sensitivity(const Context<T>& at, const BoxQuery& query, const BoxResult& result) {
    const Stage<T>& input = at.plan.stages[0];
    memset(result.sensitivity, 0, input.size * sizeof(double));
    if (!at.plan.forms || at.plan.last_hidden < 0) {
        for (int64_t s = 0; s < query.row_count && result.coeffs; ++s)
            for (int64_t c = 0; c < input.size; ++c)
                result.sensitivity[c] += std::fabs(result.coeffs[s * input.size + c]);
        return;
    }
    const Stage<T>& stage = at.plan.stages[at.plan.last_hidden];
    const StageState<T>& state = at.work.stages[at.plan.last_hidden];
    for (int64_t c = 0; c < input.size; ++c) {
        const T radius = at.work.stages[0].half[at.rows.interval * input.stride + c];
        double sum = 0;
        for (int64_t k = 0; k < state.alive_count; ++k) {
            const int64_t i = c * stage.stride + state.alive[k];
            sum += std::fabs(state.mid[i] - state.half[i]) + std::fabs(state.mid[i] + state.half[i]);
        }
        result.sensitivity[c] = radius > 0 ? sum / radius : 0;
    }
}

template <typename T>
static void bound_box(const Plan<T>& plan, Workspace<T>& work, const BoxQuery& query, const BoxResult& result) {
    Context<T> at(plan, work);
    const int64_t n = plan.stages[0].size;
    enter_box(at, query.lower, query.upper);
    for (int s = 1; s < plan.count && !at.failed; ++s) {
        forward_stage(at, s);
        if (!at.failed && query.refine && plan.stages[s].refine) refine_stage(at, s);
        relax_stage(at, s);
    }
    if (at.failed) return give_up<T>(query, result, n);
    RowsAsked<T> job{at, query, result};
    share_blocks(work, blocks_of(query.row_count, plan.row_block), bound_rows<T>, &job);
    read_sensitivity(at, query, result);
}

}  // namespace verifier::VERIFIER_ISA

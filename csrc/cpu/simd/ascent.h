// Blocks of rows with slopes of their own: backward to the inputs, and forward again for the gradient.
//
// Gradient (METHODS section 1): with x* the minimiser of the row's form, and z at x* under the lines the
// row chose, d bound / d slope_i = max(A_i, 0) z_i and d bound / d multiplier_i = -sign_i z_i.
#pragma once

#include "backward.h"
#include "verifier/domains.h"

namespace verifier::VERIFIER_ISA {

// Where rows start, by their numbers in the job: rows of the output, or +z and -z of neurons of a stage.
struct Target {
    int stage;
    const double* rows;    // [*, n_out] with `spec`, else null
    const int32_t* spec;
    const int32_t* codes;  // 2 i for +z of neuron i, 2 i + 1 for -z
};

template <typename T>
struct Block {
    const Plan<T>& plan;
    const StageState<T>* stages;
    T* const* free;
    const double *box_lower, *box_upper;
    BlockScratch<T>& work;
    Target target;
    int64_t count;  // rows in all
    int64_t active; // rows not done yet; the others are kept behind them

    SplitEntry<T>* splits(int64_t r) const { return work.splits + r * work.most_splits; }
    Rows<T> rows(T* const* of, int stage, int64_t n) const { return {of[stage], plan.stages[stage].stride, n}; }
};

// Writes the coefficients of the first n rows at their start.
template <typename T, bool kRigorous>
static void place_block(Block<T>& at, int64_t n) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    BlockScratch<T>& work = at.work;
    const Stage<T>& stage = at.plan.stages[at.target.stage];
    const StageState<T>& state = at.stages[at.target.stage];
    memset(work.offsets, 0, n * lanes * sizeof(double));
    memset(work.losses, 0, n * lanes * sizeof(T));
    memset(work.waiting, 0, at.plan.count * sizeof(int));
    if (at.target.codes == nullptr) {
        work.waiting[at.target.stage] = 1;
        T* out = work.coeffs[at.target.stage];
        memset(out, 0, n * stage.stride * sizeof(T));
        for (int64_t r = 0; r < n; ++r) {
            const double* row = at.target.rows + at.target.spec[work.row[r]] * stage.size;
            double cast = 0;
            for (int64_t i = 0; i < stage.size; ++i) {
                const T stored = static_cast<T>(row[i]);
                const double low = std::fabs(state.lower[i]), high = std::fabs(state.upper[i]);
                out[r * stage.stride + i] = stored;
                cast += std::fabs(row[i] - stored) * (low > high ? low : high);
            }
            if (kRigorous) work.losses[r * lanes] = as_charge<T>(cast);
        }
        return;
    }
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const int64_t stride = at.plan.stages[term.source].stride;
        work.waiting[term.source] = 1;
        for (int64_t r = 0; r < n; ++r)
            gather_row(term, at.target.codes[work.row[r]] / 2, at.target.codes[work.row[r]] % 2 ? T(-1) : T(1),
                       work.coeffs[term.source] + r * stride, stride);
    }
    for (int64_t r = 0; r < n; ++r) {
        const int64_t code = at.target.codes[work.row[r]], i = code / 2;
        const double size = state.weight_magnitude[i], bias = stage.bias[i];
        work.offsets[r * lanes] = code % 2 ? -bias : bias;
        if (kRigorous)
            work.losses[r * lanes] =
                as_charge<T>(stage.deployed_gamma * (size + stage.bias_magnitude[i]) + state.deployed_tiny +
                             stage.cast_error * (size + std::fabs(bias)));
    }
}

// Coefficients on h become coefficients on z, under each row's own lower slopes.
template <typename T, bool kRigorous>
static void relax_block_rows(Block<T>& at, int index, int64_t n) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.stages[index];
    const BlockScratch<T>& work = at.work;
    const bool linear = stage.activation == Activation::kIdentity;
    const Vec<T> zero{}, gamma = spread<T>(as_charge<T>(state.row_gamma));
    for (int64_t r = 0; r < n; ++r) {
        T* row = work.coeffs[index] + r * stage.stride;
        T* out = work.relaxed + r * stage.stride;
        SplitEntry<T>* splits = at.splits(r);
        for (int32_t k = 0; k < work.split_count[r]; ++k)
            if (splits[k].stage == index) {
                splits[k].coeff = row[splits[k].index];
                row[splits[k].index] = 0;
            }
        const T* slopes = work.slopes[index] + r * stage.stride;
        Vec<T> offset{}, loss = load(work.losses + r * lanes);
        for (int64_t i = 0; i < stage.size; i += lanes) {
            Vec<T> p = load(row + i);
            if (!linear) {
                const auto positive = p > zero;
                const Vec<T> line = p * (positive ? load(state.offset_lower + i) : load(state.offset_upper + i));
                p *= positive ? load(slopes + i) : load(state.slope_upper + i);
                offset += line;
                if (kRigorous) loss += magnitude<T>(line) * gamma;
            }
            offset += p * load(stage.bias + i);
            if (kRigorous) loss += magnitude<T>(p) * load(state.charge + i);
            store(out + i, p);
        }
        Wide<T>* total = reinterpret_cast<Wide<T>*>(work.offsets + r * lanes);
        *total += __builtin_convertvector(offset, Wide<T>);
        if (kRigorous) store(work.losses + r * lanes, loss);
        for (int32_t k = 0; k < work.split_count[r]; ++k) {
            const SplitEntry<T>& split = splits[k];
            if (split.stage != index) continue;
            // The line is f itself there; `wrong` covers the deployed leaky relu on either side.
            const double a = split.coeff, wrong = -static_cast<double>(state.offset_lower[split.index]);
            const double line = split.sign > 0 ? a : a * static_cast<double>(stage.alpha);
            const double push = split.multiplier;
            const T p = static_cast<T>(line - split.sign * push);
            out[split.index] = p;
            work.offsets[r * lanes] += static_cast<double>(p) * stage.bias[split.index] - std::fabs(a) * wrong;
            if (kRigorous)
                work.losses[r * lanes] = as_charge<T>(work.losses[r * lanes] + (std::fabs(line) + push) * (1 + 1e-6) *
                                                                                   state.charge[split.index]);
        }
    }
}

template <typename T>
static void charge_block_addition(Block<T>& at, int source, int64_t n, double terms) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[source];
    const FormRows layout(false, 0);
    const T* most = at.stages[source].half + layout.magnitude * stage.stride;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms + 2, Precision<T>::kUnit)));
    for (int64_t r = 0; r < n; ++r) {
        Vec<T> loss = load(at.work.losses + r * lanes);
        for (int64_t i = 0; i < stage.size; i += lanes)
            loss += magnitude<T>(load(at.work.coeffs[source] + r * stage.stride + i)) * load(most + i) * gamma;
        store(at.work.losses + r * lanes, loss);
    }
}

// Minimum over the box of the first n rows' forms, into `bound`.
template <typename T, bool kRigorous>
static void concretise_block(Block<T>& at, int top, int64_t n) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& stage = at.plan.stages[0];
    const StageState<T>& state = at.stages[0];
    BlockScratch<T>& work = at.work;
    const FormRows layout(false, 0);
    const T* center = state.mid + layout.interval * stage.stride;
    const T* radius = state.half + layout.interval * stage.stride;
    const T* most = state.half + layout.magnitude * stage.stride;
    const double terms = 2.0 * blocks_of(stage.size, lanes) + 6;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms, Precision<T>::kUnit)));
    for (int64_t r = 0; r < n; ++r) {
        double offset = 0;
        if (work.waiting[0]) {
            const T* row = work.coeffs[0] + r * stage.stride;
            Vec<T> least{}, loss = load(work.losses + r * lanes);
            for (int64_t i = 0; i < stage.size; i += lanes) {
                const Vec<T> a = load(row + i), size = magnitude<T>(a);
                least += a * load(center + i) - size * load(radius + i);
                if (kRigorous) loss += size * load(most + i) * gamma;
            }
            *reinterpret_cast<Wide<T>*>(work.offsets + r * lanes) += __builtin_convertvector(least, Wide<T>);
            if (kRigorous) store(work.losses + r * lanes, loss);
        }
        offset = lane_sum<T>(work.offsets + r * lanes);
        if (kRigorous) {
            double loss = 0;
            for (int lane = 0; lane < lanes; ++lane) loss += work.losses[r * lanes + lane];
            loss = loss * at.plan.loss_factor + at.stages[top].tiny;
            offset -= loss + 1e-14 * (std::fabs(offset) + loss);
        }
        work.bound[r] = std::fabs(offset) <= Precision<T>::kHuge ? offset : -HUGE_VAL;
    }
}

// Bounds of the first n rows with the slopes and multipliers they have.
template <typename T, bool kRigorous>
static void bound_block(Block<T>& at, int64_t n) {
    BlockScratch<T>& work = at.work;
    const int top = at.target.codes ? at.target.stage - 1 : at.target.stage;
    place_block<T, kRigorous>(at, n);
    for (int s = top; s >= 1; --s) {
        if (!work.waiting[s]) continue;
        const Stage<T>& stage = at.plan.stages[s];
        const Alive alive{at.stages[s].alive, at.stages[s].alive_count};
        relax_block_rows<T, kRigorous>(at, s, n);
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const bool waiting = work.waiting[term.source];
            if (kRigorous && waiting)
                charge_block_addition(at, term.source, n,
                                      term.kind == MapKind::kDense ? alive.count : term.column_terms);
            apply_backward<T>(term, {work.relaxed, stage.stride, n}, alive, at.rows(work.coeffs, term.source, n),
                              {work.across, work.across_out}, waiting);
            work.waiting[term.source] = 1;
        }
    }
    concretise_block<T, kRigorous>(at, top, n);
}

// Adam's constants of one step. Source: Kingma & Ba 2015, arXiv:1412.6980.
template <typename T>
struct AdamRate {
    T slope, multiplier, first, second;
    explicit AdamRate(int64_t step) {
        double decay = 1, first_power = 1, second_power = 1;
        for (int64_t k = 0; k <= step; ++k) {
            first_power *= 0.9;
            second_power *= 0.999;
            if (k < step) decay *= 0.97;
        }
        slope = static_cast<T>(0.25 * decay / (1 - first_power));
        multiplier = static_cast<T>(0.1 * decay / (1 - first_power));
        second = static_cast<T>(1 / (1 - second_power));
        first = static_cast<T>(0.1);
    }
};

// z of one row at one stage becomes h under its lines, and the slopes take a step.
template <typename T>
static void step_row(const Block<T>& at, int index, int64_t r, const AdamRate<T>& rate) {
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.stages[index];
    const BlockScratch<T>& work = at.work;
    const int64_t begin = r * stage.stride, n = stage.stride;
    T* __restrict value = work.values[index] + begin;
    T* __restrict slope = work.slopes[index] + begin;
    T* __restrict mean = work.mean[index] + begin;
    T* __restrict square = work.square[index] + begin;
    const T* __restrict coeff = work.coeffs[index] + begin;
    const T* __restrict free = at.free[index];
    const T* __restrict bias = stage.bias;
    const T* __restrict slope_upper = state.slope_upper;
    const T* __restrict offset_lower = state.offset_lower;
    const T* __restrict offset_upper = state.offset_upper;
    const T least = stage.alpha, epsilon = static_cast<T>(1e-8), keep = static_cast<T>(0.999), add = static_cast<T>(0.001);
    for (int64_t i = 0; i < n; ++i) {
        const T z = value[i] + bias[i], a = coeff[i], k = slope[i];
        const bool lower = a > 0;
        value[i] = lower ? k * z + offset_lower[i] : slope_upper[i] * z + offset_upper[i];
        const T gradient = lower ? a * z * free[i] : T(0);
        const T m = mean[i] + rate.first * (gradient - mean[i]);
        const T v = keep * square[i] + add * gradient * gradient;
        mean[i] = m;
        square[i] = v;
        T moved = k + rate.slope * m / (std::sqrt(v * rate.second) + epsilon);
        moved = moved < least ? least : moved;
        moved = moved > 1 ? T(1) : moved;
        slope[i] = free[i] > 0 ? moved : k;
    }
}

// One step up the gradient for the active rows, whose coefficients are those of the last `bound_block`.
template <typename T>
static void step_block(Block<T>& at, const AdamRate<T>& rate) {
    BlockScratch<T>& work = at.work;
    const int64_t n = at.active;
    const int top = at.target.stage - 1;
    const Stage<T>& input = at.plan.stages[0];
    for (int64_t r = 0; r < n && work.waiting[0]; ++r) {
        const T* row = work.coeffs[0] + r * input.stride;
        T* x = work.values[0] + r * input.stride;
        for (int64_t i = 0; i < input.size; ++i)
            x[i] = static_cast<T>(row[i] > 0 ? at.box_lower[i] : (row[i] < 0 ? at.box_upper[i] : 0.5 * at.box_lower[i] + 0.5 * at.box_upper[i]));
    }
    for (int s = 1; s <= top; ++s) {
        if (!work.waiting[s]) continue;
        const Stage<T>& stage = at.plan.stages[s];
        if (stage.term_count == 0) memset(work.values[s], 0, n * stage.stride * sizeof(T));
        for (int t = 0; t < stage.term_count; ++t) {
            const Term<T>& term = stage.terms[t];
            const Alive alive{at.stages[term.source].alive, at.stages[term.source].alive_count};
            apply_forward<T, false>(term, {work.values[term.source], at.plan.stages[term.source].stride, n}, alive, at.rows(work.values, s, n),
                                    {work.across, work.across_out}, t > 0);
        }
        for (int64_t r = 0; r < n; ++r) {
            T* value = work.values[s] + r * stage.stride;
            if (stage.activation == Activation::kIdentity) {
                for (int64_t i = 0; i < stage.stride; ++i) value[i] += stage.bias[i];
                continue;
            }
            SplitEntry<T>* splits = at.splits(r);
            for (int32_t k = 0; k < work.split_count[r]; ++k)
                if (splits[k].stage == s) splits[k].z = value[splits[k].index] + stage.bias[splits[k].index];
            step_row(at, s, r, rate);
            for (int32_t k = 0; k < work.split_count[r]; ++k) {
                SplitEntry<T>& split = splits[k];
                if (split.stage != s) continue;
                value[split.index] = split.sign > 0 ? split.z : stage.alpha * split.z;
                const T gradient = -split.sign * split.z;
                split.mean += rate.first * (gradient - split.mean);
                split.square = T(0.999) * split.square + T(0.001) * gradient * gradient;
                split.multiplier += rate.multiplier * split.mean / (std::sqrt(split.square * rate.second) + T(1e-8));
                if (!(split.multiplier > 0)) split.multiplier = 0;
            }
        }
    }
}

template <typename T>
static void swap_arrays(T* a, T* b, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const T x = a[i];
        a[i] = b[i];
        b[i] = x;
    }
}

// Exchanges two rows, coefficients included.
template <typename T>
static void swap_rows(Block<T>& at, int64_t i, int64_t j) {
    BlockScratch<T>& work = at.work;
    for (int s = 0; s < at.plan.count; ++s) {
        const int64_t stride = at.plan.stages[s].stride;
        if (work.waiting[s]) swap_arrays(work.coeffs[s] + i * stride, work.coeffs[s] + j * stride, stride);
        if (at.plan.stages[s].activation == Activation::kIdentity) continue;
        T** const arrays[] = {work.slopes, work.best, work.mean, work.square};
        for (T** array : arrays) swap_arrays(array[s] + i * stride, array[s] + j * stride, stride);
    }
    swap_arrays(at.splits(i), at.splits(j), work.split_count[i] > work.split_count[j] ? work.split_count[i] : work.split_count[j]);
    swap_arrays(work.split_count + i, work.split_count + j, 1);
    swap_arrays(work.row + i, work.row + j, 1);
    double* const numbers[] = {work.bound, work.best_bound, work.limit};
    for (double* array : numbers) swap_arrays(array + i, array + j, 1);
}

template <typename T>
static void keep_best(Block<T>& at) {
    BlockScratch<T>& work = at.work;
    for (int64_t r = 0; r < at.active; ++r) {
        if (!(work.bound[r] > work.best_bound[r])) continue;
        work.best_bound[r] = work.bound[r];
        for (int s = 1; s < at.plan.count; ++s) {
            const int64_t stride = at.plan.stages[s].stride;
            if (at.plan.stages[s].activation == Activation::kIdentity || !work.waiting[s]) continue;
            memcpy(work.best[s] + r * stride, work.slopes[s] + r * stride, stride * sizeof(T));
        }
        for (int32_t k = 0; k < work.split_count[r]; ++k) at.splits(r)[k].best = at.splits(r)[k].multiplier;
    }
}

// Default slopes, no memory and no splits for the first n rows.
template <typename T>
static void reset_block(Block<T>& at, int64_t n) {
    BlockScratch<T>& work = at.work;
    for (int s = 1; s < at.plan.count; ++s) {
        const Stage<T>& stage = at.plan.stages[s];
        if (stage.activation == Activation::kIdentity) continue;
        for (int64_t r = 0; r < n; ++r) {
            memcpy(work.slopes[s] + r * stage.stride, at.stages[s].slope_lower, stage.stride * sizeof(T));
            memcpy(work.best[s] + r * stage.stride, at.stages[s].slope_lower, stage.stride * sizeof(T));
        }
        memset(work.mean[s], 0, n * stage.stride * sizeof(T));
        memset(work.square[s], 0, n * stage.stride * sizeof(T));
    }
    for (int64_t r = 0; r < n; ++r) {
        work.split_count[r] = 0;
        work.best_bound[r] = -HUGE_VAL;
    }
}

// Raises the bounds of a block's rows; each row keeps the best parameters it met and stops above its limit.
template <typename T>
static void ascend_block(Block<T>& at, int64_t iterations, const Clock& clock) {
    BlockScratch<T>& work = at.work;
    at.active = at.count;
    for (int64_t step = 0; step < iterations && at.active > 0; ++step) {
        bound_block<T, false>(at, at.active);
        keep_best(at);
        if (step == iterations - 1 || clock.over()) break;
        for (int64_t r = 0; r < at.active;) {
            if (work.bound[r] > work.limit[r] + 1e-4 * (1 + std::fabs(work.limit[r]))) swap_rows(at, r, --at.active);
            else ++r;
        }
        if (at.active > 0) step_block(at, AdamRate<T>(step));
    }
    for (int s = 1; s < at.plan.count; ++s) {
        if (at.plan.stages[s].activation == Activation::kIdentity) continue;
        T* kept = work.slopes[s];
        work.slopes[s] = work.best[s];
        work.best[s] = kept;
    }
    for (int64_t r = 0; r < at.count; ++r)
        for (int32_t k = 0; k < work.split_count[r]; ++k) at.splits(r)[k].multiplier = at.splits(r)[k].best;
}

}  // namespace verifier::VERIFIER_ISA

// A block of rows on its way down a compact network, each row with slopes and splits of its own.
#pragma once

#include "ball.h"
#include "bundles.h"
#include "relax.h"
#include "verifier/domains.h"

namespace verifier::VERIFIER_ISA {

// Where rows start, by their numbers in the job: rows of the output, or +z and -z of neurons of a stage. Both at
// once: one row of the output, less its limit, times each row's own scale, plus the neuron of stage `added`.
struct Target {
    int stage;
    const double* rows;    // [*, n_out] or null
    const int32_t* spec;   // which of `rows`; null for the first
    const int32_t* codes;  // 2 i for +z of neuron i, 2 i + 1 for -z
    int added;             // 0 where rows start in one place
    double limit;
};

template <typename T>
struct Block {
    const CompactNet<T>& net;
    const StageState<T>* states;
    const RouteStage* route;
    BlockScratch<T>& work;
    Target target;
    int64_t count;  // rows in all

    int top() const { return target.rows ? target.stage : target.stage - 1; }
    // Whether the rows pass a split's neuron at this stage; elsewhere it constrains nothing.
    bool meets(const SplitEntry<T>& split, int stage) const { return split.stage == stage && route[stage].reached[split.index]; }
    // Whether rows wait at a stage: not where none of its neurons is left, and so nothing goes on from it.
    bool waits(int stage) const {
        return work.waiting[stage] && route[stage].straight_count + route[stage].bent_count > 0;
    }
    int64_t planes() const { return blocks_of(count, Lanes<T>::kCount); }
    SplitEntry<T>* splits(int64_t r) const { return work.splits + r * work.most_splits; }
    Planes<T> rows(int stage, int64_t planes) const {
        return {work.values[stage], net.plan->stages[stage].room * Lanes<T>::kCount, planes};
    }
    // Place of row r of neuron i of a stage; of kept neuron k.
    int64_t at(int stage, int64_t i, int64_t r) const {
        constexpr int64_t lanes = Lanes<T>::kCount;
        return (r / lanes * net.plan->stages[stage].room + i) * lanes + r % lanes;
    }
    int64_t at_kept(int64_t k, int64_t r) const {
        constexpr int64_t lanes = Lanes<T>::kCount;
        return (r / lanes * net.kept_count + k) * lanes + r % lanes;
    }
};

// Terms of a row's offset that are summed in T before they are added in double.
constexpr int64_t kChunk = kOffsetChunk;

// Sums over a list of neurons, a chunk at a time: body(i, sum) adds to the chunk's sum.
template <typename T, typename Body>
VERIFIER_INLINE void sum_chunks(const int32_t* list, int64_t count, double* total, Body body) {
    Wide<T> all = *reinterpret_cast<Wide<T>*>(total);
    for (int64_t begin = 0; begin < count; begin += kChunk) {
        const int64_t end = begin + kChunk < count ? begin + kChunk : count;
        Vec<T> sum{};
        for (int64_t k = begin; k < end; ++k) body(list[k], sum);
        all += __builtin_convertvector(sum, Wide<T>);
    }
    *reinterpret_cast<Wide<T>*>(total) = all;
}

template <typename T>
static void clear_planes(const Block<T>& at, int stage, int64_t planes) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const RouteStage& route = at.route[stage];
    const Planes<T> rows = at.rows(stage, planes);
    const Vec<T> zero{};
    for (int64_t v = 0; v < planes; ++v) {
        T* plane = rows.data + v * rows.stride;
        for (int64_t k = 0; k < route.straight_count; ++k) store(plane + route.straight[k] * lanes, zero);
        for (int64_t k = 0; k < route.bent_count; ++k) store(plane + route.bent[k] * lanes, zero);
    }
}

template <typename T, bool kRigorous>
static void place_output_rows(Block<T>& at, int64_t n) {
    BlockScratch<T>& work = at.work;
    const int top = at.target.stage;
    const CompactStage<T>& stage = at.net.stages[top];
    const StageState<T>& state = at.states[top];
    const int64_t size = at.net.plan->stages[top].size;
    work.waiting[top] = 1;
    clear_planes(at, top, blocks_of(n, Lanes<T>::kCount));
    for (int64_t r = 0; r < n; ++r) {
        const double* row = at.target.rows + (at.target.spec ? at.target.spec[work.row[r]] * size : 0);
        const double scale = at.target.added ? work.cutoff[r].scale : 1.0, own = at.target.added ? 0x1p-52 : 0.0;
        const double limit = at.target.added ? scale * at.target.limit : 0.0;
        double cast = own * std::fabs(limit);
        for (int64_t k = 0; k < stage.size; ++k) {
            const int64_t i = stage.feature[k];
            const double exact = scale * row[i];
            const T stored = static_cast<T>(exact);
            const double low = std::fabs(state.lower[i]), high = std::fabs(state.upper[i]);
            work.values[top][at.at(top, k, r)] = stored;
            cast += (std::fabs(exact - stored) + own * std::fabs(exact)) * (low > high ? low : high);
        }
        work.offsets[r] = -limit;
        if (kRigorous) work.losses[r] = as_charge<T>(cast);
    }
}

// Row i of W, times `sign`, onto row r of the neurons that are left of the source.
template <typename T>
static void place_weights(Block<T>& at, const Term<T>& term, int64_t i, T sign, int64_t r) {
    const int32_t* position = at.net.stages[term.source].position;
    T* out = at.work.values[term.source];
    if (term.kind == MapKind::kDense) {
        for (int64_t k = 0; k < at.net.stages[term.source].size; ++k)
            out[at.at(term.source, k, r)] = sign * term.values[i * term.cols + at.net.stages[term.source].feature[k]];
    } else if (term.kind == MapKind::kDiagonal) {
        if (position[i] >= 0) out[at.at(term.source, position[i], r)] = sign * term.values[i];
    } else {
        for (int64_t k = term.by_row.start[i]; k < term.by_row.start[i + 1]; ++k) {
            const int32_t to = position[term.by_row.index[k]];
            if (to >= 0) out[at.at(term.source, to, r)] = sign * term.by_row.values[k];
        }
    }
}

template <typename T, bool kRigorous>
static void place_neuron_rows(Block<T>& at, int64_t n) {
    BlockScratch<T>& work = at.work;
    const Stage<T>& stage = at.net.plan->stages[at.target.stage];
    const StageState<T>& state = at.states[at.target.stage];
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        work.waiting[term.source] = 1;
        clear_planes(at, term.source, blocks_of(n, Lanes<T>::kCount));
        for (int64_t r = 0; r < n; ++r) {
            const int32_t code = at.target.codes[work.row[r]];
            place_weights(at, term, code / 2, code % 2 ? T(-1) : T(1), r);
        }
    }
    const SumError deployed = sum_error(stage, state);
    for (int64_t r = 0; r < n; ++r) {
        const int64_t code = at.target.codes[work.row[r]], i = code / 2;
        const double size = state.weight_magnitude[i], bias = stage.bias[i];
        work.offsets[r] = code % 2 ? -bias : bias;
        if (kRigorous)
            work.losses[r] = as_charge<T>(sum_error_of(deployed, stage, state, i) + state.deployed_tiny +
                                          stage.cast_error * (size + std::fabs(bias)));
    }
}

// Coefficients on h become coefficients on z in place; those of kept neurons on h are remembered in `seen`.
template <typename T, bool kRigorous>
static void relax_plane(Block<T>& at, int index, int64_t v) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const CompactStage<T>& stage = at.net.stages[index];
    const RouteStage& route = at.route[index];
    BlockScratch<T>& work = at.work;
    T* plane = work.values[index] + at.at(index, 0, v * lanes);
    T* seen = work.seen + v * at.net.kept_count * lanes;
    const T* slopes = work.slopes + v * at.net.kept_count * lanes;
    const Vec<T> zero{}, gamma = spread<T>(as_charge<T>(stage.row_gamma));
    Vec<T> loss = load(work.losses + v * lanes);
    sum_chunks<T>(route.straight, route.straight_count, work.offsets + v * lanes, [&](int32_t i, Vec<T>& sum) __attribute__((always_inline)) {
        const Vec<T> p = load(plane + i * lanes);
        sum += p * spread<T>(stage.bias[i]);
        if (kRigorous) loss += magnitude<T>(p) * spread<T>(stage.charge[i]);
    });
    sum_chunks<T>(route.bent, route.bent_count, work.offsets + v * lanes, [&](int32_t i, Vec<T>& sum) __attribute__((always_inline)) {
        Vec<T> p = load(plane + i * lanes);
        const auto positive = p > zero;
        const int64_t k = stage.kept[i];
        const Vec<T> lower = k < 0 ? spread<T>(stage.slope_lower[i]) : load(slopes + k * lanes);
        if (k >= 0) store(seen + k * lanes, p);
        const Vec<T> line = p * (positive ? spread<T>(stage.offset_lower[i]) : spread<T>(stage.offset_upper[i]));
        p *= positive ? lower : spread<T>(stage.slope_upper[i]);
        sum += line;
        sum += p * spread<T>(stage.bias[i]);
        if (kRigorous) loss += magnitude<T>(line) * gamma + magnitude<T>(p) * spread<T>(stage.charge[i]);
        store(plane + i * lanes, p);
    });
    if (kRigorous) store(work.losses + v * lanes, loss);
}

// As `relax_plane` for every plane, with the rows' splits, where the line is f itself and a multiplier pushes.
template <typename T, bool kRigorous>
static void relax_block(Block<T>& at, int index, int64_t n) {
    const CompactStage<T>& stage = at.net.stages[index];
    BlockScratch<T>& work = at.work;
    T* values = work.values[index];
    for (int64_t r = 0; r < n; ++r)
        for (int32_t k = 0; k < work.split_count[r]; ++k) {
            SplitEntry<T>& split = at.splits(r)[k];
            if (!at.meets(split, index)) continue;
            T& coeff = values[at.at(index, split.index, r)];
            split.coeff = coeff;
            coeff = 0;
        }
    for (int64_t v = 0; v < blocks_of(n, Lanes<T>::kCount); ++v) relax_plane<T, kRigorous>(at, index, v);
    const T alpha = at.net.plan->stages[index].alpha;
    for (int64_t r = 0; r < n; ++r)
        for (int32_t k = 0; k < work.split_count[r]; ++k) {
            const SplitEntry<T>& split = at.splits(r)[k];
            if (!at.meets(split, index)) continue;
            // `wrong` covers the deployed leaky relu on either side.
            const double a = split.coeff, wrong = -static_cast<double>(stage.offset_lower[split.index]);
            const double line = split.sign > 0 ? a : a * static_cast<double>(alpha);
            const double push = split.multiplier;
            const T p = static_cast<T>(line - split.sign * push);
            values[at.at(index, split.index, r)] = p;
            work.offsets[r] += static_cast<double>(p) * stage.bias[split.index] - std::fabs(a) * wrong;
            if (kRigorous)
                work.losses[r] = as_charge<T>(work.losses[r] + (std::fabs(line) + push) * (1 + 1e-6) * stage.charge[split.index]);
        }
}

// Adds the neurons of the rows' codes, each to its row's coefficients on z.
template <typename T, bool kRigorous>
static void add_neurons(Block<T>& at, int64_t n) {
    BlockScratch<T>& work = at.work;
    const int index = at.target.added;
    const CompactStage<T>& stage = at.net.stages[index];
    for (int64_t r = 0; r < n; ++r) {
        const int32_t code = at.target.codes[work.row[r]], i = stage.position[code / 2];
        const T sign = code % 2 ? T(-1) : T(1);
        work.values[index][at.at(index, i, r)] += sign;
        work.offsets[r] += static_cast<double>(sign) * stage.bias[i];
        if (kRigorous) work.losses[r] = as_charge<T>(static_cast<double>(work.losses[r]) + stage.charge[i]);
    }
}

// Rows already waiting at `source` are about to be added to: charge the rounding of that sum.
template <typename T>
static void charge_sum(Block<T>& at, int source, int64_t planes, double terms) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const RouteStage& route = at.route[source];
    const FormRows layout(at.net.plan->forms, at.net.plan->stages[0].size);
    const T* most = at.states[source].half + layout.magnitude * at.net.plan->stages[source].stride;
    const int32_t* feature = at.net.stages[source].feature;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(terms + 2, Precision<T>::kUnit)));
    for (int64_t v = 0; v < planes; ++v) {
        const T* plane = at.work.values[source] + at.at(source, 0, v * lanes);
        Vec<T> loss = load(at.work.losses + v * lanes);
        const auto add = [&](const int32_t* list, int64_t count) __attribute__((always_inline)) {
            for (int64_t k = 0; k < count; ++k)
                loss += magnitude<T>(load(plane + list[k] * lanes)) * spread<T>(most[feature[list[k]]]) * gamma;
        };
        add(route.straight, route.straight_count);
        add(route.bent, route.bent_count);
        store(at.work.losses + v * lanes, loss);
    }
}

// Certain lower bound of what row r has collected: its offset less its losses.
template <typename T>
static double settled(const Block<T>& at, int64_t r) {
    const double offset = at.work.offsets[r], wide = 1e-14 + 2 * at.net.plan->wide_terms * Precision<T>::kUnit;
    const double loss = at.work.losses[r] * at.net.plan->loss_factor + at.states[at.top()].tiny;
    return offset - loss - wide * (std::fabs(offset) + loss);
}

// Adds the minimum of one plane's forms over the box and the ball to its offsets.
template <typename T, bool kRigorous>
static void concretise_in_ball(Block<T>& at, const Ball<T>& ball, const T* most, int64_t v) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    BlockScratch<T>& work = at.work;
    const RouteStage& route = at.route[0];
    const T* plane = work.values[0] + at.at(0, 0, v * lanes);
    const Vec<T> pull = pull_of(ball, plane, route.straight, route.straight_count);
    store(work.pull + v * lanes, pull);
    // Neither the center nor twice the way to a face is more than 3 times the largest magnitude on the box.
    const Vec<T> gamma = spread<T>(
        as_charge<T>(3 * gamma_n(2.0 * kChunk + 10 + at.net.plan->wide_terms, Precision<T>::kUnit)));
    Vec<T> loss = load(work.losses + v * lanes);
    Wide<T> squares{};
    sum_chunks<T>(route.straight, route.straight_count, work.offsets + v * lanes,
                  [&](int32_t i, Vec<T>& sum) __attribute__((always_inline)) {
        const Vec<T> a = load(plane + i * lanes), size = magnitude<T>(a), h = way<T>(ball, i, a), reach = pull * h;
        const Vec<T> part = size < reach ? size : reach;  // of the coefficient, left to the ball
        sum += a * spread<T>(ball.center[i]) - (size - part) * h;
        const Wide<T> wide = __builtin_convertvector(part, Wide<T>);
        squares += wide * wide;
        if (kRigorous) loss += size * spread<T>(most[i]) * gamma;
    });
    if (kRigorous) store(work.losses + v * lanes, loss);
    // Squares that underflow in double are smaller than 1e-300 each.
    const double up = 1 + 2 * gamma_n(route.straight_count + 8.0, Precision<double>::kUnit);
    for (int64_t lane = 0; lane < lanes; ++lane)
        work.offsets[v * lanes + lane] -= ball.radius * (std::sqrt(squares[lane]) * up + 1e-140);
}

// Minimum over the domain of the first n rows' forms, into `bound`.
template <typename T, bool kRigorous>
static void concretise_block(Block<T>& at, int64_t n) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const Stage<T>& input = at.net.plan->stages[0];
    const StageState<T>& state = at.states[0];
    BlockScratch<T>& work = at.work;
    const FormRows layout(at.net.plan->forms, input.size);
    const T* center = state.mid + layout.interval * input.stride;
    const T* radius = state.half + layout.interval * input.stride;
    const T* most = state.half + layout.magnitude * input.stride;
    const Vec<T> gamma = spread<T>(as_charge<T>(gamma_n(2.0 * kChunk + 6 + at.net.plan->wide_terms, Precision<T>::kUnit)));
    for (int64_t v = 0; v < blocks_of(n, lanes) && work.waiting[0]; ++v) {
        if (at.net.ball) {
            concretise_in_ball<T, kRigorous>(at, *at.net.ball, most, v);
            continue;
        }
        const T* plane = work.values[0] + at.at(0, 0, v * lanes);
        Vec<T> loss = load(work.losses + v * lanes);
        sum_chunks<T>(at.route[0].straight, at.route[0].straight_count, work.offsets + v * lanes,
                      [&](int32_t i, Vec<T>& sum) __attribute__((always_inline)) {
            const Vec<T> a = load(plane + i * lanes), size = magnitude<T>(a);
            sum += a * spread<T>(center[i]) - size * spread<T>(radius[i]);
            if (kRigorous) loss += size * spread<T>(most[i]) * gamma;
        });
        if (kRigorous) store(work.losses + v * lanes, loss);
    }
    for (int64_t r = 0; r < n; ++r) {
        const double bound = kRigorous ? settled(at, r) : work.offsets[r];
        work.bound[r] = std::fabs(bound) <= Precision<T>::kHuge ? bound : -HUGE_VAL;
    }
}

// Carries the first n rows down to the inputs, with the slopes and multipliers they have.
template <typename T, bool kRigorous>
static void sweep_block(Block<T>& at, int64_t n) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    BlockScratch<T>& work = at.work;
    const int64_t planes = blocks_of(n, lanes);
    memset(work.offsets, 0, planes * lanes * sizeof(double));
    memset(work.losses, 0, planes * lanes * sizeof(T));
    memset(work.waiting, 0, at.net.plan->count * sizeof(int));
    at.target.rows ? place_output_rows<T, kRigorous>(at, n) : place_neuron_rows<T, kRigorous>(at, n);
    for (int s = at.top(); s >= 1; --s) {
        if (!at.waits(s)) continue;
        const CompactStage<T>& stage = at.net.stages[s];
        relax_block<T, kRigorous>(at, s, n);
        if (s == at.target.added) add_neurons<T, kRigorous>(at, n);
        const Planes<T> rows = at.rows(s, planes);
        for (int t = 0; t < stage.term_count; ++t) {
            const CompactTerm<T>& term = stage.terms[t];
            if (work.waiting[term.source] && kRigorous) charge_sum(at, term.source, planes, term.column_terms);
            // Several maps reach different neurons there, so all start from zero.
            const bool add = work.waiting[term.source] || at.route[term.source].writers > 1;
            if (add && !work.waiting[term.source]) clear_planes(at, term.source, planes);
            carry_back<T>(term, at.route[s].terms[t], {rows.data, rows.stride, planes}, at.rows(term.source, planes), add);
            work.waiting[term.source] = 1;
        }
    }
}

// Bounds of the first n rows.
template <typename T, bool kRigorous>
static void bound_block(Block<T>& at, int64_t n) {
    sweep_block<T, kRigorous>(at, n);
    concretise_block<T, kRigorous>(at, n);
}

}  // namespace verifier::VERIFIER_ISA

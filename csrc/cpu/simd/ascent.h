// Slopes and multipliers of a block of rows, raised along the gradient of the rows' bounds.
//
// Gradient (METHODS section 1): with x* the minimiser of the row's form, and z at x* under the lines the
// row chose, d bound / d slope_i = max(A_i, 0) z_i and d bound / d multiplier_i = -sign_i z_i.
#pragma once

#include "columns.h"

namespace verifier::VERIFIER_ISA {

// First step of a multiplier, in units of the coefficients around it.
constexpr double kMultiplierRate = 0.3;

// Adam's constants of one step. Source: Kingma & Ba 2015, arXiv:1412.6980.
template <typename T>
struct AdamRate {
    T slope, multiplier, first, second;
    AdamRate(int64_t step, double pace) {
        double decay = pace, first_power = 1, second_power = 1;
        for (int64_t k = 0; k <= step; ++k) {
            first_power *= 0.9;
            second_power *= 0.999;
            if (k < step) decay *= 0.97;
        }
        slope = static_cast<T>(0.25 * decay / (1 - first_power));
        multiplier = static_cast<T>(kMultiplierRate * decay / (1 - first_power));
        second = static_cast<T>(1 / (1 - second_power));
        first = static_cast<T>(0.1);
    }
};

// z of one plane of a stage becomes h under the lines chosen on the way down, and the slopes take a step; without
// one, z of the kept neurons is left in `mean`.
template <typename T, bool kStep>
static void step_plane(Block<T>& at, int index, int64_t v, const AdamRate<T>& rate) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const CompactStage<T>& stage = at.net.stages[index];
    const RouteStage& route = at.route[index];
    const BlockScratch<T>& work = at.work;
    T* plane = work.values[index] + at.at(index, 0, v * lanes);
    const int64_t kept = v * at.net.kept_count * lanes;
    const Vec<T> zero{}, one = spread<T>(1), epsilon = spread<T>(static_cast<T>(1e-8));
    const Vec<T> keep = spread<T>(static_cast<T>(0.999)), add = spread<T>(static_cast<T>(0.001));
    const Vec<T> first = spread<T>(rate.first), second = spread<T>(rate.second), speed = spread<T>(rate.slope);
    for (int64_t j = 0; j < route.straight_count; ++j) {
        T* at_neuron = plane + route.straight[j] * lanes;
        store(at_neuron, load(at_neuron) + spread<T>(stage.bias[route.straight[j]]));
    }
    for (int64_t j = 0; j < route.bent_count; ++j) {
        const int64_t i = route.bent[j], k = stage.kept[i];
        const Vec<T> z = load(plane + i * lanes) + spread<T>(stage.bias[i]);
        const Vec<T> above = spread<T>(stage.slope_upper[i]) * z + spread<T>(stage.offset_upper[i]);
        if (k < 0) {
            store(plane + i * lanes, above);
            continue;
        }
        const int64_t at_kept = kept + k * lanes;
        const Vec<T> a = load(work.seen + at_kept), slope = load(work.slopes + at_kept);
        const auto lower = a > zero;
        store(plane + i * lanes, lower ? slope * z + spread<T>(stage.offset_lower[i]) : above);
        if (!kStep) store(work.mean + at_kept, z);
        if (!kStep || at.net.free[k] == 0) continue;
        const Vec<T> gradient = lower ? a * z : zero;
        Vec<T> mean = load(work.mean + at_kept), square = load(work.square + at_kept);
        mean += first * (gradient - mean);
        square = keep * square + add * gradient * gradient;
        store(work.mean + at_kept, mean);
        store(work.square + at_kept, square);
        const Vec<T> least = spread<T>(at.net.least[k]);
        Vec<T> moved = slope + speed * mean / (root_of<T>(square * second) + epsilon);
        moved = moved < least ? least : moved;
        store(work.slopes + at_kept, moved > one ? one : moved);
    }
}

// The point of the domain where each active row's form is smallest, in place of its coefficients.
template <typename T>
static void place_minimisers(Block<T>& at, int64_t planes) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const RouteStage& route = at.route[0];
    const Ball<T>* ball = at.net.ball;
    const Vec<T> zero{}, half = spread<T>(static_cast<T>(0.5));
    for (int64_t v = 0; v < planes; ++v)
        for (int64_t j = 0; j < route.straight_count; ++j) {
            const int64_t i = route.straight[j];
            T* x = at.work.values[0] + at.at(0, i, v * lanes);
            if (ball) {
                const Vec<T> a = load(x), c = spread<T>(ball->center[i]);
                const Vec<T> d = step_length(magnitude<T>(a), way<T>(*ball, i, a), load(at.work.pull + v * lanes));
                store(x, a > zero ? c - d : (a < zero ? c + d : c));
                continue;
            }
            const Vec<T> a = load(x), low = spread<T>(at.net.low[i]), high = spread<T>(at.net.high[i]);
            store(x, a > zero ? low : (a < zero ? high : half * (low + high)));
        }
}

// The rows' scales take a step, by factors: d bound / d log scale is the bound less the neuron's own part of it.
template <typename T>
static void step_scales(Block<T>& at, int64_t n, const AdamRate<T>& rate) {
    for (int64_t r = 0; r < n; ++r) {
        CutoffEntry<T>& mine = at.work.cutoff[r];
        const T own = at.target.codes[at.work.row[r]] % 2 ? -mine.z : mine.z;
        const T gradient = static_cast<T>(at.work.bound[r]) - own;
        mine.mean += rate.first * (gradient - mine.mean);
        mine.square = T(0.9) * mine.square + T(0.1) * gradient * gradient;
        const double step = 2 * rate.slope * mine.mean / (std::sqrt(static_cast<double>(mine.square)) + 1e-30);
        const double scale = mine.scale * std::exp(step > 2 ? 2.0 : (step < -2 ? -2.0 : step));
        if (scale > 1e-20 && scale < 1e20) mine.scale = static_cast<T>(scale);
    }
}

// One step up the gradient for the first `planes` planes, whose coefficients are those of the last `bound_block`.
template <typename T, bool kStep = true>
static void step_block(Block<T>& at, int64_t planes, const AdamRate<T>& rate) {
    BlockScratch<T>& work = at.work;
    const int64_t n = planes * Lanes<T>::kCount < at.count ? planes * Lanes<T>::kCount : at.count;
    if (work.waiting[0]) place_minimisers(at, planes);
    for (int s = 1; s <= at.top(); ++s) {
        if (!at.waits(s) || (at.target.rows && s == at.top())) continue;
        const CompactStage<T>& stage = at.net.stages[s];
        const Planes<T> rows = at.rows(s, planes);
        if (stage.term_count == 0) clear_planes(at, s, planes);
        for (int t = 0; t < stage.term_count; ++t) {
            const Planes<T> from = at.rows(stage.terms[t].source, planes);
            carry_forward<T>(stage.terms[t], at.route[s].terms[t], {from.data, from.stride, planes}, rows, t > 0);
        }
        for (int64_t r = 0; r < n; ++r)
            for (int32_t k = 0; k < work.split_count[r]; ++k) {
                SplitEntry<T>& split = at.splits(r)[k];
                if (at.meets(split, s)) split.z = work.values[s][at.at(s, split.index, r)] + stage.bias[split.index];
            }
        for (int64_t r = 0; r < n && s == at.target.added; ++r) {
            const int32_t i = at.net.stages[s].position[at.target.codes[work.row[r]] / 2];
            work.cutoff[r].z = work.values[s][at.at(s, i, r)] + stage.bias[i];
        }
        for (int64_t v = 0; v < planes; ++v) step_plane<T, kStep>(at, s, v, rate);
        const T alpha = at.net.plan->stages[s].alpha;
        for (int64_t r = 0; r < n; ++r)
            for (int32_t k = 0; k < work.split_count[r]; ++k) {
                SplitEntry<T>& split = at.splits(r)[k];
                if (!at.meets(split, s)) continue;
                work.values[s][at.at(s, split.index, r)] = split.sign > 0 ? split.z : alpha * split.z;
                if (!kStep) continue;
                const T gradient = -split.sign * split.z;
                split.mean += rate.first * (gradient - split.mean);
                split.square = T(0.999) * split.square + T(0.001) * gradient * gradient;
                split.multiplier += rate.multiplier * split.unit * split.mean / (std::sqrt(split.square * rate.second) + T(1e-8));
                if (!(split.multiplier > 0)) split.multiplier = 0;
            }
    }
    if (kStep && at.target.added) step_scales(at, n, rate);
}

template <typename V>
static void swap_values(V& a, V& b) {
    const V x = a;
    a = b;
    b = x;
}

// Exchanges what two rows remember between steps.
template <typename T>
static void swap_rows(Block<T>& at, int64_t i, int64_t j) {
    BlockScratch<T>& work = at.work;
    for (int64_t k = 0; k < at.net.kept_count; ++k) {
        const int64_t a = at.at_kept(k, i), b = at.at_kept(k, j);
        T* const arrays[] = {work.slopes, work.best, work.mean, work.square};
        for (T* array : arrays) swap_values(array[a], array[b]);
    }
    const int32_t most = work.split_count[i] > work.split_count[j] ? work.split_count[i] : work.split_count[j];
    for (int32_t k = 0; k < most; ++k) swap_values(at.splits(i)[k], at.splits(j)[k]);
    swap_values(work.split_count[i], work.split_count[j]);
    swap_values(work.cutoff[i], work.cutoff[j]);
    swap_values(work.row[i], work.row[j]);
    double* const numbers[] = {work.bound, work.best_bound, work.limit};
    for (double* array : numbers) swap_values(array[i], array[j]);
}

template <typename T>
static void keep_best(Block<T>& at, int64_t n) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    BlockScratch<T>& work = at.work;
    for (int64_t v = 0; v * lanes < n; ++v) {
        Vec<T> better{};
        bool some = false;
        for (int64_t r = v * lanes; r < n && r < (v + 1) * lanes; ++r) {
            if (!(work.bound[r] > work.best_bound[r])) continue;
            work.best_bound[r] = work.bound[r];
            better[r - v * lanes] = 1;
            work.cutoff[r].best = work.cutoff[r].scale;
            some = true;
            for (int32_t k = 0; k < work.split_count[r]; ++k) at.splits(r)[k].best = at.splits(r)[k].multiplier;
        }
        if (!some) continue;
        const int64_t begin = v * at.net.kept_count * lanes, end = begin + at.net.kept_count * lanes;
        const auto chosen = better > 0;
        for (int64_t k = begin; k < end; k += lanes)
            store(work.best + k, chosen ? load(work.slopes + k) : load(work.best + k));
    }
}

// Default slopes, no memory and no splits.
template <typename T>
static void reset_block(Block<T>& at, bool ascent) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    BlockScratch<T>& work = at.work;
    const int64_t kept = at.net.kept_count, all = at.planes() * kept * lanes;
    for (int64_t v = 0; v < at.planes(); ++v)
        for (int64_t k = 0; k < kept; ++k) {
            const Vec<T> start = spread<T>(at.net.start[k]);
            store(work.slopes + (v * kept + k) * lanes, start);
            if (ascent) store(work.best + (v * kept + k) * lanes, start);
        }
    if (ascent) {
        memset(work.mean, 0, all * sizeof(T));
        memset(work.square, 0, all * sizeof(T));
    }
    for (int64_t r = 0; r < at.count; ++r) {
        work.split_count[r] = 0;
        work.best_bound[r] = -HUGE_VAL;
        work.cutoff[r] = {1, 1, 0, 0, 0};
    }
}

template <typename T>
static bool is_done(const Block<T>& at, int64_t r) {
    return at.work.bound[r] > at.work.limit[r] + 1e-4 * (1 + std::fabs(at.work.limit[r]));
}

// Puts the rows that are not done first, where that frees a plane; returns how many rows go on.
template <typename T>
static int64_t retire_rows(Block<T>& at, int64_t active) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    int64_t open = 0;
    for (int64_t r = 0; r < active; ++r) open += !is_done(at, r);
    if (blocks_of(open, lanes) == blocks_of(active, lanes)) return active;
    int64_t last = active;
    for (int64_t r = 0; r < open; ++r) {
        if (!is_done(at, r)) continue;
        while (is_done(at, --last)) {}
        swap_rows(at, r, last);
    }
    return open;
}

// Sets the splits' units: the mean size of the coefficients of kept neurons of their stage, of the last pass.
template <typename T>
static void measure_units(Block<T>& at) {
    for (int s = 1; s <= at.top(); ++s) {
        const CompactStage<T>& stage = at.net.stages[s];
        const RouteStage& route = at.route[s];
        for (int64_t r = 0; r < at.count; ++r) {
            bool here = false;
            for (int32_t k = 0; k < at.work.split_count[r]; ++k) here = here || at.meets(at.splits(r)[k], s);
            if (!here) continue;
            double sum = 0;
            int64_t count = 0;
            for (int64_t j = 0; j < route.bent_count; ++j) {
                const int32_t kept = stage.kept[route.bent[j]];
                if (kept < 0) continue;
                sum += std::fabs(static_cast<double>(at.work.seen[at.at_kept(kept, r)]));
                ++count;
            }
            const T unit = static_cast<T>(count > 0 && sum > 0 ? sum / count : 1.0);
            for (int32_t k = 0; k < at.work.split_count[r]; ++k)
                if (at.splits(r)[k].stage == s) at.splits(r)[k].unit = unit;
        }
    }
}

// Raises the bounds of a block's rows; each row keeps the best parameters it met and stops above its limit.
template <typename T>
static void ascend_block(Block<T>& at, int64_t iterations, double pace, const Clock& clock) {
    BlockScratch<T>& work = at.work;
    int64_t active = at.count;
    for (int64_t step = 0; step < iterations; ++step) {
        bound_block<T, false>(at, active);
        keep_best(at, active);
        if (step == 0) measure_units(at);
        if (step == iterations - 1 || clock.over()) break;
        step_block(at, blocks_of(active, Lanes<T>::kCount), AdamRate<T>(step, pace));
        active = retire_rows(at, active);
        if (active == 0) break;
    }
    swap_values(work.slopes, work.best);
    for (int64_t r = 0; r < at.count; ++r) {
        work.cutoff[r].scale = work.cutoff[r].best;
        for (int32_t k = 0; k < work.split_count[r]; ++k) at.splits(r)[k].multiplier = at.splits(r)[k].best;
    }
}

}  // namespace verifier::VERIFIER_ISA

// Jobs over blocks of rows: rows of subdomains from their stored parameters, and the root's own neurons.
#pragma once

#include "ascent.h"
#include "box.h"

namespace verifier::VERIFIER_ISA {

// Slopes of row r from one byte each, 255 steps over the neuron's range.
template <typename T>
static void load_slopes(Block<T>& at, const DomainRoot<T>& root, const uint8_t* stored, int64_t r) {
    for (int64_t k = 0; k < root.open_count; ++k) {
        const int64_t kept = root.open_kept[k];
        const T least = at.net.least[kept], slope = stored[k] == 255 ? T(1) : least + (1 - least) / 255 * stored[k];
        at.work.slopes[at.at_kept(kept, r)] = slope < 1 ? slope : T(1);
    }
}

template <typename T>
static void store_slopes(const Block<T>& at, const DomainRoot<T>& root, int64_t r, uint8_t* out) {
    for (int64_t k = 0; k < root.open_count; ++k) {
        const int64_t kept = root.open_kept[k];
        const T least = at.net.least[kept], scale = least < 1 ? 255 / (1 - least) : T(0);
        out[k] = static_cast<uint8_t>((at.work.slopes[at.at_kept(kept, r)] - least) * scale + T(0.5));
    }
}

template <typename T>
static SplitEntry<T> split_of(const Block<T>& at, const DomainRoot<T>& root, int32_t k, T sign, T multiplier) {
    const int32_t stage = root.open_stage[k];
    return {stage, at.net.stages[stage].position[root.open_feature[k]], sign, multiplier, multiplier, 0, 0, 0, 0, 1};
}

// Splits of row r of the block, number `number` of the job.
template <typename T>
static void load_splits(Block<T>& at, const DomainRoot<T>& root, const RowJob& job, int64_t r, int64_t number) {
    SplitEntry<T>* splits = at.splits(r);
    int32_t count = 0;
    const int64_t domain = job.domain[number] * job.splits, row = job.slope_row[number] * job.splits;
    for (int64_t d = 0; d <= job.splits; ++d) {
        const bool more = d == job.splits;
        if (more && job.extra == nullptr) break;
        const int32_t k = more ? job.extra[number] : job.split[domain + d];
        if (k < 0) continue;
        const T beta = more ? T(0) : static_cast<T>(job.multiplier[row + d]), from = beta > 0 ? beta : T(0);
        const T sign = more ? job.extra_sign[number] : job.sign[domain + d];
        splits[count++] = split_of(at, root, k, sign, from);
    }
    at.work.split_count[r] = count;
}

// Splits that a job assumes for all of its rows.
template <typename T>
static void load_assumed(Block<T>& at, const DomainRoot<T>& root, const NeuronJob& job, int64_t r) {
    for (int64_t d = 0; d < job.splits; ++d)
        at.splits(r)[at.work.split_count[r]++] = split_of(at, root, job.split[d], static_cast<T>(job.sign[d]), T(0));
}

template <typename T>
static void load_rows(Block<T>& at, const DomainRoot<T>& root, const RowJob& job, int64_t begin) {
    reset_block(at, job.iterations > 0);
    for (int64_t r = 0; r < at.count; ++r) {
        if (job.slopes) load_slopes(at, root, job.slopes + job.slope_row[begin + r] * root.open_count, r);
        at.work.row[r] = static_cast<int32_t>(begin + r);
        at.work.limit[r] = job.limit ? job.limit[begin + r] : HUGE_VAL;
        load_splits(at, root, job, r, begin + r);
    }
}

// Puts k into a short list sorted by falling score.
static void propose(float score, int32_t k, float* scores, int32_t* list, int room) {
    if (!(score > scores[room - 1])) return;
    int at = room - 1;
    for (; at > 0 && score > scores[at - 1]; --at) {
        scores[at] = scores[at - 1];
        list[at] = list[at - 1];
    }
    scores[at] = score;
    list[at] = k;
}

template <typename T>
static bool is_split(const Block<T>& at, int64_t r, int32_t stage, int32_t position) {
    for (int32_t d = 0; d < at.work.split_count[r]; ++d)
        if (at.splits(r)[d].stage == stage && at.splits(r)[d].index == position) return true;
    return false;
}

// Neurons whose split should gain row r most: by how much the bound rises, at its minimiser and on the child where
// it rises less, when the neuron's line is replaced by its function. Coefficients and z of the last pass.
template <typename T>
static void propose_splits(const Block<T>& at, const DomainRoot<T>& root, int64_t r, int32_t* out) {
    float scores[kCandidates];
    for (int c = 0; c < kCandidates; ++c) scores[c] = 0, out[c] = -1;
    int32_t spare = -1;
    for (int64_t k = 0; k < root.open_count; ++k) {
        const int32_t s = root.open_stage[k];
        if (s > at.top() || !at.work.waiting[s]) continue;
        const CompactStage<T>& stage = at.net.stages[s];
        const int32_t i = stage.position[root.open_feature[k]];
        if (!at.route[s].reached[i]) continue;
        const int64_t place = at.at_kept(root.open_kept[k], r);
        const float a = static_cast<float>(at.work.seen[place]);
        if (a == 0) {
            if (spare < 0 && !is_split(at, r, s, i)) spare = static_cast<int32_t>(k);
            continue;
        }
        const StageState<T>& state = at.states[s];
        const float l = static_cast<float>(state.lower[root.open_feature[k]]), u = static_cast<float>(state.upper[root.open_feature[k]]);
        const float least = static_cast<float>(at.net.least[root.open_kept[k]]);
        float z = static_cast<float>(at.work.mean[place]);
        z = z < l ? l : (z > u ? u : z);
        const float line = a > 0 ? static_cast<float>(at.work.slopes[place]) * z
                                 : static_cast<float>(stage.slope_upper[i]) * z + static_cast<float>(stage.offset_upper[i]);
        const float above = a * (z - line), below = a * (least * z - line);
        const float worse = above < below ? above : below, better = above < below ? below : above;
        propose((worse > 0 ? worse : 0) + 0.01f * better, static_cast<int32_t>(k), scores, out, kCandidates);
    }
    if (out[0] < 0) out[0] = spare;
}

template <typename T>
static void store_row(Block<T>& at, const DomainRoot<T>& root, const RowJob& job, int64_t r) {
    const BlockScratch<T>& work = at.work;
    const int64_t number = work.row[r], n = at.net.plan->stages[0].size;
    job.value[number] = work.bound[r];
    if (job.slopes_out) store_slopes(at, root, r, job.slopes_out + number * root.open_count);
    if (job.multiplier_out) {
        int32_t at_split = 0;
        for (int64_t d = 0; d < job.splits; ++d) {
            const bool used = job.split[job.domain[number] * job.splits + d] >= 0;
            job.multiplier_out[number * job.splits + d] = used ? static_cast<float>(at.splits(r)[at_split++].multiplier) : 0.0f;
        }
    }
    const Ball<T>* ball = at.net.ball;
    for (int64_t i = 0; job.minimiser && i < n; ++i) {
        const T a = work.waiting[0] && at.route[0].reached[i] ? work.values[0][at.at(0, i, r)] : T(0);
        if (ball) {
            const T d = a == 0 ? T(0) : step_length(std::fabs(a), a > 0 ? ball->below[i] : ball->above[i], work.pull[r]);
            job.minimiser[number * n + i] = static_cast<double>(ball->center[i]) - (a > 0 ? d : -d);
            continue;
        }
        job.minimiser[number * n + i] = a > 0 ? root.lower[i] : (a < 0 ? root.upper[i] : 0.5 * root.lower[i] + 0.5 * root.upper[i]);
    }
}

// Rows `begin` to `begin` + `count` of a job on one thread's block.
template <typename T>
static void bound_domain_rows(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const RowJob& job,
                              const Clock& clock, int64_t begin, int64_t count) {
    const bool output = job.rows != nullptr;
    const Target target{output ? root.net.plan->count - 1 : job.stage, job.rows, output ? job.spec : nullptr,
                        output ? nullptr : job.spec, 0, 0};
    Block<T> at{root.net, root.states, route, work, target, count};
    load_rows(at, root, job, begin);
    if (job.iterations > 0) ascend_block(at, job.iterations, job.pace, clock);
    job.rigorous ? bound_block<T, true>(at, count) : bound_block<T, false>(at, count);
    for (int64_t r = 0; r < count; ++r) store_row(at, root, job, r);
    if (!job.candidates) return;
    step_block<T, false>(at, at.planes(), AdamRate<T>(0, 1));
    for (int64_t r = 0; r < count; ++r) propose_splits(at, root, r, job.candidates + static_cast<int64_t>(work.row[r]) * kCandidates);
}

// Rows `begin` to `begin` + `count` of the query on the unsplit box, as linear forms in the inputs.
template <typename T>
static void bound_forms(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const BoxQuery& query,
                        const BoxResult& result, int64_t begin, int64_t count) {
    const int64_t n = root.net.plan->stages[0].size;
    for (int64_t r = 0; r < count; ++r) work.codes[r] = static_cast<int32_t>(begin + r), work.row[r] = static_cast<int32_t>(r);
    Block<T> at{root.net, root.states, route, work, {root.net.plan->count - 1, query.rows, work.codes, nullptr, 0, 0}, count};
    reset_block(at, false);
    sweep_block<T, true>(at, count);
    for (int64_t r = 0; r < count; ++r) {
        double* coeffs = result.coeffs + (begin + r) * n;
        for (int64_t i = 0; i < n; ++i)
            coeffs[i] = work.waiting[0] && route[0].reached[i] ? static_cast<double>(work.values[0][at.at(0, i, r)]) : 0.0;
        store_form<T>(query, result, begin + r, coeffs, settled(at, r), n);
    }
}

// What the open neurons' relaxations cost one row of the output at most, and how far its form reaches over the box.
// Returns a certain lower bound of the row.
template <typename T>
static double row_costs(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const NeuronJob& job,
                        double* cost, double* reach) {
    work.row[0] = 0;
    Block<T> at{root.net, root.states, route, work, {root.net.plan->count - 1, job.row, nullptr, nullptr, 0, 0}, 1};
    reset_block(at, false);
    if (job.slopes) load_slopes(at, root, job.slopes, 0);
    load_assumed(at, root, job, 0);
    bound_block<T, true>(at, 1);
    for (int64_t k = 0; k < root.open_count; ++k) {
        const int32_t s = root.open_stage[k], feature = root.open_feature[k];
        const CompactStage<T>& stage = at.net.stages[s];
        const int32_t i = stage.position[feature];
        cost[k] = 0;
        if (!work.waiting[s] || !route[s].reached[i]) continue;
        const int64_t place = at.at_kept(root.open_kept[k], 0);
        const double a = work.seen[place], slope = work.slopes[place];
        const double left = (slope - at.net.least[root.open_kept[k]]) * -at.states[s].lower[feature];
        const double right = (1 - slope) * at.states[s].upper[feature];
        cost[k] = a > 0 ? a * (left > right ? left : right) : -a * stage.offset_upper[i];
    }
    *reach = 0;
    for (int64_t i = 0; i < at.net.plan->stages[0].size && work.waiting[0]; ++i)
        if (route[0].reached[i]) *reach += std::fabs(static_cast<double>(work.values[0][at.at(0, i, 0)])) * (root.upper[i] - root.lower[i]);
    return work.bound[0];
}

// Both sides of listed neurons, at most half a block of them, each row with slopes of its own.
template <typename T>
static void bound_neurons(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const NeuronJob& job,
                          const Clock& clock) {
    const Target target{job.row ? root.net.plan->count - 1 : job.stage, job.row, nullptr, work.codes, job.row ? job.stage : 0, job.limit};
    Block<T> at{root.net, root.states, route, work, target, 2 * job.count};
    reset_block(at, job.iterations > 0);
    for (int64_t r = 0; r < at.count; ++r) {
        if (job.row) work.cutoff[r].scale = work.cutoff[r].best = static_cast<T>(job.scale[r]);
        const uint8_t* slopes = job.row && job.known[r] ? job.known[r] : job.slopes;
        if (slopes) load_slopes(at, root, slopes, r);
        load_assumed(at, root, job, r);
        work.row[r] = static_cast<int32_t>(r);
        work.codes[r] = static_cast<int32_t>(2 * job.neurons[r / 2] + r % 2);
        work.limit[r] = 0;
    }
    if (job.iterations > 0) ascend_block(at, job.iterations, job.pace, clock);
    bound_block<T, true>(at, at.count);
    for (int64_t r = 0; r < at.count; ++r) {
        const int64_t k = work.row[r] / 2;
        if (work.row[r] % 2 == 0) job.lower[k] = work.bound[r];
        else job.upper[k] = -work.bound[r];
        if (!job.row) continue;
        job.scale[work.row[r]] = static_cast<float>(work.cutoff[r].scale);
        store_slopes(at, root, r, job.found + work.row[r] * root.open_count);
    }
}

template <typename T>
static bool enter_root(const Plan<T>& plan, Workspace<T>& work, const double* lower, const double* upper) {
    Context<T> at(plan, work);
    enter_box(at, lower, upper);
    return !at.failed;
}

template <typename T>
static bool forward_root(const Plan<T>& plan, Workspace<T>& work, int stage) {
    Context<T> at(plan, work);
    forward_stage(at, stage);
    return !at.failed;
}

template <typename T>
static void relax_root(const Plan<T>& plan, Workspace<T>& work, int stage) {
    Context<T> at(plan, work);
    relax_stage(at, stage);
}

}  // namespace verifier::VERIFIER_ISA

// Jobs over blocks of rows: rows of subdomains from their stored parameters, and the root's own neurons.
#pragma once

#include "ascent.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
static Block<T> block_of(const DomainRoot<T>& root, BlockScratch<T>& work, Target target, int64_t count) {
    return {*root.plan, root.stages, root.free, root.lower, root.upper, work, target, count, count};
}

// Slopes and splits of `count` rows of the job, from row `begin`.
template <typename T>
static void load_rows(Block<T>& at, const DomainRoot<T>& root, const RowJob& job, int64_t begin, int64_t open_count) {
    BlockScratch<T>& work = at.work;
    reset_block(at, at.count);
    for (int64_t r = 0; r < at.count; ++r) {
        const int64_t number = begin + r;
        work.row[r] = static_cast<int32_t>(number);
        work.limit[r] = job.limit ? job.limit[number] : HUGE_VAL;
        if (job.slopes != nullptr) {
            const uint8_t* stored = job.slopes + job.slope_row[number] * open_count;
            for (int s = 1; s < at.plan.count; ++s) {
                const Stage<T>& stage = at.plan.stages[s];
                const T unit = (1 - stage.alpha) / 255;
                for (int64_t k = root.open_start[s]; k < root.open_start[s + 1]; ++k) {
                    const T slope = stored[k] == 255 ? T(1) : stage.alpha + unit * stored[k];
                    const int64_t i = r * stage.stride + root.open_index[k];
                    work.slopes[s][i] = work.best[s][i] = slope < 1 ? slope : T(1);
                }
            }
        }
        SplitEntry<T>* splits = at.splits(r);
        int32_t count = 0;
        const int64_t domain = job.domain[number] * job.splits, row = job.slope_row[number] * job.splits;
        for (int64_t d = 0; d <= job.splits; ++d) {
            const bool more = d == job.splits;
            if (more && job.extra == nullptr) break;
            const int32_t k = more ? job.extra[number] : job.split[domain + d];
            if (k < 0) continue;
            const T beta = more ? T(0) : static_cast<T>(job.multiplier[row + d]);
            const T sign = more ? job.extra_sign[number] : job.sign[domain + d];
            splits[count++] = {root.open_stage[k], root.open_index[k], sign, beta > 0 ? beta : T(0),
                               beta > 0 ? beta : T(0), 0, 0, 0, 0};
        }
        work.split_count[r] = count;
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

// Neurons whose relaxation costs row r most, half by each of two scores (METHODS section 3): |A| times the
// widest gap of its lines, and BaBSR's estimate of what splitting gains. Coefficients of the last pass.
template <typename T>
static void propose_splits(const Block<T>& at, const DomainRoot<T>& root, int64_t r, int32_t* out) {
    constexpr int half = kCandidates / 2;
    float gap_scores[half], gain_scores[kCandidates];
    int32_t gaps[half], gains[kCandidates];
    for (int c = 0; c < half; ++c) gap_scores[c] = 0, gaps[c] = -1;
    for (int c = 0; c < kCandidates; ++c) gain_scores[c] = 0, gains[c] = -1;
    int32_t spare = -1;
    for (int s = 1; s < at.plan.count; ++s) {
        const Stage<T>& stage = at.plan.stages[s];
        const StageState<T>& state = at.stages[s];
        if (!at.work.waiting[s] || root.open_start[s] == root.open_start[s + 1]) continue;
        const T* coeffs = at.work.coeffs[s] + r * stage.stride;
        const T* slopes = at.work.slopes[s] + r * stage.stride;
        for (int64_t k = root.open_start[s]; k < root.open_start[s + 1]; ++k) {
            const int32_t i = root.open_index[k];
            const float a = static_cast<float>(coeffs[i]);
            if (a == 0) {
                if (spare < 0) {
                    bool split = false;
                    for (int32_t d = 0; d < at.work.split_count[r]; ++d)
                        split = split || (at.splits(r)[d].stage == s && at.splits(r)[d].index == i);
                    if (!split) spare = static_cast<int32_t>(k);
                }
                continue;
            }
            const float l = static_cast<float>(state.lower[i]), u = static_cast<float>(state.upper[i]);
            const float slope = static_cast<float>(slopes[i]), chord = static_cast<float>(state.slope_upper[i]);
            const float least = static_cast<float>(stage.alpha), gap = static_cast<float>(state.offset_upper[i]);
            const float left = (slope - least) * -l, right = (1 - slope) * u;
            propose(a > 0 ? a * (left > right ? left : right) : -a * gap, static_cast<int32_t>(k), gap_scores, gaps, half);
            const float b = static_cast<float>(stage.bias[i]) * a, first = b * (chord - 1), second = b * chord;
            const float gain = (first > second ? first : second) + (a < 0 ? a * gap : 0.0f);
            propose(gain < 0 ? -gain : gain, static_cast<int32_t>(k), gain_scores, gains, kCandidates);
        }
    }
    int count = 0;
    for (int c = 0; c < half; ++c)
        if (gaps[c] >= 0) out[count++] = gaps[c];
    for (int c = 0; c < kCandidates && count < kCandidates; ++c) {
        bool known = gains[c] < 0;
        for (int d = 0; d < count; ++d) known = known || out[d] == gains[c];
        if (!known) out[count++] = gains[c];
    }
    if (count == 0 && spare >= 0) out[count++] = spare;
    while (count < kCandidates) out[count++] = -1;
}

template <typename T>
static void store_rows(Block<T>& at, const DomainRoot<T>& root, const RowJob& job, int64_t open_count) {
    const BlockScratch<T>& work = at.work;
    for (int64_t r = 0; r < at.count; ++r) {
        const int64_t number = work.row[r];
        job.value[number] = work.bound[r];
        for (int s = 1; s < at.plan.count && job.slopes_out; ++s) {
            const Stage<T>& stage = at.plan.stages[s];
            const T scale = stage.alpha < 1 ? 255 / (1 - stage.alpha) : T(0);
            for (int64_t k = root.open_start[s]; k < root.open_start[s + 1]; ++k) {
                const T slope = work.slopes[s][r * stage.stride + root.open_index[k]];
                job.slopes_out[number * open_count + k] = static_cast<uint8_t>((slope - stage.alpha) * scale + T(0.5));
            }
        }
        if (job.multiplier_out) {
            int32_t at_split = 0;
            for (int64_t d = 0; d < job.splits; ++d) {
                const bool used = job.split[job.domain[number] * job.splits + d] >= 0;
                job.multiplier_out[number * job.splits + d] = used ? static_cast<float>(at.splits(r)[at_split++].multiplier) : 0.0f;
            }
        }
        const int64_t n = at.plan.stages[0].size;
        for (int64_t i = 0; job.minimiser && i < n; ++i) {
            const T a = work.waiting[0] ? work.coeffs[0][r * at.plan.stages[0].stride + i] : T(0);
            job.minimiser[number * n + i] = a > 0 ? root.lower[i] : (a < 0 ? root.upper[i] : 0.5 * root.lower[i] + 0.5 * root.upper[i]);
        }
        if (job.candidates) propose_splits(at, root, r, job.candidates + number * kCandidates);
    }
}

// Rows `begin` to `begin` + `count` of a job on one thread's block.
template <typename T>
static void bound_domain_rows(const DomainRoot<T>& root, BlockScratch<T>& work, const RowJob& job, const Clock& clock,
                              int64_t begin, int64_t count) {
    const int64_t open_count = root.open_start[root.plan->count];
    const bool output = job.rows != nullptr;
    const Target target{output ? root.plan->count - 1 : job.stage, job.rows, output ? job.spec : nullptr,
                        output ? nullptr : job.spec};
    Block<T> at = block_of(root, work, target, count);
    load_rows(at, root, job, begin, open_count);
    if (job.iterations > 0) ascend_block(at, job.iterations, clock);
    job.rigorous ? bound_block<T, true>(at, count) : bound_block<T, false>(at, count);
    store_rows(at, root, job, open_count);
}

template <typename T>
struct RootAscent {
    Context<T>& at;
    const DomainRoot<T>& root;
    const RootJob<T>& job;
    int index;
    int64_t open, block;
};

// Ascent for one block of the open neurons of a stage, each row with slopes of its own.
template <typename T>
static void ascend_neurons(void* context, int thread, int64_t item) {
    const RootAscent<T>& job = *static_cast<RootAscent<T>*>(context);
    if (job.job.clock.over()) return;
    const int64_t begin = item * job.block, left = job.open - begin, count = left < job.block ? left : job.block;
    const int32_t* neurons = job.at.work.open + begin;
    BlockScratch<T>& work = job.job.blocks[thread];
    Block<T> at = block_of(job.root, work, {job.index, nullptr, nullptr, work.codes}, 2 * count);
    reset_block(at, 2 * count);
    for (int64_t r = 0; r < 2 * count; ++r) {
        work.row[r] = static_cast<int32_t>(r);
        work.codes[r] = 2 * neurons[r / 2] + r % 2;
        work.limit[r] = 0;
    }
    ascend_block(at, job.job.iterations, job.job.clock);
    bound_block<T, true>(at, 2 * count);
    StageState<T>& state = job.at.work.stages[job.index];
    const T limit = static_cast<T>(Precision<T>::kHuge);
    for (int64_t r = 0; r < 2 * count; ++r) {
        const int32_t neuron = neurons[work.row[r] / 2];
        const T low = round_down<T>(work.bound[r]);
        if (work.row[r] % 2 == 0 && low > state.lower[neuron] && low <= limit) state.lower[neuron] = low;
        if (work.row[r] % 2 == 1 && -low < state.upper[neuron] && low <= limit) state.upper[neuron] = -low;
    }
}

template <typename T>
static void ascend_stage(Context<T>& at, const DomainRoot<T>& root, const RootJob<T>& job, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.work.stages[index];
    int64_t open = 0;
    for (int64_t i = 0; i < stage.size; ++i) {
        at.work.open[open] = static_cast<int32_t>(i);
        open += state.lower[i] < 0 && state.upper[i] > 0;
    }
    if (open == 0) return;
    int64_t block = job.blocks[0].block / 2;
    const int64_t each = blocks_of(open, at.work.row_threads);
    block = each < block ? each : block;
    RootAscent<T> ascent{at, root, job, index, open, block};
    share_blocks(at.work, blocks_of(open, block), ascend_neurons<T>, &ascent);
}

// Marks the neurons of stage `index` whose slope is free.
template <typename T>
static void mark_free(const Context<T>& at, const DomainRoot<T>& root, int index) {
    const Stage<T>& stage = at.plan.stages[index];
    const StageState<T>& state = at.work.stages[index];
    const bool bent = stage.activation == Activation::kRelu || stage.activation == Activation::kLeakyRelu;
    for (int64_t i = 0; i < stage.size && index > 0; ++i)
        root.free[index][i] = bent && stage.alpha < 1 && state.lower[i] < 0 && state.upper[i] > 0;
}

// Bounds, lines and charges of every stage for the root's box; false where nothing can be claimed.
template <typename T>
static bool bound_root(Workspace<T>& work, const DomainRoot<T>& root, const RootJob<T>& job) {
    const Plan<T>& plan = *root.plan;
    Context<T> at(plan, work);
    enter_box(at, job.lower, job.upper);
    for (int s = 1; s < plan.count && !at.failed; ++s) {
        StageState<T>& state = work.stages[s];
        forward_stage(at, s);
        if (at.failed) break;
        for (int64_t i = 0; job.previous_lower && i < plan.stages[s].size; ++i) {
            if (job.previous_lower[s][i] > state.lower[i]) state.lower[i] = job.previous_lower[s][i];
            if (job.previous_upper[s][i] < state.upper[i]) state.upper[i] = job.previous_upper[s][i];
        }
        const Activation f = plan.stages[s].activation;
        if (plan.stages[s].refine) {
            if (!job.previous_lower) refine_stage(at, s);
            if (s >= job.first && job.iterations > 0 && (f == Activation::kRelu || f == Activation::kLeakyRelu)) ascend_stage(at, root, job, s);
        }
        relax_stage(at, s);
        mark_free(at, root, s);
    }
    return !at.failed;
}

}  // namespace verifier::VERIFIER_ISA

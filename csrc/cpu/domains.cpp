#include "verifier/domains.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>

#include "network_storage.h"

namespace verifier {

namespace {

using Time = std::chrono::steady_clock;

bool is_over(const void* end) { return Time::now() > *static_cast<const Time::time_point*>(end); }

Time::duration span(double seconds) {
    return std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(std::max(0.0, std::min(seconds, 1e6))));
}

constexpr double kBlockBytes = 6e6;  // of one thread's block: rows stay close to the caches
constexpr int64_t kMostRows = 96, kFewestRows = 32;

}  // namespace

// The root's scratch, and a block of rows for each thread.
template <typename T>
struct Domains<T>::Blocks {
    typename Network<T>::Scratch root;
    std::vector<AlignedArray<T>> arrays;
    std::list<AlignedArray<double>> doubles;
    std::list<std::vector<T*>> pointers;
    std::list<std::vector<int32_t>> numbers;
    std::vector<std::vector<SplitEntry<T>>> splits;
    std::vector<BlockScratch<T>> blocks;
    std::vector<T*> free, previous_lower, previous_upper;

    explicit Blocks(const Plan<T>& plan) : root(plan) {}

    T* array(int64_t size) {
        arrays.emplace_back(size);
        return arrays.back().get();
    }
    double* wide(int64_t size) {
        doubles.emplace_back(size);
        return doubles.back().get();
    }
    int32_t* list(int64_t size) {
        numbers.emplace_back(size);
        return numbers.back().data();
    }
    T** stages(const Plan<T>& plan, int64_t rows, bool every) {
        pointers.emplace_back();
        for (int s = 0; s < plan.count; ++s) {
            const bool wanted = every || plan.stages[s].activation != Activation::kIdentity;
            pointers.back().push_back(wanted ? array(rows * plan.stages[s].stride) : nullptr);
        }
        return pointers.back().data();
    }
    void add(const Plan<T>& plan, int64_t rows) {
        BlockScratch<T> one{};
        one.block = rows;
        one.coeffs = stages(plan, rows, true);
        one.values = stages(plan, rows, true);
        for (T*** field : {&one.slopes, &one.best, &one.mean, &one.square}) *field = stages(plan, rows, false);
        one.relaxed = array(rows * plan.longest_stride);
        one.waiting = reinterpret_cast<int*>(list(plan.count));
        one.offsets = wide(rows * kMostLanes);
        one.losses = array(rows * kMostLanes);
        for (double** field : {&one.bound, &one.best_bound, &one.limit}) *field = wide(rows);
        one.row = list(rows);
        one.codes = list(rows);
        one.split_count = list(rows);
        if (plan.sparse) {
            const int64_t wide_rows = (rows + kMostLanes - 1) / kMostLanes * kMostLanes;
            one.across = array(plan.longest_stride * wide_rows);
            one.across_out = array(plan.longest_stride * wide_rows);
        }
        splits.emplace_back();
        blocks.push_back(one);
    }
};

template <typename T>
Domains<T>::Domains(Network<T>& network, const double* lower, const double* upper, int threads,
                    double seconds)
    : network_(network), stages_(network.stages_), threads_(std::max(1, threads)),
      lower_(lower, lower + network.inputs()), upper_(upper, upper + network.inputs()) {
    plan_ = network.plan_without_forms(stages_);
    double sums = 0;
    for (const Stage<T>& stage : stages_) sums += static_cast<double>(stage.stride);
    const auto rows = static_cast<int64_t>(kBlockBytes / (6 * sums * sizeof(T)));
    block_rows_ = std::min(kMostRows, std::max(kFewestRows, rows / 16 * 16));
    blocks_ = std::make_unique<Blocks>(plan_);
    blocks_->free = std::vector<T*>();
    for (int s = 0; s < plan_.count; ++s) blocks_->free.push_back(blocks_->array(plan_.stages[s].stride));
    root_ = {&plan_, blocks_->root.work.stages, blocks_->free.data(), nullptr, nullptr, nullptr, lower_.data(), upper_.data()};
    for (int thread = 0; thread < threads_; ++thread) block(thread, 1);
    blocks_->root.add_rows(plan_, threads_);
    blocks_->root.work.row_threads = threads_;
    blocks_->root.work.share = [](int64_t items, int count, Task task, void* context) {
        parallel_for(items, count, [&](int number, int64_t item) { task(context, number, item); });
    };
    const std::clock_t begin = std::clock();
    const auto end = Time::now() + span(seconds);
    blocks_->root.work.clock = {is_over, &end};
    run_root(0, 0, {nullptr, nullptr});
    blocks_->root.work.clock = {nullptr, nullptr};
    // Of the processor, so that other processes do not count; the threads share the work.
    plain_seconds_ = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC / threads_;
}

template <typename T>
Domains<T>::~Domains() = default;

template <typename T>
BlockScratch<T>& Domains<T>::block(int thread, int64_t most_splits) {
    while (static_cast<int>(blocks_->blocks.size()) <= thread) blocks_->add(plan_, block_rows_);
    BlockScratch<T>& found = blocks_->blocks[thread];
    if (found.most_splits < most_splits) {
        found.most_splits = most_splits + 8;
        blocks_->splits[thread].assign(block_rows_ * found.most_splits, SplitEntry<T>{});
        found.splits = blocks_->splits[thread].data();
    }
    return found;
}

template <typename T>
void Domains<T>::run_root(int64_t iterations, int first, Clock clock) {
    Blocks& mine = *blocks_;
    const bool again = !mine.previous_lower.empty();
    // Until the neurons are listed again, nothing is open.
    std::vector<int64_t> none(plan_.count + 1, 0);
    root_.open_start = none.data();
    const RootJob<T> job{lower_.data(), upper_.data(), again ? mine.previous_lower.data() : nullptr,
                         again ? mine.previous_upper.data() : nullptr, iterations, first, mine.blocks.data(), clock};
    failed_ = !network_.isa_.bound_root(mine.root.work, root_, job);
    list_open();
    if (!again)
        for (int s = 0; s < plan_.count; ++s) {
            mine.previous_lower.push_back(mine.array(plan_.stages[s].stride));
            mine.previous_upper.push_back(mine.array(plan_.stages[s].stride));
        }
    for (int s = 0; s < plan_.count && !failed_; ++s) {
        const int64_t size = plan_.stages[s].size;
        std::copy(root_.stages[s].lower, root_.stages[s].lower + size, mine.previous_lower[s]);
        std::copy(root_.stages[s].upper, root_.stages[s].upper + size, mine.previous_upper[s]);
    }
}

template <typename T>
void Domains<T>::list_open() {
    open_start_.assign(1, 0);
    open_index_.clear();
    open_stage_.clear();
    for (int s = 0; s < plan_.count; ++s) {
        for (int64_t i = 0; s > 0 && !failed_ && i < plan_.stages[s].size; ++i)
            if (blocks_->free[s][i] > 0) {
                open_index_.push_back(static_cast<int32_t>(i));
                open_stage_.push_back(s);
            }
        open_start_.push_back(static_cast<int64_t>(open_index_.size()));
    }
    root_.open_start = open_start_.data();
    root_.open_index = open_index_.data();
    root_.open_stage = open_stage_.data();
}

template <typename T>
bool Domains<T>::optimise_root(double seconds, int64_t most_iterations, int first) {
    if (failed_) return false;
    // A step carries rows back and forward again; about 2.5 plain passes.
    const auto affordable = static_cast<int64_t>(std::min(1e6, seconds / std::max(2.5 * plain_seconds_, 1e-9)));
    const int64_t iterations = std::min(most_iterations, affordable);
    const auto end = Time::now() + span(2 * seconds);
    run_root(iterations < 3 ? 0 : iterations, first, {is_over, &end});
    return !failed_ && iterations >= 3;
}

template <typename T>
void Domains<T>::tighten(int stage, int64_t i, double lower, double upper) {
    const T low = round_down<T>(lower), high = round_up<T>(upper);
    T &known_low = blocks_->previous_lower[stage][i], &known_high = blocks_->previous_upper[stage][i];
    if (low > known_low && low <= known_high) known_low = low;
    if (high < known_high && high >= known_low) known_high = high;
}

template <typename T>
void Domains<T>::bound(const RowJob& job, double seconds) {
    if (job.count == 0) return;
    if (failed_) {
        std::fill(job.value, job.value + job.count, -HUGE_VAL);
        if (job.candidates) std::fill(job.candidates, job.candidates + job.count * kCandidates, -1);
        if (job.minimiser) std::fill(job.minimiser, job.minimiser + job.count * inputs(), 0.0);
        if (job.multiplier_out) std::fill(job.multiplier_out, job.multiplier_out + job.count * job.splits, 0.0f);
        return;  // no neuron is open, so there are no slopes
    }
    const int64_t each = (job.count + threads_ - 1) / threads_;
    const int64_t size = std::min(block_rows_, std::max<int64_t>(each, 1));
    const int64_t blocks = (job.count + size - 1) / size;
    for (int thread = 0; thread < threads_; ++thread) block(thread, job.splits + 1);
    const auto end = Time::now() + span(seconds);
    parallel_for(blocks, threads_, [&](int thread, int64_t item) {
        const int64_t begin = item * size;
        network_.isa_.bound_domain_rows(root_, blocks_->blocks[thread], job, {is_over, &end}, begin,
                                        std::min(size, job.count - begin));
    });
}

template class Domains<float>;
template class Domains<double>;

}  // namespace verifier

// What Domains keeps: the root's scratch, its compact form, and a block of rows for each thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "compact_network.h"
#include "network_storage.h"
#include "route.h"
#include "verifier/domains.h"

namespace verifier {

using Time = std::chrono::steady_clock;

inline bool is_over(const void* end) { return Time::now() > *static_cast<const Time::time_point*>(end); }

inline Time::duration span(double seconds) {
    return std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(std::max(0.0, std::min(seconds, 1e6))));
}

// Where the ascent of a neuron's two rows ended: scales and, in terms of the open neurons, slopes.
template <typename T>
struct Domains<T>::Remembered {
    float scale[2];
    std::vector<uint8_t> slopes[2];
};

template <typename T>
struct Domains<T>::Memory {
    struct Thread {
        std::vector<AlignedArray<T>> values;
        std::vector<T*> stages;
        AlignedArray<T> kept[5], losses, pull;
        AlignedArray<double> doubles[4];
        std::vector<int32_t> numbers, waiting;
        std::vector<SplitEntry<T>> splits;
        std::vector<CutoffEntry<T>> cutoff;
        BlockScratch<T> block{};
    };

    typename Network<T>::Scratch root;
    CompactNetwork<T> compact;
    std::unique_ptr<Route<T>> below_output;
    std::vector<std::vector<T>> previous_lower, previous_upper;
    std::map<std::pair<int, int32_t>, Remembered> remembered;  // of stage, neuron
    std::vector<std::unique_ptr<Thread>> threads;
    int64_t kept_capacity = 0;

    Memory(const Plan<T>& plan, const double* lower, const double* upper) : root(plan), compact(plan, lower, upper) {}

    void add_thread(const Plan<T>& plan, int64_t rows) {
        threads.push_back(std::make_unique<Thread>());
        Thread& mine = *threads.back();
        for (int s = 0; s < plan.count; ++s) mine.values.emplace_back(rows * plan.stages[s].room);
        for (auto& array : mine.values) mine.stages.push_back(array.get());
        mine.losses = AlignedArray<T>(rows);
        mine.pull = AlignedArray<T>(rows);
        for (auto& array : mine.doubles) array = AlignedArray<double>(rows);
        mine.numbers.resize(3 * rows);
        mine.waiting.resize(plan.count);
        BlockScratch<T>& block = mine.block;
        block.block = rows;
        block.values = mine.stages.data();
        block.waiting = mine.waiting.data();
        block.losses = mine.losses.get();
        block.pull = mine.pull.get();
        double** const numbers[] = {&block.offsets, &block.bound, &block.best_bound, &block.limit};
        for (int k = 0; k < 4; ++k) *numbers[k] = mine.doubles[k].get();
        mine.cutoff.resize(rows);
        block.cutoff = mine.cutoff.data();
        block.row = mine.numbers.data();
        block.codes = block.row + rows;
        block.split_count = block.codes + rows;
    }

    // Room for the neurons now kept, and for so many splits of a row.
    void enlarge(int64_t kept, int64_t splits) {
        const bool more = kept > kept_capacity;
        if (more) kept_capacity = kept + kept / 4 + 64;
        for (auto& thread : threads) {
            BlockScratch<T>& block = thread->block;
            if (more || block.seen == nullptr) {
                for (auto& array : thread->kept) array = AlignedArray<T>(block.block * kept_capacity);
                T** const fields[] = {&block.seen, &block.slopes, &block.best, &block.mean, &block.square};
                for (int k = 0; k < 5; ++k) *fields[k] = thread->kept[k].get();
            }
            if (block.most_splits < splits) {
                block.most_splits = splits + 8;
                thread->splits.assign(block.block * block.most_splits, SplitEntry<T>{});
                block.splits = thread->splits.data();
            }
        }
    }
};

}  // namespace verifier

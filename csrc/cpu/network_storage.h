// What a Network owns: packed weights per stage, scratch per thread.
#pragma once

#include <list>

#include <limits>

#include "bundled_map.h"
#include "verifier/network.h"
#include "verifier/thread_pool.h"

namespace verifier {

template <typename T>
struct Network<T>::Storage {
    struct Indices {
        std::vector<int64_t> start;
        std::vector<int32_t> index;
    };
    std::vector<Term<T>> terms;
    std::vector<AlignedArray<T>> arrays;
    std::list<Indices> indices;  // a list: terms point into its elements
    std::list<BundledMap<T>> bundled;
    std::vector<int32_t> order;
    double weights = 0;          // multiply-adds of the stage
    bool inexact = false;        // the cast to T changed a weight or a bias
};

template <typename T>
struct Network<T>::Scratch {
    Workspace<T> work{};
    std::vector<StageState<T>> states;
    std::vector<AlignedArray<T>> arrays;
    std::vector<AlignedArray<int32_t>> lists;
    std::list<AlignedArray<double>> doubles;
    std::list<std::vector<T*>> pointers;
    std::list<std::vector<int>> numbers;
    std::vector<RowScratch<T>> rows;
    std::vector<T*> point_rows, point_grads;
    std::vector<char> point_reached;

    explicit Scratch(const Plan<T>& plan);
    void add_rows(const Plan<T>& plan, int threads);
    void add_points(const Plan<T>& plan);

  private:
    double* wide(int64_t size) {
        doubles.emplace_back(size);
        return doubles.back().get();
    }
    T* array(int64_t size) {
        arrays.emplace_back(size);
        return arrays.back().get();
    }
    int32_t* list(int64_t size) {
        lists.emplace_back(size);
        return lists.back().get();
    }
};

template <typename T>
Network<T>::Scratch::Scratch(const Plan<T>& plan) {
    const FormRows rows(plan.forms, plan.stages[0].size);
    int32_t* every = list(plan.longest_stride);
    for (int64_t i = 0; i < plan.longest_stride; ++i) every[i] = static_cast<int32_t>(i);
    for (int s = 0; s < plan.count; ++s) {
        const int64_t stride = plan.stages[s].stride;
        StageState<T> state{};
        for (T** field : {&state.lower, &state.upper, &state.post_lower, &state.post_upper, &state.slope_lower,
                          &state.offset_lower, &state.slope_upper, &state.offset_upper, &state.weight_magnitude,
                          &state.charge, &state.sum_limit})
            *field = array(stride);
        std::fill(state.sum_limit, state.sum_limit + stride, std::numeric_limits<T>::infinity());
        state.mid = array(rows.mid_rows * stride);
        state.half = array(rows.half_rows * stride);
        state.alive = list(stride);
        std::copy(every, every + plan.stages[s].size, state.alive);
        state.alive_count = plan.stages[s].size;
        states.push_back(state);
    }
    work.stages = states.data();
    work.open = list(plan.longest_stride + 1);
    work.every = every;
    if (plan.sparse) {
        const int64_t wide_rows = (rows.half_rows + kMostLanes) / kMostLanes * kMostLanes;
        work.across = array(plan.longest_stride * wide_rows);
        work.across_out = array(plan.longest_stride * wide_rows);
    }
}

// Row scratch for `threads` threads that share one box.
template <typename T>
void Network<T>::Scratch::add_rows(const Plan<T>& plan, int threads) {
    while (static_cast<int>(rows.size()) < threads) {
        RowScratch<T> one{};
        pointers.emplace_back();
        numbers.emplace_back();
        for (int b = 0; b < plan.buffer_count; ++b) {
            pointers.back().push_back(array(plan.row_block * plan.longest_stride));
            numbers.back().push_back(b);
        }
        one.buffers = pointers.back().data();
        one.free_buffers = numbers.back().data();
        one.free_count = plan.buffer_count;
        numbers.emplace_back(plan.count, -1);
        one.owner = numbers.back().data();
        one.offsets = wide(plan.row_block * kMostLanes);
        one.losses = array(plan.row_block * kMostLanes);
        one.values = wide(plan.row_block);
        one.form = wide(plan.stages[0].stride);
        if (plan.sparse) {
            one.across = array(plan.longest_stride * plan.row_block);
            one.across_out = array(plan.longest_stride * plan.row_block);
        }
        rows.push_back(one);
    }
    work.rows = rows.data();
}

template <typename T>
void Network<T>::Scratch::add_points(const Plan<T>& plan) {
    if (!point_rows.empty()) return;
    for (int s = 0; s < plan.count; ++s) {
        point_rows.push_back(array(kPointBlock * plan.stages[s].room));
        point_grads.push_back(array(kPointBlock * plan.stages[s].room));
    }
    work.point_rows = point_rows.data();
    work.point_grads = point_grads.data();
    point_reached.resize(plan.count);
    work.point_reached = point_reached.data();
}

}  // namespace verifier

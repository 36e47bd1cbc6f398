// CPU launchers: items of a kernel shared out to threads.
#include <algorithm>
#include <vector>

#include "verifier/elements.h"
#include "verifier/row_kernels.h"
#include "verifier/thread_pool.h"

namespace verifier {
namespace {

constexpr int64_t kBlock = 4096;  // elements of one item of an elementwise kernel

int64_t blocks(int64_t count) { return (count + kBlock - 1) / kBlock; }

template <typename T>
void relax_step(const RelaxStep<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    parallel_for(job.boxes * job.rows, static_cast<int>(threads), [&](int, int64_t row) { run.relax_row(job, row); });
}

template <typename T>
void concretise(const Concretise<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    parallel_for(job.boxes * job.rows, static_cast<int>(threads), [&](int, int64_t row) { run.concretise_row(job, row); });
}

template <typename T>
void interval_dense(const IntervalDense<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    const int64_t stride = 3 * ((job.outputs + 15) / 16 * 16);
    std::vector<T> scratch(static_cast<size_t>(std::max<intptr_t>(threads, 1) * stride));
    parallel_for(job.boxes, static_cast<int>(threads),
                 [&](int thread, int64_t box) { run.interval_dense_box(job, box, scratch.data() + thread * stride); });
}

template <typename T>
void interval_conv(const IntervalConv<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    parallel_for(job.boxes * job.out_channels, static_cast<int>(threads),
                 [&](int, int64_t map) { run.interval_conv_map(job, map); });
}

template <typename T>
void enclose_all(const EncloseAll<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    parallel_for(blocks(job.count), static_cast<int>(threads), [&](int, int64_t b) {
        run.enclose_block(job, b * kBlock, std::min(job.count, (b + 1) * kBlock));
    });
}

template <typename T>
void ascend_all(const Ascend<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    parallel_for(job.boxes * job.rows, static_cast<int>(threads), [&](int, int64_t row) { run.ascend_row(job, row); });
}

template <typename T>
void split_scores(const SplitScores<T>& job, intptr_t threads) {
    const auto& run = best_row_kernels<T>();
    parallel_for(job.boxes, static_cast<int>(threads), [&](int, int64_t box) { run.split_scores_box(job, box); });
}

template <typename T>
constexpr Kernels<T> kCpu{relax_step<T>,  concretise<T>, interval_dense<T>, interval_conv<T>,
                          enclose_all<T>, ascend_all<T>, split_scores<T>};

}  // namespace

template <>
const Kernels<float>& kernels_cpu<float>() {
    return kCpu<float>;
}

template <>
const Kernels<double>& kernels_cpu<double>() {
    return kCpu<double>;
}

void clip_boxes_cpu(const ClipBoxes& job, intptr_t threads) {
    parallel_for(job.boxes, static_cast<int>(threads), [&](int, int64_t box) { clip_box(job, box); });
}

}  // namespace verifier

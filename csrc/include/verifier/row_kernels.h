// The CPU kernels of one instruction set, one row, box or block of elements per call; cpu/kernels.cpp
// hands the items out to threads.
#pragma once

#include "verifier/kernels.h"

namespace verifier {

template <typename T>
struct RowKernels {
    void (*relax_row)(const RelaxStep<T>& job, int64_t row);                 // row of B * S
    void (*concretise_row)(const Concretise<T>& job, int64_t row);           // row of B * S
    void (*interval_dense_box)(const IntervalDense<T>& job, int64_t box, T* scratch);  // scratch [3, padded outputs]
    void (*interval_conv_map)(const IntervalConv<T>& job, int64_t map);      // one output channel of one box
    void (*enclose_block)(const EncloseAll<T>& job, int64_t begin, int64_t end);
    void (*ascend_row)(const Ascend<T>& job, int64_t row);                   // row of B * S
    void (*split_scores_box)(const SplitScores<T>& job, int64_t box);
};

template <typename T>
const RowKernels<T>& best_row_kernels();

}  // namespace verifier

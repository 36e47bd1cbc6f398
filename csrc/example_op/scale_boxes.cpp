// CPU launcher: whole boxes to threads, so that the inner loop is plain and the compiler vectorises it.
#include "scale_boxes.h"

#include "verifier/thread_pool.h"

namespace verifier {

template <typename T>
void scale_boxes_cpu(const ScaleBoxes<T>& job, intptr_t threads) {
    parallel_for(job.boxes, static_cast<int>(threads), [&](int, int64_t box) {
        for (int64_t i = box * job.n; i < (box + 1) * job.n; ++i) scale_at(job, i);
    });
}

template void scale_boxes_cpu(const ScaleBoxes<float>&, intptr_t);
template void scale_boxes_cpu(const ScaleBoxes<double>&, intptr_t);

}  // namespace verifier

// CUDA launcher: elements to threads, in the caller's stream; nothing to launch is no launch.
#include "../cuda/launch.cuh"
#include "scale_boxes.h"

namespace verifier {

template <typename T>
void scale_boxes_cuda(const ScaleBoxes<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.n;
    if (count == 0) return;
    over_elements<ScaleBoxes<T>, scale_at<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check(cudaGetLastError(), "scale_boxes");
}

template void scale_boxes_cuda(const ScaleBoxes<float>&, intptr_t);
template void scale_boxes_cuda(const ScaleBoxes<double>&, intptr_t);

}  // namespace verifier

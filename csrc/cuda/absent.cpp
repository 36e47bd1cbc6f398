// Stands in for the CUDA launchers in a build without CUDA.
#include <stdexcept>

#include "verifier/kernels.h"

namespace verifier {

template <>
const Kernels<float>* kernels_cuda<float>() {
    return nullptr;
}

template <>
const Kernels<double>* kernels_cuda<double>() {
    return nullptr;
}

void clip_boxes_cuda(const ClipBoxes&, intptr_t) { throw std::runtime_error("this build has no CUDA kernels"); }

int cuda_device_count() { return 0; }

std::string cuda_device_name(int) { return ""; }

}  // namespace verifier

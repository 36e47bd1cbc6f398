// Stands in for the CUDA launchers in a build without CUDA.
#include <stdexcept>

#include "../example_op/scale_boxes.h"
#include "verifier/box_pass.h"
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

[[noreturn]] static void say_absent() { throw std::runtime_error("this build has no CUDA kernels"); }

void clip_boxes_cuda(const ClipBoxes&, intptr_t) { say_absent(); }

template <typename T>
void scale_boxes_cuda(const ScaleBoxes<T>&, intptr_t) {
    say_absent();
}

template void scale_boxes_cuda(const ScaleBoxes<float>&, intptr_t);
template void scale_boxes_cuda(const ScaleBoxes<double>&, intptr_t);

template <typename T>
void box_pass_cuda(const BoxPass<T>&, intptr_t) {
    say_absent();
}

template void box_pass_cuda(const BoxPass<float>&, intptr_t);
template void box_pass_cuda(const BoxPass<double>&, intptr_t);

int cuda_device_count() { return 0; }

std::string cuda_device_name(int) { return ""; }

}  // namespace verifier

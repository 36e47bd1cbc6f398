// CUDA launcher of the whole-network pass: a team is a block, its memory the block's shared memory.
#include "launch.cuh"
#include "verifier/box_team.h"

namespace verifier {
namespace {

constexpr int kTeam = 128;

struct BlockThreads {
    template <typename Body>
    __device__ void each(int64_t count, Body body) const {
        for (int64_t i = threadIdx.x; i < count; i += kTeam) body(i);
    }
    __device__ void sync() const { __syncthreads(); }
};

template <typename T>
__global__ void __launch_bounds__(kTeam) box_teams(const __grid_constant__ BoxPass<T> job) {
    extern __shared__ double memory[];
    BoxTeam<T, BlockThreads> team(job, reinterpret_cast<char*>(memory), {});
    for (int64_t box = blockIdx.x; box < job.boxes; box += gridDim.x) team.run(box);
}

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("box_pass: ") + cudaGetErrorString(error));
}

}  // namespace

template <typename T>
void box_pass_cuda(const BoxPass<T>& job, intptr_t stream) {
    if (job.boxes == 0) return;
    const int64_t bytes = box_pass_bytes(job);
    int device = 0, most = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (bytes > most)
        throw std::runtime_error("box_pass: one box needs " + std::to_string(bytes) + " bytes of shared memory, this GPU has " +
                                 std::to_string(most) + "; use fewer rows a block");
    check(cudaFuncSetAttribute(box_teams<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    box_teams<T><<<rows_for(job.boxes), kTeam, static_cast<size_t>(bytes), stream_of(stream)>>>(job);
    check_launch("box_pass");
}

template void box_pass_cuda(const BoxPass<float>&, intptr_t);
template void box_pass_cuda(const BoxPass<double>&, intptr_t);

}  // namespace verifier

// CUDA launcher of the whole-network pass: a team is a block, its memory the block's shared memory.
#include "launch.cuh"
#include "verifier/box_team.h"

namespace verifier {
namespace {

constexpr int kTeam = 32 * kWarps;

struct BlockThreads {
    static constexpr int kGroups = kWarps;

    template <typename Body>
    __device__ void each(int count, Body body) const {
        for (int i = threadIdx.x; i < count; i += kTeam) body(i);
    }
    template <typename Body>
    __device__ void tiles(int count, Body body) const {
        const int warp = threadIdx.x / 32;
        for (int tile = warp; tile < count; tile += kWarps) body(tile, warp);
    }
    __device__ int lane() const { return threadIdx.x % 32; }
    __device__ int lanes() const { return 32; }
    template <int kCount, typename Body>
    __device__ void sums(double (&x)[kCount], double (&y)[kCount], Body body) const {
        const double first = warp_sums(x), second = warp_sums(y);
        if (lane() < kCount) body(lane(), first, second);
    }
    template <typename Value>
    __device__ double total(int count, Value value) const {
        double sum[1] = {};
        for (int i = lane(); i < count; i += 32) sum[0] += value(i);
        return warp_sums(sum);
    }
    template <typename Keep>
    __device__ int collect(int count, Keep keep, int32_t* list) const {
        int found = 0;
        for (int begin = 0; begin < count; begin += 32) {
            const int i = begin + lane();
            const bool kept = i < count && keep(i);
            const unsigned all = __ballot_sync(0xffffffffu, kept);
            if (kept) list[found + __popc(all & ((1u << lane()) - 1))] = i;
            found += __popc(all);
        }
        return found;
    }
    __device__ void group_sync() const { __syncwarp(); }
    __device__ void sync() const { __syncthreads(); }
};

template <typename T>
__global__ void __launch_bounds__(kTeam, 6) box_teams(const __grid_constant__ BoxPass<T> job) {
    extern __shared__ float4 memory[];
    BoxTeam<T, BlockThreads> team(job, reinterpret_cast<char*>(memory), {});
    for (int64_t box = blockIdx.x; box < job.boxes; box += gridDim.x) team.run(box);
}

}  // namespace

template <typename T>
void box_pass_cuda(const BoxPass<T>& job, intptr_t stream) {
    if (job.boxes == 0) return;
    const int64_t bytes = BoxSpace<T>(job, kWarps, nullptr).bytes;
    int device = 0, most = 0;
    check(cudaGetDevice(&device), "box_pass");
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "box_pass");
    if (bytes > most)
        throw std::runtime_error("box_pass: one box needs " + std::to_string(bytes) + " bytes of shared memory, this GPU has " +
                                 std::to_string(most));
    const auto memory = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check(cudaFuncSetAttribute(box_teams<T>, memory, static_cast<int>(bytes)), "box_pass");
    box_teams<T><<<rows_for(job.boxes), kTeam, static_cast<size_t>(bytes), stream_of(stream)>>>(job);
    check(cudaGetLastError(), "box_pass");
}

template void box_pass_cuda(const BoxPass<float>&, intptr_t);
template void box_pass_cuda(const BoxPass<double>&, intptr_t);

}  // namespace verifier

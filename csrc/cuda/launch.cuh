// Launch helpers: sizes, error checks, and block-wide sums.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>

namespace verifier {

constexpr int kThreads = 256;

inline cudaStream_t stream_of(intptr_t where) { return reinterpret_cast<cudaStream_t>(where); }

inline void check(cudaError_t error, const char* kernel) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

// Blocks for `count` elements in a grid-stride loop.
inline unsigned blocks_for(int64_t count) {
    return static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 20));
}

// One thread per element, for any body that takes (job, index).
template <typename Job, void (*kBody)(const Job&, int64_t)>
__global__ void over_elements(Job job, int64_t count) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) kBody(job, i);
}

// Blocks that each loop over whole rows.
inline unsigned rows_for(int64_t rows) { return static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20)); }

// Threads for a row of n elements: whole warps, no more than useful.
inline unsigned threads_for(int64_t n) {
    return static_cast<unsigned>(std::min<int64_t>((n + 31) / 32 * 32, kThreads));
}

// Sums over the warp of kCount values a thread, kCount a power of two: each lane's is that of value lane % kCount.
template <int kCount, int kHalf = kCount / 2>
__device__ double warp_sums(double (&x)[kCount]) {
    if constexpr (kHalf > 0) {
        const bool second = threadIdx.x & kHalf;
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {  // half of the values go to the lane that keeps those
            const double given = second ? x[i] : x[i + kHalf], kept = second ? x[i + kHalf] : x[i];
            x[i] = kept + __shfl_xor_sync(0xffffffffu, given, kHalf);
        }
        return warp_sums<kCount, kHalf / 2>(x);
    } else {
        double sum = x[0];
        for (int step = kCount; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        return sum;
    }
}

// Sum of x over the block, in every thread; `scratch` holds one double per warp.
__device__ inline double block_sum(double x, double* scratch) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(0xffffffffu, x, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
    return sum;
}

}  // namespace verifier

// CUDA launchers of the kernels in kernels.h: rows to blocks, elements to threads.
#include "launch.cuh"
#include "verifier/elements.h"

namespace verifier {
namespace {

template <typename T, bool kSplit>
__global__ void relax_rows(RelaxStep<T> job) {
    __shared__ double scratch[32];
    const double chain = relax_gamma<T>(job.n, blockDim.x);
    const T gamma = round_up<T>(chain);
    for (int64_t row = blockIdx.x; row < job.boxes * job.rows; row += gridDim.x) {
        const int64_t box = row / job.rows, at = row * job.n, line = (job.lines_per_row ? row : box) * job.n;
        double total = 0, lost = 0;
        for (int64_t i = threadIdx.x; i < job.n;) {
            T offset = 0, loss = 0;
            for (int64_t k = 0; k < kRelaxChain && i < job.n; ++k, i += blockDim.x) {
                const T push = kSplit ? job.split_sign[box * job.n + i] * job.multiplier[at + i] : T(0);
                job.out[at + i] = relax_element<T>(job.coeffs[at + i], job.slope_lower[line + i], job.offset_lower[line + i],
                                                   job.slope_upper[line + i], job.offset_upper[line + i], job.bias[i], push,
                                                   job.magnitude[box * job.n + i], job.charge[box * job.n + i], gamma,
                                                   offset, loss);
            }
            total += offset;
            lost += loss;
        }
        total = block_sum(total, scratch), lost = block_sum(lost, scratch);
        if (threadIdx.x == 0) {
            job.offset[row] += total;
            job.loss[row] += lost * (1 + 4 * chain) + static_cast<double>(job.n) * 8 * Precision<T>::kTiny;
        }
    }
}

template <typename T>
void relax_step(const RelaxStep<T>& job, intptr_t stream) {
    const int64_t rows = job.boxes * job.rows;
    if (rows == 0 || job.n == 0) return;
    if (job.split_sign) relax_rows<T, true><<<rows_for(rows), threads_for(job.n), 0, stream_of(stream)>>>(job);
    else relax_rows<T, false><<<rows_for(rows), threads_for(job.n), 0, stream_of(stream)>>>(job);
    check_launch("relax_step");
}

// Largest x over the block and the first index that has it.
__device__ double block_most(double x, int64_t index, int64_t& at, double* values, int64_t* indices) {
    for (int step = 16; step > 0; step /= 2) {
        const double other = __shfl_down_sync(0xffffffffu, x, step);
        const int64_t where = __shfl_down_sync(0xffffffffu, index, step);
        if (other > x || (other == x && where < index)) x = other, index = where;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = x, indices[threadIdx.x / 32] = index;
    __syncthreads();
    x = values[0], at = indices[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp)
        if (values[warp] > x || (values[warp] == x && indices[warp] < at)) x = values[warp], at = indices[warp];
    return x;
}

template <typename T>
__global__ void concretise_rows(Concretise<T> job) {
    __shared__ double scratch[32];
    __shared__ int64_t indices[32];
    for (int64_t row = blockIdx.x; row < job.boxes * job.rows; row += gridDim.x) {
        const int64_t box = row / job.rows;
        const T *a = job.coeffs + row * job.n, *center = job.center + box * job.n, *radius = job.radius + box * job.n;
        double sum = 0, size = 0, one = 0, two = 0, most = 0;
        int64_t at = 0;
        for (int64_t i = threadIdx.x; i < job.n; i += blockDim.x) {
            const double x = static_cast<double>(a[i]) * center[i], y = size_of(static_cast<double>(a[i])) * radius[i];
            sum += x, size += size_of(x), one += y, two += y * y;
            if (y > most) most = y, at = i;
        }
        sum = block_sum(sum, scratch);
        size = block_sum(size, scratch);
        one = block_sum(one, scratch);
        two = block_sum(two, scratch);
        most = block_most(most, at, at, scratch, indices);
        const double dual = job.norm == Norm::kTwo ? sqrt(two) : job.norm == Norm::kOne ? most : one;
        const double budget = job.norm == Norm::kBox ? 1.0 : static_cast<double>(job.budget[box]);
        const double gamma = gamma_n(2.0 * static_cast<double>(job.n) + 16, Precision<double>::kUnit);
        if (threadIdx.x == 0)
            job.value[row] = settle(sum - dual * budget + job.offset[row],
                                    job.loss[row] + gamma * (size + dual * budget) + 1e-300 * static_cast<double>(job.n));
        if (job.minimiser == nullptr) continue;
        for (int64_t i = threadIdx.x; i < job.n; i += blockDim.x)
            job.minimiser[row * job.n + i] = minimiser_element(job.norm, a[i], center[i], radius[i], budget, dual, i == at);
    }
}

template <typename T>
void concretise(const Concretise<T>& job, intptr_t stream) {
    const int64_t rows = job.boxes * job.rows;
    if (rows == 0) return;
    concretise_rows<<<rows_for(rows), std::max(32u, threads_for(job.n)), 0, stream_of(stream)>>>(job);
    check_launch("concretise");
}

constexpr int kTile = 16;

// Tiles of boxes x outputs; W and the boxes pass through shared memory once per tile.
template <typename T>
__global__ void dense_tiles(IntervalDense<T> job) {
    __shared__ T low[kTile][kTile], high[kTile][kTile], weight[kTile][kTile + 1];
    const int64_t i = blockIdx.x * kTile + threadIdx.x;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kTile; first < job.boxes; first += static_cast<int64_t>(gridDim.y) * kTile) {
        const int64_t box = first + threadIdx.y;
        AffineSums<T> sums;
        for (int64_t j = 0; j < job.inputs; j += kTile) {
            const int64_t column = j + threadIdx.x, row = j + threadIdx.y;
            const bool inside = box < job.boxes && column < job.inputs;
            __syncthreads();
            low[threadIdx.y][threadIdx.x] = inside ? job.lower[box * job.inputs + column] : T(0);
            high[threadIdx.y][threadIdx.x] = inside ? job.upper[box * job.inputs + column] : T(0);
            weight[threadIdx.y][threadIdx.x] = row < job.inputs && i < job.outputs ? job.weight[row * job.outputs + i] : T(0);
            __syncthreads();
            for (int k = 0; k < kTile; ++k) sums.add(low[threadIdx.y][k], high[threadIdx.y][k], weight[k][threadIdx.x]);
        }
        if (box < job.boxes && i < job.outputs)
            sums.close(job.bias[i], job.bias_magnitude[i], static_cast<double>(job.inputs), job.deployed_gamma, job.tiny,
                       job.out_lower[box * job.outputs + i], job.out_upper[box * job.outputs + i]);
    }
}

template <typename T>
void interval_dense(const IntervalDense<T>& job, intptr_t stream) {
    if (job.boxes == 0 || job.outputs == 0) return;
    const dim3 grid(static_cast<unsigned>((job.outputs + kTile - 1) / kTile),
                    static_cast<unsigned>(std::min<int64_t>((job.boxes + kTile - 1) / kTile, 65535)));
    dense_tiles<<<grid, dim3(kTile, kTile), 0, stream_of(stream)>>>(job);
    check_launch("interval_dense");
}

template <typename T>
void interval_conv(const IntervalConv<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.out_channels * job.out_height * job.out_width;
    if (count == 0) return;
    over_elements<IntervalConv<T>, conv_place<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check_launch("interval_conv");
}

template <typename T>
void enclose_all(const EncloseAll<T>& job, intptr_t stream) {
    if (job.count == 0) return;
    over_elements<EncloseAll<T>, enclose_at<T>><<<blocks_for(job.count), kThreads, 0, stream_of(stream)>>>(job, job.count);
    check_launch("enclose");
}

template <typename T>
void ascend_all(const Ascend<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.rows * job.n;
    if (count == 0) return;
    over_elements<Ascend<T>, ascend_at<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check_launch("ascend");
}

template <typename T>
void split_scores(const SplitScores<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.n;
    if (count == 0) return;
    over_elements<SplitScores<T>, score_at<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check_launch("split_scores");
}

template <typename T>
constexpr Kernels<T> kCuda{relax_step<T>,  concretise<T>, interval_dense<T>, interval_conv<T>,
                           enclose_all<T>, ascend_all<T>, split_scores<T>};

}  // namespace

template <>
const Kernels<float>* kernels_cuda<float>() {
    return &kCuda<float>;
}

template <>
const Kernels<double>* kernels_cuda<double>() {
    return &kCuda<double>;
}

void clip_boxes_cuda(const ClipBoxes& job, intptr_t stream) {
    if (job.boxes == 0) return;
    over_elements<ClipBoxes, clip_box><<<blocks_for(job.boxes), kThreads, 0, stream_of(stream)>>>(job, job.boxes);
    check_launch("clip_boxes");
}

int cuda_device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string cuda_device_name(int device) {
    cudaDeviceProp properties;
    return cudaGetDeviceProperties(&properties, device) == cudaSuccess ? properties.name : "";
}

}  // namespace verifier

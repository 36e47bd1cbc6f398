// CUDA launchers of the kernels in kernels.h: rows to blocks, elements to threads.
#include "launch.cuh"
#include "verifier/elements.h"

namespace verifier {
namespace {

// Neighbouring numbers that one thread reads and writes at once.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
    T at[kWidth];
};

template <int kWidth, typename T>
__device__ Pack<T, kWidth> pack(const T* p) {
    return *reinterpret_cast<const Pack<T, kWidth>*>(p);
}

constexpr int kSharing = 8;             // rows that share one reading of their lines and costs
constexpr int64_t kWarpRow = 1024;      // longest rows that a warp carries alone

// A tile is kRows rows of a box, so that lines and costs are read once for all of them; a warp carries it, or a block.
template <typename T, bool kSplit, int kRows, int kWidth, bool kWarp>
__global__ void __launch_bounds__(kThreads, 2) relax_rows(const __grid_constant__ RelaxStep<T> job) {
    using Packed = Pack<T, kWidth>;
    __shared__ double scratch[kThreads / 32][2 * kRows];
    const double chain = relax_gamma<T>(job.n, kWidth);
    const T gamma = round_up<T>(chain);
    const T* const lines[] = {job.slope_lower, job.offset_lower, job.slope_upper, job.offset_upper};
    const int64_t tiles = (job.rows + kRows - 1) / kRows;
    const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    const unsigned thread = kWarp ? lane : threadIdx.x, threads = kWarp ? 32 : blockDim.x;
    const int64_t begin = kWarp ? int64_t{blockIdx.x} * warps + warp : blockIdx.x;
    const int64_t step = kWarp ? int64_t{gridDim.x} * warps : gridDim.x;
    for (int64_t tile = begin; tile < job.boxes * tiles; tile += step) {
        const int64_t box = tile / tiles, first = box * job.rows + tile % tiles * kRows;
        const int64_t count = smaller<int64_t>(kRows, (box + 1) * job.rows - first), own = box * job.n;
        double sums[2 * kRows] = {};  // offsets, losses
        for (int64_t i = int64_t{thread} * kWidth; i < job.n; i += int64_t{threads} * kWidth) {
            Packed coeffs[kRows], shared[4], bias{}, magnitude{}, charge{}, sign{};
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                coeffs[r] = pack<kWidth>(job.coeffs + (first + smaller<int64_t>(r, count - 1)) * job.n + i);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (!(job.per_row >> k & 1)) shared[k] = pack<kWidth>(lines[k] + own + i);
            if (job.magnitude != nullptr) {
                bias = pack<kWidth>(job.bias + i);
                magnitude = pack<kWidth>(job.magnitude + own + i), charge = pack<kWidth>(job.charge + own + i);
            }
            if (kSplit) sign = pack<kWidth>(job.split_sign + own + i);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (r >= count) continue;
                const int64_t at = (first + r) * job.n + i;
                Packed line[4], out, multiplier{};
#pragma unroll
                for (int k = 0; k < 4; ++k) line[k] = job.per_row >> k & 1 ? pack<kWidth>(lines[k] + at) : shared[k];
                if (kSplit) multiplier = pack<kWidth>(job.multiplier + at);
                T offset = 0, loss = 0;
#pragma unroll
                for (int w = 0; w < kWidth; ++w)
                    out.at[w] = relax_element<T>(coeffs[r].at[w], line[0].at[w], line[1].at[w], line[2].at[w],
                                                 line[3].at[w], bias.at[w], kSplit ? sign.at[w] * multiplier.at[w] : T(0),
                                                 magnitude.at[w], charge.at[w], gamma, offset, loss);
                *reinterpret_cast<Packed*>(job.out + at) = out;
                sums[r] += offset, sums[kRows + r] += loss;
            }
        }
        const double sum = warp_sums(sums);
        double offset = sum, loss = __shfl_sync(0xffffffffu, sum, (lane + kRows) % 32);
        if (!kWarp) {
            __syncthreads();
            if (lane < 2 * kRows) scratch[warp][lane] = sum;
            __syncthreads();
            offset = loss = 0;
            for (unsigned w = 0; w < warps && thread < kRows; ++w)
                offset += scratch[w][thread], loss += scratch[w][kRows + thread];
        }
        if (thread < count) {
            job.offset[first + thread] += offset;
            job.loss[first + thread] += loss * (1 + 4 * chain) + static_cast<double>(job.n) * 8 * Precision<T>::kTiny;
        }
    }
}

template <typename T, bool kSplit, int kRows, int kWidth>
void launch_relax(const RelaxStep<T>& job, intptr_t stream) {
    constexpr int64_t kTogether = kThreads / 32;
    const int64_t tiles = job.boxes * ((job.rows + kRows - 1) / kRows), threads = (job.n + kWidth - 1) / kWidth;
    if (job.n <= kWarpRow)
        relax_rows<T, kSplit, kRows, kWidth, true>
            <<<rows_for((tiles + kTogether - 1) / kTogether), kThreads, 0, stream_of(stream)>>>(job);
    else
        relax_rows<T, kSplit, kRows, kWidth, false><<<rows_for(tiles), threads_for(threads), 0, stream_of(stream)>>>(job);
    check(cudaGetLastError(), "relax_step");
}

// Whether 16 bytes can be read at once anywhere in these arrays, rows of n numbers each.
template <typename T>
bool packs(const RelaxStep<T>& job) {
    const void* const arrays[] = {job.coeffs,    job.slope_lower, job.offset_lower, job.slope_upper, job.offset_upper,
                                  job.magnitude, job.bias,        job.charge,       job.split_sign,  job.multiplier, job.out};
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return job.n % (16 / sizeof(T)) == 0 && std::all_of(std::begin(arrays), std::end(arrays), aligned);
}

template <typename T, bool kSplit, int kRows>
void relax_as_packed(const RelaxStep<T>& job, intptr_t stream) {
    packs(job) ? launch_relax<T, kSplit, kRows, 16 / sizeof(T)>(job, stream) : launch_relax<T, kSplit, kRows, 1>(job, stream);
}

template <typename T>
void relax_step(const RelaxStep<T>& job, intptr_t stream) {
    if (job.boxes * job.rows == 0 || job.n == 0) return;
    if (job.split_sign) job.rows > 2 ? relax_as_packed<T, true, kSharing>(job, stream) : relax_as_packed<T, true, 1>(job, stream);
    else job.rows > 2 ? relax_as_packed<T, false, kSharing>(job, stream) : relax_as_packed<T, false, 1>(job, stream);
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
    check(cudaGetLastError(), "concretise");
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
    check(cudaGetLastError(), "interval_dense");
}

template <typename T>
void interval_conv(const IntervalConv<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.out_channels * job.out_height * job.out_width;
    if (count == 0) return;
    over_elements<IntervalConv<T>, conv_place<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check(cudaGetLastError(), "interval_conv");
}

template <typename T>
void enclose_all(const EncloseAll<T>& job, intptr_t stream) {
    if (job.count == 0) return;
    over_elements<EncloseAll<T>, enclose_at<T>><<<blocks_for(job.count), kThreads, 0, stream_of(stream)>>>(job, job.count);
    check(cudaGetLastError(), "enclose");
}

template <typename T>
void ascend_all(const Ascend<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.rows * job.n;
    if (count == 0) return;
    over_elements<Ascend<T>, ascend_at<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check(cudaGetLastError(), "ascend");
}

template <typename T>
void split_scores(const SplitScores<T>& job, intptr_t stream) {
    const int64_t count = job.boxes * job.n;
    if (count == 0) return;
    over_elements<SplitScores<T>, score_at<T>><<<blocks_for(count), kThreads, 0, stream_of(stream)>>>(job, count);
    check(cudaGetLastError(), "split_scores");
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
    check(cudaGetLastError(), "clip_boxes");
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

// CPU kernels, one item per call. Inner loops run over as many independent lanes as a vector has, so
// that the compiler vectorises the shared scalar formulas without reordering any sum.
#pragma once

#include "vec.h"
#include "verifier/elements.h"
#include "verifier/row_kernels.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
constexpr int kChains = 2 * Lanes<T>::kCount;  // two vectors hide the latency of an addition

template <typename T, int kCount>
static double total_of(const T* lanes) {
    double sum = 0;
    for (int i = 0; i < kCount; ++i) sum += lanes[i];
    return sum;
}

// Calls body(i, lane) for i = 0 .. n - 1, whole groups of lanes first.
template <int kCount, typename Body>
VERIFIER_INLINE void over_lanes(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kCount <= n; i += kCount)
        for (int lane = 0; lane < kCount; ++lane) body(i + lane, lane);
    for (int lane = 0; i + lane < n; ++lane) body(i + lane, lane);
}

template <typename T, bool kSplit>
static void relax_row_with(const RelaxStep<T>& job, int64_t row) {
    constexpr int count = kChains<T>;
    const int64_t n = job.n, box = row / job.rows, line = (job.lines_per_row ? row : box) * n;
    const T* __restrict a = job.coeffs + row * n;
    const T* __restrict slope_lower = job.slope_lower + line;
    const T* __restrict offset_lower = job.offset_lower + line;
    const T* __restrict slope_upper = job.slope_upper + line;
    const T* __restrict offset_upper = job.offset_upper + line;
    const T* __restrict magnitude = job.magnitude + box * n;
    const T* __restrict charge = job.charge + box * n;
    const T* __restrict sign = kSplit ? job.split_sign + box * n : nullptr;
    const T* __restrict multiplier = kSplit ? job.multiplier + row * n : nullptr;
    const T* __restrict bias = job.bias;
    T* __restrict out = job.out + row * n;
    const double chain = chain_gamma<T>(n, count);
    const T gamma = round_up<T>(chain);
    alignas(64) T offset[count] = {}, loss[count] = {};
    over_lanes<count>(n, [&](int64_t i, int lane) __attribute__((always_inline)) {
        const T push = kSplit ? sign[i] * multiplier[i] : T(0);
        out[i] = relax_element<T>(a[i], slope_lower[i], offset_lower[i], slope_upper[i], offset_upper[i], bias[i], push,
                                  magnitude[i], charge[i], gamma, offset[lane], loss[lane]);
    });
    const double lost = total_of<T, count>(loss) * (1 + 4 * chain);
    job.offset[row] += total_of<T, count>(offset);
    job.loss[row] += lost + static_cast<double>(n) * 8 * Precision<T>::kTiny;
}

template <typename T>
static void relax_row(const RelaxStep<T>& job, int64_t row) {
    job.split_sign ? relax_row_with<T, true>(job, row) : relax_row_with<T, false>(job, row);
}

// Dual norm of the scaled coefficients, in double: sum, root of squares, or maximum.
template <typename T>
static double dual_size(const Concretise<T>& job, const T* a, const T* radius, int64_t& at) {
    double sum = 0, squares = 0, most = 0;
    at = 0;
    for (int64_t i = 0; i < job.n; ++i) {
        const double x = std::fabs(static_cast<double>(a[i])) * radius[i];
        sum += x;
        squares += x * x;
        if (x > most) most = x, at = i;
    }
    return job.norm == Norm::kTwo ? std::sqrt(squares) : job.norm == Norm::kOne ? most : sum;
}

template <typename T>
static void write_minimiser(const Concretise<T>& job, int64_t row, double size, int64_t at) {
    const int64_t box = row / job.rows;
    const T *a = job.coeffs + row * job.n, *center = job.center + box * job.n, *radius = job.radius + box * job.n;
    const double budget = job.norm == Norm::kBox ? 1.0 : static_cast<double>(job.budget[box]);
    T* x = job.minimiser + row * job.n;
    for (int64_t i = 0; i < job.n; ++i) x[i] = minimiser_element(job.norm, a[i], center[i], radius[i], budget, size, i == at);
}

template <typename T>
static void concretise_row(const Concretise<T>& job, int64_t row) {
    const int64_t box = row / job.rows;
    const T *a = job.coeffs + row * job.n, *center = job.center + box * job.n, *radius = job.radius + box * job.n;
    double sum = 0, size = 0;
    for (int64_t i = 0; i < job.n; ++i) {
        const double x = static_cast<double>(a[i]) * center[i];
        sum += x;
        size += std::fabs(x);
    }
    int64_t at = 0;
    const double dual = dual_size(job, a, radius, at);
    const double reach = dual * (job.norm == Norm::kBox ? 1.0 : static_cast<double>(job.budget[box]));
    const double gamma = gamma_n(2.0 * static_cast<double>(job.n) + 16, Precision<double>::kUnit);
    job.value[row] = settle(sum - reach + job.offset[row], job.loss[row] + gamma * (size + reach) + 1e-300 * static_cast<double>(job.n));
    if (job.minimiser) write_minimiser(job, row, dual, at);
}

template <typename T>
static void interval_dense_box(const IntervalDense<T>& job, int64_t box, T* scratch) {
    const int64_t m = job.outputs, stride = padded(m);
    T* __restrict center = scratch;
    T* __restrict radius = scratch + stride;
    T* __restrict size = scratch + 2 * stride;
    memset(scratch, 0, 3 * stride * sizeof(T));
    for (int64_t j = 0; j < job.inputs; ++j) {
        const T low = job.lower[box * job.inputs + j], high = job.upper[box * job.inputs + j];
        const T middle = T(0.5) * low + T(0.5) * high, reach = larger(high - middle, middle - low);
        const T most = larger(size_of(low), size_of(high));
        const T* __restrict w = job.weight + j * m;
        for (int64_t i = 0; i < m; ++i) {
            const T wide = size_of(w[i]);
            center[i] += middle * w[i];
            radius[i] += reach * wide;
            size[i] += most * wide;
        }
    }
    for (int64_t i = 0; i < m; ++i) {
        AffineSums<T> sums;
        sums.center = center[i], sums.radius = radius[i], sums.size = size[i];
        sums.close(job.bias[i], job.bias_magnitude[i], static_cast<double>(job.inputs), job.deployed_gamma, job.tiny,
                   job.out_lower[box * m + i], job.out_upper[box * m + i]);
    }
}

template <typename T>
static void interval_conv_map(const IntervalConv<T>& job, int64_t map) {
    const int64_t places = job.out_height * job.out_width;
    for (int64_t place = 0; place < places; ++place) conv_place(job, map * places + place);
}

template <typename T>
static void enclose_block(const EncloseAll<T>& job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) enclose_at(job, i);
}

template <typename T>
static void ascend_row(const Ascend<T>& job, int64_t row) {
    for (int64_t i = row * job.n; i < (row + 1) * job.n; ++i) ascend_at(job, i);
}

template <typename T>
static void split_scores_box(const SplitScores<T>& job, int64_t box) {
    for (int64_t i = box * job.n; i < (box + 1) * job.n; ++i) score_at(job, i);
}

}  // namespace verifier::VERIFIER_ISA

// CPU kernels, one item per call, from the formulas that the GPU shares.
#pragma once

#include "vec.h"
#include "verifier/elements.h"
#include "verifier/row_kernels.h"

namespace verifier::VERIFIER_ISA {

template <typename T>
VERIFIER_INLINE Vec<T> load_any(const T* p) {
    Vec<T> v;
    memcpy(&v, p, sizeof v);
    return v;
}

// Elements [begin, begin + lanes) of a row; the last, shorter block passes through copies padded with zeros.
template <typename T, bool kSplit>
VERIFIER_INLINE Vec<T> relax_block(const RelaxStep<T>& job, int64_t row, int64_t begin, Vec<T> gamma, Vec<T>& offset, Vec<T>& loss) {
    const int64_t n = job.n, box = row / job.rows;
    const int64_t at = row * n + begin, own = box * n + begin, left = n - begin;
    const auto read = [&](const T* p) __attribute__((always_inline)) {
        if (left >= Lanes<T>::kCount) return load_any(p);
        Vec<T> v{};
        memcpy(&v, p, left * sizeof(T));
        return v;
    };
    const auto line = [&](const T* p, int k) __attribute__((always_inline)) {
        return read(p + line_of(job, k, box, row) + begin);
    };
    const Vec<T> push = kSplit ? read(job.split_sign + own) * read(job.multiplier + at) : Vec<T>{}, none{};
    const bool costs = job.magnitude != nullptr;
    return relax_element<T>(read(job.coeffs + at), line(job.slope_lower, 0), line(job.offset_lower, 1),
                            line(job.slope_upper, 2), line(job.offset_upper, 3), costs ? read(job.bias + begin) : none,
                            push, costs ? read(job.magnitude + own) : none, costs ? read(job.charge + own) : none, gamma,
                            offset, loss);
}

template <typename T, bool kSplit>
static void relax_row_with(const RelaxStep<T>& job, int64_t row) {
    constexpr int64_t lanes = Lanes<T>::kCount, chain_length = kRelaxChain * lanes;
    const int64_t n = job.n;
    T* out = job.out + row * n;
    const double chain = relax_gamma<T>(n, smaller(kRelaxChain, (n + lanes - 1) / lanes));
    const Vec<T> gamma = spread<T>(round_up<T>(chain));
    Wide<T> total{}, lost{};
    for (int64_t begin = 0; begin < n; begin += chain_length) {
        const int64_t end = smaller(n, begin + chain_length);
        Vec<T> offset{}, loss{};
        for (int64_t i = begin; i < end; i += lanes) {
            const Vec<T> p = relax_block<T, kSplit>(job, row, i, gamma, offset, loss);
            if (end - i >= lanes) memcpy(out + i, &p, sizeof p);
            else memcpy(out + i, &p, (end - i) * sizeof(T));
        }
        total += __builtin_convertvector(offset, Wide<T>);
        lost += __builtin_convertvector(loss, Wide<T>);
    }
    double sum = 0, losses = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) sum += total[lane], losses += lost[lane];
    job.offset[row] += sum;
    job.loss[row] += losses * (1 + 4 * chain) + static_cast<double>(n) * 8 * Precision<T>::kTiny;
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

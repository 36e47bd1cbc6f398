// Kernel bodies for one output element, called by a CPU loop or by a CUDA thread.
#pragma once

#include "verifier/kernels.h"

namespace verifier {

// Component of a point where a row is least; `size` is the dual norm, `chosen` the largest component.
template <typename T>
VERIFIER_HD T minimiser_element(Norm norm, T a, T center, T radius, double budget, double size, bool chosen) {
    if (a == 0 || (norm == Norm::kOne && !chosen)) return center;
    double share = budget;
    if (norm == Norm::kTwo) share *= size > 0 ? size_of(static_cast<double>(a)) * radius / size : 0.0;
    const double moved = center - (a > 0 ? 1.0 : -1.0) * share * radius;
    return static_cast<T>(moved);
}

// Output `index` of [B, out_channels, out_height, out_width].
template <typename T>
VERIFIER_HD void conv_place(const IntervalConv<T>& job, int64_t index) {
    const int64_t x = index % job.out_width, y = index / job.out_width % job.out_height;
    const int64_t k = index / (job.out_width * job.out_height) % job.out_channels;
    const int64_t box = index / (job.out_width * job.out_height * job.out_channels);
    const int64_t per_group = job.channels / job.groups, first = k / (job.out_channels / job.groups) * per_group;
    AffineSums<T> sums;
    for (int64_t c = 0; c < per_group; ++c)
        for (int64_t i = 0; i < job.kernel_h; ++i) {
            const int64_t row = y * job.stride_h + i * job.dilation_h - job.pad_top;
            if (row < 0 || row >= job.height) continue;
            for (int64_t j = 0; j < job.kernel_w; ++j) {
                const int64_t column = x * job.stride_w + j * job.dilation_w - job.pad_left;
                if (column < 0 || column >= job.width) continue;
                const int64_t at = ((box * job.channels + first + c) * job.height + row) * job.width + column;
                sums.add(job.lower[at], job.upper[at],
                         job.weight[((k * per_group + c) * job.kernel_h + i) * job.kernel_w + j]);
            }
        }
    sums.close(job.bias[k], job.bias_magnitude[k], static_cast<double>(per_group * job.kernel_h * job.kernel_w),
               job.deployed_gamma, job.tiny, job.out_lower[index], job.out_upper[index]);
}

template <typename T>
VERIFIER_HD void enclose_at(const EncloseAll<T>& job, int64_t i) {
    const double free_lower = job.free_lower ? static_cast<double>(job.free_lower[i]) : -1.0;
    const Enclosing<T> line = enclose<T>(job.function, job.lower[i], job.upper[i], job.alpha, job.deviation, free_lower);
    job.slope_lower[i] = line.slope_lower;
    job.offset_lower[i] = line.offset_lower;
    job.slope_upper[i] = line.slope_upper;
    job.offset_upper[i] = line.offset_upper;
    job.out_lower[i] = line.low;
    job.out_upper[i] = line.high;
}

template <typename T>
VERIFIER_HD void ascend_at(const Ascend<T>& job, int64_t i) {
    const int64_t neuron = i / (job.rows * job.n) * job.n + i % job.n;
    const T gradient = job.coeffs ? slope_gradient(job.coeffs[i], job.point[i], job.lower[neuron], job.upper[neuron])
                                  : multiplier_gradient(job.split_sign[neuron], job.point[i]);
    if (job.gradient) job.gradient[i] = gradient;
    job.value[i] = ascend(job.value[i], gradient, job.first[i], job.second[i], job.step, job.low, job.high);
}

template <typename T>
VERIFIER_HD void score_at(const SplitScores<T>& job, int64_t i) {
    const int64_t box = i / job.n, k = i % job.n;
    T best = 0;
    for (int64_t s = 0; s < job.rows; ++s) {
        const T score = split_score(job.coeffs[(box * job.rows + s) * job.n + k], job.lower[i], job.upper[i], job.bias[k]);
        best = larger(score, best);
    }
    job.score[i] = best;
}

// Clips one box to its half-spaces in turn.
VERIFIER_HD void clip_box(const ClipBoxes& job, int64_t box) {
    double *lower = job.lower + box * job.n, *upper = job.upper + box * job.n;
    const double gamma = gamma_n(static_cast<double>(job.n) + 8, Precision<double>::kUnit);
    for (int64_t s = 0; s < job.rows; ++s) {
        const double* a = job.coeffs + (box * job.rows + s) * job.n;
        const double limit = job.limit[box * job.rows + s];
        double least = 0, size = size_of(limit);
        for (int64_t i = 0; i < job.n; ++i) {
            const double x = a[i] == 0 ? 0.0 : a[i] * (a[i] > 0 ? lower[i] : upper[i]);
            least += x;
            size += size_of(x);
        }
        const double slack = limit - least + 2 * gamma * size;
        for (int64_t i = 0; i < job.n; ++i) {
            if (slack < 0) lower[i] = HUGE_VAL, upper[i] = -HUGE_VAL;
            else clip_element(a[i], slack, lower[i], upper[i]);
        }
    }
}

}  // namespace verifier

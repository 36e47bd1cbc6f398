// A chain of small dense layers on many boxes: the job, and the memory that one box needs.
//
// One team of threads bounds one box from start to end (box_team.h), so nothing but the results leaves its memory:
// on a GPU a block with everything in shared memory, on the CPU a single thread, which computes the same. Rows and
// columns go through a layer in tiles, each by one group of the team's threads: a warp, or that single thread.
#pragma once

#include <cstdint>
#include <vector>

#include "verifier/lines.h"  // and functors.h

namespace verifier {

constexpr int kMostLayers = 16;
constexpr int kTile = 4, kColumnTile = 5;  // rows of the backward passes and columns of the forward pass carried together
constexpr int kStep = 4;                   // neurons read at once: what sums run over is padded with zeros to multiples

VERIFIER_HD int stepped(int n) { return (n + kStep - 1) / kStep * kStep; }

// z = W h + b, h = f(z).
template <typename T>
struct DenseLayer {
    int inputs, outputs;
    Function function;
    double alpha, deviation;         // see `enclose`
    const T *weight, *transposed;    // W and W^T, both axes padded to `stepped` with zeros
    const T *bias, *bias_magnitude;  // [outputs]; >= |bias|, terms summed before cancellation
    double row_magnitude;            // largest sum of |W| over a row
    SumError error;                  // the deployed program's rounding, with the two below as in Stage of plan.h
    double tiny, flush;
};

// Lower bounds of S rows over B boxes, with the linear forms that prove them; see BoxBounds in bounds/engine.py.
template <typename T>
struct BoxPass {
    int count;                       // layers
    DenseLayer<T> layers[kMostLayers];
    int64_t boxes, rows;
    bool refine;                     // backward passes for the neurons that the forward pass leaves open
    const double *lower, *upper;     // [B, n]
    const double* spec;              // [S, outputs]
    double *out_lower, *coeffs, *offset, *sensitivity;  // [B, S], [B, S, n], [B, S], [B, n]
};

// Columns of a stage's forms, one number per neuron each. With xi in [-1, 1]^n the box's normalised coordinates,
// mid(xi) - half(xi) <= h <= mid(xi) + half(xi), each side a valid line; mid(n) and half(n) are the constants.
// W carries the first n + 2 columns, |W| the others.
struct FormColumns {
    int n, count;

    VERIFIER_MEMBER explicit FormColumns(int inputs) : n(inputs), count(2 * inputs + 6) {}
    VERIFIER_MEMBER int mid(int c) const { return c; }
    VERIFIER_MEMBER int center() const { return n + 1; }  // of the interval
    VERIFIER_MEMBER int half(int c) const { return n + 2 + c; }
    VERIFIER_MEMBER int radius() const { return 2 * n + 3; }
    VERIFIER_MEMBER int most() const { return 2 * n + 4; }    // >= |h|
    VERIFIER_MEMBER int scale() const { return 2 * n + 5; }   // sum of the forms' |coefficients|
    VERIFIER_MEMBER int signed_count() const { return n + 2; }
};

// One team's memory, cut from one piece: what its threads share, and two buffers of rows for each of its groups.
template <typename T>
struct BoxSpace {
    double *h_sum, *tiny;            // [count + 1]: sum of |h| of each layer's inputs; underflow of one row so far
    T* rows;                         // [groups, 2, kTile, width]
    T* forms;                        // [2, columns, width]
    T *lower, *upper;                // [neurons] of z, layer after layer
    T *slope_lower, *offset_lower, *slope_upper, *offset_upper, *reach, *charge;  // [neurons]
    int32_t* open;                   // [width]
    int32_t *open_count, *failed;
    int width;                       // of the widest layer, the inputs included, padded
    int64_t bytes;

    // `size(k)` is the number of inputs, then of each layer's neurons.
    template <typename Size>
    VERIFIER_MEMBER BoxSpace(int count, Size size, int groups, char* memory) : width(0) {
        int neurons = 0;
        for (int k = 0; k <= count; ++k) {
            width = larger(width, stepped(size(k)));
            neurons += k ? size(k) : 0;
        }
        const FormColumns columns(size(0));
        char* next = memory;
        take(h_sum, stepped(count + 1), next);
        take(tiny, stepped(count + 1), next);
        take(rows, groups * 2 * kTile * width, next);
        take(forms, 2 * columns.count * width, next);
        take(lower, neurons, next), take(upper, neurons, next);
        take(slope_lower, neurons, next), take(offset_lower, neurons, next);
        take(slope_upper, neurons, next), take(offset_upper, neurons, next);
        take(reach, neurons, next), take(charge, neurons, next);
        take(open, width, next);
        take(open_count, 1, next);
        take(failed, 1, next);
        bytes = (next - memory + 15) / 16 * 16;
    }

    VERIFIER_MEMBER BoxSpace(const BoxPass<T>& job, int groups, char* memory)
        : BoxSpace(job.count, [&](int k) { return k ? job.layers[k - 1].outputs : job.layers[0].inputs; }, groups, memory) {}

  private:
    template <typename Number>
    VERIFIER_MEMBER static void take(Number*& array, int64_t count, char*& next) {
        array = reinterpret_cast<Number*>(next);
        next += count * static_cast<int64_t>(sizeof(Number));
    }
};

// The launchers: `threads` of the CPU; a stream. A box that does not fit into a block's memory is an error.
template <typename T>
void box_pass_cpu(const BoxPass<T>& job, intptr_t threads);
template <typename T>
void box_pass_cuda(const BoxPass<T>& job, intptr_t stream);

// Groups of a team on a GPU, and the bytes of its memory for these numbers of inputs and of each layer's neurons.
constexpr int kWarps = 4;
template <typename T>
int64_t box_pass_bytes(const std::vector<int64_t>& sizes) {
    const int count = static_cast<int>(sizes.size()) - 1;
    return BoxSpace<T>(count, [&](int k) { return sizes[static_cast<size_t>(k)]; }, kWarps, nullptr).bytes;
}

}  // namespace verifier

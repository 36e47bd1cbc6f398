// A chain of small dense layers on many boxes: the job, and the memory that one box needs.
//
// One team of threads bounds one box from start to end (box_team.h), so nothing but the results leaves its memory:
// on a GPU a block with everything in shared memory, on the CPU a single thread, which computes the same.
#pragma once

#include <cstdint>

#include "verifier/lines.h"  // and functors.h

namespace verifier {

constexpr int kMostLayers = 16;

// z = W h + b, h = f(z).
template <typename T>
struct DenseLayer {
    int64_t inputs, outputs;
    Function function;
    double alpha, deviation;         // see `enclose`
    const T *weight, *transposed;    // W [outputs, inputs]; [inputs, outputs]
    const T *bias, *bias_magnitude;  // [outputs]; >= |bias|, terms summed before cancellation
    double row_magnitude;            // largest sum of |W| over a row
    double deployed_unit, products, fused, tiny, flush;  // the deployed program's rounding, as in Stage of plan.h
};

// Lower bounds of S rows over B boxes, with the linear forms that prove them; see BoxBounds in bounds/engine.py.
template <typename T>
struct BoxPass {
    int count;                       // layers
    DenseLayer<T> layers[kMostLayers];
    int64_t boxes, rows, row_block;  // row_block: rows carried back together
    bool refine;                     // backward passes for the neurons that the forward pass leaves open
    const double *lower, *upper;     // [B, n]
    const double* spec;              // [S, outputs]
    double *out_lower, *coeffs, *offset, *sensitivity;  // [B, S], [B, S, n], [B, S], [B, n]
};

// Columns of a stage's forms, one number per neuron each. With xi in [-1, 1]^n the box's normalised coordinates,
// mid(xi) - half(xi) <= h <= mid(xi) + half(xi), each side a valid line; the last of each is the constant.
struct FormColumns {
    int64_t n, count;

    VERIFIER_MEMBER explicit FormColumns(int64_t inputs) : n(inputs), count(2 * inputs + 6) {}
    VERIFIER_MEMBER int64_t mid(int64_t c) const { return c; }
    VERIFIER_MEMBER int64_t half(int64_t c) const { return n + 1 + c; }
    VERIFIER_MEMBER int64_t center() const { return 2 * n + 2; }  // of the interval
    VERIFIER_MEMBER int64_t radius() const { return 2 * n + 3; }
    VERIFIER_MEMBER int64_t most() const { return 2 * n + 4; }    // >= |h|
    VERIFIER_MEMBER int64_t scale() const { return 2 * n + 5; }   // sum of the forms' |coefficients|
    // Whether W carries it, and not |W|.
    VERIFIER_MEMBER bool is_signed(int64_t column) const { return column <= n || column == center(); }
};

// One team's memory, cut from one piece.
template <typename T>
struct BoxSpace {
    double *row_offset, *row_loss;   // [row_block]
    double *h_sum, *tiny;            // [count + 1]: sum of |h| of each layer's inputs; underflow of one row so far
    T* forms[2];                     // [columns, width]
    T *lower, *upper;                // [neurons] of z, layer after layer
    T *slope_lower, *offset_lower, *slope_upper, *offset_upper, *reach, *charge;  // [neurons]
    T* rows[2];                      // [row_block, stride]
    int32_t* open;                   // [width]
    int32_t *open_count, *failed;
    int64_t width, stride, bytes;

    VERIFIER_MEMBER BoxSpace(const BoxPass<T>& job, char* memory) : width(job.layers[0].inputs) {
        int64_t neurons = 0;
        for (int k = 0; k < job.count; ++k) {
            neurons += job.layers[k].outputs;
            width = larger(width, job.layers[k].outputs);
        }
        stride = width | 1;  // odd: neighbouring rows in different banks
        const FormColumns columns(job.layers[0].inputs);
        char* next = memory;
        take(row_offset, job.row_block, next);
        take(row_loss, job.row_block, next);
        take(h_sum, job.count + 1, next);
        take(tiny, job.count + 1, next);
        for (T*& array : forms) take(array, columns.count * width, next);
        T** const of_neurons[] = {&lower,       &upper,        &slope_lower, &offset_lower,
                                  &slope_upper, &offset_upper, &reach,       &charge};
        for (T** array : of_neurons) take(*array, neurons, next);
        for (T*& array : rows) take(array, job.row_block * stride, next);
        take(open, width, next);
        take(open_count, 1, next);
        take(failed, 1, next);
        bytes = (next - memory + 7) / 8 * 8;
    }

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

// Bytes of one team's memory.
template <typename T>
int64_t box_pass_bytes(const BoxPass<T>& job) {
    return BoxSpace<T>(job, nullptr).bytes;
}

}  // namespace verifier

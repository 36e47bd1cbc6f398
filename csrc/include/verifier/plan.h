// A network as the CPU engine sees it: stages z = sum_t W_t h_source(t) + b, h = f(z), in evaluation order.
// Plain pointers only: the same structures are read by code compiled for different instruction sets,
// which must not instantiate standard library templates.
#pragma once

#include <cstdint>

namespace verifier {

enum class MapKind : int { kDense, kDiagonal, kSparse };
enum class Activation : int { kIdentity, kRelu, kLeakyRelu, kSigmoid, kTanh };

// Piecewise linear with a kink at 0, so that a split makes it linear; S-shaped.
static constexpr bool bends(Activation f) { return f == Activation::kRelu || f == Activation::kLeakyRelu; }
static constexpr bool curves(Activation f) { return f == Activation::kSigmoid || f == Activation::kTanh; }

// Leading dimension of every row of features: whole cache lines, zero padded.
inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// A sparse matrix by row: start [rows + 1], then column and value of each nonzero.
template <typename T>
struct Nonzeros {
    const int64_t* start;
    const int32_t* index;
    const T* values;
};

constexpr int kBundle = 4;

// A linear map by bundles: up to kBundle outputs that read the same inputs, whose weights lie side by side. All channels
// of a convolution at one place are such a bundle, and so are the outputs of a dense layer, so one kernel serves both.
// Bundles that read the same inputs share the list of them, those with the same weights, as a filter has at every place,
// the weights.
template <typename T>
struct Bundles {
    int64_t count;
    const int64_t *start, *length;  // [count] where a bundle's inputs begin in `index`, and how many they are
    const int32_t* index;   // inputs
    const int64_t* first;   // [count] where a bundle's weights begin, times kBundle, in `values`
    const int32_t* output;  // [count, kBundle], -1 where there are fewer
    const T* values;        // [.., kBundle]
};

// One linear map from a source stage's h [cols] to this stage's z [rows].
template <typename T>
struct Term {
    int source;
    MapKind kind;
    int64_t rows, cols;
    const T* backward;           // kDense: W packed in column panels, [rows] x [cols]
    const T* forward;            // kDense: W^T packed in column panels, [cols] x [rows]
    const T* values;             // kDense: W [rows, cols]; kDiagonal: [rows]
    Nonzeros<T> by_row, by_column;  // kSparse: W and its transpose
    Bundles<T> at_points, back_from_points;  // W and its transpose for points; made when they are first asked for
    int64_t column_terms;        // most nonzeros in a column of W: length of the sums of A W
};

template <typename T>
struct Stage {
    int64_t size, stride;         // N and its padded length
    Activation activation;
    T alpha;                      // slope below zero: 0 for kRelu, [0, 1] for kLeakyRelu
    double activation_error;      // deployed f against f: <= activation_error |z| below zero (relu family), or absolute
    const Term<T>* terms;
    int term_count;
    const int32_t* order;         // [size] neurons as they lie at points and in compact networks
    int64_t room;                 // neurons from one plane of points to the next
    const T* bias;                // [stride]
    const T* bias_magnitude;      // [stride], >= |bias|: terms summed before cancellation
    double row_terms;             // most nonzeros in a row of W: length of the sums of W h
    double row_magnitude;         // largest sum of |W| over a row
    double deployed_unit;         // the deployed program's unit round-off, 0 for bounds in real arithmetic; see SumError
    double products;              // most products behind one z
    double fused_roundings;       // of each product, by operations fused into W
    double deployed_tiny;         // absolute part of its error: deployed_tiny + flush sum |h|
    double flush;                 // absolute error of a weight or an operand: underflow, flushed or not
    double cast_error;            // relative error of the stored weights and bias (0 when T holds them exactly)
    bool refine;                  // a backward pass can improve on the forward bounds
};

constexpr int64_t kOffsetChunk = 8;  // neurons whose parts of an offset are summed in T, then added in double

template <typename T>
struct Plan {
    const Stage<T>* stages;       // stages[0] is the input, stages[count - 1] the output
    int count;
    bool forms;                   // propagate linear forms in the inputs forwards
    int last_hidden;              // last stage with an activation, or -1
    int64_t row_block;            // rows of one backward pass
    int64_t longest_stride;
    double loss_factor;           // makes up for the rounding of sums of losses
    double wide_terms;            // additions in double behind one offset, in roundings of T
    bool sparse;                  // some map is sparse
    int buffer_count;             // row buffers that can be in use at once
};

}  // namespace verifier

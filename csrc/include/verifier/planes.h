// Ascent over planes above neurons, for verifier/tighten/plane_ascent.py, which says what is computed.
// Estimates in float with sums in double: a bound is made of the parameters found, elsewhere.
#pragma once

#include <cstdint>

namespace verifier {

constexpr int64_t kPlaneStep = 16;  // terms of a neuron are filled up to a multiple with column 0, weight 0

// Neurons y = f(z) = max(flat z, steep z), z = weight . x[source] + [low, high], as rows of at most `width` terms.
struct PlaneLayer {
    int64_t count, width;
    const int32_t* source;     // [K, width] columns
    const float* weight;       // [K, width]
    const int32_t* used;       // [K] terms in use, a multiple of kPlaneStep
    const int32_t *pre, *post;  // [K] columns of z and y
    const float *low, *high, *flat, *steep;  // [K]
};

// Columns defined as own = weight . x[source] + [low, high], in CSR, which nothing bends.
struct PlaneOutputs {
    int64_t count;
    const int32_t* own;    // [M]
    const int64_t* start;  // [M + 1]
    const int32_t* source;
    const double* weight;
    const double *low, *high;  // [M]
};

// A subdomain: bounds of columns, sides of neurons (-1 open), parameters to start from, replaced by those found.
struct PlaneJob {
    const double *low, *high;  // [C]
    const int8_t* side;        // [all K]
    float *slope, *chord, *split;  // [all K]
    float* plane;              // [sum of K width]
    double* rows;              // [S] weights
    double bound;              // out
    double* point;             // [C] out: mean of the minimisers
    float* pull;               // [all K] out: of the last pass
};

// What the ascent does, see plane_ascent.py.
struct PlaneRule {
    int64_t steps, window;
    double rate, decay, old_first, old_second, soft, newest, least_gain;
};

struct PlaneNet {
    int64_t columns, neurons, terms, layer_count, row_count;
    const PlaneLayer* layers;
    PlaneOutputs outputs;
    const double* costs;   // [S, C]
    const double* limits;  // [S]
};

// The kernel of an instruction set, and the bytes of its scratch, aligned to 64.
struct PlaneKernel {
    void (*climb)(const PlaneNet& net, const PlaneRule& rule, PlaneJob& job, void* scratch);
    int64_t (*bytes)(const PlaneNet& net, const PlaneRule& rule);
};
const PlaneKernel& best_plane_kernel();

}  // namespace verifier

// A network cut down to what can still matter on one box, for many rows of coefficients at a time.
//
// Neurons whose h is identically 0 on the box are left out, the others numbered anew within their stage.
// Plain pointers only, as in plan.h; CompactNetwork (csrc/cpu/compact_network.h) owns the memory.
#pragma once

#include <cstdint>

#include "verifier/plan.h"

namespace verifier {

template <typename T>
struct CompactTerm {
    int source;
    double column_terms;         // length of the sums of A W
    Bundles<T> backward, forward;  // outputs are the source's neurons; this stage's neurons
    bool diagonal;                 // every bundle reads one input at most
};

template <typename T>
struct CompactStage {
    int64_t size;             // neurons left
    const int32_t* feature;   // [size] their numbers in the stage
    const int32_t* position;  // [stage size] the inverse, -1 for neurons left out
    const T *slope_lower, *offset_lower, *slope_upper, *offset_upper, *bias, *charge;  // [size], as in StageState
    const int32_t* kept;      // [size] number, in the whole network, of a neuron whose two lines differ in slope, or -1
    const CompactTerm<T>* terms;
    int term_count;
    double row_gamma;
    bool linear;              // no activation
};

// A Euclidean ball that cuts the box, around a point of it.
template <typename T>
struct Ball {
    const T* center;            // [inputs], exact
    const T *below, *above;     // [inputs] how far the box goes from the center, rounded up
    double radius;
};

template <typename T>
struct CompactNet {
    const Plan<T>* plan;
    const CompactStage<T>* stages;
    int64_t kept_count;
    const T* free;            // [kept_count] 1 where the lower slope may be chosen, else 0
    const T* least;           // [kept_count] the smallest slope that may be chosen
    const T *start;           // [kept_count] the default lower slope
    const T *low, *high;      // [inputs] the box, nearest values: for gradients only
    const Ball<T>* ball;      // null where the box is the whole domain
};

// The part of a map's backward bundles that a block of rows passes through.
struct RouteTerm {
    int64_t count;
    const int64_t* start;     // [count + 1] into `index` and `position`
    const int32_t* index;     // inputs of each bundle that can be nonzero
    const int32_t* position;  // their place in the map's `values`
    const int32_t* first;     // [count] place of a bundle's first weight where the others follow it, else -1
    const int32_t* output;    // [count, kBundle]
    int64_t forward_count;
    const int32_t* forward;   // numbers of the forward bundles needed for a gradient
};

// Neurons of a stage that a block of rows can reach.
struct RouteStage {
    const int32_t* straight;  // exactly h = z
    int64_t straight_count;
    const int32_t* bent;      // the others
    int64_t bent_count;
    const RouteTerm* terms;   // as the stage's
    int writers;              // maps that carry rows here
    const char* reached;      // [size of the compact stage] whether a neuron is in one of the lists
};

}  // namespace verifier

// Per-thread scratch of the CPU engine: bounds, lines and linear forms of every stage for one box.
#pragma once

#include <cstdint>

#include "verifier/plan.h"
#include "verifier/rounding.h"

namespace verifier {

constexpr int64_t kPointBlock = 64;  // points evaluated together by one thread, at most: the planes of a block times lanes
constexpr int64_t kMostLanes = 16;   // lanes of the widest vector

// State of one stage while one box is bounded; arrays of length `stride` unless said otherwise.
// Every bound encloses the real value and every value the deployed program can compute.
template <typename T>
struct StageState {
    T *lower, *upper;                  // of z
    T *post_lower, *post_upper;        // of h = f(z)
    T *slope_lower, *offset_lower;     // slope_lower z + offset_lower <= h
    T *slope_upper, *offset_upper;     // h <= slope_upper z + offset_upper
    T* weight_magnitude;               // >= sum_t |W_t| hmax, the scale of every rounding term
    T* sum_limit;                      // known limit of the rounding of the deployed sums, +inf for none
    T* charge;                         // a row with coefficients p on z loses <= |p| . charge here
    T* mid;                            // forms, see `FormRows`
    T* half;
    int32_t* alive;                    // neurons whose h is not identically 0
    int64_t alive_count;
    double post_sum;                   // >= sum of |h|
    double deployed_tiny;              // absolute part of the deployed program's error in z
    double products;                   // most products behind one z that are not identically 0
    double tiny;                       // underflow allowance of one row, this and all earlier stages
    double row_gamma;                  // error of a row's offset sum, relative to its terms' magnitudes
};

// Rows of `mid` (propagated by W) and `half` (propagated by |W|). With xi in [-1, 1]^n the box's
// normalised coordinates, mid(xi) - half(xi) <= h <= mid(xi) + half(xi), each side a valid line.
struct FormRows {
    int64_t inputs;    // n, or 0 when no forms are propagated
    int64_t constant;  // row of the constant coefficient (-1 without forms)
    int64_t interval;  // row of the interval's centre (mid) and radius (half)
    int64_t magnitude; // half only: hmax >= |h|
    int64_t scale;     // half only: sum of |coefficients|, the scale of the forms' rounding
    int64_t mid_rows, half_rows;

    VERIFIER_MEMBER FormRows(bool forms, int64_t n)
        : inputs(forms ? n : 0), constant(forms ? n : -1), interval(forms ? n + 1 : 0), magnitude(interval + 1),
          scale(interval + 2), mid_rows(interval + 1), half_rows(interval + (forms ? 3 : 2)) {}
};

// Rows on their way down the network, one block at a time; one of these per thread.
template <typename T>
struct RowScratch {
    T** buffers;           // [buffer_count] of row_block * longest_stride
    int* free_buffers;     // stack of buffer numbers
    int* owner;            // [count] buffer of each stage's rows, or -1
    int free_count;
    double* offsets;       // [row_block * kMostLanes] lanes of the rows' offsets
    T* losses;             // [row_block * kMostLanes] lanes of the rows' rounding losses
    double* values;        // [row_block] concretised rows
    double* form;          // [inputs] coefficients of one row
    T *across, *across_out;  // [longest_stride * row_block] rows as columns, for sparse maps
};

// Hands items of a loop to threads: task(context, thread, item).
typedef void (*Task)(void* context, int thread, int64_t item);
typedef void (*Share)(int64_t items, int threads, Task task, void* context);

// Time given to a call; read by code that must not use the standard library.
struct Clock {
    bool (*expired)(const void* end);
    const void* end;
    VERIFIER_MEMBER bool over() const { return expired != nullptr && expired(end); }
};

template <typename T>
struct Workspace {
    StageState<T>* stages;
    RowScratch<T>* rows;   // [row_threads]
    int row_threads;       // threads that share the row blocks of one box
    Share share;
    T *across, *across_out;  // as in RowScratch, for the forward pass
    int32_t* open;         // [longest stage] neurons left unstable
    const int32_t* every;  // 0, 1, 2, ... up to the longest stage
    T** point_rows;        // [count] of kPointBlock * room: h at points, in planes
    T** point_grads;       // [count] of kPointBlock * room: gradients
    char* point_reached;   // [count] whether gradients have come back to a stage
};

// Lower bounds of one box; see BoxBounds in verifier/bounds/engine.py. Null `coeffs` skips the forms.
struct BoxResult {
    double* lower;        // [rows]
    double* coeffs;       // [rows, n]
    double* offset;       // [rows]
    double* sensitivity;  // [n]
};

struct BoxQuery {
    const double* lower;  // [n]
    const double* upper;  // [n]
    const double* rows;   // [row_count, n_out]
    int64_t row_count;
    bool refine;          // backward passes for the neurons that the forward pass left unstable
};

// See domains.h.
template <typename T>
struct DomainRoot;
template <typename T>
struct BlockScratch;
struct NeuronJob;
struct RowJob;
struct RouteStage;

// Entry points of one instruction set, chosen once at run time.
template <typename T>
struct Isa {
    const char* name;
    int64_t lanes, planes;  // of a vector; vectors of rows that bundles take at once
    int64_t (*packed_size)(int64_t k, int64_t n);
    void (*pack)(const T* source, int64_t k, int64_t n, int64_t row_step, int64_t column_step, T* out);
    void (*bound_box)(const Plan<T>& plan, Workspace<T>& work, const BoxQuery& query, const BoxResult& result);
    void (*evaluate)(const Plan<T>& plan, const T* points, int64_t count, T* const* kept, T* out);
    void (*pull_back)(const Plan<T>& plan, Workspace<T>& work, const T* weights, int64_t count, int64_t each,
                      int64_t first, int64_t planes, T* const* kept, T* out);
    // Domains: one stage of the root after the other, then rows along a route.
    bool (*enter_root)(const Plan<T>& plan, Workspace<T>& work, const double* lower, const double* upper);
    bool (*forward_root)(const Plan<T>& plan, Workspace<T>& work, int stage);
    void (*relax_root)(const Plan<T>& plan, Workspace<T>& work, int stage);
    void (*bound_neurons)(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const NeuronJob& job,
                          const Clock& clock);
    void (*bound_forms)(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const BoxQuery& query,
                        const BoxResult& result, int64_t begin, int64_t count);
    double (*row_costs)(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const NeuronJob& job,
                        double* cost, double* reach);
    void (*bound_domain_rows)(const DomainRoot<T>& root, const RouteStage* route, BlockScratch<T>& work, const RowJob& job,
                              const Clock& clock, int64_t begin, int64_t count);
};

}  // namespace verifier

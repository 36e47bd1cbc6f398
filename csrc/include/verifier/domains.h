// Subdomains of one box given by splits of relu neurons: rows with their own slopes and multipliers.
//
// K open neurons (those the root leaves unstable) are numbered over all stages. A row is one row of the
// specification on one subdomain; its lower lines' slopes (alpha) and its splits' multipliers (beta) are
// its own. Any value in range is sound, so slopes are stored in one byte each.
// Sources: Xu et al. 2021, arXiv:2011.13824 (alpha); Wang et al. 2021, arXiv:2103.06624 (beta).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "verifier/compact.h"
#include "verifier/workspace.h"

namespace verifier {

constexpr int kCandidates = 8;  // neurons proposed for the next split of a row

// A split of one row: sign * z >= 0, with its multiplier and Adam's memory of it.
template <typename T>
struct SplitEntry {
    int32_t stage, index;
    T sign, multiplier, best, mean, square;
    T coeff, z;  // coefficient on h, and z at the minimiser, of the pass under way
    T unit;      // typical coefficient there, which the multiplier's steps are measured in
};

// What rows of neurons on the unsafe part of a box learn besides slopes: see NeuronJob.
template <typename T>
struct CutoffEntry {
    T scale, best, mean, square;
    T z;  // the neuron's value at the minimiser of the pass under way
};

// What a block of rows needs on one thread, in planes of one vector of rows each (see simd/bundles.h).
template <typename T>
struct BlockScratch {
    int64_t block, most_splits;
    T** values;    // per stage [planes, neurons, lanes]: coefficients on the way down, h at the minimiser on the way up
    T *seen;       // [planes, kept, lanes]: coefficients of h, before the lines
    T *slopes, *best;  // lower slopes, and the best met
    T *mean, *square;  // Adam's memory
    int* waiting;  // [count] whether rows reach the stage
    double* offsets;   // [block]
    T* losses;         // [block]
    T* pull;           // [block] of the ball, see simd/ball.h
    double *bound, *best_bound, *limit;  // [block]
    int32_t *row, *codes;                // [block] each row's number in the job; neurons of the root
    SplitEntry<T>* splits;               // [block, most_splits]
    int32_t* split_count;                // [block]
    CutoffEntry<T>* cutoff;              // [block]
};

// The root's bounds, and its open neurons; lines of all other neurons hold on every subdomain.
template <typename T>
struct DomainRoot {
    CompactNet<T> net;
    const StageState<T>* states;
    int64_t open_count;
    const int32_t* open_feature;  // [K] neuron within its stage
    const int32_t* open_stage;    // [K]
    const int32_t* open_kept;     // [K] its number among the kept ones
    const double *lower, *upper;  // [n] the box
};

// Neurons of a stage to bound from both sides: on the whole box, or where `row` . y <= limit can still hold.
//
// There, z >= min over the box of z + scale (row . y - limit) for any scale >= 0, which each row optimises.
// Source: Kotha et al. 2023, arXiv:2302.01404.
struct NeuronJob {
    int stage;
    int64_t count;
    const int32_t* neurons;
    int64_t iterations;
    double pace;
    double *lower, *upper;  // [count]
    const double* row;      // [n_out], or null for the whole box
    double limit;
    float* scale;           // [count, 2] to start from; replaced by the best met
    const uint8_t* slopes;  // [K] to start from, or null
    const uint8_t* const* known;  // [count, 2] slopes of their own to start from, null for `slopes`
    uint8_t* found;         // [count, 2, K] the best slopes met
    int64_t splits;         // assumed on every row: open neurons and signs
    const int32_t* split;
    const int8_t* sign;
};

// Rows to bound: starts, and what to write. Null outputs are skipped.
struct RowJob {
    int64_t count, iterations;
    double pace;                // of the first step; 1 far from the optimum
    bool rigorous;
    const double* rows;         // [M, n_out]; null for rows +z and -z of neurons of `stage`
    int stage;
    const int32_t* spec;        // [count] row of `rows`; or 2 i for +z of neuron i, 2 i + 1 for -z
    const double* limit;        // [count] a row above it may stop
    const int32_t* slope_row;   // [count] row of `slopes` and `multiplier`
    const int32_t* domain;      // [count] row of `split` and `sign`
    const uint8_t* slopes;      // [*, K]; null for the root's default
    int64_t splits;             // D
    const int32_t* split;       // [*, D] open neuron, -1 for none
    const int8_t* sign;         // [*, D]
    const float* multiplier;    // [*, D]
    const int32_t* extra;       // [count] one more split, -1 for none; null for none at all
    const int8_t* extra_sign;   // [count]
    double* value;              // [count]
    uint8_t* slopes_out;        // [count, K]
    float* multiplier_out;      // [count, D]
    double* minimiser;          // [count, n]
    int32_t* candidates;        // [count, kCandidates], best first, -1 for none
};

// The unsafe part of a subdomain: row . y <= limit, and sign * z >= 0 for the neurons split. Numbers and slopes are
// those of the open neurons when it is given.
struct CutOff {
    const double* row;  // [n_out]
    double limit;
    std::vector<uint8_t> slopes;  // [K] to start from, or empty
    std::vector<int32_t> split;   // open neurons
    std::vector<int8_t> sign;
};

template <typename T>
class Network;

// Subdomains of one box of a network; the network must outlive it.
template <typename T>
class Domains {
  public:
    // Bounds the box with default slopes; after `seconds` the neurons left keep their intervals. With a `center`, a
    // point of the box in T, the domain is what lies within `radius` of it in the Euclidean norm as well.
    Domains(Network<T>& network, const double* lower, const double* upper, int threads, double seconds,
            const double* center = nullptr, double radius = 0);
    ~Domains();

    // Another box in place of the one given before; all that was found there is forgotten.
    void enter(const double* lower, const double* upper, double seconds);

    // Lower bounds and forms of rows [S, N_out] over the box, S rows in all; see BoxBounds.
    void forms(const double* rows, int64_t row_count, const BoxResult& result);

    // Optimises the slopes of every open neuron's own bounds within about `seconds`; false if there was no time.
    // Stages before `first` keep their bounds.
    bool optimise_root(double seconds, int64_t most_iterations, int first = 0);

    // Takes over the neurons' bounds of the same box from another object.
    void adopt(const Domains& other);

    // Bounds the open neurons where row . y <= limit can still hold, from the last stage to the first, within about
    // `seconds`: those that cost the row most, which together make up `share` of what all of them cost it. The bounds
    // then hold only there: clauses other than those that imply it must not be bounded any more. True where no such
    // point exists.
    bool cut_off(CutOff cut, int64_t iterations, double share, double seconds);

    // Intersects z of neuron i of a stage with rigorous bounds; the root's lines follow at the next `optimise_root`.
    void tighten(int stage, int64_t i, double lower, double upper);

    // Limits how far the deployed sums of a stage [its size] can be off on this box, for all further passes.
    void limit_sums(int stage, const double* most);
    int64_t stage_size(int stage) const { return plan_.stages[stage].size; }
    int stage_count() const { return plan_.count; }

    bool failed() const { return failed_; }
    int64_t inputs() const { return plan_.stages[0].size; }
    int64_t outputs() const { return plan_.stages[plan_.count - 1].size; }
    int64_t open_count() const { return root_.open_count; }
    const std::vector<int32_t>& open_stage() const;
    const std::vector<int32_t>& open_index() const;
    const StageState<T>& state(int stage) const { return root_.states[stage]; }

    // Fewer threads than there is memory for.
    void use_threads(int threads);

    // Bounds rows on the threads given; -inf where nothing can be claimed. After `seconds` no ascent takes another step.
    void bound(const RowJob& job, double seconds);

  private:
    struct Memory;
    struct Remembered;
    void measure_root(double seconds);
    void run_root(int64_t iterations, int first, double seconds);
    void bound_stage(int stage, int64_t iterations, Clock clock);
    void relax_again(int stage);
    std::vector<int32_t> open_neurons(int stage) const;
    std::vector<int32_t> costliest(int stage, const std::vector<double>& cost, double share) const;
    void follow(CutOff& cut, const std::vector<int32_t>& stages, const std::vector<int32_t>& features);
    bool cut_off_stage(int stage, const CutOff& cut, const std::vector<int32_t>& neurons, double reach, int64_t iterations, Clock clock);

    Network<T>& network_;
    const Plan<T>& plan_;
    int threads_;
    bool failed_ = false;
    double plain_seconds_ = 0;
    int64_t block_rows_ = 0;
    std::vector<double> lower_, upper_;
    std::unique_ptr<Memory> memory_;
    DomainRoot<T> root_{};
};

}  // namespace verifier

// Owns a network's stages, their packed weights and per-thread scratch; the CPU engine's front door.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "verifier/losses.h"
#include "verifier/workspace.h"

namespace verifier {

// The best instruction set this machine runs, for float or double.
template <typename T>
const Isa<T>& best_isa();

// Names of the instruction sets compiled in, best first.
std::vector<std::string> compiled_isas();

template <typename T>
class AlignedArray {
  public:
    explicit AlignedArray(int64_t size = 0);
    ~AlignedArray();
    AlignedArray(AlignedArray&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
    AlignedArray& operator=(AlignedArray&& other) noexcept;
    T* get() const { return data_; }
    int64_t size() const { return size_; }

  private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

// A linear map as given: `values` are W [rows, cols] row-major, its diagonal, or its nonzeros by row.
struct MapSpec {
    int source;
    MapKind kind;
    int64_t rows, cols;
    std::vector<double> values;
    std::vector<int64_t> row_start;
    std::vector<int32_t> columns;
};

struct StageSpec {
    int64_t size = 0;
    Activation activation = Activation::kIdentity;
    double alpha = 0;
    double activation_error = 0;
    std::vector<double> bias, bias_magnitude;
    double deployed_unit = 0, products = 0, fused_roundings = 0, deployed_tiny = 0, flush = 0;
    std::vector<MapSpec> maps;
};

// h of every stage at a batch of points, kept so that gradients there need no second forward pass.
template <typename T>
struct Trace {
    int64_t count = 0;
    std::vector<AlignedArray<T>> rows;  // a stage each, in planes of points (csrc/cpu/simd/points.h)

    Trace() = default;
    Trace(Trace&&) = default;
    Trace& operator=(Trace&&) = default;
};

// Points [count, N_in] that attacks move, and what they ask there; see slopes_of.
template <typename T>
struct Climb {
    int64_t count;
    Loss loss;
    const T* points;
    const int64_t *label, *target;  // [count]; null `target`: away from the labels
    T *outputs, *value;             // [count, N_out], [count]
    T* gradient;                    // [count, N_in], 0 where it is not finite
};

// Projected sign ascent of points in boxes: each stops where its goal is reached, or after `steps` steps.
template <typename T>
struct Ascent {
    int64_t count, steps;
    Loss loss;
    const int64_t *label, *target, *aim;  // [count]; the goal, and the target of the loss; null for none
    const T *lower, *upper;               // [count, N_in]: the boxes
    const T *length, *share;              // [count], [steps]: a point's step is its length times the step's share
    T* points;                            // [count, N_in], where they are, in the boxes
    int64_t* taken;                       // [count] steps taken to the goal, -1 where it was not reached
};

template <typename T>
class Network {
  public:
    explicit Network(int64_t inputs);
    ~Network();

    // Appends a stage and returns its number; stage 0 is the input.
    // Throws std::invalid_argument where sizes do not fit or a source is named twice.
    int add_stage(const StageSpec& spec);

    // Fixes the network: the last stage is the output. `forms` overrides the cost estimate when >= 0.
    void finish(int forms = -1);

    int64_t inputs() const { return stages_.front().size; }
    int64_t outputs() const { return stages_.back().size; }
    bool uses_forms() const { return plan_.forms; }
    bool sparse() const { return plan_.sparse; }  // some map is kept by its nonzeros
    double weights() const { return forward_cost(); }

    // Lower bounds of `rows` [S, N_out] over boxes [B, N_in], see BoxBounds. `coeffs` may be null.
    // Threads share the boxes, or where there are few the rows of one box.
    void bound_boxes(const double* lower, const double* upper, int64_t boxes, const double* rows, int64_t row_count,
                     bool refine, int threads, const BoxResult& result);
    void evaluate(const T* points, int64_t count, int threads, T* out);

    // Outputs, a loss of each point's outputs, and its gradient in the point; at least two outputs.
    void climb(const Climb<T>& job, int threads);
    void ascend(const Ascent<T>& job, int threads);

    // Outputs and a trace, then gradients of weights [count * each, N_out], `each` rows in turn at one point.
    Trace<T> record(const T* points, int64_t count, int threads, T* out);
    bool fits(const Trace<T>& trace) const;  // whether a trace has the sizes of this network's stages
    void pull_back(const Trace<T>& trace, const T* weights, int64_t each, int threads, T* out);

  private:
    template <typename>
    friend class Domains;
    struct Storage;
    struct Scratch;

    void check_map(const MapSpec& map, const StageSpec& stage) const;
    Nonzeros<T> transpose(const Nonzeros<T>& matrix, int64_t rows, int64_t cols, Storage& storage);
    void store_map(const MapSpec& map, Stage<T>& stage, Storage& storage);
    void choose_refined();
    void lay_out();
    double forward_cost() const;
    double backward_cost() const;
    int count_buffers() const;
    Scratch& scratch(int thread, bool points, int row_threads = 1);
    template <typename Work>
    void over_planes(int64_t planes, int threads, Work work);
    void bundle_maps(bool backward);
    void evaluate_into(const Trace<T>* trace, const T* points, int64_t count, int threads, T* out);
    int64_t planes_of(int64_t points) const;
    std::vector<T*> rows_from(const Trace<T>& trace, int64_t first) const;

    const Isa<T>& isa_;
    std::vector<Stage<T>> stages_;
    std::vector<std::unique_ptr<Storage>> storage_;
    std::vector<std::unique_ptr<Scratch>> scratch_;
    std::vector<bool> nonlinear_ancestor_;
    std::vector<int> depth_;
    std::mutex busy_;
    bool bundled_ = false, bundled_back_ = false;
    Plan<T> plan_{};
};

}  // namespace verifier

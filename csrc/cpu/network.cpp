#include "verifier/network.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <set>
#include <stdexcept>

#include "network_storage.h"
#include "neuron_order.h"

namespace verifier {

namespace {
constexpr double kMostFormBytes = 256e6;  // of the forms that are carried forwards
constexpr double kWorthSharing = 5e4;  // weights from which waking a thread for a part of one box pays
}

template <typename T>
AlignedArray<T>::AlignedArray(int64_t size) : size_(size) {
    if (size == 0) return;
    const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_), 0, bytes);
}

template <typename T>
AlignedArray<T>::~AlignedArray() {
    std::free(data_);
}

template <typename T>
AlignedArray<T>& AlignedArray<T>::operator=(AlignedArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

template class AlignedArray<float>;
template class AlignedArray<double>;
template class AlignedArray<int32_t>;

template <typename T>
Network<T>::Network(int64_t inputs) : isa_(best_isa<T>()) {
    if (inputs < 1) throw std::invalid_argument("network: expected at least one input");
    Stage<T> input{};
    input.size = inputs;
    input.stride = padded(inputs);
    stages_.push_back(input);
    storage_.push_back(std::make_unique<Storage>());
    nonlinear_ancestor_.push_back(false);
    depth_.push_back(0);
}

template <typename T>
Network<T>::~Network() = default;

template <typename T>
void Network<T>::check_map(const MapSpec& map, const StageSpec& stage) const {
    const auto fail = [](const std::string& what) { throw std::invalid_argument("linear map: " + what); };
    if (map.source < 0 || map.source >= static_cast<int>(stages_.size())) fail("its source stage does not exist yet");
    if (map.rows != stage.size) fail("rows differ from the stage's size");
    if (map.cols != stages_[map.source].size) fail("columns differ from the source stage's size");
    const auto count = static_cast<int64_t>(map.values.size());
    if (map.kind == MapKind::kDense && count != map.rows * map.cols) fail("a dense map needs rows x columns values");
    if (map.kind == MapKind::kDiagonal && (count != map.rows || map.rows != map.cols)) fail("a diagonal map must be square");
    if (map.kind != MapKind::kSparse) return;
    if (static_cast<int64_t>(map.row_start.size()) != map.rows + 1 || map.row_start.front() != 0 ||
        map.row_start.back() != count || static_cast<int64_t>(map.columns.size()) != count)
        fail("row_start, columns and values do not describe a sparse matrix");
    for (int64_t i = 0; i < map.rows; ++i)
        if (map.row_start[i] > map.row_start[i + 1]) fail("row_start must not fall");
    for (int32_t column : map.columns)
        if (column < 0 || column >= map.cols) fail("a column index is out of range");
}

// Casts the weights to T, packs them, and records what the rounding terms need to know about them.
template <typename T>
void Network<T>::store_map(const MapSpec& map, Stage<T>& stage, Storage& storage) {
    const auto count = static_cast<int64_t>(map.values.size());
    AlignedArray<T> values(count);
    std::vector<double> row_size(map.rows, 0.0);
    std::vector<int64_t> row_terms(map.rows, 0), column_terms(map.cols, 0);
    int64_t row = 0;
    for (int64_t k = 0; k < count; ++k) {
        values.get()[k] = static_cast<T>(map.values[k]);
        if (static_cast<double>(values.get()[k]) != map.values[k]) storage.inexact = true;
        int64_t column = k;
        if (map.kind == MapKind::kDense) row = k / map.cols, column = k % map.cols;
        if (map.kind == MapKind::kDiagonal) row = k;
        if (map.kind == MapKind::kSparse) {
            while (k >= map.row_start[row + 1]) ++row;
            column = map.columns[k];
        }
        row_size[row] += std::fabs(map.values[k]);
        ++row_terms[row];
        ++column_terms[column];
    }
    Term<T> term{};
    term.source = map.source;
    term.kind = map.kind;
    term.rows = map.rows;
    term.cols = map.cols;
    term.column_terms = *std::max_element(column_terms.begin(), column_terms.end());
    stage.row_terms += static_cast<double>(*std::max_element(row_terms.begin(), row_terms.end()));
    stage.row_magnitude += 1.01 * *std::max_element(row_size.begin(), row_size.end());
    storage.weights += static_cast<double>(count);
    if (map.kind == MapKind::kDense) {
        AlignedArray<T> backward(isa_.packed_size(map.rows, map.cols)), forward(isa_.packed_size(map.cols, map.rows));
        isa_.pack(values.get(), map.rows, map.cols, map.cols, 1, backward.get());
        isa_.pack(values.get(), map.cols, map.rows, 1, map.cols, forward.get());
        term.backward = backward.get();
        term.forward = forward.get();
        term.values = values.get();
        storage.arrays.push_back(std::move(values));
        storage.arrays.push_back(std::move(backward));
        storage.arrays.push_back(std::move(forward));
    } else if (map.kind == MapKind::kDiagonal) {
        term.values = values.get();
        storage.arrays.push_back(std::move(values));
    } else {
        plan_.sparse = true;
        storage.indices.push_back({map.row_start, map.columns});
        term.by_row = {storage.indices.back().start.data(), storage.indices.back().index.data(), values.get()};
        term.by_column = transpose(term.by_row, map.rows, map.cols, storage);
        storage.arrays.push_back(std::move(values));
    }
    storage.terms.push_back(term);
}

template <typename T>
Nonzeros<T> Network<T>::transpose(const Nonzeros<T>& matrix, int64_t rows, int64_t cols, Storage& storage) {
    const int64_t count = matrix.start[rows];
    typename Storage::Indices indices{std::vector<int64_t>(cols + 1, 0), std::vector<int32_t>(count)};
    for (int64_t k = 0; k < count; ++k) ++indices.start[matrix.index[k] + 1];
    for (int64_t j = 0; j < cols; ++j) indices.start[j + 1] += indices.start[j];
    std::vector<int64_t> next(indices.start.begin(), indices.start.end() - 1);
    AlignedArray<T> values(count);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = matrix.start[i]; k < matrix.start[i + 1]; ++k) {
            const int64_t to = next[matrix.index[k]]++;
            indices.index[to] = static_cast<int32_t>(i);
            values.get()[to] = matrix.values[k];
        }
    storage.indices.push_back(std::move(indices));
    storage.arrays.push_back(std::move(values));
    return {storage.indices.back().start.data(), storage.indices.back().index.data(), storage.arrays.back().get()};
}

template <typename T>
int Network<T>::add_stage(const StageSpec& spec) {
    if (spec.size < 1) throw std::invalid_argument("stage: expected at least one neuron");
    if (static_cast<int64_t>(spec.bias.size()) != spec.size || spec.bias_magnitude.size() != spec.bias.size())
        throw std::invalid_argument("stage: bias and bias_magnitude need one number per neuron");
    if (!(spec.alpha >= 0 && spec.alpha <= 1)) throw std::invalid_argument("stage: alpha must be in [0, 1]");
    std::set<int> sources;
    for (const MapSpec& map : spec.maps) {
        check_map(map, spec);
        if (!sources.insert(map.source).second) throw std::invalid_argument("stage: a source is named twice");
    }
    auto storage = std::make_unique<Storage>();
    Stage<T> stage{};
    stage.size = spec.size;
    stage.stride = padded(spec.size);
    stage.activation = spec.activation;
    stage.alpha = static_cast<T>(spec.alpha);
    stage.activation_error = spec.activation_error + std::fabs(spec.alpha - static_cast<double>(stage.alpha));
    bool nonlinear = false;
    int depth = 0;
    for (const MapSpec& map : spec.maps) {
        store_map(map, stage, *storage);
        nonlinear = nonlinear || nonlinear_ancestor_[map.source];
        depth = std::max(depth, depth_[map.source] + 1);
    }
    AlignedArray<T> bias(stage.stride), size(stage.stride);
    for (int64_t i = 0; i < spec.size; ++i) {
        bias.get()[i] = static_cast<T>(spec.bias[i]);
        size.get()[i] = round_up<T>(std::max(std::fabs(spec.bias[i]), spec.bias_magnitude[i]));
        if (static_cast<double>(bias.get()[i]) != spec.bias[i]) storage->inexact = true;
    }
    stage.bias = bias.get();
    stage.bias_magnitude = size.get();
    storage->arrays.push_back(std::move(bias));
    storage->arrays.push_back(std::move(size));
    stage.terms = storage->terms.data();
    stage.term_count = static_cast<int>(storage->terms.size());
    stage.deployed_unit = spec.deployed_unit;
    stage.products = spec.products;
    stage.fused_roundings = spec.fused_roundings;
    stage.deployed_tiny = spec.deployed_tiny;
    stage.flush = spec.flush;
    if (storage->inexact) {
        stage.cast_error = Precision<T>::kUnit * (1 + 1e-6);
        stage.deployed_tiny += Precision<T>::kTiny;
        stage.flush += Precision<T>::kTiny;
    }
    stage.refine = nonlinear || depth > 1;
    stages_.push_back(stage);
    storage_.push_back(std::move(storage));
    depth_.push_back(depth);
    nonlinear_ancestor_.push_back(nonlinear || spec.activation != Activation::kIdentity);
    return static_cast<int>(stages_.size()) - 1;
}

// Multiply-adds of the forward pass per carried row.
template <typename T>
double Network<T>::forward_cost() const {
    double cost = 0;
    for (const auto& storage : storage_) cost += storage->weights;
    return cost;
}

// Multiply-adds of the backward passes if a third of the hidden neurons stay unstable.
template <typename T>
double Network<T>::backward_cost() const {
    double below = 0, cost = 0;
    for (size_t s = 1; s < stages_.size(); ++s) {
        if (stages_[s].activation != Activation::kIdentity) cost += 2.0 / 3.0 * static_cast<double>(stages_[s].size) * below;
        below += storage_[s]->weights;
    }
    return cost;
}

// Row buffers in use at once, by playing through the sweeps from every stage.
template <typename T>
int Network<T>::count_buffers() const {
    size_t most = 1;
    for (int top = 1; top < plan_.count; ++top) {
        std::set<int> waiting{top};
        for (int s = top; s >= 1; --s) {
            if (waiting.count(s) == 0) continue;
            for (int t = 0; t < stages_[s].term_count; ++t) waiting.insert(stages_[s].terms[t].source);
            most = std::max(most, waiting.size());
            waiting.erase(s);
        }
    }
    return static_cast<int>(most);
}

template <typename T>
void Network<T>::finish(int forms) {
    if (stages_.size() < 2) throw std::invalid_argument("network: expected at least one stage after the input");
    plan_.stages = stages_.data();
    plan_.count = static_cast<int>(stages_.size());
    plan_.last_hidden = -1;
    double sums = 0;
    for (int s = 0; s < plan_.count; ++s) {
        plan_.longest_stride = std::max(plan_.longest_stride, stages_[s].stride);
        if (stages_[s].activation != Activation::kIdentity) plan_.last_hidden = s;
        sums += 2.0 * static_cast<double>(stages_[s].stride);
    }
    plan_.wide_terms = (sums / kOffsetChunk + 4 * plan_.count) * 0x1p-53 / Precision<T>::kUnit;
    plan_.loss_factor = 1 + 4 * sums * Precision<T>::kUnit + 1e-6;
    const double carried = 2.0 * static_cast<double>(inputs()) + 2;
    const bool small = carried * 0.5 * sums * sizeof(T) <= kMostFormBytes;
    plan_.forms = forms >= 0 ? forms > 0
                              : small && (carried * forward_cost() < 0.5 * backward_cost() || plan_.last_hidden < 0);
    plan_.row_block = plan_.longest_stride <= 128 ? 48 : 64;
    plan_.buffer_count = count_buffers();
    choose_refined();
    lay_out();
}

template <typename T>
void Network<T>::lay_out() {
    for (size_t s = 0; s < stages_.size(); ++s) {
        storage_[s]->order = neuron_order(stages_[s], stages_);
        // What comes out is read in its own order.
        if (s + 1 == stages_.size()) std::sort(storage_[s]->order.begin(), storage_[s]->order.end());
        stages_[s].order = storage_[s]->order.data();
        stages_[s].room = plane_room(stages_[s].size, isa_.lanes * static_cast<int64_t>(sizeof(T)));
    }
}

// A backward pass can improve a stage unless the forward pass is exact there.
template <typename T>
void Network<T>::choose_refined() {
    for (size_t s = 1; s < stages_.size(); ++s) {
        bool hidden_before = false;
        for (int t = 0; t < stages_[s].term_count; ++t) hidden_before |= nonlinear_ancestor_[stages_[s].terms[t].source];
        const bool exact = !hidden_before && (plan_.forms || depth_[s] <= 1);
        stages_[s].refine = stages_[s].activation != Activation::kIdentity && !exact;
    }
}

template <typename T>
typename Network<T>::Scratch& Network<T>::scratch(int thread, bool points, int row_threads) {
    while (static_cast<int>(scratch_.size()) <= thread) scratch_.push_back(nullptr);
    if (!scratch_[thread]) scratch_[thread] = std::make_unique<Scratch>(plan_);
    Scratch& found = *scratch_[thread];
    if (points) found.add_points(plan_);
    found.add_rows(plan_, row_threads);
    found.work.row_threads = row_threads;
    found.work.share = [](int64_t items, int threads, Task task, void* context) {
        parallel_for(items, threads, [&](int number, int64_t item) { task(context, number, item); });
    };
    return found;
}

template <typename T>
void Network<T>::bound_boxes(const double* lower, const double* upper, int64_t boxes, const double* rows,
                             int64_t row_count, bool refine, int threads, const BoxResult& result) {
    std::lock_guard<std::mutex> guard(busy_);
    const int64_t n = inputs();
    const bool share_rows = boxes < threads && forward_cost() > kWorthSharing;
    const int box_threads = share_rows ? 1 : static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, boxes)));
    for (int thread = 0; thread < box_threads; ++thread) scratch(thread, false, share_rows ? threads : 1);
    parallel_for(boxes, box_threads, [&](int thread, int64_t b) {
        const BoxQuery query{lower + b * n, upper + b * n, rows, row_count, refine};
        const BoxResult one{result.lower + b * row_count,
                            result.coeffs ? result.coeffs + b * row_count * n : nullptr,
                            result.coeffs ? result.offset + b * row_count : nullptr, result.sensitivity + b * n};
        isa_.bound_box(plan_, scratch_[thread]->work, query, one);
    });
}

template class Network<float>;
template class Network<double>;

}  // namespace verifier

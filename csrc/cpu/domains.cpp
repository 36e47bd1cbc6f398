#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>

#include "domain_memory.h"

namespace verifier {

namespace {

// Rows of a block, so that two stages of it stay in the second-level cache where that is possible.
constexpr int64_t kMostRows = 64, kFewestRows = 32, kWideStage = 3000;

// Number of the first source neuron that neuron i of a stage reads: neighbours read the same ones.
template <typename T>
int32_t first_source(const Stage<T>& stage, int32_t i) {
    if (stage.term_count == 0) return 0;
    const Term<T>& term = stage.terms[0];
    if (term.kind == MapKind::kDiagonal) return i;
    if (term.kind == MapKind::kDense || term.by_row.start[i] == term.by_row.start[i + 1]) return 0;
    return term.by_row.index[term.by_row.start[i]];
}

// Neurons of each stage, among those left, that the listed neurons of stage `index` read.
template <typename T>
std::vector<std::vector<int32_t>> sources_of(const CompactNet<T>& net, int index, const std::vector<int32_t>& neurons) {
    std::vector<std::vector<int32_t>> starts(index);
    const Stage<T>& stage = net.plan->stages[index];
    for (int t = 0; t < stage.term_count; ++t) {
        const Term<T>& term = stage.terms[t];
        const CompactStage<T>& source = net.stages[term.source];
        std::vector<int32_t>& list = starts[term.source];
        if (term.kind == MapKind::kDense) {
            for (int64_t k = 0; k < source.size; ++k) list.push_back(static_cast<int32_t>(k));
            continue;
        }
        const auto add = [&](int32_t i) {
            if (source.position[i] >= 0) list.push_back(source.position[i]);
        };
        for (int32_t i : neurons) {
            if (term.kind == MapKind::kDiagonal) add(i);
            else
                for (int64_t k = term.by_row.start[i]; k < term.by_row.start[i + 1]; ++k) add(term.by_row.index[k]);
        }
    }
    return starts;
}

}  // namespace

template <typename T>
Domains<T>::Domains(Network<T>& network, const double* lower, const double* upper, int threads, double seconds,
                    const double* center, double radius)
    : network_(network), plan_(network.plan_), threads_(std::max(1, threads)),
      lower_(lower, lower + network.inputs()), upper_(upper, upper + network.inputs()),
      memory_(std::make_unique<Memory>(plan_, lower, upper)) {
    int64_t widest = 0;
    for (int s = 0; s < plan_.count; ++s) widest = std::max(widest, plan_.stages[s].size);
    block_rows_ = widest > kWideStage ? kFewestRows : kMostRows;
    for (int thread = 0; thread < threads_; ++thread) memory_->add_thread(plan_, block_rows_);
    if (center) memory_->compact.cut(lower, upper, center, radius);
    measure_root(seconds);
}

template <typename T>
void Domains<T>::measure_root(double seconds) {
    const std::clock_t begin = std::clock();
    run_root(0, 0, seconds);
    // Of the processor, so that other processes do not count; the threads share the work.
    plain_seconds_ = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC / threads_;
}

template <typename T>
Domains<T>::~Domains() = default;

template <typename T>
void Domains<T>::use_threads(int threads) {
    threads_ = std::clamp(threads, 1, static_cast<int>(memory_->threads.size()));
}

template <typename T>
void Domains<T>::enter(const double* lower, const double* upper, double seconds) {
    lower_.assign(lower, lower + inputs());
    upper_.assign(upper, upper + inputs());
    memory_->previous_lower.clear();
    memory_->previous_upper.clear();
    memory_->remembered.clear();
    memory_->compact.enter(lower, upper);
    for (int s = 1; s < plan_.count; ++s) {
        T* limits = memory_->root.work.stages[s].sum_limit;
        std::fill(limits, limits + plan_.stages[s].size, std::numeric_limits<T>::infinity());
    }
    measure_root(seconds);
}

template <typename T>
void Domains<T>::forms(const double* rows, int64_t row_count, const BoxResult& result) {
    const BoxQuery query{lower_.data(), upper_.data(), rows, row_count, true};
    std::fill(result.sensitivity, result.sensitivity + inputs(), 0.0);
    if (failed_) {
        std::fill(result.lower, result.lower + row_count, -HUGE_VAL);
        std::fill(result.offset, result.offset + row_count, -HUGE_VAL);
        std::fill(result.coeffs, result.coeffs + row_count * inputs(), 0.0);
        return;
    }
    parallel_for((row_count + block_rows_ - 1) / block_rows_, threads_, [&](int thread, int64_t item) {
        const int64_t begin = item * block_rows_;
        network_.isa_.bound_forms(root_, memory_->below_output->stages(), memory_->threads[thread]->block, query, result, begin,
                                  std::min(block_rows_, row_count - begin));
    });
    for (int64_t s = 0; s < row_count; ++s)
        for (int64_t i = 0; i < inputs(); ++i) result.sensitivity[i] += std::fabs(result.coeffs[s * inputs() + i]);
}

template <typename T>
const std::vector<int32_t>& Domains<T>::open_stage() const {
    return memory_->compact.open_stage();
}

template <typename T>
const std::vector<int32_t>& Domains<T>::open_index() const {
    return memory_->compact.open_feature();
}

// Bounds, lines and charges of every stage for the box, each stage compact once it is bounded.
template <typename T>
void Domains<T>::run_root(int64_t iterations, int first, double seconds) {
    Memory& mine = *memory_;
    Workspace<T>& work = mine.root.work;
    const Isa<T>& isa = network_.isa_;
    const bool again = !mine.previous_lower.empty();
    const auto end = Time::now() + span(seconds);
    const Clock clock{is_over, &end};
    mine.compact.clear();
    bool good = isa.enter_root(plan_, work, lower_.data(), upper_.data());
    for (int s = 1; s < plan_.count && good; ++s) {
        good = isa.forward_root(plan_, work, s);
        if (!good) break;
        StageState<T>& state = work.stages[s];
        const Stage<T>& stage = plan_.stages[s];
        for (int64_t i = 0; again && i < stage.size; ++i) {
            state.lower[i] = std::max(state.lower[i], mine.previous_lower[s][i]);
            state.upper[i] = std::min(state.upper[i], mine.previous_upper[s][i]);
        }
        // The forward pass knows the box alone, so with a ball no stage is exact.
        const bool refine = stage.refine || (mine.compact.is_cut() && stage.activation != Activation::kIdentity);
        if (refine && !again) bound_stage(s, 0, clock);
        if (refine && iterations > 0 && s >= first) bound_stage(s, iterations, clock);
        isa.relax_root(plan_, work, s);
        mine.compact.add_stage(state);
    }
    failed_ = !good;
    if (failed_) mine.compact.clear();
    const CompactNetwork<T>& compact = mine.compact;
    root_ = {compact.net(), work.stages, static_cast<int64_t>(compact.open_stage().size()), compact.open_feature().data(),
             compact.open_stage().data(), compact.open_kept().data(), lower_.data(), upper_.data()};
    if (failed_) return;
    mine.enlarge(compact.kept_count(), 1);
    std::vector<std::vector<int32_t>> starts(plan_.count);
    for (int64_t i = 0; i < root_.net.stages[plan_.count - 1].size; ++i) starts.back().push_back(static_cast<int32_t>(i));
    mine.below_output = std::make_unique<Route<T>>(root_.net, starts);
    mine.previous_lower.resize(plan_.count);
    mine.previous_upper.resize(plan_.count);
    for (int s = 1; s < plan_.count; ++s) {
        const StageState<T>& state = work.stages[s];
        mine.previous_lower[s].assign(state.lower, state.lower + plan_.stages[s].size);
        mine.previous_upper[s].assign(state.upper, state.upper + plan_.stages[s].size);
    }
}

// Neurons of a stage whose function is not linear on what is known of them, neighbours together.
template <typename T>
std::vector<int32_t> Domains<T>::open_neurons(int index) const {
    const Stage<T>& stage = plan_.stages[index];
    const StageState<T>& state = memory_->root.work.stages[index];
    const bool curved = curves(stage.activation);
    std::vector<int32_t> neurons;
    for (int64_t i = 0; i < stage.size; ++i)
        if (curved ? state.lower[i] < state.upper[i] : state.lower[i] < 0 && state.upper[i] > 0)
            neurons.push_back(static_cast<int32_t>(i));
    std::stable_sort(neurons.begin(), neurons.end(),
                     [&](int32_t a, int32_t b) { return first_source(stage, a) < first_source(stage, b); });
    return neurons;
}

// Backward bounds of a stage's open neurons; with `iterations`, of those whose split could help, under slopes of
// their own.
template <typename T>
void Domains<T>::bound_stage(int index, int64_t iterations, Clock clock) {
    Memory& mine = *memory_;
    if (curves(plan_.stages[index].activation) && iterations > 0) return;
    StageState<T>& state = mine.root.work.stages[index];
    const std::vector<int32_t> neurons = open_neurons(index);
    mine.enlarge(mine.compact.kept_count(), 1);
    const int64_t count = static_cast<int64_t>(neurons.size());
    const int64_t size = std::max<int64_t>(1, std::min(block_rows_ / 2, (count + threads_ - 1) / threads_));
    DomainRoot<T> root{};
    root.net = mine.compact.net();
    root.states = mine.root.work.stages;
    const T limit = static_cast<T>(Precision<T>::kHuge);
    parallel_for((count + size - 1) / size, threads_, [&](int thread, int64_t item) {
        if (clock.over()) return;
        const std::vector<int32_t> part(neurons.begin() + item * size, neurons.begin() + std::min(count, (item + 1) * size));
        const Route<T> route(root.net, sources_of(root.net, index, part));
        std::vector<double> lower(part.size()), upper(part.size());
        NeuronJob job{};
        job.stage = index, job.count = static_cast<int64_t>(part.size()), job.neurons = part.data(), job.iterations = iterations, job.pace = 1;
        job.lower = lower.data(), job.upper = upper.data();
        network_.isa_.bound_neurons(root, route.stages(), mine.threads[thread]->block, job, clock);
        for (size_t k = 0; k < part.size(); ++k) {
            const T low = round_down<T>(lower[k]), high = round_up<T>(upper[k]);
            T &known_low = state.lower[part[k]], &known_high = state.upper[part[k]];
            if (low > known_low && low <= limit) known_low = low;
            if (high < known_high && high >= -limit) known_high = high;
        }
    });
}

template <typename T>
void Domains<T>::adopt(const Domains& other) {
    // The bounds in effect, without those that wait for the other's next pass: its open neurons keep their numbers.
    Memory& mine = *memory_;
    mine.previous_lower.assign(plan_.count, {});
    mine.previous_upper.assign(plan_.count, {});
    for (int s = 1; s < plan_.count; ++s) {
        const StageState<T>& state = other.root_.states[s];
        mine.previous_lower[s].assign(state.lower, state.lower + plan_.stages[s].size);
        mine.previous_upper[s].assign(state.upper, state.upper + plan_.stages[s].size);
        std::copy(state.sum_limit, state.sum_limit + plan_.stages[s].size, mine.root.work.stages[s].sum_limit);
    }
    mine.remembered = other.memory_->remembered;
    run_root(0, 0, 0);
}

template <typename T>
bool Domains<T>::optimise_root(double seconds, int64_t most_iterations, int first) {
    if (failed_) return false;
    // A step carries rows back and forward again; about 2.5 plain passes.
    const auto affordable = static_cast<int64_t>(std::min(1e6, seconds / std::max(2.5 * plain_seconds_, 1e-9)));
    const int64_t iterations = std::min(most_iterations, affordable);
    run_root(iterations < 3 ? 0 : iterations, first, 2 * seconds);
    return !failed_ && iterations >= 3;
}

template <typename T>
void Domains<T>::tighten(int stage, int64_t i, double lower, double upper) {
    if (failed_) return;
    const T low = round_down<T>(lower), high = round_up<T>(upper);
    T &known_low = memory_->previous_lower[stage][i], &known_high = memory_->previous_upper[stage][i];
    if (low > known_low && low <= known_high) known_low = low;
    if (high < known_high && high >= known_low) known_high = high;
}

template <typename T>
void Domains<T>::limit_sums(int stage, const double* most) {
    T* limits = memory_->root.work.stages[stage].sum_limit;
    for (int64_t i = 0; i < plan_.stages[stage].size; ++i)
        if (most[i] < limits[i]) limits[i] = std::max(round_up<T>(most[i] * (1 + 1e-6)), T(0));
}

template <typename T>
void Domains<T>::bound(const RowJob& job, double seconds) {
    if (job.count == 0) return;
    if (failed_) {
        std::fill(job.value, job.value + job.count, -HUGE_VAL);
        if (job.candidates) std::fill(job.candidates, job.candidates + job.count * kCandidates, -1);
        if (job.minimiser) std::fill(job.minimiser, job.minimiser + job.count * inputs(), 0.0);
        if (job.multiplier_out) std::fill(job.multiplier_out, job.multiplier_out + job.count * job.splits, 0.0f);
        return;  // no neuron is open, so there are no slopes
    }
    Memory& mine = *memory_;
    const int64_t each = (job.count + threads_ - 1) / threads_;
    const int64_t size = std::min(block_rows_, std::max<int64_t>(each, 1));
    mine.enlarge(mine.compact.kept_count(), job.splits + 1);
    const auto end = Time::now() + span(seconds);
    parallel_for((job.count + size - 1) / size, threads_, [&](int thread, int64_t item) {
        const int64_t begin = item * size, count = std::min(size, job.count - begin);
        std::unique_ptr<Route<T>> cone;
        if (job.rows == nullptr) {
            std::vector<int32_t> neurons;
            for (int64_t r = begin; r < begin + count; ++r) neurons.push_back(job.spec[r] / 2);
            std::sort(neurons.begin(), neurons.end());
            neurons.erase(std::unique(neurons.begin(), neurons.end()), neurons.end());
            cone = std::make_unique<Route<T>>(root_.net, sources_of(root_.net, job.stage, neurons));
        }
        const Route<T>& route = cone ? *cone : *mine.below_output;
        network_.isa_.bound_domain_rows(root_, route.stages(), mine.threads[thread]->block, job, {is_over, &end}, begin, count);
    });
}

template class Domains<float>;
template class Domains<double>;

}  // namespace verifier

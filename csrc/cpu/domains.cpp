#include "verifier/domains.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <limits>
#include <map>
#include <memory>

#include "compact_network.h"
#include "network_storage.h"
#include "route.h"

namespace verifier {

namespace {

using Time = std::chrono::steady_clock;

bool is_over(const void* end) { return Time::now() > *static_cast<const Time::time_point*>(end); }

Time::duration span(double seconds) {
    return std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(std::max(0.0, std::min(seconds, 1e6))));
}

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

// Where the ascent of a neuron's two rows ended: scales and, in terms of the open neurons, slopes.
template <typename T>
struct Domains<T>::Remembered {
    float scale[2];
    std::vector<uint8_t> slopes[2];
};

// The root's scratch, its compact form, and a block of rows for each thread.
template <typename T>
struct Domains<T>::Memory {
    struct Thread {
        std::vector<AlignedArray<T>> values;
        std::vector<T*> stages;
        AlignedArray<T> kept[5], losses;
        AlignedArray<double> doubles[4];
        std::vector<int32_t> numbers, waiting;
        std::vector<SplitEntry<T>> splits;
        std::vector<CutoffEntry<T>> cutoff;
        BlockScratch<T> block{};
    };

    typename Network<T>::Scratch root;
    CompactNetwork<T> compact;
    std::unique_ptr<Route<T>> below_output;
    std::vector<std::vector<T>> previous_lower, previous_upper;
    std::map<std::pair<int, int32_t>, Remembered> remembered;  // of stage, neuron
    std::vector<std::unique_ptr<Thread>> threads;
    int64_t kept_capacity = 0;

    Memory(const Plan<T>& plan, const double* lower, const double* upper) : root(plan), compact(plan, lower, upper) {}

    void add_thread(const Plan<T>& plan, int64_t rows) {
        threads.push_back(std::make_unique<Thread>());
        Thread& mine = *threads.back();
        for (int s = 0; s < plan.count; ++s) mine.values.emplace_back(rows * plan.stages[s].size);
        for (auto& array : mine.values) mine.stages.push_back(array.get());
        mine.losses = AlignedArray<T>(rows);
        for (auto& array : mine.doubles) array = AlignedArray<double>(rows);
        mine.numbers.resize(3 * rows);
        mine.waiting.resize(plan.count);
        BlockScratch<T>& block = mine.block;
        block.block = rows;
        block.values = mine.stages.data();
        block.waiting = mine.waiting.data();
        block.losses = mine.losses.get();
        double** const numbers[] = {&block.offsets, &block.bound, &block.best_bound, &block.limit};
        for (int k = 0; k < 4; ++k) *numbers[k] = mine.doubles[k].get();
        mine.cutoff.resize(rows);
        block.cutoff = mine.cutoff.data();
        block.row = mine.numbers.data();
        block.codes = block.row + rows;
        block.split_count = block.codes + rows;
    }

    // Room for the neurons now kept, and for so many splits of a row.
    void enlarge(int64_t kept, int64_t splits) {
        const bool more = kept > kept_capacity;
        if (more) kept_capacity = kept + kept / 4 + 64;
        for (auto& thread : threads) {
            BlockScratch<T>& block = thread->block;
            if (more || block.seen == nullptr) {
                for (auto& array : thread->kept) array = AlignedArray<T>(block.block * kept_capacity);
                T** const fields[] = {&block.seen, &block.slopes, &block.best, &block.mean, &block.square};
                for (int k = 0; k < 5; ++k) *fields[k] = thread->kept[k].get();
            }
            if (block.most_splits < splits) {
                block.most_splits = splits + 8;
                thread->splits.assign(block.block * block.most_splits, SplitEntry<T>{});
                block.splits = thread->splits.data();
            }
        }
    }
};

template <typename T>
Domains<T>::Domains(Network<T>& network, const double* lower, const double* upper, int threads, double seconds)
    : network_(network), plan_(network.plan_), threads_(std::max(1, threads)),
      lower_(lower, lower + network.inputs()), upper_(upper, upper + network.inputs()),
      memory_(std::make_unique<Memory>(plan_, lower, upper)) {
    int64_t widest = 0;
    for (int s = 0; s < plan_.count; ++s) widest = std::max(widest, plan_.stages[s].size);
    block_rows_ = widest > kWideStage ? kFewestRows : kMostRows;
    for (int thread = 0; thread < threads_; ++thread) memory_->add_thread(plan_, block_rows_);
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
        if (stage.refine && !again) bound_stage(s, 0, clock);
        if (stage.refine && iterations > 0 && s >= first) bound_stage(s, iterations, clock);
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

// Bounds listed neurons of a stage; true where two bounds of a neuron contradict each other.
template <typename T>
bool Domains<T>::cut_off_stage(int index, const CutOff& cut, const std::vector<int32_t>& neurons, double reach, int64_t iterations,
                               Clock clock) {
    Memory& mine = *memory_;
    const int64_t count = static_cast<int64_t>(neurons.size());
    const int64_t size = std::max<int64_t>(1, std::min(block_rows_ / 2, (count + threads_ - 1) / threads_));
    std::vector<double> lower(count, -HUGE_VAL), upper(count, HUGE_VAL);
    std::vector<float> scale(2 * count);
    std::vector<const uint8_t*> known(2 * count, nullptr);
    std::vector<uint8_t> found(2 * count * open_count());
    mine.enlarge(mine.compact.kept_count(), static_cast<int64_t>(cut.split.size()) + 1);
    std::vector<T>&known_lower = mine.previous_lower[index], &known_upper = mine.previous_upper[index];
    for (int64_t k = 0; k < count; ++k) {
        const auto before = mine.remembered.find({index, neurons[k]});
        for (int side = 0; side < 2; ++side) {
            scale[2 * k + side] = static_cast<float>((known_upper[neurons[k]] - known_lower[neurons[k]]) / std::max(reach, 1e-9));
            if (before == mine.remembered.end()) continue;
            scale[2 * k + side] = before->second.scale[side];
            known[2 * k + side] = before->second.slopes[side].data();
        }
    }
    parallel_for((count + size - 1) / size, threads_, [&](int thread, int64_t item) {
        if (clock.over()) return;
        const int64_t begin = item * size, part = std::min(size, count - begin);
        const NeuronJob job{index, part, neurons.data() + begin, iterations, 1, lower.data() + begin, upper.data() + begin,
                            cut.row, cut.limit, scale.data() + 2 * begin, cut.slopes.empty() ? nullptr : cut.slopes.data(),
                            known.data() + 2 * begin, found.data() + 2 * begin * open_count(),
                            static_cast<int64_t>(cut.split.size()), cut.split.data(), cut.sign.data()};
        network_.isa_.bound_neurons(root_, mine.below_output->stages(), mine.threads[thread]->block, job, clock);
    });
    bool empty = false;
    for (int64_t k = 0; k < count; ++k) {
        empty = empty || lower[k] > known_upper[neurons[k]] || upper[k] < known_lower[neurons[k]] || lower[k] > upper[k];
        tighten(index, neurons[k], lower[k], upper[k]);
        if (lower[k] == -HUGE_VAL) continue;  // no time was left for it
        Remembered& mine_now = mine.remembered[{index, neurons[k]}];
        for (int side = 0; side < 2; ++side) {
            const uint8_t* slopes = found.data() + (2 * k + side) * open_count();
            mine_now.scale[side] = scale[2 * k + side];
            mine_now.slopes[side].assign(slopes, slopes + open_count());
        }
    }
    return empty;
}

// Lines of a stage from tighter bounds of its neurons, in place: those that became stable keep their numbers. Valid
// without forms, which would be carried through the lines twice.
template <typename T>
void Domains<T>::relax_again(int index) {
    StageState<T>& state = memory_->root.work.stages[index];
    for (int64_t i = 0; i < plan_.stages[index].size; ++i) {
        state.lower[i] = std::max(state.lower[i], memory_->previous_lower[index][i]);
        state.upper[i] = std::min(state.upper[i], memory_->previous_upper[index][i]);
    }
    network_.isa_.relax_root(plan_, memory_->root.work, index);
    memory_->compact.relax(index, state);
}

// Slopes and splits that follow their neurons while others become stable.
template <typename T>
void Domains<T>::follow(CutOff& cut, const std::vector<int32_t>& stages, const std::vector<int32_t>& features) {
    std::map<std::pair<int32_t, int32_t>, int32_t> now;
    for (size_t k = 0; k < open_stage().size(); ++k) now[{open_stage()[k], open_index()[k]}] = static_cast<int32_t>(k);
    std::vector<int32_t> renumbered(stages.size(), -1);
    for (size_t k = 0; k < stages.size(); ++k) {
        const auto found = now.find({stages[k], features[k]});
        if (found != now.end()) renumbered[k] = found->second;
    }
    const auto renumber = [&](std::vector<uint8_t>& slopes) {
        if (slopes.empty()) return;
        std::vector<uint8_t> moved(now.size());
        for (size_t k = 0; k < stages.size(); ++k)
            if (renumbered[k] >= 0) moved[renumbered[k]] = slopes[k];
        slopes = std::move(moved);
    };
    renumber(cut.slopes);
    for (auto& [neuron, one] : memory_->remembered)
        for (std::vector<uint8_t>& slopes : one.slopes) renumber(slopes);
    size_t kept = 0;
    for (size_t d = 0; d < cut.split.size(); ++d) {
        if (renumbered[cut.split[d]] < 0) continue;  // stable now, so the split says nothing more
        cut.sign[kept] = cut.sign[d];
        cut.split[kept++] = renumbered[cut.split[d]];
    }
    cut.split.resize(kept);
    cut.sign.resize(kept);
}

// Neurons of a stage among the open ones that cost a row most and make up a share of the whole, in rising order.
template <typename T>
std::vector<int32_t> Domains<T>::costliest(int stage, const std::vector<double>& cost, double share) const {
    std::vector<int32_t> order(cost.size()), found;
    double total = 0, sum = 0;
    for (size_t k = 0; k < cost.size(); ++k) order[k] = static_cast<int32_t>(k), total += cost[k];
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return cost[a] > cost[b]; });
    for (int32_t k : order) {
        if (!(cost[k] > 0) || sum >= share * total) break;
        sum += cost[k];
        if (open_stage()[k] == stage) found.push_back(open_index()[k]);
    }
    std::sort(found.begin(), found.end());
    return found;
}

template <typename T>
bool Domains<T>::cut_off(CutOff cut, int64_t iterations, double share, double seconds) {
    Memory& mine = *memory_;
    const auto end = Time::now() + span(seconds);
    const Clock clock{is_over, &end};
    bool moved = false;
    const auto renew = [&] {
        const std::vector<int32_t> stages = open_stage(), features = open_index();
        run_root(0, 0, 0);
        if (!failed_) follow(cut, stages, features);
        moved = false;
    };
    for (int s = plan_.count - 1; s >= 1 && !failed_ && !clock.over(); --s) {
        if (!bends(plan_.stages[s].activation)) continue;
        mine.enlarge(mine.compact.kept_count(), static_cast<int64_t>(cut.split.size()) + 1);
        NeuronJob job{};
        job.row = cut.row;
        job.slopes = cut.slopes.empty() ? nullptr : cut.slopes.data();
        job.splits = static_cast<int64_t>(cut.split.size()), job.split = cut.split.data(), job.sign = cut.sign.data();
        std::vector<double> cost(open_count());
        double reach = 0;
        const double lower = network_.isa_.row_costs(root_, mine.below_output->stages(), mine.threads[0]->block, job, cost.data(), &reach);
        if (lower > cut.limit) return true;
        const std::vector<int32_t> neurons = costliest(s, cost, share);
        if (neurons.empty()) continue;
        if (cut_off_stage(s, cut, neurons, reach, iterations, clock)) return true;
        if (plan_.forms) {
            renew();
        } else {
            relax_again(s);
            moved = true;
        }
    }
    if (moved) renew();
    return false;
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

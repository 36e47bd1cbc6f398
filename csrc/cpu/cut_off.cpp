// Bounds of neurons on the part of a box where a clause can still hold, stage by stage.
#include <cmath>

#include "domain_memory.h"

namespace verifier {

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

template bool Domains<float>::cut_off(CutOff, int64_t, double, double);
template bool Domains<double>::cut_off(CutOff, int64_t, double, double);

}  // namespace verifier

#include "compact_network.h"

#include <algorithm>
#include <stdexcept>

namespace verifier {

template <typename T>
CompactNetwork<T>::CompactNetwork(const Plan<T>& plan, const double* lower, const double* upper) : plan_(plan) {
    enter(lower, upper);
}

template <typename T>
void CompactNetwork<T>::enter(const double* lower, const double* upper) {
    low_.clear();
    high_.clear();
    ball_ = {};
    for (int64_t i = 0; i < plan_.stages[0].size; ++i) {
        low_.push_back(static_cast<T>(lower[i]));
        high_.push_back(static_cast<T>(upper[i]));
    }
    clear();
}

template <typename T>
void CompactNetwork<T>::cut(const double* lower, const double* upper, const double* center, double radius) {
    for (auto* list : {&center_, &below_, &above_}) list->clear();
    for (int64_t i = 0; i < plan_.stages[0].size; ++i) {
        const double c = center[i];
        if (!(c >= lower[i] && c <= upper[i] && static_cast<double>(static_cast<T>(c)) == c && radius >= 0 && radius <= Precision<T>::kHuge))
            throw std::invalid_argument("ball: expected a radius >= 0 and a center inside the box, in the network's numbers");
        center_.push_back(static_cast<T>(c));
        below_.push_back(round_up<T>((c - lower[i]) * (1 + 1e-15)));
        above_.push_back(round_up<T>((upper[i] - c) * (1 + 1e-15)));
    }
    ball_ = {center_.data(), below_.data(), above_.data(), radius};
}

template <typename T>
void CompactNetwork<T>::clear() {
    stages_.clear();
    owned_.clear();
    for (auto* list : {&free_, &least_, &start_}) list->clear();
    for (auto* list : {&open_stage_, &open_feature_, &open_kept_}) list->clear();
    start_stage(0, plan_.stages[0].order, plan_.stages[0].size);
}

template <typename T>
CompactStage<T>& CompactNetwork<T>::start_stage(int index, const int32_t* alive, int64_t alive_count) {
    owned_.emplace_back();
    Owned& owned = owned_.back();
    owned.position.assign(plan_.stages[index].size, -1);
    for (int64_t k = 0; k < alive_count; ++k) owned.position[alive[k]] = 0;
    for (int64_t k = 0; k < plan_.stages[index].size; ++k) {
        const int32_t i = plan_.stages[index].order[k];
        if (owned.position[i] < 0) continue;
        owned.position[i] = static_cast<int32_t>(owned.feature.size());
        owned.feature.push_back(i);
    }
    owned.kept.assign(alive_count, -1);
    CompactStage<T> stage{};
    stage.size = alive_count;
    stage.feature = owned.feature.data();
    stage.position = owned.position.data();
    stage.kept = owned.kept.data();
    stages_.push_back(stage);
    return stages_.back();
}

// Copies what the rows need of the neurons left.
template <typename T>
void CompactNetwork<T>::copy_lines(int index, const StageState<T>& state, CompactStage<T>& stage, Owned& owned) {
    const Stage<T>& source = plan_.stages[index];
    const T* given[] = {state.slope_lower, state.offset_lower, state.slope_upper, state.offset_upper, source.bias,
                        state.charge};
    const T** fields[] = {&stage.slope_lower, &stage.offset_lower, &stage.slope_upper, &stage.offset_upper,
                          &stage.bias, &stage.charge};
    owned.numbers.resize(6 * stage.size);
    for (int f = 0; f < 6; ++f) {
        T* out = owned.numbers.data() + f * stage.size;
        for (int64_t k = 0; k < stage.size; ++k) out[k] = given[f][stage.feature[k]];
        *fields[f] = out;
    }
    stage.row_gamma = state.row_gamma;
}

// Numbers the neurons whose two lines differ in slope.
template <typename T>
void CompactNetwork<T>::keep(int index, const StageState<T>& state, CompactStage<T>& stage, Owned& owned) {
    const Stage<T>& source = plan_.stages[index];
    for (int64_t k = 0; k < stage.size; ++k) {
        const int32_t i = stage.feature[k];
        const bool free = bends(source.activation) && source.alpha < 1 && state.lower[i] < 0 && state.upper[i] > 0;
        if (!free && stage.slope_lower[k] == stage.slope_upper[k]) continue;
        owned.kept[k] = static_cast<int32_t>(free_.size());
        free_.push_back(free ? T(1) : T(0));
        least_.push_back(free ? source.alpha : stage.slope_lower[k]);
        start_.push_back(stage.slope_lower[k]);
        if (!free) continue;
        open_stage_.push_back(index);
        open_feature_.push_back(i);
        open_kept_.push_back(owned.kept[k]);
    }
}

template <typename T>
void CompactNetwork<T>::add_stage(const StageState<T>& state) {
    const int index = static_cast<int>(stages_.size());
    const Stage<T>& source = plan_.stages[index];
    CompactStage<T>& stage = start_stage(index, state.alive, state.alive_count);
    Owned& owned = owned_.back();
    copy_lines(index, state, stage, owned);
    keep(index, state, stage, owned);
    stage.linear = source.activation == Activation::kIdentity;
    for (int t = 0; t < source.term_count; ++t) {
        const Term<T>& term = source.terms[t];
        const Owned& below = *std::next(owned_.begin(), term.source);
        const double sum = term.kind == MapKind::kDense ? static_cast<double>(state.alive_count) : static_cast<double>(term.column_terms);
        owned.maps.emplace_back(term, true, below.feature, owned.feature, owned.position);
        const Bundles<T> backward = owned.maps.back().view();
        owned.maps.emplace_back(term, false, owned.feature, below.feature, below.position);
        owned.terms.push_back({term.source, sum, backward, owned.maps.back().view(), term.kind == MapKind::kDiagonal});
    }
    stage.terms = owned.terms.data();
    stage.term_count = source.term_count;
}

template <typename T>
void CompactNetwork<T>::relax(int index, const StageState<T>& state) {
    copy_lines(index, state, stages_[index], *std::next(owned_.begin(), index));
}

template <typename T>
CompactNet<T> CompactNetwork<T>::net() const {
    return {&plan_, stages_.data(), kept_count(), free_.data(), least_.data(), start_.data(), low_.data(), high_.data(),
            is_cut() ? &ball_ : nullptr};
}

template class CompactNetwork<float>;
template class CompactNetwork<double>;

}  // namespace verifier

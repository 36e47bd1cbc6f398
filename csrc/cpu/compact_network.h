// Owns the compact form of a network on one box, see verifier/compact.h.
#pragma once

#include <list>
#include <vector>

#include "bundled_map.h"
#include "verifier/network.h"
#include "verifier/workspace.h"

namespace verifier {

template <typename T>
class CompactNetwork {
  public:
    CompactNetwork(const Plan<T>& plan, const double* lower, const double* upper);

    // Starts with another box.
    void enter(const double* lower, const double* upper);

    // Cuts the box by a ball around a point of it, until another box is entered.
    void cut(const double* lower, const double* upper, const double* center, double radius);
    bool is_cut() const { return ball_.center != nullptr; }

    // Forgets all stages but the input.
    void clear();

    // Adds the next stage from its final bounds and lines.
    void add_stage(const StageState<T>& state);

    // New lines for a stage whose bounds are tighter now; its neurons keep their numbers.
    void relax(int index, const StageState<T>& state);

    CompactNet<T> net() const;
    int64_t kept_count() const { return static_cast<int64_t>(free_.size()); }

    // Neurons whose slope is free, in the order of their stages: numbers of their stage, within it, and among the kept ones.
    const std::vector<int32_t>& open_stage() const { return open_stage_; }
    const std::vector<int32_t>& open_feature() const { return open_feature_; }
    const std::vector<int32_t>& open_kept() const { return open_kept_; }

  private:
    struct Owned {
        std::vector<int32_t> feature, position, kept;
        std::vector<T> numbers;  // six arrays
        std::list<BundledMap<T>> maps;
        std::vector<CompactTerm<T>> terms;
    };

    CompactStage<T>& start_stage(int index, const int32_t* alive, int64_t alive_count);
    void copy_lines(int index, const StageState<T>& state, CompactStage<T>& stage, Owned& owned);
    void keep(int index, const StageState<T>& state, CompactStage<T>& stage, Owned& owned);

    const Plan<T>& plan_;
    std::vector<CompactStage<T>> stages_;
    std::list<Owned> owned_;
    std::vector<T> low_, high_, free_, least_, start_;
    std::vector<T> center_, below_, above_;
    Ball<T> ball_{};
    std::vector<int32_t> open_stage_, open_feature_, open_kept_;
};

}  // namespace verifier

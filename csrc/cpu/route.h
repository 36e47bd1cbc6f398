// Which neurons and weights a block of rows can reach: all below the output, or the cone below some neurons.
//
// Rows that start at a neuron of a convolution touch only a patch of the stages below it, so blocks of
// neighbours pass through a small part of every map.
#pragma once

#include <list>
#include <vector>

#include "verifier/compact.h"

namespace verifier {

template <typename T>
class Route {
  public:
    // Rows that start on neurons of stages, listed for each (empty lists for none).
    Route(const CompactNet<T>& net, const std::vector<std::vector<int32_t>>& starts);

    const RouteStage* stages() const { return stages_.data(); }

  private:
    struct Lists {
        std::vector<int64_t> start{0};
        std::vector<int32_t> index, position, first, output, forward;
    };
    void add_term(const CompactTerm<T>& term, const std::vector<char>& here, std::vector<char>& below,
                  std::vector<RouteTerm>& terms);

    std::vector<RouteStage> stages_;
    std::list<std::vector<int32_t>> neurons_;
    std::vector<std::vector<char>> marks_;
    std::list<Lists> lists_;
    std::list<std::vector<RouteTerm>> terms_;
};

}  // namespace verifier

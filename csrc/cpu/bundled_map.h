// A linear map as bundles of outputs that read the same inputs, and who owns their memory; see verifier/compact.h.
#pragma once

#include <vector>

#include "verifier/compact.h"

namespace verifier {

template <typename T>
class BundledMap {
  public:
    // The map's forward direction, or `backward` its transpose, between chosen neurons of two stages.
    // `outputs`, `inputs`: their numbers within their stages; `position`: the inverse of `inputs`, -1 for others.
    BundledMap(const Term<T>& term, bool backward, const std::vector<int32_t>& outputs, const std::vector<int32_t>& inputs,
               const std::vector<int32_t>& position);

    // Valid for as long as this map, moved or not.
    Bundles<T> view() const;

  private:
    int32_t* place_of(int32_t output, const std::vector<int32_t>& reads, int64_t latest);
    void share_weights(const std::vector<T>& values);

    std::vector<int64_t> start_, length_, first_;
    std::vector<int32_t> index_, output_;
    std::vector<T> values_;
};

}  // namespace verifier

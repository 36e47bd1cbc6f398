// A net of planes with its storage, for verifier/tighten/plane_ascent.py.
#pragma once

#include <list>
#include <vector>

#include "verifier/network.h"
#include "verifier/planes.h"

namespace verifier {

// A net with storage of its own.
class PlaneProgram {
  public:
    // `net` points to arrays that are copied.
    explicit PlaneProgram(const PlaneNet& net);
    const PlaneNet& net() const { return net_; }

    // Each job on one of `threads` threads.
    void climb(const PlaneRule& rule, std::vector<PlaneJob>& jobs, int threads);

  private:
    template <typename V>
    const V* keep(const V* values, int64_t count);

    PlaneNet net_;
    std::vector<PlaneLayer> layers_;
    std::list<std::vector<double>> doubles_;
    std::list<std::vector<float>> floats_;
    std::list<std::vector<int32_t>> ints_;
    std::list<std::vector<int64_t>> longs_;
    std::vector<AlignedArray<double>> scratch_;
};

}  // namespace verifier

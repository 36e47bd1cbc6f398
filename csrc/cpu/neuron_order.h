// In which order the neurons of a stage lie where rows or points pass through them.
#pragma once

#include <vector>

#include "verifier/plan.h"

namespace verifier {

// Numbers of a stage's neurons [size], those that read the same inputs side by side: of a convolution all channels at
// one place, so that a patch is a few stretches of memory. Channel by channel, the numbers of one place would lie
// a power of two apart and push each other out of the caches. `earlier`: the stages before it, with their orders.
template <typename T>
std::vector<int32_t> neuron_order(const Stage<T>& stage, const std::vector<Stage<T>>& earlier);

// Neurons from one plane of `size` vectors to the next: a third of a page beyond whole pages, so that three planes
// do not meet in the same sets of a cache.
int64_t plane_room(int64_t size, int64_t vector_bytes);

}  // namespace verifier

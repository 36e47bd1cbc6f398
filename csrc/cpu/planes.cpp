// Subdomains' ascents shared out to threads.
#include "verifier/plane_program.h"

#include <algorithm>
#include <type_traits>

#include "verifier/thread_pool.h"

namespace verifier {

template <typename V>
const V* PlaneProgram::keep(const V* values, int64_t count) {
    const auto into = [&](auto& list) { return list.emplace_back(values, values + count).data(); };
    if constexpr (std::is_same_v<V, double>) return into(doubles_);
    else if constexpr (std::is_same_v<V, float>) return into(floats_);
    else if constexpr (std::is_same_v<V, int32_t>) return into(ints_);
    else return into(longs_);
}

PlaneProgram::PlaneProgram(const PlaneNet& net) : net_(net), layers_(net.layers, net.layers + net.layer_count) {
    for (PlaneLayer& layer : layers_) {
        const int64_t terms = layer.count * layer.width;
        layer.source = keep(layer.source, terms), layer.weight = keep(layer.weight, terms);
        for (const int32_t** part : {&layer.used, &layer.pre, &layer.post}) *part = keep(*part, layer.count);
        for (const float** part : {&layer.low, &layer.high, &layer.flat, &layer.steep}) *part = keep(*part, layer.count);
    }
    PlaneOutputs& out = net_.outputs;
    out.start = keep(out.start, out.count + 1);
    const int64_t terms = out.start[out.count];
    out.own = keep(out.own, out.count), out.source = keep(out.source, terms), out.weight = keep(out.weight, terms);
    out.low = keep(out.low, out.count), out.high = keep(out.high, out.count);
    net_.costs = keep(net.costs, net.row_count * net.columns), net_.limits = keep(net.limits, net.row_count);
    net_.layers = layers_.data();
}

void PlaneProgram::climb(const PlaneRule& rule, std::vector<PlaneJob>& jobs, int threads) {
    threads = std::max(1, std::min(threads, static_cast<int>(jobs.size())));
    const PlaneKernel& kernel = best_plane_kernel();
    const int64_t size = kernel.bytes(net_, rule) / static_cast<int64_t>(sizeof(double));
    if (!scratch_.empty() && scratch_[0].size() < size) scratch_.clear();
    while (static_cast<int>(scratch_.size()) < threads) scratch_.emplace_back(size);
    parallel_for(static_cast<int64_t>(jobs.size()), threads,
                 [&](int thread, int64_t item) { kernel.climb(net_, rule, jobs[item], scratch_[thread].get()); });
}

}  // namespace verifier

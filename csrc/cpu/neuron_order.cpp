#include "neuron_order.h"

#include <algorithm>
#include <numeric>

namespace verifier {

template <typename T>
std::vector<int32_t> neuron_order(const Stage<T>& stage, const std::vector<Stage<T>>& earlier) {
    std::vector<int32_t> order(stage.size);
    std::iota(order.begin(), order.end(), 0);
    const Term<T>* const end = stage.terms + stage.term_count;
    const Term<T>* widest = std::max_element(stage.terms, end, [](const Term<T>& a, const Term<T>& b) {
        return a.kind != MapKind::kSparse && b.kind == MapKind::kSparse;
    });
    if (widest == end || widest->kind == MapKind::kDense) return order;
    if (widest->kind == MapKind::kDiagonal) {
        const int32_t* source = earlier[widest->source].order;
        return {source, source + stage.size};
    }
    const Nonzeros<T>& reads = widest->by_row;
    const auto before = [&](int32_t a, int32_t b) {
        return std::lexicographical_compare(reads.index + reads.start[a], reads.index + reads.start[a + 1],
                                            reads.index + reads.start[b], reads.index + reads.start[b + 1]);
    };
    std::stable_sort(order.begin(), order.end(), before);
    return order;
}

int64_t plane_room(int64_t size, int64_t vector_bytes) {
    const int64_t page = 4096 / vector_bytes;
    return size < page ? size : (size + page - 1) / page * page + page / 3;
}

template std::vector<int32_t> neuron_order(const Stage<float>&, const std::vector<Stage<float>>&);
template std::vector<int32_t> neuron_order(const Stage<double>&, const std::vector<Stage<double>>&);

}  // namespace verifier

#include "bundled_map.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace verifier {

namespace {

// Nonzeros of one output of a map, in terms of the inputs that are left.
template <typename T>
void read_output(const Term<T>& term, bool backward, int32_t output, const std::vector<int32_t>& inputs,
                 const std::vector<int32_t>& position, std::vector<int32_t>& index, std::vector<T>& values) {
    index.clear();
    values.clear();
    if (term.kind == MapKind::kDense) {
        for (size_t k = 0; k < inputs.size(); ++k) {
            index.push_back(static_cast<int32_t>(k));
            values.push_back(term.values[backward ? inputs[k] * term.cols + output : output * term.cols + inputs[k]]);
        }
        return;
    }
    if (term.kind == MapKind::kDiagonal) {
        if (position[output] < 0) return;
        index.push_back(position[output]);
        values.push_back(term.values[output]);
        return;
    }
    const Nonzeros<T>& matrix = backward ? term.by_column : term.by_row;
    for (int64_t k = matrix.start[output]; k < matrix.start[output + 1]; ++k) {
        const int32_t at = position[matrix.index[k]];
        if (at < 0) continue;
        index.push_back(at);
        values.push_back(matrix.values[k]);
    }
}

uint64_t mixed(uint64_t hash, uint64_t next) {
    hash = (hash ^ next) * 0x9E3779B97F4A7C15ull;
    return hash ^ hash >> 29;
}

template <typename T>
uint64_t hash_of(const T* values, int64_t count) {
    uint64_t hash = static_cast<uint64_t>(count);
    for (int64_t k = 0; k < count; ++k) {
        uint64_t bits = 0;
        std::memcpy(&bits, values + k, sizeof(T));
        hash = mixed(hash, bits);
    }
    return hash;
}

}  // namespace

template <typename T>
BundledMap<T>::BundledMap(const Term<T>& term, bool backward, const std::vector<int32_t>& outputs,
                          const std::vector<int32_t>& inputs, const std::vector<int32_t>& position) {
    std::vector<int32_t> reads, at(outputs.size());
    std::vector<T> weights;
    std::unordered_map<uint64_t, int64_t> latest;  // the last bundle with a list of inputs
    for (size_t k = 0; k < outputs.size(); ++k) {
        read_output(term, backward, outputs[k], inputs, position, reads, weights);
        const auto found = latest.try_emplace(hash_of(reads.data(), static_cast<int64_t>(reads.size())), -1).first;
        const int32_t* mine = place_of(static_cast<int32_t>(k), reads, found->second);
        at[k] = static_cast<int32_t>(mine - output_.data());
        found->second = at[k] / kBundle;
    }
    std::vector<int64_t> begin(start_.size() + 1, 0);  // where each bundle's weights would begin if none were shared
    for (size_t b = 0; b < start_.size(); ++b) begin[b + 1] = begin[b] + length_[b] * kBundle;
    std::vector<T> values(begin.back(), T(0));
    for (size_t k = 0; k < outputs.size(); ++k) {
        read_output(term, backward, outputs[k], inputs, position, reads, weights);
        T* mine = values.data() + begin[at[k] / kBundle] + at[k] % kBundle;
        for (size_t j = 0; j < weights.size(); ++j) mine[j * kBundle] = weights[j];
    }
    share_weights(values);
}

// Keeps one copy of equal bundles' weights, given bundle after bundle.
template <typename T>
void BundledMap<T>::share_weights(const std::vector<T>& values) {
    std::unordered_map<uint64_t, int64_t> earlier;  // where the last weights with a hash begin
    const T* mine = values.data();
    for (int64_t count : length_) {
        const int64_t length = count * kBundle, next = static_cast<int64_t>(values_.size());
        const auto [found, fresh] = earlier.try_emplace(hash_of(mine, length), next);
        if (fresh || found->second + length > next || !std::equal(mine, mine + length, values_.data() + found->second)) {
            found->second = next;
            values_.insert(values_.end(), mine, mine + length);
        }
        first_.push_back(found->second / kBundle);
        mine += length;
    }
}

// Where an output goes: in bundle `latest` if that has the same inputs and room, else in a new one.
template <typename T>
int32_t* BundledMap<T>::place_of(int32_t output, const std::vector<int32_t>& reads, int64_t latest) {
    const auto count = static_cast<int64_t>(reads.size());
    const bool same = latest >= 0 && length_[latest] == count &&
                      std::equal(reads.begin(), reads.end(), index_.begin() + start_[latest]);
    if (!same || output_[latest * kBundle + kBundle - 1] >= 0) {
        start_.push_back(same ? start_[latest] : static_cast<int64_t>(index_.size()));
        length_.push_back(count);
        if (!same) index_.insert(index_.end(), reads.begin(), reads.end());
        latest = static_cast<int64_t>(start_.size()) - 1;
        output_.insert(output_.end(), kBundle, -1);
    }
    int32_t* mine = output_.data() + latest * kBundle;
    while (*mine >= 0) ++mine;
    *mine = output;
    return mine;
}

template <typename T>
Bundles<T> BundledMap<T>::view() const {
    return {static_cast<int64_t>(start_.size()), start_.data(), length_.data(), index_.data(),
            first_.data(), output_.data(), values_.data()};
}

template class BundledMap<float>;
template class BundledMap<double>;

}  // namespace verifier

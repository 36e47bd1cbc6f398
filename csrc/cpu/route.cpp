#include "route.h"

#include <algorithm>

namespace verifier {

// A map is entered by the rows on the neurons `here`; marks what it reaches `below`.
template <typename T>
void Route<T>::add_term(const CompactTerm<T>& term, const std::vector<char>& here, std::vector<char>& below,
                        std::vector<RouteTerm>& terms) {
    lists_.emplace_back();
    Lists& lists = lists_.back();
    std::vector<char> reached(below.size(), 0);
    for (int64_t b = 0; b < term.forward.count; ++b) {
        const int32_t* output = term.forward.output + b * kBundle;
        if (!std::any_of(output, output + kBundle, [&](int32_t i) { return i >= 0 && here[i]; })) continue;
        lists.forward.push_back(static_cast<int32_t>(b));
        const int32_t* reads = term.forward.index + term.forward.start[b];
        for (int64_t k = 0; k < term.forward.length[b]; ++k) reached[reads[k]] = 1;
    }
    const Bundles<T>& map = term.backward;
    std::vector<int32_t> entered;  // backward bundles
    int64_t most = 0;
    for (int64_t b = 0; b < map.count; ++b) {
        const int32_t* output = map.output + b * kBundle;
        if (!std::any_of(output, output + kBundle, [&](int32_t i) { return i >= 0 && reached[i]; })) continue;
        entered.push_back(static_cast<int32_t>(b));
        most += map.length[b];
    }
    lists.index.resize(most);
    lists.position.resize(most);
    int64_t used = 0;
    for (int32_t b : entered) {
        const int32_t* reads = map.index + map.start[b];
        for (int64_t k = 0; k < map.length[b]; ++k) {
            lists.index[used] = reads[k];
            lists.position[used] = static_cast<int32_t>(map.first[b] + k);
            used += here[reads[k]];
        }
        // Positions rise, so no weight is skipped where as many lie between the first and the last.
        const int64_t begin = lists.start.back();
        const bool follow = used > begin && lists.position[used - 1] - lists.position[begin] == used - begin - 1;
        lists.first.push_back(follow ? lists.position[begin] : -1);
        lists.start.push_back(used);
        // The whole bundle is written, so that nothing stale is added to.
        const int32_t* output = map.output + b * kBundle;
        for (int j = 0; j < kBundle; ++j)
            if (output[j] >= 0) reached[output[j]] = 1;
        lists.output.insert(lists.output.end(), output, output + kBundle);
    }
    for (size_t i = 0; i < below.size(); ++i) below[i] |= reached[i];
    terms.push_back({static_cast<int64_t>(lists.start.size()) - 1, lists.start.data(), lists.index.data(), lists.position.data(), lists.first.data(),
                     lists.output.data(), static_cast<int64_t>(lists.forward.size()), lists.forward.data()});
}

template <typename T>
Route<T>::Route(const CompactNet<T>& net, const std::vector<std::vector<int32_t>>& starts) {
    const int count = static_cast<int>(starts.size());
    for (int s = 0; s < count; ++s) {
        marks_.emplace_back(net.stages[s].size, 0);
        for (int32_t i : starts[s]) marks_[s][i] = 1;
    }
    stages_.resize(count);
    std::vector<int> writers(count, 0);
    for (int s = count - 1; s >= 0; --s) {
        const CompactStage<T>& stage = net.stages[s];
        neurons_.emplace_back();
        std::vector<int32_t>& straight = neurons_.back();
        neurons_.emplace_back();
        std::vector<int32_t>& bent = neurons_.back();
        for (int64_t i = 0; i < stage.size; ++i) {
            if (!marks_[s][i]) continue;
            const bool line = s == 0 || stage.linear || (stage.slope_lower[i] == 1 && stage.slope_upper[i] == 1 &&
                                                         stage.offset_lower[i] == 0 && stage.offset_upper[i] == 0);
            (line ? straight : bent).push_back(static_cast<int32_t>(i));
        }
        terms_.emplace_back();
        if (!straight.empty() || !bent.empty())
            for (int t = 0; t < stage.term_count; ++t) {
                ++writers[stage.terms[t].source];
                add_term(stage.terms[t], marks_[s], marks_[stage.terms[t].source], terms_.back());
            }
        stages_[s] = {straight.data(), static_cast<int64_t>(straight.size()), bent.data(), static_cast<int64_t>(bent.size()),
                      terms_.back().data(), writers[s], marks_[s].data()};
    }
}

template class Route<float>;
template class Route<double>;

}  // namespace verifier

// What attacks raise, and its slopes in a network's outputs.
#pragma once

#include <cmath>
#include <cstdint>

namespace verifier {

// Minus the log softmax at the label (with a target: the log softmax there); goal score minus the best other.
enum class Loss : int { kCrossEntropy, kMargin };

// The highest of n > 1 scores but the one at `except`; the first of equals.
template <typename T>
int64_t best_but(const T* scores, int64_t n, int64_t except) {
    int64_t best = except == 0 ? 1 : 0;
    for (int64_t k = best + 1; k < n; ++k)
        if (k != except && scores[k] > scores[best]) best = k;
    return best;
}

// Whether n scores reach the goal: another class than `label` has the highest, or where target >= 0 that one has. The
// first of equals counts; never where there is a NaN.
template <typename T>
bool reached(const T* scores, int64_t n, int64_t label, int64_t target) {
    int64_t highest = 0;
    for (int64_t k = 0; k < n; ++k) {
        if (std::isnan(scores[k])) return false;
        if (scores[k] > scores[highest]) highest = k;
    }
    return target < 0 ? highest != label : highest == target;
}

// The loss of one row of n > 1 scores and its derivative in each of them. The attack leaves class `label`, or where
// target >= 0 reaches that. NaN in, NaN out.
template <typename T>
T slopes_of(Loss loss, const T* scores, int64_t n, int64_t label, int64_t target, T* slopes) {
    if (loss == Loss::kMargin) {
        const int64_t goal = target < 0 ? best_but(scores, n, label) : target;
        const int64_t other = target < 0 ? label : best_but(scores, n, target);
        for (int64_t k = 0; k < n; ++k) slopes[k] = T(0);
        slopes[goal] = T(1);
        slopes[other] = T(-1);
        return scores[goal] - scores[other];
    }
    const int64_t at = target < 0 ? label : target;
    const T sign = target < 0 ? T(-1) : T(1), most = std::fmax(scores[at], scores[best_but(scores, n, at)]);
    T total = 0;
    for (int64_t k = 0; k < n; ++k) total += slopes[k] = std::exp(scores[k] - most);
    for (int64_t k = 0; k < n; ++k) slopes[k] *= -sign / total;
    slopes[at] += sign;
    return sign * (scores[at] - most - std::log(total));
}

}  // namespace verifier

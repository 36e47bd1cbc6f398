// Products with bundled weights: every neuron holds a vector of rows, so a weight is read once for many rows.
//
// Rows lie in planes of one vector each: plane v of a stage is [neurons][lanes], row v * lanes + lane.
#pragma once

#include "vec.h"
#include "verifier/compact.h"

namespace verifier::VERIFIER_ISA {

// Rows of one stage: `planes` of them in use, `stride` apart.
template <typename T>
struct Planes {
    T* data;
    int64_t stride, count;
};

// Planes whose sums stay in registers together, one accumulator for each output of a bundle.
#if VERIFIER_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kPlanes = 4;
#else
constexpr int kPlanes = 3;
#endif

// Bytes by which weights are fetched ahead (past the end it does nothing): they are read once for all planes, and a
// layer of them is larger than the second-level cache.
constexpr int64_t kAhead = 2048;

template <typename T>
struct BundleSums {
    const int32_t *index, *position;  // null `position`: weights follow each other
    const T* values;
    int64_t count;
};

template <typename T, int kOutputs, int kCount>
VERIFIER_INLINE void sum_bundle(const BundleSums<T>& sums, const T* in, int64_t stride, Vec<T> (&sum)[kOutputs][kCount]) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    for (int64_t k = 0; k < sums.count; ++k) {
        const T* w = sums.values + (sums.position ? sums.position[k] : k) * kBundle;
        const T* x = in + sums.index[k] * lanes;
        __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead);
        Vec<T> rows[kCount];
        for (int v = 0; v < kCount; ++v) rows[v] = load(x + v * stride);
        for (int j = 0; j < kOutputs; ++j) {
            const Vec<T> factor = spread<T>(w[j]);
            for (int v = 0; v < kCount; ++v) sum[j][v] += factor * rows[v];
        }
    }
}

// The first kOutputs outputs of a bundle.
template <typename T, int kOutputs, int kCount>
VERIFIER_INLINE void write_bundle(const BundleSums<T>& sums, const int32_t* output, const T* in, int64_t in_stride, T* out,
                                  int64_t out_stride, bool accumulate) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    Vec<T> sum[kOutputs][kCount] = {};
    sum_bundle<T, kOutputs, kCount>(sums, in, in_stride, sum);
    for (int j = 0; j < kOutputs; ++j) {
        T* y = out + output[j] * lanes;
        for (int v = 0; v < kCount; ++v) store(y + v * out_stride, accumulate ? load(y + v * out_stride) + sum[j][v] : sum[j][v]);
    }
}

// Every bundle that `next` names, in steps of planes that fit the registers. Places of a bundle that hold no output
// cost nothing.
template <typename T, int kCount, typename Next>
VERIFIER_INLINE void write_bundles(int64_t count, Next next, Planes<const T> in, Planes<T> out, int64_t plane, bool accumulate) {
    const T* from = in.data + plane * in.stride;
    T* to = out.data + plane * out.stride;
    static_assert(kBundle == 4, "one case for each number of outputs");
    for (int64_t b = 0; b < count; ++b) {
        const int32_t* output;
        const BundleSums<T> sums = next(b, output);
        if (output[3] >= 0) write_bundle<T, 4, kCount>(sums, output, from, in.stride, to, out.stride, accumulate);
        else if (output[2] >= 0) write_bundle<T, 3, kCount>(sums, output, from, in.stride, to, out.stride, accumulate);
        else if (output[1] >= 0) write_bundle<T, 2, kCount>(sums, output, from, in.stride, to, out.stride, accumulate);
        else write_bundle<T, 1, kCount>(sums, output, from, in.stride, to, out.stride, accumulate);
    }
}

template <typename T, typename Next>
VERIFIER_INLINE void over_planes(int64_t count, Next next, Planes<const T> in, Planes<T> out, bool accumulate) {
    int64_t plane = 0;
    // Twice two are faster than three and one, whose sums are too few to hide how long an addition takes.
    for (; plane + kPlanes <= in.count && !(kPlanes == 3 && in.count - plane == 4); plane += kPlanes)
        write_bundles<T, kPlanes>(count, next, in, out, plane, accumulate);
    for (; in.count - plane >= 2; plane += 2) write_bundles<T, 2>(count, next, in, out, plane, accumulate);
    if (in.count > plane) write_bundles<T, 1>(count, next, in, out, plane, accumulate);
}

// The same for bundles that read one input at most.
template <typename T, typename Next>
VERIFIER_INLINE void scale_planes(int64_t count, Next next, Planes<const T> in, Planes<T> out, bool accumulate) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    for (int64_t v = 0; v < in.count; ++v)
        for (int64_t b = 0; b < count; ++b) {
            const int32_t* output;
            const BundleSums<T> sums = next(b, output);
            if (sums.count == 0 && accumulate) continue;
            const Vec<T> x = sums.count > 0 ? load(in.data + v * in.stride + sums.index[0] * lanes) : Vec<T>{};
            const T* w = sums.count > 0 ? sums.values + (sums.position ? sums.position[0] * kBundle : 0) : nullptr;
            for (int j = 0; j < kBundle && output[j] >= 0; ++j) {
                T* y = out.data + v * out.stride + output[j] * lanes;
                const Vec<T> product = w ? x * spread<T>(w[j]) : x;
                store(y, accumulate ? load(y) + product : product);
            }
        }
}

// Bundle b of a map.
template <typename T>
VERIFIER_INLINE BundleSums<T> bundle_at(const Bundles<T>& map, int64_t b, const int32_t*& output) {
    output = map.output + b * kBundle;
    return {map.index + map.start[b], nullptr, map.values + map.first[b] * kBundle, map.length[b]};
}

// out (+)= the whole map of in; `diagonal`: every bundle reads one input at most.
template <typename T>
static void carry(const Bundles<T>& map, bool diagonal, Planes<const T> in, Planes<T> out, bool accumulate) {
    const auto next = [&](int64_t b, const int32_t*& output)
                          __attribute__((always_inline)) { return bundle_at(map, b, output); };
    if (diagonal) return scale_planes<T>(map.count, next, in, out, accumulate);
    over_planes<T>(map.count, next, in, out, accumulate);
}

// out (+)= in W along a route.
template <typename T>
static void carry_back(const CompactTerm<T>& term, const RouteTerm& route, Planes<const T> in, Planes<T> out, bool accumulate) {
    const auto next = [&](int64_t b, const int32_t*& output) __attribute__((always_inline)) {
        output = route.output + b * kBundle;
        const int64_t begin = route.start[b], length = route.start[b + 1] - begin;
        const int32_t* index = route.index + begin;
        const T* values = term.backward.values;
        if (route.first[b] >= 0) return BundleSums<T>{index, nullptr, values + route.first[b] * kBundle, length};
        return BundleSums<T>{index, route.position + begin, values, length};
    };
    if (term.diagonal) return scale_planes<T>(route.count, next, in, out, accumulate);
    over_planes<T>(route.count, next, in, out, accumulate);
}

// out (+)= W in for the neurons of a route.
template <typename T>
static void carry_forward(const CompactTerm<T>& term, const RouteTerm& route, Planes<const T> in, Planes<T> out, bool accumulate) {
    const auto next = [&](int64_t b, const int32_t*& output)
                          __attribute__((always_inline)) { return bundle_at(term.forward, route.forward[b], output); };
    if (term.diagonal) return scale_planes<T>(route.forward_count, next, in, out, accumulate);
    over_planes<T>(route.forward_count, next, in, out, accumulate);
}

}  // namespace verifier::VERIFIER_ISA

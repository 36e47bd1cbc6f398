// A network at points: values, gradients and steps along them, blocks of points on threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "network_storage.h"

namespace verifier {

// The maps as points need them; `backward` for gradients.
template <typename T>
void Network<T>::bundle_maps(bool backward) {
    if (backward ? bundled_back_ : bundled_) return;
    std::vector<std::vector<int32_t>> place(stages_.size());
    for (size_t s = 0; s < stages_.size(); ++s) {
        place[s].resize(stages_[s].size);
        for (int64_t k = 0; k < stages_[s].size; ++k) place[s][stages_[s].order[k]] = static_cast<int32_t>(k);
    }
    for (size_t s = 1; s < stages_.size(); ++s)
        for (Term<T>& term : storage_[s]->terms) {
            const auto to = backward ? term.source : s, from = backward ? s : term.source;
            storage_[s]->bundled.emplace_back(term, backward, storage_[to]->order, storage_[from]->order, place[from]);
            (backward ? term.back_from_points : term.at_points) = storage_[s]->bundled.back().view();
        }
    (backward ? bundled_back_ : bundled_) = true;
}

// Blocks of planes, as even as they come, each with a thread's workspace: work(workspace, first plane, number of planes).
template <typename T>
template <typename Work>
void Network<T>::over_planes(int64_t planes, int threads, Work work) {
    const int64_t blocks = (planes + isa_.planes - 1) / isa_.planes;
    for (int thread = 0; thread < std::max(1, threads); ++thread) scratch(thread, true);
    parallel_for(blocks, threads, [&](int thread, int64_t block) {
        const int64_t first = planes * block / blocks;
        work(scratch_[thread]->work, first, planes * (block + 1) / blocks - first);
    });
}

// h at points into the rows of `trace`, or where it is null into each thread's own.
template <typename T>
void Network<T>::evaluate_into(const Trace<T>* trace, const T* points, int64_t count, int threads, T* out) {
    bundle_maps(false);
    over_planes(planes_of(count), threads, [&](Workspace<T>& work, int64_t plane, int64_t planes) {
        const int64_t first = plane * isa_.lanes, size = std::min(planes * isa_.lanes, count - first);
        isa_.evaluate(plan_, points + first * inputs(), size, trace ? rows_from(*trace, first).data() : work.point_rows,
                      out + first * outputs());
    });
}

template <typename T>
void Network<T>::evaluate(const T* points, int64_t count, int threads, T* out) {
    std::lock_guard<std::mutex> guard(busy_);
    evaluate_into(nullptr, points, count, threads, out);
}

template <typename T>
void Network<T>::climb(const Climb<T>& job, int threads) {
    std::lock_guard<std::mutex> guard(busy_);
    bundle_maps(false);
    bundle_maps(true);
    const int64_t n = outputs();
    over_planes(planes_of(job.count), threads, [&](Workspace<T>& work, int64_t plane, int64_t planes) {
        const int64_t first = plane * isa_.lanes, size = std::min(planes * isa_.lanes, job.count - first);
        T *scores = job.outputs + first * n, *gradient = job.gradient + first * inputs();
        isa_.evaluate(plan_, job.points + first * inputs(), size, work.point_rows, scores);
        std::vector<T> slopes(size * n);
        for (int64_t r = 0; r < size; ++r)
            job.value[first + r] = slopes_of(job.loss, scores + r * n, n, job.label[first + r],
                                             job.target ? job.target[first + r] : -1, slopes.data() + r * n);
        isa_.pull_back(plan_, work, slopes.data(), size, 1, 0, planes, work.point_rows, gradient);
        for (int64_t i = 0; i < size * inputs(); ++i)
            if (!(std::fabs(gradient[i]) <= std::numeric_limits<T>::max())) gradient[i] = 0;
    });
}

template <typename T>
void Network<T>::ascend(const Ascent<T>& job, int threads) {
    const int64_t n = inputs(), k = outputs();
    std::vector<int64_t> rows(job.count), label(job.label, job.label + job.count), aim;
    std::iota(rows.begin(), rows.end(), 0);
    if (job.aim) aim.assign(job.aim, job.aim + job.count);
    std::vector<T> points(job.points, job.points + job.count * n), slope(job.count * n);
    std::vector<T> scores(job.count * k), value(job.count);
    for (int64_t step = 0; !rows.empty(); ++step) {
        const auto count = static_cast<int64_t>(rows.size());
        if (step < job.steps)
            climb({count, job.loss, points.data(), label.data(), job.aim ? aim.data() : nullptr, scores.data(),
                   value.data(), slope.data()}, threads);
        else
            evaluate(points.data(), count, threads, scores.data());
        int64_t kept = 0;
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = rows[r];
            const bool there = reached(scores.data() + r * k, k, job.label[row], job.target ? job.target[row] : -1);
            const T* point = points.data() + r * n;
            if (there || step == job.steps) {
                job.taken[row] = there ? step : -1;
                std::copy(point, point + n, job.points + row * n);
                continue;
            }
            const T *g = slope.data() + r * n, *lower = job.lower + row * n, *upper = job.upper + row * n;
            T* moved = points.data() + kept * n;
            const T length = job.length[row] * job.share[step];
            for (int64_t i = 0; i < n; ++i) {
                const T way = g[i] > 0 ? length : g[i] < 0 ? -length : T(0);
                moved[i] = std::min(std::max(point[i] + way, lower[i]), upper[i]);
            }
            rows[kept] = row;
            label[kept] = label[r];
            if (job.aim) aim[kept] = aim[r];
            ++kept;
        }
        rows.resize(kept);
    }
}

template <typename T>
Trace<T> Network<T>::record(const T* points, int64_t count, int threads, T* out) {
    std::lock_guard<std::mutex> guard(busy_);
    Trace<T> trace;
    trace.count = count;
    for (const Stage<T>& stage : stages_) trace.rows.emplace_back(planes_of(count) * isa_.lanes * stage.room);
    evaluate_into(&trace, points, count, threads, out);
    return trace;
}

template <typename T>
bool Network<T>::fits(const Trace<T>& trace) const {
    bool same = trace.rows.size() == stages_.size();
    for (size_t s = 0; same && s < stages_.size(); ++s)
        same = trace.rows[s].size() == planes_of(trace.count) * isa_.lanes * stages_[s].room;
    return same;
}

template <typename T>
void Network<T>::pull_back(const Trace<T>& trace, const T* weights, int64_t each, int threads, T* out) {
    std::lock_guard<std::mutex> guard(busy_);
    bundle_maps(true);
    const std::vector<T*> kept = rows_from(trace, 0);
    over_planes(planes_of(trace.count) * each, threads, [&](Workspace<T>& work, int64_t first, int64_t planes) {
        isa_.pull_back(plan_, work, weights, trace.count, each, first, planes, kept.data(), out);
    });
}

template <typename T>
int64_t Network<T>::planes_of(int64_t points) const {
    return (points + isa_.lanes - 1) / isa_.lanes;
}

// Where each stage's planes of a trace begin for the points from `first` on, the first of a plane.
template <typename T>
std::vector<T*> Network<T>::rows_from(const Trace<T>& trace, int64_t first) const {
    std::vector<T*> rows;
    for (size_t s = 0; s < stages_.size(); ++s) rows.push_back(trace.rows[s].get() + first * stages_[s].room);
    return rows;
}

#define VERIFIER_AT_POINTS(T)                                                                    \
    template void Network<T>::evaluate(const T*, int64_t, int, T*);                              \
    template void Network<T>::climb(const Climb<T>&, int);                                       \
    template void Network<T>::ascend(const Ascent<T>&, int);                                     \
    template Trace<T> Network<T>::record(const T*, int64_t, int, T*);                            \
    template bool Network<T>::fits(const Trace<T>&) const;                                       \
    template void Network<T>::pull_back(const Trace<T>&, const T*, int64_t, int, T*);

VERIFIER_AT_POINTS(float)
VERIFIER_AT_POINTS(double)

}  // namespace verifier

// Ascent over planes for one subdomain.
#pragma once

#include <cmath>

#include "vec.h"
#include "verifier/planes.h"

namespace verifier::VERIFIER_ISA {

typedef Vec<float> PlaneVec;
typedef Lanes<float>::Bits PlaneMask;
constexpr int kPlaneLanes = Lanes<float>::kCount;
static_assert(kPlaneStep % kPlaneLanes == 0, "neurons are filled up to whole vectors");

VERIFIER_INLINE PlaneVec peek(const float* p) {
    PlaneVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

VERIFIER_INLINE void poke(float* p, PlaneVec v) { std::memcpy(p, &v, sizeof v); }

VERIFIER_INLINE PlaneVec pick(PlaneMask where, PlaneVec yes, PlaneVec no) {
    return (PlaneVec)(((PlaneMask)yes & where) | ((PlaneMask)no & ~where));
}

VERIFIER_INLINE float total(PlaneVec v) {
    float sum = 0;
    for (int i = 0; i < kPlaneLanes; ++i) sum += v[i];
    return sum;
}

VERIFIER_INLINE PlaneVec fetch(const double* x, const int32_t* source) {
    PlaneVec v;
    for (int i = 0; i < kPlaneLanes; ++i) v[i] = static_cast<float>(x[source[i]]);
    return v;
}

// Adam's move of one parameter in units of its rate; see functors.h for the method.
struct PlaneAdam {
    float old_first, old_second, correct_first, correct_second;

    float move(float gradient, float& first, float& second) const {
        first = old_first * first + (1 - old_first) * gradient;
        second = old_second * second + (1 - old_second) * gradient * gradient;
        return first * correct_first / (std::sqrt(second * correct_second) + 1e-12f);
    }
};

// One subdomain's ascent; arrays over all neurons [K], over all terms [P], over columns [C].
class PlaneClimb {
  public:
    PlaneClimb(const PlaneNet& net, const PlaneRule& rule, PlaneJob& job, char* scratch)
        : net_(net), rule_(rule), job_(job), free_(scratch) {
        most_ = take<float>(net.terms), least_ = take<float>(net.terms);
        plane_first_ = take<float>(net.terms), plane_second_ = take<float>(net.terms);
        through_ = take<float>(net.neurons), plane_pull_ = take<float>(net.neurons), offset_ = take<float>(net.neurons);
        top_ = take<float>(net.neurons), chord_slope_ = take<float>(net.neurons), chord_height_ = take<float>(net.neurons);
        z_low_ = take<float>(net.neurons), z_high_ = take<float>(net.neurons), reach_ = take<float>(net.neurons);
        for (auto& moments : moments_) moments = take<float>(net.neurons);
        residual_ = take<double>(net.columns), x_ = take<double>(net.columns);
        row_gain_ = take<double>(net.row_count);
        history_ = take<double>(rule.window);
    }

    void run() {
        enter();
        double best = -HUGE_VAL;
        for (int64_t step = 1;; ++step) {
            double bound = backward();
            for (int64_t c = 0; c < net_.columns; ++c) {
                x_[c] = residual_[c] > 0 ? job_.low[c] : job_.high[c];
                bound += residual_[c] * x_[c];
            }
            job_.bound = bound;
            best = bound > best ? bound : best;
            double& before = history_[step % rule_.window];
            const bool slow = step > rule_.window && best - before < rule_.least_gain * -best;
            before = best;
            const bool last = bound > 0 || step == rule_.steps || slow || !(bound == bound);
            forward(step, last);
            for (int64_t c = 0; c < net_.columns; ++c)
                job_.point[c] = step == 1 ? x_[c] : job_.point[c] + rule_.newest * (x_[c] - job_.point[c]);
            if (last) return;
        }
    }

    static int64_t bytes(const PlaneNet& net, int64_t window) {
        return 4 * padded(net.terms * sizeof(float)) + 15 * padded(net.neurons * sizeof(float)) +
               2 * padded(net.columns * sizeof(double)) + padded(net.row_count * sizeof(double)) +
               padded(window * sizeof(double));
    }

  private:
    static int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

    template <typename V>
    V* take(int64_t count) {
        V* found = reinterpret_cast<V*>(free_);
        free_ += padded(count * sizeof(V));
        return found;
    }

    static float value(float flat, float steep, float z) {
        const float a = flat * z, b = steep * z;
        return a > b ? a : b;
    }

    // What does not change while parameters do: least and most of every term, chords, and no moments yet.
    void enter() {
        std::memset(plane_first_, 0, net_.terms * sizeof(float));
        std::memset(plane_second_, 0, net_.terms * sizeof(float));
        for (auto* moments : moments_) std::memset(moments, 0, net_.neurons * sizeof(float));
        int64_t at = 0, term = 0;
        for (int64_t l = 0; l < net_.layer_count; ++l) {
            const PlaneLayer& layer = net_.layers[l];
            for (int64_t k = 0; k < layer.count; ++k, ++at, term += layer.width) {
                const float low = static_cast<float>(job_.low[layer.pre[k]]), high = static_cast<float>(job_.high[layer.pre[k]]);
                const float flat = layer.flat[k], steep = layer.steep[k], from = value(flat, steep, low);
                chord_slope_[at] = high > low ? (value(flat, steep, high) - from) / (high - low) : steep;
                chord_height_[at] = from - chord_slope_[at] * low;
                z_low_[at] = low, z_high_[at] = high;
                PlaneVec reach{};
                for (int64_t i = 0; i < layer.used[k]; i += kPlaneLanes) {
                    const int32_t* source = layer.source + k * layer.width + i;
                    const PlaneVec w = peek(layer.weight + k * layer.width + i);
                    const PlaneVec a = w * fetch(job_.low, source), b = w * fetch(job_.high, source);
                    const PlaneVec most = pick(a > b, a, b), least = pick(a > b, b, a);
                    poke(most_ + term + i, most), poke(least_ + term + i, least);
                    reach += most - least;
                }
                reach_[at] = total(reach);
            }
        }
    }

    // One backward pass; leaves the coefficients on columns in residual_ and returns the constant.
    double backward() {
        double constant = 0;
        std::memset(residual_, 0, net_.columns * sizeof(double));
        for (int64_t s = 0; s < net_.row_count; ++s) {
            constant -= job_.rows[s] * net_.limits[s];
            for (int64_t c = 0; c < net_.columns; ++c) residual_[c] += job_.rows[s] * net_.costs[s * net_.columns + c];
        }
        const PlaneOutputs& out = net_.outputs;
        for (int64_t m = 0; m < out.count; ++m) {
            const double a = residual_[out.own[m]];
            if (a == 0) continue;
            residual_[out.own[m]] = 0;
            constant += a > 0 ? a * out.low[m] : a * out.high[m];
            for (int64_t i = out.start[m]; i < out.start[m + 1]; ++i) residual_[out.source[i]] += a * out.weight[i];
        }
        int64_t at = net_.neurons, term = net_.terms;
        for (int64_t l = net_.layer_count - 1; l >= 0; --l) {
            const PlaneLayer& layer = net_.layers[l];
            at -= layer.count, term -= layer.count * layer.width;
            for (int64_t k = 0; k < layer.count; ++k) constant += neuron_back(layer, k, at + k, term + k * layer.width);
        }
        return constant;
    }

    double neuron_back(const PlaneLayer& layer, int64_t k, int64_t at, int64_t term) {
        const float pull = static_cast<float>(residual_[layer.post[k]]), direct = static_cast<float>(residual_[layer.pre[k]]);
        residual_[layer.post[k]] = residual_[layer.pre[k]] = 0;
        job_.pull[at] = pull;
        const float flat = layer.flat[k], steep = layer.steep[k];
        const bool open = job_.side[at] < 0, above = open && pull < 0;
        const float own = above ? pull * job_.chord[at] : 0, on_plane = above ? pull * (1 - job_.chord[at]) : 0;
        const float held = open ? 0 : job_.split[at];
        const float line = open ? job_.slope[at] : (job_.side[at] > 0 ? steep : flat);
        const float through = direct + (above ? own * chord_slope_[at] : pull * line) - held;
        through_[at] = through, plane_pull_[at] = on_plane;
        double constant = static_cast<double>(own) * chord_height_[at] +
                          (through > 0 ? through * layer.low[k] : through * layer.high[k]) +
                          (held > 0 ? held * z_low_[at] : held * z_high_[at]);
        const int32_t* source = layer.source + k * layer.width;
        const float *weight = layer.weight + k * layer.width, *share = job_.plane + term;
        const int64_t used = layer.used[k];
        if (above) {
            PlaneVec up{}, down{};
            for (int64_t i = 0; i < used; i += kPlaneLanes) {
                const PlaneVec p = peek(share + i);
                up += (1 - p) * peek(most_ + term + i);
                down += p * peek(least_ + term + i);
            }
            const float bend = steep - flat;
            const float top = bend * total(up) + steep * (steep > 0 ? layer.high[k] : layer.low[k]);
            const float bottom = -bend * total(down) + flat * (flat > 0 ? layer.high[k] : layer.low[k]);
            offset_[at] = top > bottom ? top : bottom;
            const float far = (top - bottom) / (static_cast<float>(rule_.soft) * bend * reach_[at] + 1e-30f);
            top_[at] = 1 / (1 + std::exp(-(far > 50 ? 50 : (far < -50 ? -50 : far))));
            constant += static_cast<double>(on_plane) * offset_[at];
            const float base = through + on_plane * flat, more = on_plane * bend;
            for (int64_t i = 0; i < used; ++i) residual_[source[i]] += static_cast<double>((base + more * share[i]) * weight[i]);
        } else if (through != 0) {
            for (int64_t i = 0; i < used; ++i) residual_[source[i]] += static_cast<double>(through * weight[i]);
        }
        return constant;
    }

    // Values of all columns at the minimiser, and, but after the last pass, a step of every parameter.
    void forward(int64_t step, bool last) {
        rate_ = static_cast<float>(rule_.rate * std::pow(rule_.decay, static_cast<double>(step)));
        adam_ = {static_cast<float>(rule_.old_first), static_cast<float>(rule_.old_second),
                 static_cast<float>(1 / (1 - std::pow(rule_.old_first, static_cast<double>(step)))),
                 static_cast<float>(1 / (1 - std::pow(rule_.old_second, static_cast<double>(step))))};
        int64_t at = 0, term = 0;
        for (int64_t l = 0; l < net_.layer_count; ++l) {
            const PlaneLayer& layer = net_.layers[l];
            float mean = 0;
            for (int64_t k = 0; k < layer.count; ++k) mean += std::fabs(job_.pull[at + k]) / static_cast<float>(layer.count);
            for (int64_t k = 0; k < layer.count; ++k) neuron_forward(layer, k, at + k, term + k * layer.width, mean, last);
            at += layer.count, term += layer.count * layer.width;
        }
        const PlaneOutputs& out = net_.outputs;
        for (int64_t m = out.count - 1; m >= 0; --m) {
            double sum = out.low[m];
            for (int64_t i = out.start[m]; i < out.start[m + 1]; ++i) sum += out.weight[i] * x_[out.source[i]];
            x_[out.own[m]] = sum;
        }
        if (!last && net_.row_count > 1) weigh_rows();
    }

    void neuron_forward(const PlaneLayer& layer, int64_t k, int64_t at, int64_t term, float mean_pull, bool last) {
        const int32_t* source = layer.source + k * layer.width;
        const float* weight = layer.weight + k * layer.width;
        const int64_t used = layer.used[k];
        const float pull = job_.pull[at], flat = layer.flat[k], steep = layer.steep[k], bend = steep - flat;
        const bool open = job_.side[at] < 0, above = open && pull < 0;
        float* share = job_.plane + term;
        PlaneVec sum{}, weighted{};
        const bool learns = above && !last && plane_pull_[at] != 0;
        const PlaneVec top = top_[at] - PlaneVec{}, grows = plane_pull_[at] * bend - PlaneVec{};
        for (int64_t i = 0; i < used; i += kPlaneLanes) {
            const PlaneVec x = peek(weight + i) * fetch(x_, source + i);
            sum += x;
            if (!above) continue;
            PlaneVec p = peek(share + i);
            weighted += p * x;
            if (!learns) continue;
            const PlaneVec most = peek(most_ + term + i), least = peek(least_ + term + i);
            const PlaneVec gradient = grows * (x - (least + top * (most - least)));
            const PlaneVec first = adam_.old_first * peek(plane_first_ + term + i) + (1 - adam_.old_first) * gradient;
            const PlaneVec second =
                adam_.old_second * peek(plane_second_ + term + i) + (1 - adam_.old_second) * gradient * gradient;
            poke(plane_first_ + term + i, first), poke(plane_second_ + term + i, second);
            PlaneVec size = second * adam_.correct_second;
            for (int lane = 0; lane < kPlaneLanes; ++lane) size[lane] = std::sqrt(size[lane]);
            p += rate_ * adam_.correct_first * first / (size + 1e-12f);
            p = pick(p > 1, 1 - PlaneVec{}, p);
            poke(share + i, pick(p < 0, PlaneVec{}, p));
        }
        const float z = total(sum) + (through_[at] > 0 ? layer.low[k] : layer.high[k]);
        x_[layer.pre[k]] = z;
        const float line = (open ? job_.slope[at] : (job_.side[at] > 0 ? steep : flat)) * z;
        const float chord = chord_slope_[at] * z + chord_height_[at];
        const float plane = above ? flat * total(sum) + bend * total(weighted) + offset_[at] : 0;
        x_[layer.post[k]] = above ? job_.chord[at] * chord + (1 - job_.chord[at]) * plane : line;
        if (last) return;
        if (above) {
            job_.chord[at] = moved(job_.chord[at], pull * (chord - plane), at, 0, rate_, 0, 1);
        } else if (open) {
            job_.slope[at] = moved(job_.slope[at], pull * z, at, 2, rate_ * bend, flat, steep);
        } else {
            const bool up = job_.side[at] > 0;
            const float far = 1e30f;
            job_.split[at] = moved(job_.split[at], (up ? z_low_[at] : z_high_[at]) - z, at, 4,
                                   rate_ * (std::fabs(pull) + mean_pull), up ? 0 : -far, up ? far : 0);
        }
    }

    float moved(float from, float gradient, int64_t at, int moments, float rate, float least, float most) {
        const float to = from + rate * adam_.move(gradient, moments_[moments][at], moments_[moments + 1][at]);
        return to < least ? least : (to > most ? most : to);
    }

    // Rows that are violated least at the minimiser gain weight.
    void weigh_rows() {
        double most = -HUGE_VAL, size = 1e-12, sum = 0;
        for (int64_t s = 0; s < net_.row_count; ++s) {
            row_gain_[s] = -net_.limits[s];
            for (int64_t c = 0; c < net_.columns; ++c) row_gain_[s] += net_.costs[s * net_.columns + c] * x_[c];
            most = row_gain_[s] > most ? row_gain_[s] : most;
            size = std::fabs(row_gain_[s]) > size ? std::fabs(row_gain_[s]) : size;
        }
        for (int64_t s = 0; s < net_.row_count; ++s) sum += job_.rows[s] *= std::exp(rate_ * (row_gain_[s] - most) / size);
        for (int64_t s = 0; s < net_.row_count; ++s) job_.rows[s] /= sum;
    }

    const PlaneNet& net_;
    const PlaneRule& rule_;
    PlaneJob& job_;
    char* free_;
    float rate_ = 0;
    PlaneAdam adam_{};
    float *most_, *least_, *plane_first_, *plane_second_;
    float *through_, *plane_pull_, *offset_, *top_, *chord_slope_, *chord_height_, *z_low_, *z_high_, *reach_;
    float* moments_[6];
    double *residual_, *x_, *row_gain_, *history_;
};

static void climb_planes(const PlaneNet& net, const PlaneRule& rule, PlaneJob& job, void* scratch) {
    PlaneClimb(net, rule, job, static_cast<char*>(scratch)).run();
}

static int64_t plane_bytes(const PlaneNet& net, const PlaneRule& rule) { return PlaneClimb::bytes(net, rule.window); }

}  // namespace verifier::VERIFIER_ISA

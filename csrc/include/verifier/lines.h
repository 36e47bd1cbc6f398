// Linear enclosures and intervals of the elementwise functions, in double, rounded outward to T.
#pragma once

#include "verifier/functors.h"

namespace verifier {

enum class Function : int { kIdentity = 0, kRelu = 1, kLeakyRelu = 2, kSigmoid = 3, kTanh = 4 };

// slope_lower x + offset_lower <= f(x) <= slope_upper x + offset_upper and low <= f(x) <= high on [l, u].
template <typename T>
struct Enclosing {
    T slope_lower, offset_lower, slope_upper, offset_upper, low, high;
};

// Absolute error allowed for each value computed here in double: tanh and the tangent point are good to
// a few 2^-53, and |tanh| <= 1, |slope x| <= 1 + |x|.
constexpr double kLineSlack = 1.0e-14;

// Smallest offset (up to slack) of a line of slope k that stays above tanh on [l, u], 0 <= k <= 1.
// tanh(x) - k x peaks at an end, or where its slope vanishes on the concave side: tanh(x) = sqrt(1 - k).
VERIFIER_HD double offset_above_tanh(double k, double l, double u) {
    const double at_l = tanh(l) - k * l, at_u = tanh(u) - k * u;
    double best = larger(at_l, at_u), size = 1 + k * larger(size_of(l), size_of(u));
    if (k > 0 && k < 1) {
        const double root = sqrt(1 - k);
        const double peak = 0.5 * log((1 + root) * (1 + root) / k);  // atanh(root), with 1 - root = k / (1 + root)
        // Where the peak is near an end its value differs from the end's by less than the slack.
        if (peak > l && peak < u) best = larger(best, root - k * peak);
        size += k * peak;
    }
    return best + kLineSlack * size;
}

// A good slope above tanh on [l, u]: the chord where it lies above, else a tangent through (l, tanh l).
VERIFIER_HD double slope_above_tanh(double l, double u) {
    const double width = u - l, t_l = tanh(l), t_u = tanh(u);
    const double chord = width > 1e-6 ? (t_u - t_l) / width : 1 - t_l * t_l;
    if (u <= 0) return chord;
    if (l >= 0) {
        const double t = tanh(0.5 * (l + u));
        return 1 - t * t;
    }
    if (chord <= 1 - t_u * t_u) return chord;
    double near = 0, far = u;  // the tangent at `far` passes above (l, tanh l)
    for (int step = 0; step < 24; ++step) {
        const double d = 0.5 * (near + far), t = tanh(d);
        if (t + (1 - t * t) * (l - d) >= t_l) far = d;
        else near = d;
    }
    const double t = tanh(far);
    return 1 - t * t;
}

// scale tanh(x / stretch) + shift, enclosed on [l, u]; the slope is rounded to T before its offset is computed.
// Tangents and chords: Zhang et al. 2018, arXiv:1811.00866.
template <typename T>
VERIFIER_HD Enclosing<T> enclose_tanh(double l, double u, double stretch, double scale, double shift, double deviation) {
    Enclosing<T> line;
    const double a = l / stretch, b = u / stretch, ratio = scale / stretch;
    const double widen = kLineSlack + deviation;
    line.low = round_down<T>(shift + scale * tanh(a) - widen);
    line.high = round_up<T>(shift + scale * tanh(b) + widen);
    if (!(size_of(a) < 1e6 && size_of(b) < 1e6)) {  // flat to double precision: constants
        line.slope_lower = line.slope_upper = 0;
        line.offset_lower = line.low;
        line.offset_upper = line.high;
        return line;
    }
    line.slope_upper = static_cast<T>(ratio * smaller(1.0, larger(0.0, slope_above_tanh(a, b))));
    line.slope_lower = static_cast<T>(ratio * smaller(1.0, larger(0.0, slope_above_tanh(-b, -a))));
    const double up = offset_above_tanh(smaller(1.0, line.slope_upper / ratio), a, b);
    const double down = offset_above_tanh(smaller(1.0, line.slope_lower / ratio), -b, -a);
    line.offset_upper = round_up<T>(shift + scale * up + widen);
    line.offset_lower = round_down<T>(shift - scale * down - widen);
    return line;
}

// max(x, alpha x), alpha in [0, 1], on [l, u]; free_lower in [0, 1] picks the lower slope where it crosses
// zero (1: slope 1, 0: slope alpha). `deviation` |x| bounds the deployed f's error below zero.
// Source: Zhang et al. 2018, arXiv:1811.00866; any lower slope: Xu et al. 2021, arXiv:2011.13824.
template <typename T>
VERIFIER_HD Enclosing<T> enclose_leaky(double l, double u, double alpha, double deviation, double free_lower) {
    const double below = l < 0 ? -l : 0, wrong = below * deviation * (1 + 1e-12);
    const double low = l >= 0 ? l : alpha * l, high = u >= 0 ? u : alpha * u;
    Enclosing<T> line;
    line.low = round_down<T>(low - wrong - 1e-14 * size_of(low) * (alpha != 0));
    line.high = round_up<T>(high + wrong + 1e-14 * size_of(high) * (alpha != 0 && u < 0));
    line.offset_lower = round_down<T>(-wrong);
    line.offset_upper = round_up<T>(wrong);
    if (l >= 0 || u <= 0) {
        const double exact = l >= 0 ? 1 : alpha;
        line.slope_lower = line.slope_upper = static_cast<T>(exact);
        const double cast = size_of(line.slope_upper - exact) * larger(size_of(l), size_of(u));
        if (cast > 0) {
            line.offset_lower = round_down<T>(-(wrong + cast) * (1 + 1e-12));
            line.offset_upper = round_up<T>((wrong + cast) * (1 + 1e-12));
        }
        return line;
    }
    const double floor = static_cast<double>(round_up<T>(alpha));
    const double free = smaller(1.0, larger(0.0, free_lower));
    line.slope_lower = smaller(T(1), larger(static_cast<T>(floor), static_cast<T>(alpha + free * (1 - alpha))));
    line.slope_upper = smaller(T(1), larger(static_cast<T>(alpha), static_cast<T>((u - alpha * l) / (u - l))));
    const double s = line.slope_upper;
    const double gap = larger(larger((s - alpha) * -l, (1 - s) * u), 0.0);
    line.offset_upper = round_up<T>((gap + wrong) * (1 + 1e-12) + Precision<double>::kTiny);
    return line;
}

// Lines for any listed function. free_lower < 0 asks for the adaptive choice (relu family only).
// Infinite ends give slope 0 and what is known of the range; NaN gives (-inf, inf).
template <typename T>
VERIFIER_HD Enclosing<T> enclose(Function f, T lower, T upper, double alpha, double deviation, double free_lower) {
    const double l = lower, u = upper;
    const T inf = static_cast<T>(HUGE_VAL);
    if (!(l <= u)) return {0, -inf, 0, inf, -inf, inf};
    const bool bounded = f == Function::kSigmoid || f == Function::kTanh;
    if (!bounded && !(l > -HUGE_VAL && u < HUGE_VAL)) {
        const T least = f == Function::kRelu ? larger(lower, T(0)) : -inf;
        return {0, least, 0, inf, least, inf};
    }
    switch (f) {
        case Function::kSigmoid: return enclose_tanh<T>(l, u, 2, 0.5, 0.5, deviation);
        case Function::kTanh: return enclose_tanh<T>(l, u, 1, 1, 0, deviation);
        case Function::kIdentity: return {T(1), T(0), T(1), T(0), lower, upper};
        default: break;
    }
    const double slope = f == Function::kRelu ? 0.0 : alpha;
    return enclose_leaky<T>(l, u, slope, deviation, free_lower < 0 ? (u > -l ? 1.0 : 0.0) : free_lower);
}

}  // namespace verifier

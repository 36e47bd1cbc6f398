// One box through a chain of dense layers, by one team of threads.
//
// Forward, linear forms in the inputs together with intervals (Wang et al. 2018, arXiv:1809.08098); backward rows
// (CROWN, Zhang et al. 2018, arXiv:1811.00866) for the neurons that those leave open; then the rows asked for.
// Rounding: METHODS section 7. Sums over neurons are made in T and charged; what is left is computed in double, whose
// own rounding the relative terms of 1e-14 cover.
//
// A team is a class with each(n, body), which calls body(i) once for every i < n, on any of its threads, and sync().
// Control flow depends on nothing that may differ between threads: a failed box runs to its end.
#pragma once

#include "verifier/box_pass.h"
#include "verifier/kernels.h"

namespace verifier {

template <typename T, typename Team>
struct BoxTeam {
    const BoxPass<T>& job;
    BoxSpace<T> space;
    Team team;
    FormColumns columns;
    int64_t box = 0, first = 0;  // first: number of the current layer's first neuron
    int source = 0;              // which of the two form buffers holds the current layer's inputs

    VERIFIER_MEMBER BoxTeam(const BoxPass<T>& given, char* memory, Team threads)
        : job(given), space(given, memory), team(threads), columns(given.layers[0].inputs) {}

    VERIFIER_MEMBER void run(int64_t number) {
        box = number, first = 0, source = 0;
        enter();
        for (int k = 0; k < job.count; ++k) {
            forward(k);
            close(k);
            if (job.refine && k > 0 && job.layers[k].function != Function::kIdentity) refine(k);
            relax(k);
            add_up(k);
            if (k + 1 < job.count) first += job.layers[k].outputs, source = 1 - source;
        }
        answer();
        weigh_inputs();
    }

  private:
    VERIFIER_MEMBER int64_t inputs() const { return job.layers[0].inputs; }
    VERIFIER_MEMBER double low_of(int64_t i) const { return job.lower[box * inputs() + i]; }
    VERIFIER_MEMBER double high_of(int64_t i) const { return job.upper[box * inputs() + i]; }
    VERIFIER_MEMBER static double size(double x) { return size_of(x); }

    // A number that must be claimable; NaN is not.
    VERIFIER_MEMBER void require(bool good) const {
        if (!good) *space.failed = 1;
    }

    VERIFIER_MEMBER void enter() {
        T* h = space.forms[0];
        const int64_t n = inputs(), width = space.width;
        team.each(columns.count * width, [&](int64_t i) { h[i] = 0; });
        team.each(1, [&](int64_t) { *space.failed = 0; });
        team.sync();
        team.each(n, [&](int64_t i) {
            const double low = low_of(i), high = high_of(i), limit = Precision<T>::kHuge;
            require(low <= high && low >= -limit && high <= limit);
            const T center = static_cast<T>(0.5 * low + 0.5 * high);
            const T radius = round_up<T>(larger(high - center, center - low) * (1 + 1e-15));
            const T most = as_charge<T>(size(center) + radius);
            h[columns.mid(i) * width + i] = radius;
            h[columns.mid(n) * width + i] = center;
            h[columns.center() * width + i] = center;
            h[columns.radius() * width + i] = radius;
            h[columns.most() * width + i] = most;
            h[columns.scale() * width + i] = most;
        });
        team.sync();
        team.each(1, [&](int64_t) {
            space.h_sum[0] = sum_of_column(h, columns.most(), n);
            space.tiny[0] = 16 * Precision<T>::kTiny * static_cast<double>(n + 4) * (4 + space.h_sum[0]);
        });
        team.sync();
    }

    VERIFIER_MEMBER double sum_of_column(const T* h, int64_t column, int64_t count) const {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += h[column * space.width + i];
        return sum * (1 + 1e-12);
    }

    // Every column of h through W or |W|.
    VERIFIER_MEMBER void forward(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        const T* h = space.forms[source];
        T* z = space.forms[1 - source];
        const int64_t width = space.width;
        team.each(columns.count * layer.outputs, [&](int64_t item) {
            const int64_t column = item / layer.outputs, i = item % layer.outputs;
            const T *w = layer.transposed + i, *x = h + column * width;
            T sum = 0;
            if (columns.is_signed(column))
                for (int64_t j = 0; j < layer.inputs; ++j) sum += w[j * layer.outputs] * x[j];
            else
                for (int64_t j = 0; j < layer.inputs; ++j) sum += size_of(w[j * layer.outputs]) * x[j];
            z[column * width + i] = sum;
        });
        team.sync();
    }

    // Error of the deployed program's z_i, of which |W| hmax <= size and |z| <= reach are known.
    VERIFIER_MEMBER double deployed(int k, int64_t i, double size, double reach) const {
        const DenseLayer<T>& layer = job.layers[k];
        const SumError error(layer.deployed_unit, layer.products, layer.fused);
        return (error(size, reach, layer.bias_magnitude[i]) + layer.tiny + layer.flush * space.h_sum[k]) * (1 + 1e-12);
    }

    // Bounds of z, the better of the interval and the forms; the constants of the forms get bias and errors.
    VERIFIER_MEMBER void close(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        T* z = space.forms[1 - source];
        const int64_t n = inputs(), width = space.width;
        const double gamma = safe_gamma<T>(static_cast<double>(layer.inputs) + 10);
        const double underflow = 16 * Precision<T>::kTiny * static_cast<double>(n + 4) *
                                 (static_cast<double>(layer.inputs) + 4 + layer.row_magnitude);
        team.each(layer.outputs, [&](int64_t i) {
            const auto at = [&](int64_t column) -> T& { return z[column * width + i]; };
            const double bias = layer.bias[i];
            const double most = at(columns.most()) * (1 + 2 * gamma) + underflow;
            const double center = at(columns.center()) + bias;
            const double exact = at(columns.radius()) + 2 * gamma * most + underflow;
            const double radius = exact + deployed(k, i, most, size(center) + exact);
            double low = center - radius - 1e-14 * (size(center) + radius);
            double high = center + radius + 1e-14 * (size(center) + radius);

            const double scale = at(columns.scale()) * (1 + 2 * gamma) + size(bias), mid = at(columns.mid(n)) + bias;
            const double half = at(columns.half(n)) + gamma * scale + (radius - exact) + underflow +
                                4 * Precision<T>::kUnit * size(mid);
            const T mid_0 = at(columns.mid(n)) = static_cast<T>(mid), half_0 = at(columns.half(n)) = as_charge<T>(half);
            double below = 0, above = 0, total = size(mid_0) + half_0;
            for (int64_t c = 0; c < n; ++c) {
                const double m = at(columns.mid(c)), h = at(columns.half(c));
                below += size(m - h), above += size(m + h), total += size(m) + size(h);
            }
            low = larger(low, mid_0 - half_0 - below - 1e-14 * total);
            high = smaller(high, mid_0 + half_0 + above + 1e-14 * total);
            require(low <= high && low >= -Precision<T>::kHuge && high <= Precision<T>::kHuge);
            space.lower[first + i] = round_down<T>(low);
            space.upper[first + i] = round_up<T>(high);
            at(columns.most()) = as_charge<T>(most);
        });
        team.sync();
    }

    // Backward rows for +z and -z of every neuron that the forward pass leaves open.
    VERIFIER_MEMBER void refine(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        const bool curved = layer.function == Function::kSigmoid || layer.function == Function::kTanh;
        team.each(1, [&](int64_t) {
            int32_t count = 0;
            for (int64_t i = 0; i < layer.outputs; ++i)
                if (curved || (space.lower[first + i] < 0 && space.upper[first + i] > 0))
                    space.open[count++] = static_cast<int32_t>(i);
            *space.open_count = count;
        });
        team.sync();
        const int64_t all = 2 * static_cast<int64_t>(*space.open_count);
        for (int64_t begin = 0; begin < all; begin += job.row_block) {
            const int64_t count = smaller(job.row_block, all - begin);
            start_neurons(k, begin, count);
            const T* rows = descend(k, first, count);
            team.each(count, [&](int64_t r) {
                const int64_t i = first + space.open[(begin + r) / 2];
                const double bound = least_of(rows + r * space.stride, settled(k, r));
                if (!(size(bound) <= Precision<T>::kHuge)) return;
                if ((begin + r) % 2) space.upper[i] = smaller(space.upper[i], round_up<T>(-bound));
                else space.lower[i] = larger(space.lower[i], round_down<T>(bound));
            });
            team.sync();
        }
        team.each(layer.outputs, [&](int64_t i) { require(space.lower[first + i] <= space.upper[first + i]); });
    }

    VERIFIER_MEMBER void start_neurons(int k, int64_t begin, int64_t count) {
        const DenseLayer<T>& layer = job.layers[k];
        const T* most = space.forms[1 - source] + columns.most() * space.width;
        const auto neuron = [&](int64_t r) { return static_cast<int64_t>(space.open[(begin + r) / 2]); };
        const auto sign = [&](int64_t r) { return (begin + r) % 2 ? T(-1) : T(1); };
        team.each(count * layer.inputs, [&](int64_t item) {
            const int64_t r = item / layer.inputs, j = item % layer.inputs;
            space.rows[0][r * space.stride + j] = sign(r) * layer.weight[neuron(r) * layer.inputs + j];
        });
        team.each(count, [&](int64_t r) {
            const int64_t i = neuron(r);
            space.row_offset[r] = static_cast<double>(sign(r)) * layer.bias[i];
            space.row_loss[r] = deployed(k, i, most[i], larger(size(space.lower[first + i]), size(space.upper[first + i])));
        });
        team.sync();
    }

    // Carries rows on h of layer k - 1, whose next layer's neurons start at `end`, down to the inputs.
    VERIFIER_MEMBER const T* descend(int k, int64_t end, int64_t count) {
        int now = 0;
        for (int s = k - 1; s >= 0; --s) {
            const DenseLayer<T>& layer = job.layers[s];
            end -= layer.outputs;
            relax_rows(layer, end, space.rows[now], count);
            const T* p = space.rows[now];
            T* a = space.rows[1 - now];
            team.each(count * layer.inputs, [&](int64_t item) {
                const int64_t r = item / layer.inputs, j = item % layer.inputs;
                const T *row = p + r * space.stride, *w = layer.weight + j;
                T sum = 0;
                for (int64_t i = 0; i < layer.outputs; ++i) sum += row[i] * w[i * layer.inputs];
                a[r * space.stride + j] = sum;
            });
            team.sync();
            now = 1 - now;
        }
        return space.rows[now];
    }

    // Rows on h become rows on z, in place.
    VERIFIER_MEMBER void relax_rows(const DenseLayer<T>& layer, int64_t begin, T* rows, int64_t count) {
        const double chain = chain_gamma<T>(layer.outputs, 1);
        const T gamma = round_up<T>(chain);
        team.each(count, [&](int64_t r) {
            T offset = 0, loss = 0;
            for (int64_t i = 0; i < layer.outputs; ++i) {
                T& a = rows[r * space.stride + i];
                const int64_t at = begin + i;
                a = relax_element<T>(a, space.slope_lower[at], space.offset_lower[at], space.slope_upper[at],
                                     space.offset_upper[at], layer.bias[i], T(0), space.reach[at], space.charge[at],
                                     gamma, offset, loss);
            }
            space.row_offset[r] += offset;
            space.row_loss[r] += loss * (1 + 4 * chain);
        });
        team.sync();
    }

    // Certain lower bound of what row r, from layer k or above, has collected.
    VERIFIER_MEMBER double settled(int k, int64_t r) const {
        const double offset = space.row_offset[r], loss = space.row_loss[r] * (1 + 1e-6) + space.tiny[k];
        return offset - loss - 1e-14 * (size(offset) + loss);
    }

    // Certain lower bound of row r's form, `offset` its constant, over the box.
    VERIFIER_MEMBER double least_of(const T* row, double offset) const {
        return lowest(row, offset, job.lower + box * inputs(), job.upper + box * inputs(), inputs());
    }

    // Lines of h, what a row loses at this layer, and the forms of h in place of those of z.
    VERIFIER_MEMBER void relax(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        T* z = space.forms[1 - source];
        const double gamma = gamma_n(static_cast<double>(layer.outputs) + 4, Precision<T>::kUnit);
        team.each(layer.outputs, [&](int64_t i) {
            const int64_t at = first + i;
            const T low = space.lower[at], high = space.upper[at];
            const Enclosing<T> line = enclose<T>(layer.function, low, high, layer.alpha, layer.deviation, -1);
            require(size(line.low) <= Precision<T>::kHuge && size(line.high) <= Precision<T>::kHuge &&
                    size(line.offset_lower) <= Precision<T>::kHuge && size(line.offset_upper) <= Precision<T>::kHuge);
            const double most = z[columns.most() * space.width + i], reach = larger(size(low), size(high));
            space.slope_lower[at] = line.slope_lower, space.offset_lower[at] = line.offset_lower;
            space.slope_upper[at] = line.slope_upper, space.offset_upper[at] = line.offset_upper;
            space.reach[at] = as_charge<T>(reach);
            space.charge[at] = as_charge<T>(gamma * most + deployed(k, i, most, reach));
            relax_forms(z + i, line);
        });
        team.sync();
    }

    // mid' = p mid + m half, half' = m mid + p half, with p and m half the sum and half the difference of the slopes.
    VERIFIER_MEMBER void relax_forms(T* form, const Enclosing<T>& line) const {
        const int64_t n = inputs(), width = space.width;
        const double up = line.slope_upper, down = line.slope_lower, p = 0.5 * (up + down), m = 0.5 * (up - down);
        const double above = line.offset_upper, below = line.offset_lower;
        const bool exact = m == 0 && (p == 0 || p == 1) && above == 0 && below == 0;
        double before = size(above) + size(below), after = 0;
        for (int64_t c = 0; c <= n; ++c) {
            T &x = form[columns.mid(c) * width], &y = form[columns.half(c) * width];
            const double mid = x, half = y, constant = c == n ? 1.0 : 0.0;
            before += size(mid) + size(half);
            x = static_cast<T>(p * mid + m * half + constant * 0.5 * (above + below));
            y = static_cast<T>(m * mid + p * half + constant * 0.5 * (above - below));
            after += size(x) + size(y);
        }
        if (!exact) {
            T& half_0 = form[columns.half(n) * width];
            const double lost = 4 * Precision<T>::kUnit * after + 1e-14 * before +
                                64 * Precision<T>::kTiny * static_cast<double>(n + 4);
            half_0 = as_charge<T>(half_0 + lost);
            after += 2 * lost + 4 * Precision<T>::kUnit * size(half_0);
        }
        const T center = static_cast<T>(0.5 * (static_cast<double>(line.low) + line.high));
        const double radius = larger(static_cast<double>(line.high) - center, static_cast<double>(center) - line.low);
        form[columns.center() * width] = center;
        form[columns.radius() * width] = as_charge<T>(radius);
        form[columns.most() * width] = as_charge<T>(larger(size(line.low), size(line.high)));
        form[columns.scale() * width] = as_charge<T>(after);
    }

    // Sums over the layer's neurons.
    VERIFIER_MEMBER void add_up(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        const T* h = space.forms[1 - source];
        team.each(1, [&](int64_t) {
            double z_sum = 0;
            for (int64_t i = 0; i < layer.outputs; ++i) z_sum += space.reach[first + i];
            space.h_sum[k + 1] = sum_of_column(h, columns.most(), layer.outputs);
            space.tiny[k + 1] = space.tiny[k] + 16 * Precision<T>::kTiny * static_cast<double>(layer.outputs + 4) *
                                                    (static_cast<double>(layer.inputs) + 4 + space.h_sum[k] + z_sum);
        });
        team.sync();
    }

    // The rows asked for.
    VERIFIER_MEMBER void answer() {
        const int64_t outputs = job.layers[job.count - 1].outputs, n = inputs(), width = space.width;
        const T* most = space.forms[1 - source] + columns.most() * width;
        for (int64_t begin = 0; begin < job.rows; begin += job.row_block) {
            const int64_t count = smaller(job.row_block, job.rows - begin);
            team.each(count, [&](int64_t r) {
                double cast = 0;
                for (int64_t i = 0; i < outputs; ++i) {
                    const double exact = job.spec[(begin + r) * outputs + i];
                    const T stored = space.rows[0][r * space.stride + i] = static_cast<T>(exact);
                    cast += size(exact - stored) * most[i];
                }
                space.row_offset[r] = 0, space.row_loss[r] = cast * (1 + 1e-12);
            });
            team.sync();
            const T* rows = descend(job.count, first + outputs, count);
            team.each(count, [&](int64_t r) {
                const int64_t at = box * job.rows + begin + r;
                const double offset = settled(job.count, r), low = least_of(rows + r * space.stride, offset);
                const bool known = !*space.failed && size(low) <= Precision<T>::kHuge;
                job.out_lower[at] = known ? low : -HUGE_VAL;
                job.offset[at] = known ? offset : -HUGE_VAL;
                for (int64_t i = 0; i < n; ++i) job.coeffs[at * n + i] = known ? rows[r * space.stride + i] : T(0);
            });
            team.sync();
        }
    }

    // Summed coefficients of the last hidden layer's lower and upper forms, per unit of x; of the rows without one.
    VERIFIER_MEMBER void weigh_inputs() {
        const bool hidden_last = job.layers[job.count - 1].function != Function::kIdentity;
        const int layer = hidden_last ? job.count - 1 : job.count - 2;
        const T* h = space.forms[hidden_last ? 1 - source : source];
        const int64_t n = inputs(), width = space.width;
        team.each(n, [&](int64_t c) {
            double sum = 0;
            if (layer >= 0)
                for (int64_t i = 0; i < job.layers[layer].outputs; ++i) {
                    const double m = h[columns.mid(c) * width + i], y = h[columns.half(c) * width + i];
                    sum += size(m - y) + size(m + y);
                }
            else
                for (int64_t s = 0; s < job.rows; ++s) sum += size(job.coeffs[(box * job.rows + s) * n + c]);
            const double radius = layer >= 0 ? 0.5 * (high_of(c) - low_of(c)) : 1.0;
            const double found = radius > 0 ? sum / radius : 0.0;
            job.sensitivity[box * n + c] = !*space.failed && found <= HUGE_VAL ? found : 0.0;
        });
        team.sync();
    }
};

}  // namespace verifier

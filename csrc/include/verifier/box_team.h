// One box through a chain of dense layers, by one team of threads.
//
// Forward, linear forms in the inputs together with intervals (Wang et al. 2018, arXiv:1809.08098); backward rows
// (CROWN, Zhang et al. 2018, arXiv:1811.00866) for the neurons that those leave open; then the rows asked for.
// Rounding: METHODS section 7. Sums over neurons are made in T and charged; what is left is computed in double, whose
// own rounding the relative terms of 1e-14 cover.
//
// A team is a class with
//     each(n, body)   body(i) once for every i < n, on any of its threads;
//     tiles(n, body)  body(tile, group) for every tile < n, by all threads of one group;
//     lane(), lanes() a thread's place in its group; group_sync(); sync(); the constant kGroups;
// and of one group, called by all of it:
//     sums(x, y, body)       body(r, sum of x[r], sum of y[r]) once for every r, on any thread;
//     total(n, value)        the sum of value(i) over i < n, known to all;
//     collect(n, keep, list) puts every i < n that keep(i) names into the list, in order; their number.
// Control flow depends on nothing that may differ between threads of a group: a failed box runs to its end.
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
    int64_t box = 0;
    int first = 0;  // first: number of the current layer's first neuron
    T *source = nullptr, *target = nullptr;  // forms of the current layer's inputs; of its neurons

    VERIFIER_MEMBER BoxTeam(const BoxPass<T>& given, char* memory, Team threads)
        : job(given), space(given, Team::kGroups, memory), team(threads), columns(given.layers[0].inputs) {}

    VERIFIER_MEMBER void run(int64_t number) {
        box = number, first = 0, source = space.forms, target = source + columns.count * space.width;
        enter();
        for (int k = 0; k < job.count; ++k) {
            forward(k);
            close(k);
            if (job.refine && k > 0 && job.layers[k].function != Function::kIdentity) refine(k);
            relax(k);
            add_up(k);
            if (k + 1 == job.count) break;
            first += job.layers[k].outputs;
            T* const done = source;
            source = target, target = done;
        }
        answer();
        weigh_inputs();
    }

  private:
    VERIFIER_MEMBER int inputs() const { return job.layers[0].inputs; }
    VERIFIER_MEMBER double low_of(int i) const { return job.lower[box * inputs() + i]; }
    VERIFIER_MEMBER double high_of(int i) const { return job.upper[box * inputs() + i]; }
    VERIFIER_MEMBER static double size(double x) { return size_of(x); }

    // A number that must be claimable; NaN is not.
    VERIFIER_MEMBER void require(bool good) const {
        if (!good) *space.failed = 1;
    }

    VERIFIER_MEMBER void enter() {
        T* h = source;
        const int n = inputs(), width = space.width;
        team.each(columns.count * width, [&](int i) { h[i] = 0; });
        team.each(1, [&](int) { *space.failed = 0; });
        team.sync();
        team.each(n, [&](int i) {
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
        team.tiles(1, [&](int, int) {
            const double h_sum = team.total(n, [&](int i) { return h[columns.most() * width + i]; }) * (1 + 1e-12);
            if (team.lane() != 0) return;
            space.h_sum[0] = h_sum;
            space.tiny[0] = 16 * Precision<T>::kTiny * static_cast<double>(n + 4) * (4 + space.h_sum[0]);
        });
        team.sync();
    }

    // Every column of h through W or |W|.
    VERIFIER_MEMBER void forward(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        const int with_sign = columns.signed_count(), width = space.width;
        const int first_tiles = (with_sign + kColumnTile - 1) / kColumnTile;
        const int other_tiles = (columns.count - with_sign + kColumnTile - 1) / kColumnTile;
        team.tiles(first_tiles + other_tiles, [&](int tile, int) {
            const bool is_signed = tile < first_tiles;
            const int begin = is_signed ? tile * kColumnTile : with_sign + (tile - first_tiles) * kColumnTile;
            const int count = smaller<int>(kColumnTile, (is_signed ? with_sign : columns.count) - begin);
            const T* h = source + begin * width;
            T* z = target + begin * width;
            if (is_signed) product<kColumnTile, false>(h, count, layer.inputs, layer.transposed, layer.outputs, z);
            else product<kColumnTile, true>(h, count, layer.inputs, layer.transposed, layer.outputs, z);
        });
        team.sync();
    }

    // Rows p [count <= kRows, from] times a matrix [stepped(from), stepped(to)], or its absolute values, by one group.
    // Rows lie `width` apart; what pads rows and matrix is zero.
    template <int kRows, bool kAbsolute>
    VERIFIER_MEMBER void product(const T* p, int count, int from, const T* matrix, int to, T* result) const {
        constexpr int kColumns = 2;
        const int columns = stepped(to);
        for (int column = kColumns * team.lane(); column < columns; column += kColumns * team.lanes()) {
            T sums[kRows][kColumns] = {};
            const T *w = matrix + column, *rows[kRows];
            VERIFIER_UNROLL
            for (int r = 0; r < kRows; ++r) rows[r] = p + smaller(r, count - 1) * space.width;
            for (int i = 0; i < from; i += kStep, w += kStep * columns) {
                T weights[kStep][kColumns], values[kRows][kStep];
                VERIFIER_UNROLL
                for (int u = 0; u < kStep; ++u) read(w + u * columns, weights[u]);
                VERIFIER_UNROLL
                for (int r = 0; r < kRows; ++r) read(rows[r] + i, values[r]);
                VERIFIER_UNROLL
                for (int u = 0; u < kStep; ++u) {
                    VERIFIER_UNROLL
                    for (int c = 0; c < kColumns; ++c) {
                        const T weight = kAbsolute ? size_of(weights[u][c]) : weights[u][c];
                        VERIFIER_UNROLL
                        for (int r = 0; r < kRows; ++r) sums[r][c] += values[r][u] * weight;
                    }
                }
            }
            VERIFIER_UNROLL
            for (int r = 0; r < kRows; ++r) {
                VERIFIER_UNROLL
                for (int c = 0; c < kColumns; ++c)
                    if (r < count) result[r * space.width + column + c] = sums[r][c];
            }
        }
    }

    // Neighbours, aligned to what they take together, 16 bytes at most.
    template <int kCount>
    VERIFIER_MEMBER static void read(const T* p, T (&values)[kCount]) {
        struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
            T at[kCount];
        };
        const Pack pack = *reinterpret_cast<const Pack*>(p);
        VERIFIER_UNROLL
        for (int u = 0; u < kCount; ++u) values[u] = pack.at[u];
    }

    // Error of the deployed program's z_i, of which |W| hmax <= size and |z| <= reach are known.
    VERIFIER_MEMBER double deployed(int k, int i, double size, double reach) const {
        const DenseLayer<T>& layer = job.layers[k];
        return (layer.error(size, reach, layer.bias_magnitude[i]) + layer.tiny + layer.flush * space.h_sum[k]) * (1 + 1e-12);
    }

    // Bounds of z, the better of the interval and the forms; the constants of the forms get bias and errors. Until
    // `relax`, the charge is what the deployed program's z may be off by.
    VERIFIER_MEMBER void close(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        T* z = target;
        const int n = inputs(), width = space.width;
        const double gamma = safe_gamma<T>(static_cast<double>(layer.inputs) + 10);
        const double underflow = 16 * Precision<T>::kTiny * static_cast<double>(n + 4) *
                                 (static_cast<double>(layer.inputs) + 4 + layer.row_magnitude);
        team.each(layer.outputs, [&](int i) {
            const auto at = [&](int column) -> T& { return z[column * width + i]; };
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
            for (int c = 0; c < n; ++c) {
                const double m = at(columns.mid(c)), h = at(columns.half(c));
                below += size(m - h), above += size(m + h), total += size(m) + size(h);
            }
            low = larger(low, mid_0 - half_0 - below - 1e-14 * total);
            high = smaller(high, mid_0 + half_0 + above + 1e-14 * total);
            require(low <= high && low >= -Precision<T>::kHuge && high <= Precision<T>::kHuge);
            space.lower[first + i] = round_down<T>(low);
            space.upper[first + i] = round_up<T>(high);
            space.charge[first + i] = as_charge<T>(deployed(k, i, most, larger(size(low), size(high)) * (1 + 1e-6)));
            at(columns.most()) = as_charge<T>(most);
        });
        team.sync();
    }

    // Backward rows for +z and -z of every neuron that the forward pass leaves open.
    VERIFIER_MEMBER void refine(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        const bool curved = layer.function == Function::kSigmoid || layer.function == Function::kTanh;
        team.tiles(1, [&](int, int) {
            const auto open = [&](int i) { return curved || (space.lower[first + i] < 0 && space.upper[first + i] > 0); };
            const int count = team.collect(layer.outputs, open, space.open);
            if (team.lane() == 0) *space.open_count = count;
        });
        team.sync();
        const int all = 2 * static_cast<int>(*space.open_count);
        team.tiles((all + kTile - 1) / kTile, [&](int tile, int group) {
            Rows rows(space, group, smaller<int>(kTile, all - tile * kTile));
            start_neurons(k, tile * kTile, rows);
            descend(k, first, rows);
            finish(rows, [&](int r, double offset, double loss) {
                const int row = tile * kTile + r, i = first + space.open[row / 2];
                const double bound = least_of(rows.now + r * space.width, settled(k, offset, loss));
                if (!(size(bound) <= Precision<T>::kHuge)) return;
                if (row % 2) space.upper[i] = smaller(space.upper[i], round_up<T>(-bound));
                else space.lower[i] = larger(space.lower[i], round_down<T>(bound));
            });
        });
        team.sync();
        team.each(layer.outputs, [&](int i) { require(space.lower[first + i] <= space.upper[first + i]); });
    }

    // A group's tile of rows on their way back: coefficients, and each thread's part of their offsets and losses.
    struct Rows {
        T *now, *next;  // [kTile, width], zero beyond a layer's neurons
        int count;
        double offset[kTile] = {}, loss[kTile] = {};

        VERIFIER_MEMBER Rows(const BoxSpace<T>& space, int group, int rows)
            : now(space.rows + group * 2 * kTile * space.width), next(now + kTile * space.width), count(rows) {}
    };

    // Body(r, offset, loss) once for each row, with its sums over the group.
    template <typename Body>
    VERIFIER_MEMBER void finish(Rows& rows, Body body) const {
        team.sums(rows.offset, rows.loss, [&](int r, double offset, double loss) {
            if (r < rows.count) body(r, offset, loss);
        });
        team.group_sync();
    }

    VERIFIER_MEMBER void start_neurons(int k, int begin, Rows& rows) const {
        const DenseLayer<T>& layer = job.layers[k];
        VERIFIER_UNROLL
        for (int r = 0; r < kTile; ++r) {
            if (r >= rows.count) continue;
            const int i = space.open[(begin + r) / 2];
            const T sign = (begin + r) % 2 ? T(-1) : T(1);
            for (int j = team.lane(); j < stepped(layer.inputs); j += team.lanes())
                rows.now[r * space.width + j] = sign * layer.weight[i * stepped(layer.inputs) + j];
            if (team.lane() == 0) {
                rows.offset[r] = static_cast<double>(sign) * layer.bias[i];
                rows.loss[r] = space.charge[first + i];
            }
        }
        team.group_sync();
    }

    // Carries rows on h of layer k - 1, whose next layer's neurons start at `end`, down to the inputs.
    VERIFIER_MEMBER void descend(int k, int end, Rows& rows) const {
        for (int s = k - 1; s >= 0; --s) {
            const DenseLayer<T>& layer = job.layers[s];
            end -= layer.outputs;
            relax_rows(layer, end, rows);
            team.group_sync();
            product<kTile, false>(rows.now, rows.count, layer.outputs, layer.weight, layer.inputs, rows.next);
            team.group_sync();
            T* const done = rows.now;
            rows.now = rows.next, rows.next = done;
        }
    }

    // Rows on h become rows on z, in place.
    VERIFIER_MEMBER void relax_rows(const DenseLayer<T>& layer, int begin, Rows& rows) const {
        const double chain = relax_gamma<T>(layer.outputs, (layer.outputs + team.lanes() - 1) / team.lanes());
        const T gamma = round_up<T>(chain);
        T offset[kTile] = {}, loss[kTile] = {};
        for (int i = team.lane(); i < layer.outputs; i += team.lanes()) {
            const int at = begin + i;
            const T slope_lower = space.slope_lower[at], offset_lower = space.offset_lower[at];
            const T slope_upper = space.slope_upper[at], offset_upper = space.offset_upper[at];
            const T bias = layer.bias[i], reach = space.reach[at], charge = space.charge[at];
            VERIFIER_UNROLL
            for (int r = 0; r < kTile; ++r) {
                if (r >= rows.count) continue;
                T& a = rows.now[r * space.width + i];
                a = relax_element<T>(a, slope_lower, offset_lower, slope_upper, offset_upper, bias, T(0), reach, charge,
                                     gamma, offset[r], loss[r]);
            }
        }
        VERIFIER_UNROLL
        for (int r = 0; r < kTile; ++r) rows.offset[r] += offset[r], rows.loss[r] += loss[r] * (1 + 4 * chain);
    }

    // Certain lower bound of what a row, from layer k or above, has collected.
    VERIFIER_MEMBER double settled(int k, double offset, double loss) const {
        loss = loss * (1 + 1e-6) + space.tiny[k];
        return offset - loss - 1e-14 * (size(offset) + loss);
    }

    // Certain lower bound of a row's form, `offset` its constant, over the box.
    VERIFIER_MEMBER double least_of(const T* row, double offset) const {
        return lowest(row, offset, job.lower + box * inputs(), job.upper + box * inputs(), inputs());
    }

    // Lines of h, what a row loses at this layer, and the forms of h in place of those of z.
    VERIFIER_MEMBER void relax(int k) {
        const DenseLayer<T>& layer = job.layers[k];
        T* z = target;
        const double gamma = gamma_n(static_cast<double>(layer.outputs) + 4, Precision<T>::kUnit);
        team.each(layer.outputs, [&](int i) {
            const int at = first + i;
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
        const int n = inputs(), width = space.width;
        const double up = line.slope_upper, down = line.slope_lower, p = 0.5 * (up + down), m = 0.5 * (up - down);
        const double above = line.offset_upper, below = line.offset_lower;
        const bool exact = m == 0 && (p == 0 || p == 1) && above == 0 && below == 0;
        double before = size(above) + size(below), after = 0;
        for (int c = 0; c <= n; ++c) {
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
        const T* most = target + columns.most() * space.width;
        team.tiles(1, [&](int, int) {
            const double z_sum = team.total(layer.outputs, [&](int i) { return space.reach[first + i]; });
            const double h_sum = team.total(layer.outputs, [&](int i) { return most[i]; }) * (1 + 1e-12);
            if (team.lane() != 0) return;
            space.h_sum[k + 1] = h_sum;
            space.tiny[k + 1] = space.tiny[k] + 16 * Precision<T>::kTiny * static_cast<double>(layer.outputs + 4) *
                                                    (static_cast<double>(layer.inputs) + 4 + space.h_sum[k] + z_sum);
        });
        team.sync();
    }

    // The rows asked for.
    VERIFIER_MEMBER void answer() {
        const int outputs = job.layers[job.count - 1].outputs, n = inputs(), width = space.width;
        team.tiles((static_cast<int>(job.rows) + kTile - 1) / kTile, [&](int tile, int group) {
            Rows rows(space, group, smaller<int>(kTile, static_cast<int>(job.rows) - tile * kTile));
            start_outputs(tile * kTile, rows);
            descend(job.count, first + outputs, rows);
            finish(rows, [&](int r, double sum, double loss) {
                const int64_t at = box * job.rows + tile * kTile + r;
                const double offset = settled(job.count, sum, loss), low = least_of(rows.now + r * width, offset);
                const bool known = !*space.failed && size(low) <= Precision<T>::kHuge;
                job.out_lower[at] = known ? low : -HUGE_VAL;
                job.offset[at] = known ? offset : -HUGE_VAL;
                for (int i = 0; i < n; ++i) job.coeffs[at * n + i] = known ? rows.now[r * width + i] : T(0);
            });
        });
        team.sync();
    }

    // What is lost by storing the rows in T goes to their losses.
    VERIFIER_MEMBER void start_outputs(int begin, Rows& rows) const {
        const int outputs = job.layers[job.count - 1].outputs;
        const T* most = target + columns.most() * space.width;
        VERIFIER_UNROLL
        for (int r = 0; r < kTile; ++r) {
            if (r >= rows.count) continue;
            for (int i = team.lane(); i < stepped(outputs); i += team.lanes()) {
                const double exact = i < outputs ? job.spec[(begin + r) * outputs + i] : 0.0;
                const T stored = rows.now[r * space.width + i] = static_cast<T>(exact);
                if (i < outputs) rows.loss[r] += size(exact - stored) * most[i] * (1 + 1e-12);
            }
        }
        team.group_sync();
    }

    // Summed coefficients of the last hidden layer's lower and upper forms, per unit of x; of the rows without one.
    VERIFIER_MEMBER void weigh_inputs() {
        const bool hidden_last = job.layers[job.count - 1].function != Function::kIdentity;
        const int layer = hidden_last ? job.count - 1 : job.count - 2;
        const T* h = (hidden_last ? target : source);
        const int n = inputs(), width = space.width;
        team.each(n, [&](int c) {
            double sum = 0;
            if (layer >= 0)
                for (int i = 0; i < job.layers[layer].outputs; ++i) {
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

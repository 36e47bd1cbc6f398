// One linear map applied to rows of features: forwards (with W^T or |W|^T) and backwards (with W).
#pragma once

#include "gemm.h"

namespace verifier::VERIFIER_ISA {

// Rows of features, row-major with a padded stride.
template <typename T>
struct Rows {
    T* data;
    int64_t stride, count;
};

// Features that may be nonzero; the others are known to be zero in every row.
struct Alive {
    const int32_t* index;
    int64_t count;
};

// Scratch for sparse maps: rows as columns.
template <typename T>
struct Across {
    T *in, *out;
};

// to[i * lanes_wide + r] = from[r * stride + i]: rows become columns, padded with zeros to whole vectors.
template <typename T>
static void turn(Rows<const T> from, int64_t n, int64_t wide, T* to) {
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t r = 0; r < from.count; ++r) to[i * wide + r] = from.data[r * from.stride + i];
        for (int64_t r = from.count; r < wide; ++r) to[i * wide + r] = 0;
    }
}

// Columns become rows again, added to or replacing what is there.
template <typename T>
static void turn_back(const T* from, int64_t n, int64_t wide, Rows<T> to, bool accumulate) {
    for (int64_t r = 0; r < to.count; ++r) {
        T* row = to.data + r * to.stride;
        for (int64_t i = 0; i < n; ++i) row[i] = accumulate ? row[i] + from[i * wide + r] : from[i * wide + r];
        if (!accumulate) memset(row + n, 0, (to.stride - n) * sizeof(T));
    }
}

// kVectors vectors of every output of a sparse matrix: each nonzero is read once for all rows.
template <typename T, int kVectors, bool kMagnitude>
static void gather_columns(const Nonzeros<T>& matrix, int64_t outputs, int64_t wide, const T* in, T* out) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    for (int64_t i = 0; i < outputs; ++i) {
        Vec<T> sum[kVectors] = {};
        for (int64_t k = matrix.start[i]; k < matrix.start[i + 1]; ++k) {
            const T w = matrix.values[k];
            const Vec<T> factor = spread<T>(kMagnitude && w < 0 ? -w : w);
            const T* x = in + matrix.index[k] * wide;
            for (int v = 0; v < kVectors; ++v) sum[v] += factor * load(x + v * lanes);
        }
        for (int v = 0; v < kVectors; ++v) store(out + i * wide + v * lanes, sum[v]);
    }
}

// out[r] (+)= M in[r] (or |M| in[r]) for a sparse M [outputs, inputs].
template <typename T, bool kMagnitude>
static void sparse_product(const Nonzeros<T>& matrix, int64_t outputs, int64_t inputs, Rows<const T> in, Rows<T> out,
                           Across<T> across, bool accumulate) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    const int64_t wide = blocks_of(in.count, lanes) * lanes;
    turn(in, inputs, wide, across.in);
    for (int64_t v = 0; v < wide / lanes;) {
        const T* x = across.in + v * lanes;
        T* y = across.out + v * lanes;
        const int64_t left = wide / lanes - v;
        if (left >= 6) gather_columns<T, 6, kMagnitude>(matrix, outputs, wide, x, y), v += 6;
        else if (left >= 4) gather_columns<T, 4, kMagnitude>(matrix, outputs, wide, x, y), v += 4;
        else if (left >= 2) gather_columns<T, 2, kMagnitude>(matrix, outputs, wide, x, y), v += 2;
        else gather_columns<T, 1, kMagnitude>(matrix, outputs, wide, x, y), v += 1;
    }
    turn_back(across.out, outputs, wide, out, accumulate);
}

// out[r] (+)= values * in[r], elementwise.
template <typename T, bool kMagnitude>
static void scale_rows(const Term<T>& term, Rows<const T> in, Rows<T> out, bool accumulate) {
    for (int64_t r = 0; r < in.count; ++r) {
        const T* x = in.data + r * in.stride;
        T* y = out.data + r * out.stride;
        if (!accumulate) memset(y, 0, out.stride * sizeof(T));
        for (int64_t i = 0; i < term.rows; ++i) {
            const T w = term.values[i];
            y[i] += (kMagnitude && w < 0 ? -w : w) * x[i];
        }
    }
}

// out[r] (+)= W in[r], or |W| in[r], for every row r.
template <typename T, bool kMagnitude>
static void apply_forward(const Term<T>& term, Rows<const T> in, Alive alive, Rows<T> out, Across<T> across,
                          bool accumulate) {
    if (term.kind == MapKind::kDense)
        product<T, kMagnitude>(in.data, in.stride, in.count, term.forward, term.cols, term.rows, alive.index,
                               alive.count, out.data, out.stride, accumulate);
    else if (term.kind == MapKind::kDiagonal)
        scale_rows<T, kMagnitude>(term, in, out, accumulate);
    else
        sparse_product<T, kMagnitude>(term.by_row, term.rows, term.cols, in, out, across, accumulate);
}

// out[r] (+)= in[r] W for every row r.
template <typename T>
static void apply_backward(const Term<T>& term, Rows<const T> in, Alive alive, Rows<T> out, Across<T> across,
                           bool accumulate) {
    if (term.kind == MapKind::kDense)
        product<T, false>(in.data, in.stride, in.count, term.backward, term.rows, term.cols, alive.index, alive.count,
                          out.data, out.stride, accumulate);
    else if (term.kind == MapKind::kDiagonal)
        scale_rows<T, false>(term, in, out, accumulate);
    else
        sparse_product<T, false>(term.by_column, term.cols, term.rows, in, out, across, accumulate);
}

// out = sign * row i of W, exactly.
template <typename T>
static void gather_row(const Term<T>& term, int64_t i, T sign, T* out, int64_t stride) {
    memset(out, 0, stride * sizeof(T));
    if (term.kind == MapKind::kDense) {
        unpack_row(term.backward, term.rows, term.cols, i, sign, out);
    } else if (term.kind == MapKind::kDiagonal) {
        out[i] = sign * term.values[i];
    } else {
        for (int64_t k = term.by_row.start[i]; k < term.by_row.start[i + 1]; ++k)
            out[term.by_row.index[k]] = sign * term.by_row.values[k];
    }
}

}  // namespace verifier::VERIFIER_ISA

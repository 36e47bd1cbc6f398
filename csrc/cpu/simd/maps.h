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

// out[r] (+)= W in[r], or |W| in[r], for every row r.
template <typename T, bool kMagnitude>
static void apply_forward(const Term<T>& term, Rows<const T> in, Alive alive, Rows<T> out, bool accumulate) {
    if (term.kind == MapKind::kDense) {
        product<T, kMagnitude>(in.data, in.stride, in.count, term.forward, term.cols, term.rows, alive.index,
                               alive.count, out.data, out.stride, accumulate);
        return;
    }
    for (int64_t r = 0; r < in.count; ++r) {
        const T* x = in.data + r * in.stride;
        T* y = out.data + r * out.stride;
        if (!accumulate) memset(y, 0, out.stride * sizeof(T));
        for (int64_t i = 0; i < term.rows; ++i) {
            if (term.kind == MapKind::kDiagonal) {
                const T w = term.values[i];
                y[i] += (kMagnitude && w < 0 ? -w : w) * x[i];
                continue;
            }
            T sum = 0;
            for (int64_t k = term.row_start[i]; k < term.row_start[i + 1]; ++k) {
                const T w = term.values[k];
                sum += (kMagnitude && w < 0 ? -w : w) * x[term.columns[k]];
            }
            y[i] += sum;
        }
    }
}

// out[r] (+)= in[r] W for every row r.
template <typename T>
static void apply_backward(const Term<T>& term, Rows<const T> in, Alive alive, Rows<T> out, bool accumulate) {
    if (term.kind == MapKind::kDense) {
        product<T, false>(in.data, in.stride, in.count, term.backward, term.rows, term.cols, alive.index, alive.count,
                          out.data, out.stride, accumulate);
        return;
    }
    for (int64_t r = 0; r < in.count; ++r) {
        const T* a = in.data + r * in.stride;
        T* y = out.data + r * out.stride;
        if (!accumulate) memset(y, 0, out.stride * sizeof(T));
        for (int64_t t = 0; t < alive.count; ++t) {
            const int64_t i = alive.index[t];
            if (term.kind == MapKind::kDiagonal) {
                y[i] += a[i] * term.values[i];
                continue;
            }
            for (int64_t k = term.row_start[i]; k < term.row_start[i + 1]; ++k)
                y[term.columns[k]] += a[i] * term.values[k];
        }
    }
}

// out (+)= sign * row i of W, exactly where nothing was there before.
template <typename T>
static void gather_row(const Term<T>& term, int64_t i, T sign, T* out, int64_t stride) {
    memset(out, 0, stride * sizeof(T));
    if (term.kind == MapKind::kDense) {
        unpack_row(term.backward, term.rows, term.cols, i, sign, out);
    } else if (term.kind == MapKind::kDiagonal) {
        out[i] = sign * term.values[i];
    } else {
        for (int64_t k = term.row_start[i]; k < term.row_start[i + 1]; ++k)
            out[term.columns[k]] += sign * term.values[k];
    }
}

}  // namespace verifier::VERIFIER_ISA

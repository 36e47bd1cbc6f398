// C (+)= A B for a packed constant matrix B: the product behind every pass over a dense layer.
//
// B [k, n] is stored in panels of a few vectors of columns, so that a panel's rows are contiguous and
// the accumulators of a tile stay in registers. `index` lists the rows of B (columns of A) that are
// not known to be zero: dead neurons cost nothing. The error of each entry is <= gamma_k |A| |B| in
// whatever order the tiles sum.
#pragma once

#include "vec.h"

// Keeps a vector in a register: compilers otherwise read it from memory again for every row of the tile.
#if defined(__x86_64__) && (VERIFIER_VECTOR_BYTES == 64)
#define VERIFIER_IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__x86_64__)
#define VERIFIER_IN_REGISTER(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define VERIFIER_IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define VERIFIER_IN_REGISTER(x) (void)(x)
#endif

namespace verifier::VERIFIER_ISA {

// Panels are 3 or 4 vectors wide: tiles of 4 x 3 or 3 x 4 accumulators, the operands and a factor fill
// 16 registers.
struct Panels {
    int64_t vectors, count;
    explicit Panels(int64_t n_vectors) : vectors(n_vectors), count(n_vectors <= 4 ? 1 : blocks_of(n_vectors, n_vectors % 3 == 1 ? 4 : 3)) {}
    int64_t first(int64_t p) const { return vectors * p / count; }
};

// Stored length of B [k, n].
template <typename T>
static int64_t packed_size(int64_t k, int64_t n) {
    return k * blocks_of(n, Lanes<T>::kCount) * Lanes<T>::kCount;
}

// Packs B, given as element(i, j) = source[i * row_step + j * column_step], with zeros as padding.
template <typename T>
static void pack(const T* source, int64_t k, int64_t n, int64_t row_step, int64_t column_step, T* out) {
    const int64_t lanes = Lanes<T>::kCount;
    const Panels panels(blocks_of(n, lanes));
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t begin = panels.first(p) * lanes, end = panels.first(p + 1) * lanes;
        for (int64_t i = 0; i < k; ++i)
            for (int64_t j = begin; j < end; ++j) *out++ = j < n ? source[i * row_step + j * column_step] : T(0);
    }
}

// Row i of packed B, times `sign`, into out[0 .. padded by whole vectors).
template <typename T>
static void unpack_row(const T* packed, int64_t k, int64_t n, int64_t i, T sign, T* out) {
    const int64_t lanes = Lanes<T>::kCount;
    const Panels panels(blocks_of(n, lanes));
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t begin = panels.first(p) * lanes, width = panels.first(p + 1) * lanes - begin;
        const T* row = packed + begin * k + i * width;
        for (int64_t j = 0; j < width; ++j) out[begin + j] = sign * row[j];
    }
}

template <typename T, int kRows, int kVectors, bool kMagnitude>
VERIFIER_INLINE void tile(const T* a, int64_t a_stride, const T* panel, const int32_t* index, int64_t count, T* c,
                          int64_t c_stride, bool accumulate) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    Vec<T> sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = accumulate ? load(c + r * c_stride + v * lanes) : Vec<T>{};
    for (int64_t t = 0; t < count; ++t) {
        const int64_t i = index[t];
        const T* b = panel + i * (kVectors * lanes);
        Vec<T> x[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            x[v] = load(b + v * lanes);
            if (kMagnitude) x[v] = magnitude<T>(x[v]);
            VERIFIER_IN_REGISTER(x[v]);
        }
        for (int r = 0; r < kRows; ++r) {
            const Vec<T> factor = spread<T>(a[r * a_stride + i]);
            for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * x[v];
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(c + r * c_stride + v * lanes, sum[r][v]);
}

template <typename T, int kRows, int kVectors, bool kMagnitude>
static void panel_product(const T* a, int64_t a_stride, int64_t m, const T* panel, const int32_t* index, int64_t count,
                          T* c, int64_t c_stride, bool accumulate) {
    int64_t r = 0;
    for (; r + kRows <= m; r += kRows)
        tile<T, kRows, kVectors, kMagnitude>(a + r * a_stride, a_stride, panel, index, count, c + r * c_stride,
                                             c_stride, accumulate);
    if constexpr (kRows > 1)
        if (r < m)
            panel_product<T, kRows / 2, kVectors, kMagnitude>(a + r * a_stride, a_stride, m - r, panel, index, count,
                                                              c + r * c_stride, c_stride, accumulate);
}

// C [m, n] (+)= A [m, k] B over the listed rows of B; kMagnitude multiplies by |B| instead.
template <typename T, bool kMagnitude>
static void product(const T* a, int64_t a_stride, int64_t m, const T* b, int64_t k, int64_t n, const int32_t* index,
                    int64_t count, T* c, int64_t c_stride, bool accumulate) {
    constexpr int64_t lanes = Lanes<T>::kCount;
    constexpr int64_t depth = 256;  // rows of a panel that stay in the first-level cache
    const Panels panels(blocks_of(n, lanes));
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t begin = panels.first(p), width = panels.first(p + 1) - begin;
        const T* panel = b + begin * lanes * k;
        T* out = c + begin * lanes;
        for (int64_t t = 0; t == 0 || t < count; t += depth) {
            const int64_t step = count - t < depth ? count - t : depth;
            const bool add = accumulate || t > 0;
            switch (width) {
#define VERIFIER_TILE(ROWS, VECTORS)                                                                             \
    case VECTORS:                                                                                                \
        panel_product<T, ROWS, VECTORS, kMagnitude>(a, a_stride, m, panel, index + t, step, out, c_stride, add); \
        break
                VERIFIER_TILE(8, 1);
                VERIFIER_TILE(6, 2);
                VERIFIER_TILE(4, 3);
                VERIFIER_TILE(3, 4);
#undef VERIFIER_TILE
                default: break;
            }
        }
    }
}

}  // namespace verifier::VERIFIER_ISA

// CPU launcher of the whole-network pass: a team is one thread, which owns its memory.
#include <vector>

#include "verifier/box_team.h"
#include "verifier/thread_pool.h"

namespace verifier {
namespace {

struct OneThread {
    static constexpr int kGroups = 1;

    template <typename Body>
    void each(int count, Body body) const {
        for (int i = 0; i < count; ++i) body(i);
    }
    template <typename Body>
    void tiles(int count, Body body) const {
        for (int tile = 0; tile < count; ++tile) body(tile, 0);
    }
    int lane() const { return 0; }
    int lanes() const { return 1; }
    template <int kCount, typename Body>
    void sums(const double (&x)[kCount], const double (&y)[kCount], Body body) const {
        for (int r = 0; r < kCount; ++r) body(r, x[r], y[r]);
    }
    template <typename Value>
    double total(int count, Value value) const {
        double sum = 0;
        for (int i = 0; i < count; ++i) sum += value(i);
        return sum;
    }
    template <typename Keep>
    int collect(int count, Keep keep, int32_t* list) const {
        int found = 0;
        for (int i = 0; i < count; ++i)
            if (keep(i)) list[found++] = i;
        return found;
    }
    void group_sync() const {}
    void sync() const {}
};

}  // namespace

template <typename T>
void box_pass_cpu(const BoxPass<T>& job, intptr_t threads) {
    struct alignas(16) Chunk {
        char bytes[16];
    };
    const size_t chunks = static_cast<size_t>(BoxSpace<T>(job, OneThread::kGroups, nullptr).bytes) / sizeof(Chunk);
    const int count = threads > 1 ? static_cast<int>(threads) : 1;
    std::vector<Chunk> memory(static_cast<size_t>(count) * chunks);
    parallel_for(job.boxes, count, [&](int thread, int64_t box) {
        BoxTeam<T, OneThread>(job, memory[static_cast<size_t>(thread) * chunks].bytes, {}).run(box);
    });
}

template void box_pass_cpu(const BoxPass<float>&, intptr_t);
template void box_pass_cpu(const BoxPass<double>&, intptr_t);

}  // namespace verifier

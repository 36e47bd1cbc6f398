// CPU launcher of the whole-network pass: a team is one thread, which owns its memory.
#include <vector>

#include "verifier/box_team.h"
#include "verifier/thread_pool.h"

namespace verifier {
namespace {

struct OneThread {
    template <typename Body>
    void each(int64_t count, Body body) const {
        for (int64_t i = 0; i < count; ++i) body(i);
    }
    void sync() const {}
};

}  // namespace

template <typename T>
void box_pass_cpu(const BoxPass<T>& job, intptr_t threads) {
    const int64_t doubles = box_pass_bytes(job) / static_cast<int64_t>(sizeof(double));
    const int count = threads > 1 ? static_cast<int>(threads) : 1;
    std::vector<double> memory(static_cast<size_t>(count * doubles));
    parallel_for(job.boxes, count, [&](int thread, int64_t box) {
        BoxTeam<T, OneThread>(job, reinterpret_cast<char*>(memory.data() + thread * doubles), {}).run(box);
    });
}

template void box_pass_cpu(const BoxPass<float>&, intptr_t);
template void box_pass_cpu(const BoxPass<double>&, intptr_t);

}  // namespace verifier

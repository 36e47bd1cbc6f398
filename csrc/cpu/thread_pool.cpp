#include "verifier/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

namespace verifier {
namespace {

struct Pool {
    std::mutex turn;                 // one loop at a time
    std::mutex lock;                 // guards everything below but `next`
    std::condition_variable wake, done;
    std::vector<std::thread> threads;
    const std::function<void(int, int64_t)>* work = nullptr;
    int64_t items = 0;
    std::atomic<int64_t> next{0};
    uint64_t generation = 0;
    int wanted = 0, running = 0;
    bool stop = false;

    ~Pool() {
        {
            std::lock_guard<std::mutex> guard(lock);
            stop = true;
        }
        wake.notify_all();
        for (auto& thread : threads) thread.join();
    }

    void drain(int number) {
        for (int64_t item; (item = next.fetch_add(1)) < items;) (*work)(number, item);
    }

    void serve(int number, uint64_t seen) {
        std::unique_lock<std::mutex> guard(lock);
        while (true) {
            wake.wait(guard, [&] { return stop || generation != seen; });
            if (stop) return;
            seen = generation;
            if (number >= wanted) continue;
            guard.unlock();
            drain(number);
            guard.lock();
            if (--running == 0) done.notify_one();
        }
    }

    void run(int64_t count, int helpers, const std::function<void(int, int64_t)>& body) {
        std::lock_guard<std::mutex> mine(turn);
        {
            std::lock_guard<std::mutex> guard(lock);
            while (static_cast<int>(threads.size()) < helpers) {
                const int number = static_cast<int>(threads.size()) + 1;
                threads.emplace_back([this, number, seen = generation] { serve(number, seen); });
            }
            work = &body;
            items = count;
            next = 0;
            wanted = helpers + 1;
            running = helpers;
            ++generation;
        }
        wake.notify_all();
        drain(0);
        std::unique_lock<std::mutex> guard(lock);
        done.wait(guard, [&] { return running == 0; });
        work = nullptr;
    }
};

std::mutex pool_lock;
Pool* pool = nullptr;
pid_t pool_process = 0;

// A forked child has the parent's Pool object but none of its threads: it is abandoned, not destroyed.
Pool& shared_pool() {
    std::lock_guard<std::mutex> guard(pool_lock);
    if (pool == nullptr || pool_process != getpid()) {
        pool = new Pool;
        pool_process = getpid();
    }
    return *pool;
}

}  // namespace

void parallel_for(int64_t items, int threads, const std::function<void(int, int64_t)>& work) {
    const int helpers = static_cast<int>(std::min<int64_t>(threads, items)) - 1;
    if (helpers <= 0) {
        for (int64_t item = 0; item < items; ++item) work(0, item);
        return;
    }
    shared_pool().run(items, helpers, work);
}

int available_threads() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace verifier

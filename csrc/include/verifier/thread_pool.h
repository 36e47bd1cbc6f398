// A small pool of threads that share the items of a loop; the caller works too.
#pragma once

#include <cstdint>
#include <functional>

namespace verifier {

// Calls work(thread, item) for item = 0 .. items - 1, each once, on at most `threads` threads numbered
// from 0. Items are handed out one by one, so uneven items balance. Safe after fork: the child starts
// its own threads. Concurrent callers take turns. `work` must not throw.
void parallel_for(int64_t items, int threads, const std::function<void(int, int64_t)>& work);

// Threads the process may use: its CPU affinity where known, else the hardware's number.
int available_threads();

}  // namespace verifier

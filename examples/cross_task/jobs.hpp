#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace cross_task {

/// Calls `job(i)` for i in [0, count) on `threads` threads, each job by one of them; the first
/// exception is rethrown when all have stopped.
template <class Job>
void run_jobs(std::size_t count, unsigned threads, Job&& job) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto work = [&] {
        for (std::size_t i = next++; i < count; i = next++) {
            try {
                job(i);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(failure_mutex);
                if (!failure) failure = std::current_exception();
                next = count;
            }
        }
    };
    std::vector<std::thread> others;
    for (unsigned t = 1; t < threads; ++t)
        others.emplace_back(work);
    work();
    for (std::thread& other : others)
        other.join();
    if (failure) std::rethrow_exception(failure);
}

} // namespace cross_task

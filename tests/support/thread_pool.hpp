#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <mhr/core/executor.hpp>

/// \file
/// A host's pool as hosts have it: its threads are there before the kernels are, and wait for work.
/// It runs parts without an allocation, unlike thread_executor.

namespace mhr::test {

class thread_pool {
  public:
    /// Starts so many threads, besides the one that calls.
    explicit thread_pool(int others) {
        for (int i = 0; i < others; ++i)
            threads_.emplace_back([this] { work(); });
    }
    thread_pool(const thread_pool&) = delete;
    thread_pool& operator=(const thread_pool&) = delete;
    ~thread_pool() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopped_ = true;
        }
        wakes_.notify_all();
        for (std::thread& thread : threads_)
            thread.join();
    }

    /// Runs all parts, some of them in the calling thread, and returns when all are done.
    void for_each(index_t parts, const parallel_body& body) {
        std::unique_lock<std::mutex> lock(mutex_);
        body_ = &body;
        next_ = 0;
        parts_ = parts;
        wakes_.notify_all();
        take_parts(lock);
        done_.wait(lock, [this] { return running_ == 0; });
        body_ = nullptr;
    }

  private:
    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!stopped_) {
            take_parts(lock);
            wakes_.wait(lock, [this] { return stopped_ || has_parts(); });
        }
    }
    [[nodiscard]] bool has_parts() const { return body_ != nullptr && next_ < parts_; }

    void take_parts(std::unique_lock<std::mutex>& lock) {
        while (has_parts()) {
            const index_t part = next_++;
            const parallel_body& body = *body_;
            ++running_;
            lock.unlock();
            body(part);
            lock.lock();
            --running_;
        }
        if (running_ == 0) done_.notify_all();
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wakes_, done_;
    const parallel_body* body_ = nullptr;
    index_t next_ = 0, parts_ = 0, running_ = 0;
    bool stopped_ = false;
};

} // namespace mhr::test

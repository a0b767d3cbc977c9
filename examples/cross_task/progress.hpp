#pragma once

#include <chrono>
#include <iosfwd>
#include <mutex>
#include <string>

namespace cross_task {

/// "7 s", "2 min 05 s" or "1 h 02 min", rounded; "?" if it is no time.
std::string format_duration(double seconds);

/// One line of progress: title, bar, percent, time elapsed and time left.
std::string progress_line(const std::string& title, int done, int total, double seconds);

/// Shows how far a job is: a bar that is redrawn on a terminal, a line now and then elsewhere.
/// May be advanced by several threads.
class progress {
  public:
    progress(std::ostream& to, bool is_terminal, std::string title, int total);
    ~progress(); ///< leaves a last line behind
    progress(const progress&) = delete;
    progress& operator=(const progress&) = delete;

    void advance(int steps = 1);

  private:
    using clock = std::chrono::steady_clock;

    void show(clock::time_point now);

    std::ostream& to_;
    const bool is_terminal_;
    const std::string title_;
    const int total_;
    const clock::time_point start_ = clock::now();

    std::mutex mutex_; // guards what follows, and the stream
    int done_ = 0;
    clock::time_point next_;
};

} // namespace cross_task

#include "progress.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ostream>
#include <utility>

namespace cross_task {

namespace {

std::string two_digits(long long value) {
    return (value < 10 ? "0" : "") + std::to_string(value);
}

} // namespace

std::string format_duration(double seconds) {
    constexpr double too_long = 1e9; // decades; also keeps the conversion below defined
    if (!(seconds >= 0 && seconds < too_long)) return "?";
    // Rounded before it is split, or there would be "1 min 60 s".
    const long long whole = std::llround(seconds);
    if (whole < 60) return std::to_string(whole) + " s";
    if (whole < 3600) return std::to_string(whole / 60) + " min " + two_digits(whole % 60) + " s";
    const long long minutes = std::llround(seconds / 60);
    return std::to_string(minutes / 60) + " h " + two_digits(minutes % 60) + " min";
}

std::string progress_line(const std::string& title, int done, int total, double seconds) {
    constexpr int bar_width = 24;
    const double part = total > 0 ? std::clamp(static_cast<double>(done) / total, 0.0, 1.0) : 1.0;
    const auto full = static_cast<std::size_t>(std::lround(std::floor(part * bar_width)));
    const std::string percent = std::to_string(static_cast<int>(part * 100));

    std::string line = title + " [" + std::string(full, '#') + std::string(bar_width - full, '.') +
                       "] " + std::string(3 - percent.size(), ' ') + percent + " %  " +
                       format_duration(seconds);
    if (part > 0 && part < 1) line += ", " + format_duration(seconds / part - seconds) + " left";
    return line;
}

progress::progress(std::ostream& to, bool is_terminal, std::string title, int total)
    : to_(to), is_terminal_(is_terminal), title_(std::move(title)), total_(total) {
    const std::lock_guard<std::mutex> lock(mutex_);
    show(start_);
}

progress::~progress() {
    const std::lock_guard<std::mutex> lock(mutex_);
    show(clock::now());
    if (is_terminal_) to_ << std::endl;
}

void progress::advance(int steps) {
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ += steps;
    const clock::time_point now = clock::now();
    if (now >= next_) show(now);
}

void progress::show(clock::time_point now) {
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const std::string line = progress_line(title_, done_, total_, seconds);
    if (is_terminal_) {
        to_ << '\r' << line << "\033[K" << std::flush; // clears what is left of a longer line
        next_ = now + std::chrono::milliseconds(100);
    } else {
        to_ << line << std::endl;
        next_ = now + std::chrono::seconds(10);
    }
}

} // namespace cross_task

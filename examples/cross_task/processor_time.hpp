#pragma once

#include <time.h> // NOLINT: the clock of a thread is POSIX's

namespace cross_task {

/// Processor time of the calling thread in seconds: what a training costs, however busy the machine
/// is. (Each training runs on one thread.)
inline double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

} // namespace cross_task

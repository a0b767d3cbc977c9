#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include <mhr/config.hpp>

/// \file
/// How bad input is reported: an exception, or a handler where exceptions are switched off.

namespace mhr {

/// Thrown by every public entry point that is given bad input, before any output is written.
/// `what()` reads "function: argument: expected ..., got ...".
class error : public std::invalid_argument {
  public:
    /// With what `what()` reads.
    explicit error(const std::string& message) : std::invalid_argument(message) {}
};

/// Called with the message of an error under `-fno-exceptions` (`MHR_EXCEPTIONS == 0`). It must not
/// return: if it does, the program is aborted, since the caller of a kernel cannot go on.
using error_handler = void (*)(const char* message);

namespace detail {
inline error_handler& current_error_handler() noexcept {
    static error_handler handler = nullptr;
    return handler;
}
} // namespace detail

/// Replaces the handler and returns the previous one (nullptr: the default, which aborts). Set it
/// before other threads call the library; it has no effect while errors are thrown.
inline error_handler set_error_handler(error_handler handler) noexcept {
    error_handler previous = detail::current_error_handler();
    detail::current_error_handler() = handler;
    return previous;
}

/// Reports an error: throws `mhr::error`, or calls the handler and aborts.
[[noreturn]] inline void raise(const std::string& message) {
#if MHR_EXCEPTIONS
    throw error(message);
#else
    if (error_handler handler = detail::current_error_handler()) handler(message.c_str());
    std::abort();
#endif
}

} // namespace mhr

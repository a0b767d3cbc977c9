#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include <mhr/config.hpp>

/// \file
/// How bad input is reported: an exception, or a handler where exceptions are switched off. They
/// are the same in all files of a program, whatever instruction set each is compiled for (MHR_ISA
/// of config.hpp): what one throws, another catches.

namespace mhr {

/// Thrown by every public entry point that is given bad input, before any output is written.
/// `what()` reads "function: argument: expected ..., got ...".
class error : public std::invalid_argument {
  public:
    /// Makes an error with this message, which `what()` returns.
    explicit error(const std::string& message) : std::invalid_argument(message) {}
};

/// Called with the message of an error under `-fno-exceptions` (`MHR_EXCEPTIONS == 0`). It must not
/// return: if it does, the program is aborted, since the caller of a kernel cannot go on.
using error_handler = void (*)(const char* message);

namespace error_detail {
inline error_handler current_handler = nullptr;
} // namespace error_detail

/// Replaces the handler and returns the previous one (nullptr: the default, which aborts). Set it
/// before other threads call the library; it has no effect while errors are thrown.
inline error_handler set_error_handler(error_handler handler) noexcept {
    error_handler previous = error_detail::current_handler;
    error_detail::current_handler = handler;
    return previous;
}

inline namespace MHR_ISA {

/// Reports an error: throws `mhr::error`, or calls the handler and aborts.
[[noreturn]] inline void raise(const std::string& message) {
#if MHR_EXCEPTIONS
    throw error(message);
#else
    if (error_handler handler = error_detail::current_handler) handler(message.c_str());
    std::abort();
#endif
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <exception>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include <mhr/core/error.hpp>

#include "support/guarded_buffer.hpp"

/// \file
/// Checks that bad input is refused as documented. Where exceptions are switched off, what must
/// fail runs in a process of its own (error_check.cpp), which ends in the library's error handler.

namespace mhr::test {

struct error_outcome {
    bool ok = false;
    std::string message; ///< of the error, or what is wrong

    explicit operator bool() const { return ok; }
};

inline std::ostream& operator<<(std::ostream& stream, const error_outcome& outcome) {
    return stream << outcome.message;
}

/// The message where no error was reported.
inline constexpr const char* no_error = "no error was reported";

/// Makes an outcome of the message of an error, when it is reported.
using error_look = std::function<error_outcome(const std::string& message)>;

#if MHR_EXCEPTIONS

/// Calls `f`, which must report an mhr::error, and returns what `look` makes of it.
template <class F>
error_outcome at_error(F&& f, const error_look& look) {
    try {
        f();
    } catch (const error& thrown) {
        return look(thrown.what());
    } catch (const std::exception& other) {
        return {false, std::string("not an mhr::error: ") + other.what()};
    }
    return {false, no_error};
}

#else

/// How a process ended.
struct child_outcome {
    std::string text; ///< what it told
    int exit_code;    ///< -1: it was ended by the signal
    int signal;
};

/// Runs `f(tell)` in a copy of this process, which exits with 0 if `f` returns. What it is to know
/// afterwards, `f` tells by `tell(text)`.
child_outcome
in_child(const std::function<void(const std::function<void(const std::string&)>&)>& f);

/// Does the same with the handler of errors, in a process that ends there. It sees the memory as it
/// was when the error was reported.
error_outcome at_error(const std::function<void()>& f, const error_look& look);

#endif

/// The message of the error that `f` reports, and nothing if it reports none.
template <class F>
std::string error_of(F&& f) {
    const error_outcome outcome = at_error(f, [](const std::string& message) {
        return error_outcome{true, message};
    });
    return outcome.message == no_error ? std::string() : outcome.message;
}

/// Calls `f`, which must report an mhr::error with the text "function: argument: expected ..., got
/// ..." and leave every byte of the guarded `outputs` as it was.
template <class F, class... Outputs>
error_outcome refuses(const std::string& function, const std::string& argument, F&& f,
                      const Outputs&... outputs) {
    const std::vector<snapshot> before{outputs.take_snapshot()...};
    return at_error(f, [&](const std::string& message) -> error_outcome {
        const std::string start = function + ": " + argument + ": expected ";
        if (message.compare(0, start.size(), start) != 0 ||
            message.find(", got ", start.size()) == std::string::npos)
            return {false, "expected \"" + start + "..., got ...\", reported: " + message};
        if (before != std::vector<snapshot>{outputs.take_snapshot()...})
            return {false, "an output was touched before: " + message};
        return {true, message};
    });
}

} // namespace mhr::test

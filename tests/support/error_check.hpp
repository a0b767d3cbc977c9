#pragma once

#include <exception>
#include <ostream>
#include <string>
#include <vector>

#include <mhr/core/error.hpp>

#include "support/guarded_buffer.hpp"

/// \file
/// Checks that bad input is refused as documented.

namespace mhr::test {

struct error_outcome {
    bool ok = false;
    std::string message; ///< what was thrown, or what is wrong

    explicit operator bool() const { return ok; }
};

inline std::ostream& operator<<(std::ostream& stream, const error_outcome& outcome) {
    return stream << outcome.message;
}

/// Calls `f`, which must throw mhr::error with the text "function: argument: expected ..., got ..."
/// and leave every byte of the guarded `outputs` as it was.
template <class F, class... Outputs>
error_outcome refuses(const std::string& function, const std::string& argument, F&& f,
                      const Outputs&... outputs) {
    const std::vector<snapshot> before{outputs.take_snapshot()...};
    error_outcome outcome;
    try {
        f();
        outcome.message = "nothing was thrown";
        return outcome;
    } catch (const error& thrown) {
        outcome.message = thrown.what();
    } catch (const std::exception& other) {
        outcome.message = std::string("not an mhr::error: ") + other.what();
        return outcome;
    }
    const std::string start = function + ": " + argument + ": expected ";
    if (outcome.message.compare(0, start.size(), start) != 0 ||
        outcome.message.find(", got ", start.size()) == std::string::npos) {
        outcome.message = "expected \"" + start + "..., got ...\", thrown: " + outcome.message;
        return outcome;
    }
    outcome.ok = before == std::vector<snapshot>{outputs.take_snapshot()...};
    if (!outcome.ok) outcome.message = "an output was touched before: " + outcome.message;
    return outcome;
}

} // namespace mhr::test

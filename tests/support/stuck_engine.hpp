#pragma once

/// \file
/// An engine whose next value is known.

namespace mhr::test {

/// An engine that gives the same value always, and counts how often it was asked.
template <class R, R Low, R High, R Value>
struct stuck_engine {
    using result_type = R;
    static constexpr R min() { return Low; }
    static constexpr R max() { return High; }
    R operator()() {
        ++calls;
        return Value;
    }
    int calls = 0;
};

} // namespace mhr::test

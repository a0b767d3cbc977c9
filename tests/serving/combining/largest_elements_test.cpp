#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/serving/combining/largest_elements.hpp>

#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// Checks a selection against a full sort.
template <class A>
void check(const std::vector<A>& values, index_t kept, executor_ref executor = {}) {
    using combining_details::magnitude_key;
    using combining_details::parts;
    const auto n = static_cast<index_t>(values.size());
    owned_workspace memory(combining_details::parts * combining_details::digits * sizeof(index_t) +
                           4096);
    workspace taken = memory;
    const auto counts = combining_details::take_counts(taken);
    const auto before = taken.take<index_t, 1>({parts});
    const auto got = combining_details::select_largest<A>(
        executor, const_tensor_ref<2>(values.data(), {1, n}), kept, counts, before);
    std::vector<std::uint64_t> keys;
    for (A value : values)
        keys.push_back(magnitude_key(value));
    auto sorted = keys;
    std::sort(sorted.rbegin(), sorted.rend());
    index_t larger = 0, part = 0, equal = 0;
    for (index_t i = 0; i < n; ++i) {
        for (; part < parts && combining_details::first_of_part(n, part) == i; ++part)
            CHECK(got.before_part(part) == equal);
        const std::uint64_t key = keys[static_cast<std::size_t>(i)];
        larger += key > got.last;
        equal += key == got.last;
    }
    CHECK(larger + got.of_last == kept);
    CHECK(got.of_last <= equal);
    if (kept > 0) CHECK(got.last == sorted[static_cast<std::size_t>(kept - 1)]);
    if (kept > 0) CHECK(got.of_last >= 1);
}

template <class A>
std::vector<A> random_values(index_t count, std::uint64_t seed) {
    random_source random(seed);
    std::vector<A> values;
    for (index_t i = 0; i < count; ++i) {
        const double size = std::ldexp(1.0, static_cast<int>(random.integer(40)) - 20);
        values.push_back(static_cast<A>(random.uniform(-size, size)));
    }
    return values;
}

} // namespace

TEST_CASE_TEMPLATE("the largest are those of a full sort", A, float, double) {
    for (index_t n : {1, 2, 63, 65, 1000, 40000}) {
        CAPTURE(n);
        const auto values = random_values<A>(n, 1);
        for (index_t kept : {index_t(0), index_t(1), n / 3, n - 1, n}) {
            CAPTURE(kept);
            check<A>(values, kept);
        }
        // Many equal ones, of both signs; and few that differ in the last bit alone.
        auto few = values;
        for (std::size_t i = 0; i < few.size(); ++i)
            few[i] = static_cast<A>(static_cast<int>(i * 7 % 5) - 2);
        for (index_t kept : {index_t(0), n / 5, n / 2, n})
            check<A>(few, kept);
        for (std::size_t i = 0; i < few.size(); ++i)
            few[i] = i % 3 == 0 ? std::nextafter(A(1), A(2)) : A(1);
        check<A>(few, n / 2);
    }
}

TEST_CASE("every executor selects the same") {
    const auto values = random_values<float>(5000, 2);
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        check<float>(values, 1234, executor);
    });
}

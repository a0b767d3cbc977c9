#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/executor.hpp>

#include "support/error_check.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;

static_assert(std::is_trivially_copyable_v<executor_ref>);
static_assert(std::is_trivially_copyable_v<parallel_body>);
static_assert(std::is_convertible_v<serial_executor, executor_ref>);
static_assert(std::is_convertible_v<share_executor&, executor_ref>);

namespace {

std::vector<index_t> order_of(executor_ref executor, index_t parts) {
    std::vector<index_t> order;
    executor.run(parts, [&](index_t part) { order.push_back(part); });
    return order;
}

} // namespace

TEST_CASE("the serial executor runs the parts in order") {
    CHECK(order_of(serial_executor{}, 4) == std::vector<index_t>{0, 1, 2, 3});
    CHECK(order_of(serial_executor{}, 1) == std::vector<index_t>{0});
}

TEST_CASE("shares cover all parts once, are contiguous and differ by one at most") {
    for (index_t parts = 0; parts < 40; ++parts)
        for (index_t nth = 1; nth < 12; ++nth) {
            CAPTURE(parts);
            CAPTURE(nth);
            index_t next = 0;
            for (index_t ith = 0; ith < nth; ++ith) {
                const auto share = order_of(share_executor{ith, nth}, parts);
                for (index_t part : share)
                    CHECK(part == next++);
                const auto size = static_cast<index_t>(share.size());
                CHECK((size == parts / nth || size == (parts + nth - 1) / nth));
            }
            CHECK(next == parts);
        }
    CHECK(order_of(share_executor{}, 3) == std::vector<index_t>{0, 1, 2});
}

TEST_CASE("an executor is not called when there is nothing to do") {
    int calls = 0;
    const auto executor = [&](index_t, parallel_body) { ++calls; };
    const auto body = [](index_t) {};
    executor_ref(executor).run(0, body);
    executor_ref(executor).run(-3, body);
    CHECK(calls == 0);
    executor_ref(executor).run(1, body);
    CHECK(calls == 1);
}

TEST_CASE("any callable of the host is an executor, and is referred to, not copied") {
    struct backwards {
        int calls = 0;
        void operator()(index_t parts, parallel_body body) {
            ++calls;
            for (index_t part = parts; part-- > 0;)
                body(part);
        }
    };
    backwards executor;
    CHECK(order_of(executor, 3) == std::vector<index_t>{2, 1, 0});
    CHECK(executor.calls == 1);

    const executor_ref reference(executor);
    const executor_ref copy = reference; // NOLINT: the copy is what is tested
    CHECK(order_of(copy, 2) == std::vector<index_t>{1, 0});
    CHECK(executor.calls == 2);

    // A const body, and one that is a function object with state.
    int sum = 0;
    const auto add = [&](index_t part) { sum += static_cast<int>(part); };
    copy.run(4, add);
    CHECK(sum == 6);
}

TEST_CASE("functions with several phases refuse an executor that runs a share") {
    CHECK(executor_ref(serial_executor{}).runs_every_part());
    CHECK(executor_ref([](index_t, parallel_body) {}).runs_every_part());
    CHECK_FALSE(executor_ref(share_executor{0, 1}).runs_every_part());
    CHECK_NOTHROW(require_every_part("f", serial_executor{}));
    CHECK(test::refuses("f", "executor", [] { require_every_part("f", share_executor{0, 2}); }));
    // Even the only participant: whether it works must not depend on the number of threads.
    CHECK(test::refuses("f", "executor", [] { require_every_part("f", share_executor{0, 1}); }));
}

#include <algorithm>
#include <limits>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/executor.hpp>

#include "support/thread_executor.hpp"

using namespace mhr;

static_assert(std::is_trivially_copyable_v<executor_ref>);
static_assert(std::is_trivially_copyable_v<parallel_body>);
static_assert(std::is_nothrow_default_constructible_v<executor_ref>);
static_assert(!std::is_default_constructible_v<parallel_body>);
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

TEST_CASE("cheap parts are handed out several at a time, dear ones one by one") {
    const index_t huge = std::numeric_limits<index_t>::max();
    index_t fewest_calls = huge;
    for (index_t cost : {huge, index_t(1) << 30, index_t(1) << 20, index_t(100000), index_t(10000),
                         index_t(1000), index_t(1), index_t(0), index_t(-1), -huge - 1})
        for (index_t parts : {1, 2, 3, 7, 63, 64, 65, 1000}) {
            CAPTURE(cost);
            CAPTURE(parts);
            index_t calls = 0;
            std::vector<index_t> order;
            const auto backwards = [&](index_t groups, parallel_body body) {
                for (calls = groups; groups-- > 0;) {
                    const std::size_t first = order.size();
                    body(groups);
                    // A group is not empty, and its parts follow each other.
                    CHECK(order.size() > first);
                    for (std::size_t i = first + 1; i < order.size(); ++i)
                        CHECK(order[i] == order[i - 1] + 1);
                }
            };
            executor_ref(backwards).run(parts, cost, [&](index_t part) { order.push_back(part); });
            std::sort(order.begin(), order.end());
            CHECK(order == order_of(serial_executor{}, parts));
            if (cost >= index_t(1) << 30) CHECK(calls == parts);
            if (cost <= 1) CHECK(calls == 1);
            // The cheaper the parts, the fewer calls.
            if (parts == 1000) {
                CHECK(calls <= fewest_calls);
                fewest_calls = calls;
            }
        }
}

TEST_CASE("parts with a cost are run once by every executor") {
    for (index_t cost : {0, 5000, 1 << 30}) {
        CAPTURE(cost);
        std::vector<int> runs(200);
        const auto count = [&](index_t part) { ++runs[static_cast<std::size_t>(part)]; };
        const auto check = [&](const std::string& name, int times) {
            CAPTURE(name);
            CHECK(std::all_of(runs.begin(), runs.end(), [&](int n) { return n == times; }));
            std::fill(runs.begin(), runs.end(), 0);
        };
        test::for_each_executor([&](executor_ref executor, const std::string& name) {
            executor.run(200, cost, count);
            check(name, 1);
        });
        for (index_t nth : {1, 3, 7, 1000}) {
            test::for_each_share(nth, [&](executor_ref share) { share.run(200, cost, count); });
            check("shares", 1);
        }
        // Nothing to do: the executor is not called.
        const auto never = [](index_t, parallel_body) { FAIL("called"); };
        executor_ref(never).run(0, cost, count);
        executor_ref(never).run(-3, cost, count);
        check("never", 0);
    }
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

TEST_CASE("an executor says whether it runs every part") {
    CHECK(executor_ref(serial_executor{}).runs_every_part());
    CHECK(executor_ref([](index_t, parallel_body) {}).runs_every_part());
    // Even the only participant: whether it works must not depend on the number of threads.
    CHECK_FALSE(executor_ref(share_executor{0, 1}).runs_every_part());
    const share_executor half{0, 2};
    const executor_ref share(half);
    const executor_ref copy = share; // NOLINT: the copy is what is tested
    CHECK_FALSE(copy.runs_every_part());
}

TEST_CASE("without an executor, the calling thread runs the parts in order") {
    const executor_ref none;
    CHECK(none.runs_every_part());
    CHECK(order_of(none, 4) == std::vector<index_t>{0, 1, 2, 3});
    CHECK(order_of({}, 2) == std::vector<index_t>{0, 1});
    const std::thread::id here = std::this_thread::get_id();
    none.run(3, index_t(1) << 30, [&](index_t) { CHECK((std::this_thread::get_id() == here)); });
    int calls = 0;
    none.run(0, [&](index_t) { ++calls; });
    none.run(-1, 5, [&](index_t) { ++calls; });
    CHECK(calls == 0);
}

#include <mhr/core/task_ids.hpp>

#include <cstdint>
#include <limits>
#include <type_traits>

#include <doctest/doctest.h>

using namespace mhr;

TEST_CASE_TEMPLATE("what ids of a type mean", Id, std::int8_t, std::uint8_t, std::int16_t,
                   std::uint16_t, std::int32_t, std::uint32_t, std::int64_t, std::uint64_t, char,
                   unsigned long long) {
    using limits = std::numeric_limits<Id>;
    const auto means_task = [](Id id) { return detail::is_task(id) && !detail::is_no_task(id); };
    const auto is_refused = [](Id id) { return !detail::is_task(id) && !detail::is_no_task(id); };
    CHECK(means_task(0));
    CHECK(means_task(1));
    CHECK(means_task(limits::max() / 2));
    if constexpr (std::is_signed_v<Id>) {
        CHECK(detail::is_no_task(Id(-1)));
        CHECK_FALSE(detail::is_task(Id(-1)));
        CHECK(is_refused(Id(-2)));
        CHECK(is_refused(limits::min()));
        CHECK(means_task(limits::max()));
    } else {
        CHECK(is_refused(limits::max()));
        // Half of the numbers of 64 bits are beyond those of tasks.
        const bool is_long = sizeof(Id) == sizeof(std::int64_t);
        CHECK(is_refused(limits::max() - 1) == is_long);
        CHECK(is_refused(limits::max() / 2 + 1) == is_long);
    }
}

TEST_CASE("the largest task of a type") {
    CHECK(detail::largest_task<std::int8_t>() == 127);
    CHECK(detail::largest_task<std::uint8_t>() == 254);
    CHECK(detail::largest_task<std::uint32_t>() == 4294967294);
    CHECK(detail::largest_task<std::int64_t>() == std::numeric_limits<std::int64_t>::max());
    CHECK(detail::largest_task<std::uint64_t>() == std::numeric_limits<std::int64_t>::max());
}

TEST_CASE("errors tell an id as it is") {
    const std::uint8_t ids[] = {1, 255};
    CHECK(detail::task_id_text(tensor_view<const std::uint8_t, 1>(ids, {2}), 1) ==
          "255 at position 1");
}

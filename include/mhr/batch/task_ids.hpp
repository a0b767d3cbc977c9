#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include <mhr/core/tensor_view.hpp>

/// \file
/// Task ids, which hosts have in any integer type. One rule holds wherever they are read:
///   - Tasks are the numbers from 0 to the largest std::int64_t.
///   - no_task is -1, and takes a signed type. (The router, which nobody asks for the weights of no
///     task, refuses it.)
///   - The largest value of an unsigned type is refused. It is what -1 becomes there: whoever
///   stores
///     it hardly means task 255 or 4294967295, and a task that has this number must not be served
///     by the base model alone without a word. A wider type has room for that task, a signed one
///     for -1.
///
/// An id that is refused raises an error; no id is ever taken for another one.

namespace mhr {

/// The task of rows that only the base model serves.
inline constexpr std::int64_t no_task = -1;

inline namespace MHR_ISA {
namespace task_details {

/// The largest task that ids of this type can name.
template <class Id>
constexpr std::int64_t largest_task() noexcept {
    static_assert(std::is_integral_v<Id> && !std::is_same_v<Id, bool>,
                  "mhr: task ids are integers");
    constexpr auto of_type = static_cast<std::uintmax_t>((std::numeric_limits<Id>::max)());
    constexpr auto of_tasks =
        static_cast<std::uintmax_t>((std::numeric_limits<std::int64_t>::max)());
    return static_cast<std::int64_t>(
        (std::min)(std::is_signed_v<Id> ? of_type : of_type - 1, of_tasks));
}

/// Whether an id names a task.
template <class Id>
constexpr bool is_task(Id id) noexcept {
    constexpr auto largest = static_cast<Id>(largest_task<Id>());
    if constexpr (std::is_signed_v<Id>) return id >= 0 && id <= largest;
    return id <= largest;
}

/// Whether an id means no task.
template <class Id>
constexpr bool is_no_task(Id id) noexcept {
    return std::is_signed_v<Id> && id == static_cast<Id>(no_task);
}

/// An id among others, for errors.
template <class Id>
std::string task_id_text(const tensor_view<Id, 1>& ids, index_t position) {
    return std::to_string(ids(position)) + " at position " + std::to_string(position);
}

} // namespace task_details

} // namespace MHR_ISA
} // namespace mhr

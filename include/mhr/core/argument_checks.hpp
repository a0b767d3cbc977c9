#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <mhr/core/error.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>

/// \file
/// The checks of the entry points. Every message names function, argument, what was expected and
/// what came. The same checks can be asked without raising an error: `why_not` functions return the
/// message.

namespace mhr {

/// An extent that an expected shape leaves open.
inline constexpr index_t any_extent = -1;

inline namespace MHR_ISA {

namespace check_details {

/// A tensor as the checks see it, so that they are compiled once for all types and ranks.
struct checked_memory {
    const void* data;
    std::size_t element_size;
    std::size_t alignment;
    std::size_t rank;
    const index_t* extents;
    const index_t* strides;
};

inline std::size_t alignment_of(element_type type) noexcept {
    return type == element_type::f64   ? alignof(double)
           : type == element_type::f32 ? alignof(float)
                                       : alignof(std::uint16_t);
}

template <class Void, std::size_t Rank>
checked_memory memory_of(const basic_tensor_ref<Void, Rank>& tensor) noexcept {
    return {tensor.data(), size_of(tensor.type()),  alignment_of(tensor.type()),
            Rank,          tensor.extents().data(), tensor.strides().data()};
}
template <class T, std::size_t Rank>
checked_memory memory_of(const tensor_view<T, Rank>& view) noexcept {
    return {view.data(), sizeof(T), alignof(T), Rank, view.extents().data(), view.strides().data()};
}

/// Returns the text of a part of a message.
/// @{
std::string text_of(const index_t* numbers, std::size_t count, bool expected = false);
template <std::size_t Count>
std::string text_of(const std::array<index_t, Count>& numbers) {
    return text_of(numbers.data(), Count);
}
template <class Number>
std::enable_if_t<std::is_arithmetic_v<Number>, std::string> text_of(Number number) {
    return std::to_string(number);
}
inline std::string text_of(element_type type) {
    return name_of(type);
}
inline std::string text_of(const char* text) {
    return text;
}
template <class Function>
auto text_of(const Function& make_text) -> decltype(std::string(make_text())) {
    return make_text();
}
/// @}

bool is_addressable(const checked_memory& memory) noexcept;
bool is_nested(const checked_memory& memory) noexcept;

} // namespace check_details

/// A message in parts: texts, numbers, lists of extents or strides, element types. They are put
/// together only where a check fails, so that the good path builds no string.
template <class... Parts>
auto joined(Parts... parts) noexcept {
    static_assert((std::is_trivially_copyable_v<Parts> && ...),
                  "mhr: a message is joined of what costs nothing to copy");
    return [parts...] { return (std::string() + ... + check_details::text_of(parts)); };
}

/// The checks of one call, in order. The first that fails is kept as the answer to `why()`; those
/// after it do nothing.
///
///     argument_checks checks("lora_forward");
///     checks.input("x", x, {rows, any_extent});
///     checks.raise();
class argument_checks {
  public:
    /// Begins the checks of a function, whose name every message begins with.
    explicit argument_checks(std::string_view function) noexcept : function_(function) {}

    /// True if nothing has failed so far.
    [[nodiscard]] bool passed() const noexcept { return why_.empty(); }

    /// Returns the message of the check that failed, "function: argument: expected .., got ..", or
    /// an empty text if all have passed.
    [[nodiscard]] std::string why() && { return std::move(why_); }

    /// Reports what failed, if anything did: throws `mhr::error`, or calls the handler.
    void raise() const {
        if (!passed()) mhr::raise(why_);
    }

    /// Fails unless `condition` holds. What was expected and what came are texts, numbers or
    /// element types each, several of these (`joined`), or callables that make a text when it is
    /// needed.
    template <class Expected, class Actual>
    MHR_INLINE void expect(bool condition, const char* argument, Expected expected, Actual actual) {
        if (!condition) fail(argument, expected, actual);
    }

    /// From here on, sums are of this type, and tensors of f64 are refused where it is f32: their
    /// digits would be lost.
    void sums_are(element_type sums) noexcept { sums_ = sums; }

    /// Checks an input: it has the expected extents (`any_extent` accepts every one), a known
    /// element type, aligned memory where there are elements, and offsets that fit an index.
    /// Strides are free.
    template <std::size_t Rank>
    void input(const char* argument, const const_tensor_ref<Rank>& tensor,
               const std::array<index_t, Rank>& expected) {
        element(argument, tensor.type());
        memory(argument, check_details::memory_of(tensor), expected.data(), false);
    }

    /// Checks an input of any extents.
    template <std::size_t Rank>
    void input(const char* argument, const const_tensor_ref<Rank>& tensor) {
        input(argument, tensor, any_extents<Rank>());
    }

    /// Checks an output, which is what an input is and has no two elements at one address.
    template <std::size_t Rank>
    void output(const char* argument, const tensor_ref<Rank>& tensor,
                const std::array<index_t, Rank>& expected) {
        element(argument, tensor.type());
        memory(argument, check_details::memory_of(tensor), expected.data(), true);
    }

    /// Checks an output that may be absent, which means "not wanted".
    template <std::size_t Rank>
    void optional_output(const char* argument, const tensor_ref<Rank>& tensor,
                         const std::array<index_t, Rank>& expected) {
        if (!tensor.absent()) output(argument, tensor, expected);
    }

    /// Checks numbers of the host that are no elements, such as task ids.
    template <class T, std::size_t Rank>
    void numbers(const char* argument, const tensor_view<T, Rank>& view,
                 const std::array<index_t, Rank>& expected) {
        memory(argument, check_details::memory_of(view), expected.data(), false);
    }

    /// Checks numbers that the call writes, no two of which may share an address.
    template <class T, std::size_t Rank>
    void output_numbers(const char* argument, const tensor_view<T, Rank>& view,
                        const std::array<index_t, Rank>& expected) {
        memory(argument, check_details::memory_of(view), expected.data(), true);
    }

    /// Checks that an element type is known, and not f64 where sums are f32.
    void element(const char* argument, element_type type) {
        expect(is_known(type), argument, "an element type (f32, f64, bf16 or f16)",
               joined("number ", static_cast<int>(type)));
        expect(type != element_type::f64 || sums_ == element_type::f64, argument,
               "f32, bf16 or f16 where sums are f32 (f64 needs sums of f64)", "f64");
    }

    /// Checks the type of a tensor that says in what type a call sums: f32 or f64.
    void sums_type(const char* argument, element_type type) {
        expect(type == element_type::f32 || (type == element_type::f64 && !MHR_ONLY_F32), argument,
               MHR_ONLY_F32 ? "f32, the only type of sums of this build"
                            : "f32 or f64, the type of sums",
               type);
    }

    /// Checks that a tensor of a state has the type in which a call sums.
    void of_sums(const char* argument, element_type type, element_type sums) {
        expect(type == sums, argument, joined(sums, ", the type of sums"), type);
    }

    /// Checks the executor of a function with several phases, each of which needs all of the one
    /// before.
    void every_part(const executor_ref& executor) {
        expect(executor.runs_every_part(), "executor",
               "one that runs every part (this function has several phases)",
               "one that runs a share");
    }

    /// Checks that scratch memory has so many bytes left.
    void workspace_size(const workspace& scratch, std::size_t bytes) {
        expect(scratch.available() >= bytes, "workspace", joined("at least ", bytes, " bytes"),
               scratch.available());
    }

    /// Returns extents that are all left open.
    template <std::size_t Rank>
    static std::array<index_t, Rank> any_extents() noexcept {
        std::array<index_t, Rank> any{};
        any.fill(any_extent);
        return any;
    }

  private:
    /// Keeps the message, unless another check has failed before. It is apart from `expect` so that
    /// the good path stays a comparison.
    template <class Expected, class Actual>
    MHR_COLD void fail(const char* argument, Expected expected, Actual actual) {
        using check_details::text_of;
        if (passed())
            why_ = std::string(function_) + ": " + argument + ": expected " + text_of(expected) +
                   ", got " + text_of(actual);
    }
    void memory(const char* argument, const check_details::checked_memory& memory,
                const index_t* expected, bool is_output);

    std::string_view function_;
    element_type sums_ = MHR_ONLY_F32 ? element_type::f32 : element_type::f64;
    std::string why_{};
};

/// Returns what `make(checks)` returns. If one of its checks fails, an error of the function is
/// raised instead.
template <class Make>
auto checked(const char* function, Make&& make) {
    argument_checks checks(function);
    const auto result = make(checks);
    checks.raise();
    return result;
}

namespace check_details {

/// An actual extent may be -1, too; -1 means "any" among the expected extents alone.
inline std::string text_of(const index_t* numbers, std::size_t count, bool expected) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < count; ++axis) {
        const bool any = expected && numbers[axis] == any_extent;
        text += (axis == 0 ? "" : ", ") + (any ? "any" : std::to_string(numbers[axis]));
    }
    return text + "]";
}

/// a * b of two numbers that are not negative, or the largest index if that overflows.
constexpr index_t saturating_product(index_t a, index_t b) noexcept {
    constexpr index_t largest = (std::numeric_limits<index_t>::max)();
    // Nearly always; the division below is what small layers would notice.
    constexpr index_t root = index_t(1) << (std::numeric_limits<index_t>::digits / 2);
    if (a < root && b < root) return a * b;
    return a != 0 && b > largest / a ? largest : a * b;
}

/// |stride| * (extent - 1), saturating: how far an axis reaches.
constexpr index_t axis_reach(index_t extent, index_t stride) noexcept {
    constexpr index_t largest = (std::numeric_limits<index_t>::max)();
    if (extent <= 1) return 0;
    if (stride < -largest) return largest;
    return saturating_product(extent - 1, stride < 0 ? -stride : stride);
}

/// True if the offsets of all elements, in bytes, fit an index.
inline bool is_addressable(const checked_memory& memory) noexcept {
    const index_t largest =
        (std::numeric_limits<index_t>::max)() / static_cast<index_t>(memory.element_size);
    index_t elements = 1;
    index_t reach = 0;
    for (std::size_t axis = 0; axis < memory.rank; ++axis) {
        elements = saturating_product(elements, memory.extents[axis]);
        const index_t step = axis_reach(memory.extents[axis], memory.strides[axis]);
        reach = step > largest - reach ? largest : reach + step;
    }
    return elements < largest && reach < largest;
}

/// True if no two elements share an address, decided by nesting: each axis's stride exceeds the
/// reach of all axes with smaller strides. (This is sufficient, and true of every layout that
/// arrays, padding and transposition give.)
inline bool is_nested(const checked_memory& memory) noexcept {
    const auto stride = [&](std::size_t axis) {
        return memory.strides[axis] < 0 ? -memory.strides[axis] : memory.strides[axis];
    };
    for (std::size_t axis = 0; axis < memory.rank; ++axis)
        if (memory.extents[axis] == 0) return true;
    for (std::size_t axis = 0; axis < memory.rank; ++axis) {
        if (memory.extents[axis] == 1) continue;
        index_t reach = 0;
        for (std::size_t other = 0; other < memory.rank; ++other)
            if (other != axis && memory.extents[other] != 1 &&
                (stride(other) < stride(axis) || (stride(other) == stride(axis) && other < axis)))
                reach += axis_reach(memory.extents[other], memory.strides[other]);
        if (stride(axis) <= reach) return false;
    }
    return true;
}

} // namespace check_details

inline void argument_checks::memory(const char* argument,
                                    const check_details::checked_memory& memory,
                                    const index_t* expected, bool is_output) {
    if (!passed()) return;
    bool fits = true;
    bool empty = false;
    for (std::size_t axis = 0; axis < memory.rank; ++axis) {
        const index_t extent = memory.extents[axis];
        fits = fits && extent >= 0 && (expected[axis] == any_extent || extent == expected[axis]);
        empty = empty || extent == 0;
    }
    const auto extents = [&] { return check_details::text_of(memory.extents, memory.rank); };
    const auto layout = [&] {
        return "strides " + check_details::text_of(memory.strides, memory.rank) + " with extents " +
               extents();
    };
    expect(
        fits, argument,
        [&] { return "extents " + check_details::text_of(expected, memory.rank, true); }, extents);
    expect(empty || memory.data != nullptr, argument, "memory",
           [&] { return "a null pointer with extents " + extents(); });
    const std::size_t beyond = reinterpret_cast<std::uintptr_t>(memory.data) % memory.alignment;
    expect(beyond == 0, argument, joined("a pointer aligned to ", memory.alignment, " bytes"),
           joined("remainder ", beyond));
    if (!passed()) return; // extents below 0 have no offsets
    expect(check_details::is_addressable(memory), argument, "offsets that fit an index", layout);
    if (is_output && passed()) // strides that overflow have no nesting
        expect(check_details::is_nested(memory), argument,
               "strides that place every element at its own address", layout);
}

} // namespace MHR_ISA
} // namespace mhr

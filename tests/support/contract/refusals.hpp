#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/element_type.hpp>
#include <mhr/core/executor.hpp>

#include "support/contract/adapter.hpp"
#include "support/contract/call.hpp"
#include "support/error_check.hpp"
#include "support/positions.hpp"

/// \file
/// Bad arguments of every kind: each is refused by its name, before anything is written, and
/// `why_not` says the same.

namespace mhr::test {

/// A tensor that must be refused, and why.
struct bad_tensor {
    std::string what;
    any_tensor tensor;
};

/// A good tensor spoilt in every way that a call must notice. None of them may ever be read.
class spoilt_tensors {
  public:
    spoilt_tensors(const tensor_spec& spec, const any_tensor& good, bool needs_all_gradients)
        : spec_(spec), good_(good) {
        constexpr index_t largest = std::numeric_limits<index_t>::max();
        const auto bytes = static_cast<index_t>(size_of(good.type()));
        add("no memory", nullptr, good.type(), good.extents(), good.strides());
        add("misaligned", static_cast<std::byte*>(good.data()) + 1, good.type(), good.extents(),
            good.strides());
        add("of no known type", good.data(), static_cast<element_type>(7), good.extents(),
            good.strides());
        for (std::size_t axis = spec.first(); axis < 4; ++axis) {
            add_extent(axis, -good.extent(axis));
            const auto& free = spec.free_axes;
            if (std::find(free.begin(), free.end(), axis - spec.first()) == free.end()) {
                add_extent(axis, good.extent(axis) + 1);
                add_extent(axis, good.extent(axis) - 1);
            }
            if (good.extent(axis) < 2) continue;
            add_stride(axis, largest);
            add_stride(axis, std::numeric_limits<index_t>::min());
            // Elements that fit an index where their bytes do not.
            add_stride(axis, largest / bytes / (good.extent(axis) - 1) + 1);
            if (spec.is_written()) add_overlaps(axis);
        }
        if (spec.part != role::gradient || needs_all_gradients)
            add("absent", nullptr, good.type(), {}, {});
    }

    [[nodiscard]] const std::vector<bad_tensor>& all() const { return all_; }

  private:
    void add(const std::string& what, void* data, element_type type, const position<4>& extents,
             const position<4>& strides) {
        all_.push_back({what + " extents " + to_text(extents) + " strides " + to_text(strides),
                        {data, type, extents, strides}});
    }
    void add_extent(std::size_t axis, index_t extent) {
        auto extents = good_.extents();
        extents[axis] = extent;
        add("", good_.data(), good_.type(), extents, good_.strides());
    }
    void add_stride(std::size_t axis, index_t stride) {
        auto strides = good_.strides();
        strides[axis] = stride;
        add("", good_.data(), good_.type(), good_.extents(), strides);
    }
    void add_overlaps(std::size_t axis) {
        add_stride(axis, 0);
        for (std::size_t other = spec_.first(); other < 4; ++other)
            if (other != axis && good_.extent(other) > 1) add_stride(axis, good_.stride(other));
    }

    const tensor_spec& spec_;
    any_tensor good_;
    std::vector<bad_tensor> all_;
};

/// Calls `f`, which must refuse an argument by name and leave all that the call may write as it is.
inline error_outcome refuses(adapter_call& call, const std::string& function,
                             std::string_view argument, const std::function<void()>& f) {
    const auto before = call.take_snapshots();
    return at_error(f, [&](const std::string& message) -> error_outcome {
        const std::string start = function + ": " + std::string(argument) + ": expected ";
        if (message.compare(0, start.size(), start) != 0 ||
            message.find(", got ", start.size()) == std::string::npos)
            return {false, "expected \"" + start + "..., got ...\", reported: " + message};
        if (before != call.take_snapshots())
            return {false, "an output was touched before: " + message};
        return {true, message};
    });
}

/// The two functions of an adapter on bad arguments.
class refusal_check {
  public:
    refusal_check(const adapter& page, const call_options& options)
        : page_(page), call_(page, options) {}

    [[nodiscard]] adapter_call& call() { return call_; }

    /// Checks that one argument is refused by all that look at it.
    void bad(const tensor_spec& spec, const any_tensor& tensor) {
        arguments given = call_.given();
        given[spec.name] = tensor;
        bad_arguments(spec.name, given,
                      spec.part != role::output_gradient && spec.part != role::gradient,
                      spec.part != role::output && spec.part != role::forward_input);
    }

    /// Checks that arguments are refused, forward or backward or both, by the name of one of them.
    void bad_arguments(std::string_view name, const arguments& given, bool forward, bool backward) {
        if (forward) {
            const auto outcome = refuses(call_, page_.forward_name(), name,
                                         [&] { page_.forward({call_.plan}, given); });
            CHECK(outcome);
            if (page_.has_question()) CHECK(page_.why_not({call_.plan}, given) == outcome.message);
        }
        if (backward)
            CHECK(refuses(call_, page_.backward_name(), name,
                          [&] { page_.backward({call_.plan}, given, call_.scratch()); }));
    }

  private:
    const adapter& page_;
    adapter_call call_;
};

inline void check_bad_tensors(const adapter& page) {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        refusal_check check(page,
                            call_options{}.of(type).with_sums(sums_of(type, element_type::f32)));
        for (const tensor_spec& spec : check.call().specs) {
            const spoilt_tensors spoilt(spec, check.call()[spec.name].ref(),
                                        page.needs_all_gradients());
            for (const bad_tensor& bad : spoilt.all()) {
                CAPTURE(spec.name);
                CAPTURE(bad.what);
                check.bad(spec, bad.tensor);
            }
        }
        // A call that was refused is served when its arguments are good.
        CHECK(page.why_not({check.call().plan}, check.call().given()).empty());
        CHECK_NOTHROW(check.call().run());
    }
}

/// Where sums are f32, f64 is refused: its digits would be lost. Sums of 16 bits are none.
inline void check_types_of_sums(const adapter& page) {
    refusal_check check(page, {});
    if (!check.call().has_state()) return;
    for (const tensor_spec& spec : check.call().specs) {
        CAPTURE(spec.name);
        if (spec.part == role::state) {
            const any_tensor state = check.call()[spec.name].ref();
            for (element_type type : {element_type::bf16, element_type::f16})
                check.bad(spec, {state.data(), type, state.extents(), state.strides()});
        } else {
            refusal_check wide(page, call_options{}.of(spec.name, element_type::f64));
            wide.bad(spec, wide.call()[spec.name].ref());
        }
    }
}

/// Shares where a function has several phases, and a workspace that is one byte too small.
inline void check_bad_execution(const adapter& page) {
    for (element_type sums : sum_types) {
        adapter_call call(page, call_options{}.with_sums(sums));
        const arguments given = call.given();
        const share_executor share{0, 2};
        if (!page.forward_is_one_phase()) {
            const auto outcome = refuses(call, page.forward_name(), "executor", [&] {
                page.forward({call.plan, share}, given);
            });
            CHECK(outcome);
            CHECK(page.why_not({call.plan, share}, given) == outcome.message);
        } else {
            CHECK(page.why_not({call.plan, share}, given).empty());
        }
        if (!page.backward_is_one_phase())
            CHECK(refuses(call, page.backward_name(), "executor", [&] {
                page.backward({call.plan, share}, given, call.scratch());
            }));
        const std::size_t size = page.scratch_size({call.plan}, given, sums);
        if (size == 0) continue;
        CHECK(refuses(call, page.backward_name(), "workspace", [&] {
            page.backward({call.plan}, given, {nullptr, 0});
        }));
        std::vector<std::byte> memory(size);
        CHECK(refuses(call, page.backward_name(), "workspace", [&] {
            page.backward({call.plan}, given, {memory.data(), size - 1});
        }));
        CHECK_NOTHROW(page.backward({call.plan}, given, {memory.data(), size}));
    }
}

/// A plan of more rows, or of more entries, than the tensors have.
inline void check_other_plans(const adapter& page) {
    refusal_check check(page, {});
    adapter_call& call = check.call();
    if (!call.has_rows()) return;
    const arguments given = call.given();
    for (const std::vector<std::int64_t>& tasks :
         {random_tasks(call.plan.rows() + 1, call.options.sizes.tasks),
          random_tasks(call.plan.rows(), call.options.sizes.tasks + 1),
          std::vector<std::int64_t>(static_cast<std::size_t>(call.plan.rows()), no_task)}) {
        const batch_plan other = plan_of(tasks);
        REQUIRE((other.rows() != call.plan.rows() || other.entries() != call.plan.entries()));
        if (other.rows() == call.plan.rows() && !page.depends_on_entries()) continue;
        const std::string why = page.why_not({other}, given);
        const auto before = call.take_snapshots();
        CHECK_FALSE(why.empty());
        CHECK(error_of([&] { page.forward({other}, given); }) == why);
        CHECK_FALSE(error_of([&] { page.backward({other}, given, call.scratch()); }).empty());
        CHECK(call.take_snapshots() == before);
    }
}

} // namespace mhr::test

#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <string_view>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <mhr/core/element_type.hpp>

#include "support/comparison.hpp"
#include "support/contract/adapter.hpp"
#include "support/contract/call.hpp"
#include "support/element_access.hpp"
#include "support/gradient_check.hpp"

/// \file
/// What an adapter must give: the oracle's results, one precision above the adapter's sums.

namespace mhr::test {

/// The values of a call as they are now, and their magnitudes.
/// @{
template <class S>
oracle_values<S> values_of(adapter_call& call) {
    oracle_values<S> all{entry_of_row(call.plan), static_cast<S>(call.options.scale)};
    for (const tensor_spec& spec : call.specs)
        all.tensors[spec.name] = values_as<S>(call[spec.name].ref());
    return all;
}
template <class S>
oracle_values<S> magnitudes_of(adapter_call& call) {
    oracle_values<S> all{entry_of_row(call.plan), static_cast<S>(std::abs(call.options.scale))};
    for (const tensor_spec& spec : call.specs)
        all.tensors[spec.name] = magnitudes_as<S>(call[spec.name].ref());
    return all;
}
/// @}

/// The results of a forward and a backward of a call, and the summed magnitudes of the terms.
template <class S>
struct expectation {
    oracle_values<S> values, magnitudes;

    explicit expectation(adapter_call& before)
        : values(values_of<S>(before)), magnitudes(magnitudes_of<S>(before)) {
        for (oracle_values<S>* each : {&values, &magnitudes}) {
            before.page.expect_forward(*each);
            before.page.expect_backward(*each);
        }
    }

    [[nodiscard]] comparison compared_with(adapter_call& call, std::string_view result) const {
        const element_type stored = call[result].type();
        const double sum = call.page.roundings(result, call.options.sizes) *
                           precision_of(call.sums_of(result)).epsilon;
        const double once_more =
            call.page.is_added_to_twice(result) ? precision_of(stored).epsilon : 0;
        return compare(call[result].const_ref(), values.tensors.at(result).view(),
                       magnitudes.tensors.at(result).view(), error_bound{1, sum + once_more, 1});
    }

    /// True if all results are those expected.
    [[nodiscard]] bool agrees_with(adapter_call& call) const {
        for (const tensor_spec& spec : call.specs)
            if (spec.is_written() && call[spec.name].ref().size() > 0 &&
                !compared_with(call, spec.name))
                return false;
        return true;
    }
};

inline bool has_f64(adapter_call& call) {
    for (const tensor_spec& spec : call.specs)
        if (call[spec.name].type() == element_type::f64) return true;
    return false;
}

/// Calls `f(zero)` with a zero of the oracle's type, one precision above the sums of a call.
template <class F>
void with_oracle_type(adapter_call& call, F&& f) {
    if (has_f64(call))
        f(0.0L);
    else
        f(0.0);
}

/// Runs a call forward and backward and compares all results with the oracle's.
inline void check_against_oracle(adapter_call& call) {
    with_oracle_type(call, [&](auto zero) {
        const expectation<decltype(zero)> want(call);
        call.run();
        for (const tensor_spec& spec : call.specs) {
            if (!spec.is_written() || call[spec.name].ref().size() == 0) continue;
            CAPTURE(spec.name);
            CHECK(want.compared_with(call, spec.name));
        }
        CHECK(call.intact());
    });
}

/// The gradients in f64 agree with complex steps through the oracle's forward: exact to rounding.
inline void check_against_complex_steps(const adapter& page) {
    using complex = std::complex<double>;
    adapter_call call(page, call_options{}
                                .with({6, 2, 2, 3, 2, 3, 2})
                                .of(element_type::f64)
                                .with_sums(element_type::f64));
    oracle_values<complex> oracle = values_of<complex>(call);
    const oracle_values<complex> start = oracle;
    const auto loss = [&] {
        complex sum = 0;
        for (const tensor_spec& spec : call.specs)
            if (spec.part == role::output)
                oracle.tensors.at(spec.name) = start.tensors.at(spec.name);
        page.expect_forward(oracle);
        for (const tensor_spec& spec : call.specs)
            if (spec.part == role::output_gradient)
                sum += contract<complex>(oracle.tensors.at(spec.variable).view(),
                                         oracle.tensors.at(spec.name).view());
        return sum;
    };
    const oracle_values<double> before = values_of<double>(call);
    call.run();
    for (const tensor_spec& spec : call.specs) {
        if (spec.part != role::gradient) continue;
        CAPTURE(spec.name);
        auto want = complex_step_gradient(loss, oracle.tensors.at(spec.variable).view());
        auto ones = want;
        for (std::size_t i = 0; i < want.values().size(); ++i) {
            want.values()[i] += before.tensors.at(spec.name).values()[i];
            ones.values()[i] = 1;
        }
        CHECK(compare(call[spec.name].const_ref(), want.view(), ones.view(),
                      within(element_type::f64, 100)));
    }
}

/// The oracle of another batch or of another scale is noticed to be another.
inline void check_that_mistakes_are_noticed(const adapter& page) {
    adapter_call call(page, call_options{}.with({30, 2, 2, 3, 5, 6, 3}));
    REQUIRE(call.plan.entries() == 2);
    const expectation<double> want(call);
    expectation<double> other_entries = want;
    other_entries.values = values_of<double>(call);
    for (index_t& entry : other_entries.values.entry_of_row.values())
        if (entry >= 0) entry = 1 - entry;
    page.expect_forward(other_entries.values);
    page.expect_backward(other_entries.values);
    call.run();
    CHECK(want.agrees_with(call));
    if (call.has_rows()) CHECK(other_entries.agrees_with(call) != page.depends_on_entries());
    // Each result is looked at: one element that is a little off.
    for (const tensor_spec& spec : call.specs) {
        if (!spec.is_written()) continue;
        CAPTURE(spec.name);
        const any_tensor result = call[spec.name].ref();
        const position<4> last{result.extent(0) - 1, result.extent(1) - 1, result.extent(2) - 1,
                               result.extent(3) - 1};
        const double value = element(result, last);
        set_element(result, last, value + 0.05);
        CHECK_FALSE(want.compared_with(call, spec.name));
        set_element(result, last, value);
        CHECK(want.compared_with(call, spec.name));
    }
}

} // namespace mhr::test

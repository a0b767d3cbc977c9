// Steps 3 and 4: the test of a kernel, to copy into tests/kernels/. It checks the gradient of the
// oracle by complex step, and the kernel against the oracle one precision higher, for every element
// type, layout, architecture and awkward size; the bits of copies against those of rows in place;
// and that nothing is touched which is not a result.

#include <cmath>
#include <complex>
#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "skeleton/oracle.hpp"
#include "skeleton/skeleton.hpp"

#include "support/architectures.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/exact_values.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// Round the lanes, and the chunks that are copied (128 of f64, 256 of f32).
constexpr index_t widths[] = {0, 1, 3, 4, 7, 8, 16, 17, 127, 128, 129, 257, 530};
constexpr index_t some_rows[] = {4, 0, 2};
constexpr index_t all_rows = 6;
const row_set rows{some_rows, 3};

bool is_of_set(index_t row) {
    return row == 0 || row == 2 || row == 4;
}

/// The tensors of both kernels: x and y (or d_y) [rows, n], gates (or d_gates) [rows].
struct problem {
    guarded_tensor<2> x, y;
    guarded_tensor<1> gates;

    problem(index_t n, element_type of_x, element_type of_y, element_type of_gates, layout order)
        : x(of_x, {all_rows, n}, order), y(of_y, {all_rows, n}, order),
          gates(of_gates, {all_rows}, order == layout::column_major ? layout::padded : order) {
        random_source random(91);
        fill_exactly(x.ref(), random);
        fill_exactly(y.ref(), random);
        fill_exactly(gates.ref(), random);
    }
};

/// The elements of the rows of the set after a kernel, as the oracle has them, beside what their
/// errors are measured by; other rows keep their bits.
template <class Arch, class A>
void check(index_t n, element_type of_x, element_type of_y, element_type of_gates, layout order) {
    CAPTURE(n);
    CAPTURE(std::string(name_of(of_x)));
    CAPTURE(std::string(name_of(of_y)));
    CAPTURE(std::string(name_of(of_gates)));
    CAPTURE(name_of(order));
    using S = oracle_t<A>;
    constexpr element_type dense = element_type_of_v<A>;
    problem forward(n, of_x, of_y, of_gates, order), plain(n, dense, dense, dense, {});
    problem backward(n, of_x, of_y, of_gates, order), plain_backward(n, dense, dense, dense, {});

    const auto x = values_as<S>(forward.x.ref());
    const auto before = values_as<S>(forward.y.ref());
    const auto gates = values_as<S>(forward.gates.ref());
    tensor<S, 2> y = before, y_size = magnitudes_as<S>(forward.y.ref());
    tensor<S, 1> d_gates = gates, d_size = magnitudes_as<S>(forward.gates.ref());
    skeleton::add_gated_rows<S>(x.const_view(), gates.const_view(), y.view());
    skeleton::add_gate_gradients<S>(x.const_view(), before.const_view(), d_gates.view());
    for (index_t row = 0; row < all_rows; ++row) {
        for (index_t i = 0; i < n; ++i) {
            y_size(row, i) += std::abs(gates(row) * x(row, i));
            d_size(row) += std::abs(x(row, i) * before(row, i));
            if (!is_of_set(row)) y(row, i) = before(row, i);
        }
        if (!is_of_set(row)) d_gates(row) = gates(row);
    }

    kernels::add_gated_rows<Arch, A>(rows, forward.x, forward.gates, forward.y);
    kernels::add_gate_gradients<Arch, A>(rows, backward.x, backward.y, backward.gates);
    if (n > 0) {
        CHECK(compare(forward.y.ref(), y.const_view(), y_size.const_view(), within<A>(1)));
        CHECK(compare(backward.gates.ref(), d_gates.const_view(), d_size.const_view(),
                      within<A>(static_cast<double>(n + 1))));
    }
    for (const auto* each : {&forward, &backward})
        CHECK((each->x.intact() && each->y.intact() && each->gates.intact()));

    // The type and the layout choose copies alone, never the order of a sum.
    kernels::add_gated_rows<Arch, A>(rows, plain.x, plain.gates, plain.y);
    kernels::add_gate_gradients<Arch, A>(rows, plain_backward.x, plain_backward.y,
                                         plain_backward.gates);
    guarded_tensor<1> rounded(of_y, {n}), rounded_gates(of_gates, {all_rows});
    round_to(rounded_gates.ref(), plain_backward.gates.ref());
    CHECK(compare_bitwise(backward.gates.ref(), rounded_gates.ref()));
    for (index_t row : some_rows) {
        if (n == 0) continue;
        round_to(rounded.ref(), plain.y.ref().slice(0, row));
        CHECK(compare_bitwise(forward.y.ref().slice(0, row), rounded.ref()));
    }
}

template <class Arch, class A>
void check_all() {
    constexpr element_type sums = element_type_of_v<A>;
    std::size_t number = 0;
    for (element_type of_x : types_beside(sums))
        for (element_type of_y : types_beside(sums))
            for (element_type of_gates : types_beside(sums))
                for (index_t n : widths)
                    check<Arch, A>(n, of_x, of_y, of_gates,
                                   all_layouts[number++ % all_layouts.size()]);
}

} // namespace

TEST_CASE("skeleton: the gradient of the oracle is its derivative") {
    using C = std::complex<double>;
    constexpr index_t n = 5;
    random_source random(7);
    tensor<C, 2> x{{2, n}}, zeros{{2, n}};
    tensor<double, 2> d_y{{2, n}}, real_x{{2, n}};
    tensor<C, 1> gates{{2}};
    random.fill(d_y.view());
    random.fill(real_x.view());
    for (index_t row = 0; row < 2; ++row) {
        gates(row) = random.uniform(-1, 1);
        for (index_t i = 0; i < n; ++i)
            x(row, i) = real_x(row, i);
    }
    const auto loss = [&] {
        tensor<C, 2> y = zeros;
        skeleton::add_gated_rows<C>(x.const_view(), gates.const_view(), y.view());
        return contract<C>(y.const_view(), d_y.const_view());
    };
    const tensor<double, 1> want = complex_step_gradient(loss, gates.view());
    tensor<double, 1> got{{2}};
    skeleton::add_gate_gradients<double>(real_x.const_view(), d_y.const_view(), got.view());
    for (index_t row = 0; row < 2; ++row)
        CHECK(got(row) == doctest::Approx(want(row)).epsilon(1e-14));
}

TEST_CASE("skeleton: every type, layout, size and architecture") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        check_all<Arch, float>();
        check_all<Arch, double>();
    });
}

TEST_CASE("skeleton: no rows are no work") {
    problem p(9, element_type::f32, element_type::f32, element_type::f32, layout::row_major);
    const snapshot y = p.y.take_snapshot(), gates = p.gates.take_snapshot();
    kernels::add_gated_rows<default_arch, float>({nullptr, 0}, p.x, p.gates, p.y);
    kernels::add_gate_gradients<default_arch, float>({nullptr, 0}, p.x, p.y, p.gates);
    CHECK(p.y.unchanged_since(y));
    CHECK(p.gates.unchanged_since(gates));
}

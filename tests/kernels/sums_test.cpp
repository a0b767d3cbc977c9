#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/sums.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/exact_values.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"

// One sum and one rounding: everything is compared to the bit.

using namespace mhr;
using namespace mhr::test;

namespace {

template <class A>
void check(element_type type, layout order, index_t rows, index_t columns) {
    CAPTURE(std::string(name_of(type)));
    CAPTURE(name_of(order));
    CAPTURE(rows);
    CAPTURE(columns);
    guarded_tensor<2> sums(element_type_of_v<A>, {rows, columns}, layout::padded);
    guarded_tensor<2> matrix(type, {rows, columns}, order);
    random_source random(71);
    sums.fill(random);
    matrix.fill(random);
    guarded_tensor<2> want(type, {rows, columns});
    for_each_position(want.extents(), [&](const position<2>& at) {
        const A sum =
            static_cast<A>(element(matrix.ref(), at)) + static_cast<A>(element(sums.ref(), at));
        set_element(want.ref(), at, static_cast<double>(sum));
    });
    const snapshot before = sums.take_snapshot();
    kernels::add_sums<default_arch, A>(sums.const_ref().as<A>(), matrix.ref());
    CHECK(matrix.intact());
    CHECK(sums.unchanged_since(before));
    if (rows != 0 && columns != 0) CHECK(compare_bitwise(matrix.ref(), want.ref()));
}

template <class A>
void check_all() {
    // Round the 16 rows and the 256 columns of the buffer.
    for (element_type type : types_beside(element_type_of_v<A>))
        for (layout order : all_layouts)
            for (index_t rows : {0, 1, 3, 15, 16, 17, 40})
                for (index_t columns : {0, 1, 5, 255, 256, 257, 600})
                    check<A>(type, order, rows, columns);
}

} // namespace

TEST_CASE("sums are added to every type in every layout, and rounded once") {
    check_all<float>();
    check_all<double>();
}

#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/serving/combining/flat_elements.hpp>

#include "support/row_checks.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("the parts of a matrix are all of it, in order, and about equal") {
    using combining_details::first_of_part;
    using combining_details::parts;
    for (index_t elements : {0, 1, 63, 64, 65, 1000, 123456789}) {
        CAPTURE(elements);
        CHECK(first_of_part(elements, 0) == 0);
        CHECK(first_of_part(elements, parts) == elements);
        for (index_t part = 0; part < parts; ++part) {
            const index_t size = first_of_part(elements, part + 1) - first_of_part(elements, part);
            CHECK(size >= elements / parts);
            CHECK(size <= elements / parts + 1);
        }
    }
    // No product overflows.
    const index_t most = std::numeric_limits<index_t>::max();
    CHECK(first_of_part(most, parts) == most);
    CHECK(first_of_part(most, 33) > first_of_part(most, 32));
}

TEST_CASE("elements are read and written in row-major order, whatever the layout") {
    for (element_type type : {element_type::f32, element_type::bf16})
        for (layout order :
             {layout::row_major, layout::padded, layout::column_major, layout::reversed})
            for (index_t columns : {1, 7}) {
                CAPTURE(name_of(order));
                guarded_tensor<2> from(type, {6, columns}, order), to(type, {6, columns}, order);
                for (index_t i = 0; i < 6; ++i)
                    for (index_t k = 0; k < columns; ++k)
                        set_element(from.ref(), {i, k}, static_cast<double>(i * columns + k));
                to.fill(-1);
                std::vector<float> numbers(6);
                for (index_t first = 0; first + 5 <= 6 * columns; ++first) {
                    combining_details::read_flat(from.const_ref(), first, 5, numbers.data());
                    for (std::size_t i = 0; i < 5; ++i)
                        CHECK(numbers[i] == static_cast<float>(first + static_cast<index_t>(i)));
                    combining_details::write_flat(numbers.data(), to.ref(), first, 5);
                }
                CHECK(compare_bitwise(to.ref(), from.ref()));
                CHECK(to.intact());
            }
}

TEST_CASE("keys are ordered as magnitudes are") {
    using combining_details::magnitude_key;
    const std::vector<double> rising{0, 5e-324, 1e-310, 1e-300, 0.5, 1, 1.5, 2, 1e300, INFINITY};
    for (std::size_t i = 1; i < rising.size(); ++i)
        CHECK(magnitude_key(-rising[i]) > magnitude_key(rising[i - 1]));
    CHECK(magnitude_key(-2.5F) == magnitude_key(2.5F));
    CHECK(magnitude_key(-0.0) == 0);
    CHECK(magnitude_key(1.0F) < magnitude_key(std::nextafter(1.0F, 2.0F)));
    CHECK(magnitude_key(NAN) > magnitude_key(INFINITY));
}

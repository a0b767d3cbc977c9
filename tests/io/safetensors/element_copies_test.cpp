#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/safetensors/element_copies.hpp>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/positions.hpp"
#include "support/random_tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// The elements of a dense tensor as a file has them, `shift` bytes after an aligned address.
class stored_elements {
  public:
    template <std::size_t Rank>
    stored_elements(const guarded_tensor<Rank>& values, std::size_t shift)
        : shift_(shift),
          memory_(static_cast<std::size_t>(values.const_ref().size()) * size_of(values.type()) +
                  8) {
        std::memcpy(memory_.data() + shift, values.const_ref().data(), memory_.size() - 8);
    }
    [[nodiscard]] const std::byte* data() const { return memory_.data() + shift_; }

  private:
    std::size_t shift_;
    std::vector<std::byte> memory_;
};

} // namespace

TEST_CASE("element_copies: each type goes into each other, into every layout, rounded once") {
    // Longer than what is converted at a time, in rows that are shorter.
    const std::array<index_t, 2> extents{6, 135};
    for (const element_type stored : all_element_types) {
        guarded_tensor<2> values(stored, extents);
        values.fill(random_source(7), -100, 100);
        for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
            const stored_elements file(values, shift);
            for (const element_type type : all_element_types)
                for (const layout order : all_layouts) {
                    CAPTURE(name_of(stored));
                    CAPTURE(name_of(type));
                    CAPTURE(name_of(order));
                    guarded_tensor<2> want(type, extents), copy(type, extents, order);
                    for_each_position(extents, [&](const auto& at) {
                        set_element(want.ref(), at, element(values.const_ref(), at));
                    });
                    safetensors_details::copy_elements(file.data(), stored, copy.ref());
                    CHECK(compare_bitwise(copy.ref(), want.ref()));
                    CHECK(copy.intact());
                }
        }
    }
}

TEST_CASE("element_copies: every count of a single row, and tensors without elements") {
    for (const element_type stored : all_element_types)
        for (const element_type type : all_element_types)
            for (const index_t count : {0, 1, 2, 15, 16, 17, 255, 256, 257, 600}) {
                guarded_tensor<1> values(stored, {count}), want(type, {count});
                guarded_tensor<1> copy(type, {count}, layout::reversed);
                values.fill(random_source(8));
                for_each_position(want.extents(), [&](const auto& at) {
                    set_element(want.ref(), at, element(values.const_ref(), at));
                });
                const stored_elements file(values, 1);
                safetensors_details::copy_elements(file.data(), stored, copy.ref());
                if (count > 0) CHECK(compare_bitwise(copy.ref(), want.ref()));
                CHECK(copy.intact());
            }
    const std::byte none{};
    for (const auto& extents : {std::array<index_t, 3>{0, 2, 3}, {2, 0, 3}, {2, 3, 0}})
        safetensors_details::copy_elements(&none, element_type::f32,
                                           tensor_ref<3>(nullptr, element_type::f16, extents));
}

TEST_CASE("element_copies: integers go into every layout from any place") {
    std::vector<std::int16_t> values;
    for (std::int16_t i = 0; i < 2 * 3 * 5; ++i)
        values.push_back(static_cast<std::int16_t>(i * 1000 - 15000));
    std::vector<std::byte> memory(values.size() * 2 + 1);
    std::memcpy(memory.data() + 1, values.data(), values.size() * 2);
    for (const layout order : all_layouts) {
        guarded_buffer<std::int16_t, 3> copy({2, 3, 5}, order);
        const std::byte* const end =
            safetensors_details::copy_integers(memory.data() + 1, copy.view());
        CHECK(end == memory.data() + memory.size());
        std::size_t i = 0;
        for_each_position(copy.view().extents(),
                          [&](const auto& at) { CHECK(element(copy.view(), at) == values[i++]); });
        CHECK(copy.intact());
    }
}

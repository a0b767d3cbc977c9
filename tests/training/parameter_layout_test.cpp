#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/training/parameter_layout.hpp>

#include "support/bad_tensors.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/positions.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr lora_shape query{4, 3, 20, 12, 2};
constexpr lora_shape value{1, 2, 7, 9, 3};

/// A model of two layers and a router, with one tensor of the host's.
struct model {
    parameter_layout layout;
    inventory_place of_query = layout.place_inventory(query);
    parameter_place<1> bias = layout.place<1>({5});
    inventory_place of_value = layout.place_inventory(value);
    index_t modules_end = layout.size();
    parameter_place<3> logits = layout.place<3>({6, 4, 3});
};

/// Adds 1 to each element of a tensor.
template <std::size_t Rank>
void count(const tensor_ref<Rank>& tensor) {
    transform_elements(tensor, [](double before) { return before + 1; });
}

} // namespace

TEST_CASE("tensors in a buffer do not overlap and have the shapes they were given") {
    const model m;
    std::vector<float> values(static_cast<std::size_t>(m.layout.size()));
    const tensor_ref<1> buffer(values.data(), {m.layout.size()});
    const auto of_query = m.of_query.in(buffer);
    const auto of_value = m.of_value.in({values.data(), {m.layout.size()}});
    CHECK(of_query.a.extents() == std::array<index_t, 4>{4, 3, 5, 2});
    CHECK(of_query.b.extents() == std::array<index_t, 4>{4, 3, 2, 3});
    CHECK(of_value.a.extents() == std::array<index_t, 4>{1, 2, 7, 3});
    CHECK(of_value.b.extents() == std::array<index_t, 4>{1, 2, 3, 9});
    CHECK(m.logits.in(buffer).extents() == std::array<index_t, 3>{6, 4, 3});
    CHECK(m.of_query.size() == 4 * 3 * 5 * 2 + 4 * 3 * 2 * 3);
    CHECK(m.logits.size() == 72);

    count(of_query.a);
    count(of_query.b);
    count(of_value.a);
    count(of_value.b);
    count(m.bias.in(buffer));
    count(m.logits.in(buffer));
    index_t parameters = 0;
    for (float v : values) {
        CHECK(v <= 1); // no element of two tensors
        parameters += v > 0 ? 1 : 0;
    }
    CHECK(parameters == m.of_query.size() + m.of_value.size() + 5 + 72);
}

TEST_CASE("every tensor of a buffer is aligned and dense, and of its type") {
    const model m;
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        std::vector<unsigned char> bytes(static_cast<std::size_t>(m.layout.size()) * size_of(type) +
                                         64);
        unsigned char* start = bytes.data();
        while (reinterpret_cast<std::uintptr_t>(start) % 64 != 0)
            ++start;
        const tensor_ref<1> buffer(start, type, {m.layout.size()});
        const auto good = [&](const auto& tensor) {
            return tensor.is_contiguous() && tensor.type() == type &&
                   reinterpret_cast<std::uintptr_t>(tensor.data()) % 64 == 0;
        };
        CHECK(good(m.of_query.in(buffer).a));
        CHECK(good(m.of_query.in(buffer).b));
        CHECK(good(m.of_value.in(buffer).a));
        CHECK(good(m.of_value.in(buffer).b));
        CHECK(good(m.bias.in(buffer)));
        CHECK(good(m.logits.in(buffer)));
        // The places are the same in a buffer that is only read.
        const const_tensor_ref<1> read_only = buffer;
        CHECK(m.of_value.in_const(read_only).a.data() == m.of_value.in(buffer).a.data());
        CHECK(m.of_value.in_const(read_only).b.data() == m.of_value.in(buffer).b.data());
        CHECK(m.logits.in_const(read_only).data() == m.logits.in(buffer).data());
        CHECK(good(m.of_value.in_const(read_only).b));
        CHECK(m.logits.in_const(read_only).extents() == m.logits.extents);
    }
}

TEST_CASE("what is placed later begins at the size before") {
    const model m;
    CHECK(m.logits.first == m.modules_end);
    CHECK(m.modules_end % parameter_layout::alignment == 0);
    CHECK(m.layout.size() == m.modules_end + 96);
    CHECK(parameter_layout{}.size() == 0);
}

TEST_CASE("gradients of an absent buffer are absent") {
    const model m;
    CHECK(m.of_query.in({}).a.absent());
    CHECK(m.of_query.in({}).b.absent());
    CHECK(m.logits.in({}).absent());
    CHECK(m.logits.in_const({}).absent());
}

TEST_CASE("bad buffers are refused") {
    const model m;
    std::vector<float> values(static_cast<std::size_t>(m.layout.size()));
    const tensor_ref<1> buffer(values.data(), {m.layout.size()});
    const auto refused = [&](const tensor_ref<1>& bad) {
        CHECK(refuses("parameter_place::in", "buffer", [&] { (void)m.logits.in_const(bad); }));
        return refuses("parameter_place::in", "buffer", [&] { (void)m.logits.in(bad); });
    };
    for (const auto& bad : bad_as_input(buffer, {0})) {
        CAPTURE(bad.what);
        CHECK(refused(bad.ref));
    }
    CHECK(refused({values.data(), {m.modules_end + 71}}));
    CHECK(refused({values.data(), {m.modules_end / 2}}));
    CHECK(refused({values.data(), {m.modules_end + 72}, {2}}));
    CHECK(m.logits.in({values.data(), {m.modules_end + 72}}).size() == 72);
}

TEST_CASE("bad shapes are refused, and place nothing") {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    parameter_layout layout;
    (void)layout.place<1>({3});
    const index_t before = layout.size();
    const auto refuses_shape = [&](const lora_shape& shape) {
        return refuses("parameter_layout::place_inventory", "shape",
                       [&] { (void)layout.place_inventory(shape); });
    };
    CHECK(refuses_shape({0, 2, 8, 8, 2}));
    CHECK(refuses_shape({-1, 2, 8, 8, 2}));
    CHECK(refuses_shape({3, 2, 8, 9, 2}));
    CHECK(refuses_shape({3, 2, 9, 8, 2}));
    CHECK(refuses_shape({2, -1, 8, 8, 2}));
    CHECK(refuses_shape({2, 2, 8, 8, -2}));
    CHECK(refuses_shape({2, 2, -8, 8, 2}));
    CHECK(refuses_shape({1, 1, 8, largest, 1})); // a would fit
    const auto refuses_extents = [&](const std::array<index_t, 2>& extents) {
        return refuses("parameter_layout::place", "extents",
                       [&] { (void)layout.place<2>(extents); });
    };
    CHECK(refuses_extents({-1, 0}));
    CHECK(refuses_extents({2, std::numeric_limits<index_t>::min()}));
    CHECK(refuses_extents({largest, 2}));
    CHECK(refuses_extents({largest - 31, 1}));
    CHECK(layout.size() == before);
    CHECK(layout.place<2>({0, 5}).size() == 0);
    CHECK(layout.size() == before);
}

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <mhr/hosts/ggml/tensors.hpp>

#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/ggml_layer.hpp"
#include "support/guarded_tensor.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::ggml::ref_of;

TEST_CASE("a tensor has ggml's axes in reverse, with strides in elements, of every type") {
    const ggml_memory memory;
    for (element_type type : all_element_types) {
        CAPTURE(std::string(name_of(type)));
        ggml_tensor* const dense = ggml_new_tensor_4d(memory, type_in_ggml(type), 7, 5, 3, 2);
        const auto all = ref_of<4>(dense);
        CHECK(all.data() == dense->data);
        CHECK(all.type() == type);
        CHECK(all.extents() == std::array<index_t, 4>{2, 3, 5, 7});
        CHECK(all.is_contiguous());
        CHECK(ref_of<2>(dense).extents() == std::array<index_t, 2>{30, 7});
        CHECK(ref_of<1>(dense).extents() == std::array<index_t, 1>{210});
        ggml_tensor* const part = ggml_view_2d(memory, dense, 4, 3, 2 * dense->nb[1], dense->nb[0]);
        const auto rows = ref_of<2>(part);
        CHECK(rows.extents() == std::array<index_t, 2>{3, 4});
        CHECK(rows.strides() == std::array<index_t, 2>{14, 1});
        CHECK(rows.data() == all.address_of(0, 0, 0, 1));
    }
    // Element (i0, i1, i2) of ggml is element (i2, i1, i0) here, through every view of ggml's.
    ggml_tensor* const dense = ggml_new_tensor_4d(memory, GGML_TYPE_F32, 7, 5, 3, 2);
    set_element(ref_of<4>(dense), {1, 2, 3, 4}, 42);
    CHECK(ggml_get_f32_nd(dense, 4, 3, 2, 1) == 42);
    ggml_tensor* const permuted = ggml_permute(memory, dense, 2, 0, 1, 3);
    CHECK(ggml_get_f32_nd(permuted, 3, 2, 4, 1) == 42);
    CHECK(element(ref_of<4>(permuted), {1, 4, 2, 3}) == 42);

    ggml_tensor* const ids = ggml_new_tensor_1d(memory, GGML_TYPE_I32, 6);
    CHECK(ggml::view_of<const std::int32_t, 1>(ids).extent(0) == 6);
    CHECK(ggml::view_of<std::int32_t, 2>(ids).data() == ids->data);
    CHECK(refuses("ggml::view_of", "tensor", [&] { ggml::view_of<std::int64_t, 1>(ids); }));
    CHECK(refuses("ggml::view_of", "tensor", [&] { ggml::view_of<std::int32_t, 1>(dense); }));
}

TEST_CASE("the 16-bit types have ggml's values") {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto stored = static_cast<std::uint16_t>(bits);
        const ggml_bf16_t brain{stored};
        const auto same = [](double ours, float of_ggml) {
            const auto theirs = static_cast<double>(of_ggml);
            return std::isnan(theirs) ? std::isnan(ours) : !(ours < theirs || ours > theirs);
        };
        REQUIRE(same(read_element(f16_type, &stored), ggml_fp16_to_fp32(stored)));
        REQUIRE(same(read_element(bf16_type, &stored), ggml_bf16_to_fp32(brain)));
    }
}

TEST_CASE("what is no tensor of ours is refused") {
    const ggml_memory memory;
    const auto refused = [](ggml_tensor* tensor) {
        return refuses("ggml::ref_of", "tensor", [&] { (void)ref_of<2>(tensor); });
    };
    CHECK(refused(nullptr));
    for (ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_I32,
                           GGML_TYPE_I64, GGML_TYPE_I8}) {
        CAPTURE(ggml_type_name(type));
        CHECK(refused(ggml_new_tensor_2d(memory, type, 256, 2)));
    }
    CHECK(refused(ggml_new_tensor_2d(memory, GGML_TYPE_Q8_0, 256, 2)).message ==
          "ggml::ref_of: tensor: expected the type f32, f64, f16 or bf16, got q8_0");
    ggml_tensor* const floats = ggml_new_tensor_2d(memory, GGML_TYPE_F32, 8, 4);
    floats->nb[1] += 2;
    CHECK(refused(floats));
    floats->nb[1] -= 2;
    CHECK_FALSE(refused(floats));
    void* const data = floats->data;
    floats->data = nullptr;
    CHECK(refused(floats));
    floats->data = data;
    // Rows of matrices with a gap between are not one axis, though both are tensors of rank 3.
    ggml_tensor* const gap = ggml_view_3d(memory, floats, 8, 1, 2, floats->nb[1], floats->nb[2], 0);
    CHECK_FALSE(refused(gap));
    ggml_tensor* const apart =
        ggml_view_3d(memory, floats, 4, 2, 2, 4 * floats->nb[0], 24 * floats->nb[0], 0);
    CHECK(refused(apart));
    CHECK(ref_of<3>(apart).strides() == std::array<index_t, 3>{24, 4, 1});
}

TEST_CASE("memory that does not hold the elements as they lie is refused") {
    // The processor's own kind of it: weights are repacked there.
    using extra_buffer_types = ggml_backend_buffer_type_t* (*)(ggml_backend_dev_t);
    ggml_backend_reg_t const reg = ggml_backend_cpu_reg();
    const auto extra = reinterpret_cast<extra_buffer_types>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
    if (extra == nullptr) return;
    const ggml_memory memory;
    int tried = 0;
    for (auto* type = extra(ggml_backend_reg_dev_get(reg, 0)); type != nullptr && *type != nullptr;
         ++type) {
        if (ggml_backend_buft_is_host(*type)) continue;
        ++tried;
        CAPTURE(ggml_backend_buft_name(*type));
        ggml_tensor* const tensor = ggml_new_tensor_2d(memory, GGML_TYPE_F32, 8, 4);
        ggml_backend_buffer_t const buffer = ggml_backend_buft_alloc_buffer(*type, 4096);
        tensor->buffer = buffer;
        ggml_tensor* const view = ggml_view_2d(memory, tensor, 4, 4, tensor->nb[1], 0);
        for (ggml_tensor* bad : {tensor, view}) {
            CHECK(refuses("ggml::ref_of", "tensor", [&] { (void)ref_of<2>(bad); }));
            const ggml::lora_batch batch;
            ggml::layer_adapters adapters(batch, 8, 4);
            adapters.add(bad, bad, 1);
            CHECK(adapters.why().find("ggml::layer_adapters::add: a: expected memory") == 0);
        }
        ggml_backend_buffer_free(buffer);
    }
    if (tried == 0) MESSAGE("this build of ggml has no such memory: nothing was tried");
}

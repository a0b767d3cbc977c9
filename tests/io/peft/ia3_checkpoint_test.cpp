#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/ia3_checkpoint.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/bad_tensors.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_tensor.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const std::string k = "base_model.model.encoder.k.ia3_l";
const std::string wo = "base_model.model.encoder.wo.ia3_l";
constexpr const char* both = R"(,"target_modules":["k","wo"],"feedforward_modules":["wo"])";

/// k scales three outputs, wo two inputs.
std::string tensors_of(element_type type = element_type::f32) {
    guarded_tensor<2> of_k(type, {3, 1}), of_wo(type, {1, 2});
    for (index_t i = 0; i < 3; ++i)
        set_element(of_k.ref(), {i, 0}, std::ldexp(0.5, static_cast<int>(i)));
    for (index_t i = 0; i < 2; ++i)
        set_element(of_wo.ref(), {0, i}, static_cast<double>(3 + i));
    safetensors_writer writer;
    writer.add(k, of_k.const_ref());
    writer.add(wo, of_wo.const_ref());
    return writer.bytes();
}

ia3_checkpoint open(const std::string& fields, const std::string& bytes) {
    return {ia3_config(peft_config("some.file", R"({"peft_type":"IA3")" + fields + "}")),
            safetensors_file("some.file", bytes.data(), bytes.size())};
}

} // namespace

TEST_CASE("ia3_checkpoint: scales of outputs and inputs are read, whatever their type") {
    for (const element_type type : all_element_types) {
        CAPTURE(name_of(type));
        const temporary_folder folder;
        write_file(folder.path() / "adapter_model.safetensors", tensors_of(type));
        write_file(folder.path() / "adapter_config.json",
                   R"({"peft_type":"IA3","auto_mapping":null,"base_model_name_or_path":"t5",)"
                   R"("exclude_modules":null,"fan_in_fan_out":false,"inference_mode":true,)"
                   R"("init_ia3_weights":true,"modules_to_save":null,"peft_version":"0.18.0",)"
                   R"("revision":null,"task_type":"SEQ_2_SEQ_LM")" +
                       std::string(both) + "}");
        const ia3_checkpoint read(folder.path());
        REQUIRE(read.layers().size() == 2);
        const auto& outputs = read.layers()[0];
        const auto& inputs = read.layers()[1];
        CHECK(outputs.name == "encoder.k");
        CHECK(outputs.features == 3);
        CHECK_FALSE(outputs.scales_inputs);
        CHECK(outputs.type == type);
        CHECK(inputs.name == "encoder.wo");
        CHECK(inputs.features == 2);
        CHECK(inputs.scales_inputs);
        CHECK(read.scales(outputs).type() == type);
        CHECK(read.scales(outputs).extents() == std::array<index_t, 1>{3});
        CHECK(element(read.scales(outputs), {2}) == 2);
        CHECK(element(read.scales(inputs), {1}) == 4);
        CHECK(read.find("encoder.wo") == &inputs);
        CHECK(read.find("encoder.w") == nullptr);
        CHECK(read.find("zz") == nullptr);
        for (const element_type other : all_element_types) {
            guarded_tensor<1> copy(other, {3}, layout::reversed);
            read.read_scales(outputs, copy.ref());
            CHECK(element(copy.ref(), {0}) == 0.5);
            CHECK(element(copy.ref(), {2}) == 2);
            CHECK(copy.intact());
            for (const auto& bad : bad_as_output(copy.ref()))
                CHECK(refuses(
                    "ia3_checkpoint::read_scales", "to",
                    [&] { read.read_scales(outputs, bad.ref); }, copy));
        }
    }
}

TEST_CASE("ia3_checkpoint: shapes and feedforward_modules have to agree") {
    const std::string bytes = tensors_of();
    (void)open(both, bytes);
    (void)open(R"(,"feedforward_modules":".*wo")", bytes);    // not evaluated: the shapes tell
    (void)open(R"(,"feedforward_modules":["er.wo"])", bytes); // PEFT asks for no '.' before it
    for (const char* fields :
         {"", R"(,"feedforward_modules":null)", R"(,"feedforward_modules":[])",
          R"(,"feedforward_modules":["k","wo"])", R"(,"feedforward_modules":["k"])",
          R"(,"target_modules":["k","wo"],"feedforward_modules":["encoder.wo"])"}) {
        CAPTURE(fields);
        CHECK(refuses("peft: some.file", "key 'feedforward_modules'",
                      [&] { (void)open(fields, bytes); }));
    }
    const auto shaped = [](const std::array<index_t, 2>& extents) {
        static const std::vector<float> numbers(10, 1);
        safetensors_writer writer;
        writer.add(wo, const_tensor_ref<2>(numbers.data(), extents));
        return writer.bytes();
    };
    const std::string one = shaped({1, 1}); // tells nothing: the configuration does
    CHECK(open(R"(,"feedforward_modules":["wo"])", one).layers()[0].scales_inputs);
    CHECK_FALSE(open("", one).layers()[0].scales_inputs);
    for (const auto& extents : {std::array<index_t, 2>{2, 3}, {0, 1}}) {
        const std::string bad = shaped(extents);
        CHECK(refuses("safetensors: some.file", "'" + wo + "'", [&] { (void)open("", bad); }));
    }
    const std::string conv = [] {
        static const std::vector<float> numbers(10, 1);
        safetensors_writer writer;
        writer.add(wo, const_tensor_ref<4>(numbers.data(), {1, 3, 1, 1}));
        return writer.bytes();
    }();
    CHECK(refuses("safetensors: some.file", "'" + wo + "'", [&] { (void)open("", conv); }));
}

TEST_CASE("ia3_checkpoint: unknown keys and tensors are refused") {
    const std::string bytes = tensors_of();
    const auto refused = [&](const char* key, const std::string& fields) {
        return refuses("peft: some.file", std::string("key '") + key + "'",
                       [&] { (void)open(both + fields, bytes); });
    };
    CHECK(refused("r", R"(,"r":4)"));
    CHECK(refused("init_ia3_weights", R"(,"init_ia3_weights":7)"));
    CHECK(refused("exclude_modules", R"(,"exclude_modules":["k"])"));
    CHECK(refuses("peft: some.file", "key 'peft_type'",
                  [] { ia3_config(peft_config("some.file", R"({"peft_type":"LORA"})")); }));
    safetensors_writer writer;
    const std::vector<float> numbers(2, 1);
    writer.add("base_model.model.encoder.k.ia3", const_tensor_ref<1>(numbers.data(), {2}));
    const std::string other = writer.bytes();
    CHECK(refuses("safetensors: some.file", "'base_model.model.encoder.k.ia3'",
                  [&] { (void)open("", other); }));
}

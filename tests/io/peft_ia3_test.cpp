#include <array>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/io/peft_ia3.hpp>
#include <mhr/io/safetensors_writer.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_buffer.hpp"
#include "support/temporary_folder.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const std::string k = "base_model.model.encoder.k.ia3_l";
const std::string wo = "base_model.model.encoder.wo.ia3_l";
constexpr const char* both = R"(,"target_modules":["k","wo"],"feedforward_modules":["wo"])";

/// k scales three outputs, wo two inputs.
template <class T>
std::string tensors_of() {
    std::vector<T> numbers;
    for (const float value : {0.5F, 1.0F, 2.0F, 3.0F, 4.0F})
        numbers.push_back(T(value));
    safetensors_writer writer;
    writer.add(k, tensor_view<const T, 2>(numbers.data(), {3, 1}));
    writer.add(wo, tensor_view<const T, 2>(numbers.data() + 3, {1, 2}));
    return writer.bytes();
}

ia3_checkpoint open(const std::string& fields, const std::string& bytes) {
    return {ia3_config(peft_config("some.file", R"({"peft_type":"IA3")" + fields + "}")),
            safetensors_file("some.file", bytes.data(), bytes.size())};
}

} // namespace

TEST_CASE_TEMPLATE("peft_ia3: scales of outputs and inputs are read", T, double, float,
                   Eigen::bfloat16, Eigen::half) {
    const temporary_folder folder;
    write_file(folder.path() / "adapter_model.safetensors", tensors_of<T>());
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
    CHECK(outputs.type == dtype_of<T>());
    CHECK(inputs.name == "encoder.wo");
    CHECK(inputs.features == 2);
    CHECK(inputs.scales_inputs);
    CHECK(read.scales<T>(outputs).extents() == std::array<index_t, 1>{3});
    CHECK(static_cast<float>(read.scales<T>(outputs)(2)) == 2);
    CHECK(static_cast<float>(read.scales<T>(inputs)(1)) == 4);
    guarded_buffer<double, 1> copy({3}, layout::reversed), other({2});
    read.read(outputs, copy.view());
    CHECK(copy.view()(0) == 0.5);
    CHECK(copy.view()(2) == 2);
    CHECK(refuses(
        "safetensors_file::read", "out", [&] { read.read(outputs, other.view()); }, other));
}

TEST_CASE("peft_ia3: shapes and feedforward_modules have to agree") {
    const std::string bytes = tensors_of<float>();
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
        writer.add(wo, tensor_view<const float, 2>(numbers.data(), extents));
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
        writer.add(wo, tensor_view<const float, 4>(numbers.data(), {1, 3, 1, 1}));
        return writer.bytes();
    }();
    CHECK(refuses("safetensors: some.file", "'" + wo + "'", [&] { (void)open("", conv); }));
}

TEST_CASE("peft_ia3: unknown keys and tensors are refused") {
    const std::string bytes = tensors_of<float>();
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
    writer.add("base_model.model.encoder.k.ia3", tensor_view<const float, 1>(numbers.data(), {2}));
    const std::string other = writer.bytes();
    CHECK(refuses("safetensors: some.file", "'base_model.model.encoder.k.ia3'",
                  [&] { (void)open("", other); }));
}

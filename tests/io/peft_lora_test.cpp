#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/io/peft_lora.hpp>

#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/temporary_folder.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr const char* layer_q = "model.layers.0.self_attn.q_proj";
constexpr const char* layer_v = "model.layers.11.self_attn.v_proj";

/// The bytes of the tensors of two layers, of the given ranks, as PEFT stores them.
std::string tensors_of(index_t rank_q, index_t rank_v) {
    safetensors_writer writer;
    const std::vector<float> numbers(100, 0.5F);
    for (const auto& [layer, rank] : {std::pair{layer_q, rank_q}, {layer_v, rank_v}}) {
        writer.add(detail::peft_key(layer, ".lora_A.weight"),
                   tensor_view<const float, 2>(numbers.data(), {rank, 5}));
        writer.add(detail::peft_key(layer, ".lora_B.weight"),
                   tensor_view<const float, 2>(numbers.data(), {7, rank}));
    }
    return writer.bytes();
}

lora_checkpoint open(const std::string& fields, const std::string& bytes) {
    return {lora_config(peft_config("some.file", R"({"peft_type":"LORA")" + fields + "}")),
            safetensors_file("some.file", bytes.data(), bytes.size())};
}

} // namespace

TEST_CASE_TEMPLATE("peft_lora: what is written is read, transposed as PEFT stores it", T, double,
                   float, Eigen::bfloat16, Eigen::half) {
    constexpr index_t in = 5, out = 7, rank = 3;
    for (const layout order : all_layouts) {
        guarded_buffer<T, 2> a({in, rank}, order), b({rank, out}, order);
        random_source random(5);
        random.fill(a.view());
        random.fill(b.view());
        lora_checkpoint_writer writer(lora_config(rank, 6, {"q_proj"}));
        writer.add_layer(layer_q, lora<T>{a.view(), b.view()});
        const temporary_folder folder;
        writer.write(folder.path());

        const lora_checkpoint read(folder.path());
        REQUIRE(read.layers().size() == 1);
        const auto& layer = read.layers().front();
        CHECK(layer.name == layer_q);
        CHECK(layer.in_features == in);
        CHECK(layer.out_features == out);
        CHECK(layer.rank == rank);
        CHECK(layer.scale == 2);
        CHECK(layer.type == dtype_of<T>());
        CHECK(compare_bitwise(read.adapter<T>(layer).a, a.view()));
        CHECK(compare_bitwise(read.adapter<T>(layer).b, b.view()));
        const auto stored = read.tensors().view<T, 2>(std::string("base_model.model.") + layer_q +
                                                      ".lora_B.weight");
        CHECK(stored.extents() == std::array<index_t, 2>{out, rank});
        CHECK(load<double>(stored(6, 1)) == load<double>(b.view()(1, 6)));

        guarded_buffer<double, 2> copy_a({in, rank}, order), copy_b({rank, out}, order);
        read.read(layer, lora<double>{copy_a.view(), copy_b.view()});
        CHECK(compare_bitwise(copy_a.view(), copy_as<double>(a.view()).view()));
        CHECK(compare_bitwise(copy_b.view(), copy_as<double>(b.view()).view()));
    }
}

TEST_CASE("peft_lora: a copy into a bad adapter is refused, both matrices untouched") {
    const std::string bytes = tensors_of(4, 4);
    const lora_checkpoint read = open(",\"r\":4", bytes);
    const auto& layer = read.layers().front();
    guarded_buffer<double, 2> a({layer.in_features, 4}, layout::row_major);
    guarded_buffer<double, 2> b({4, layer.out_features}, layout::row_major);
    const auto refused = [&](const char* argument, const lora<double>& to) {
        return refuses(
            "lora_checkpoint::read", argument, [&] { read.read(layer, to); }, a, b);
    };
    for (const auto& bad : bad_as_output(a.view()))
        CHECK(refused("to.a", {bad.view, b.view()}));
    for (const auto& bad : bad_as_output(b.view()))
        CHECK(refused("to.b", {a.view(), bad.view}));
}

TEST_CASE("peft_lora: the scale is alpha / rank, or alpha / sqrt(rank)") {
    const std::string bytes = tensors_of(4, 4);
    const auto scale = [&](const std::string& fields) {
        return open(",\"r\":4" + fields, bytes).layers().front().scale;
    };
    CHECK(scale("") == 2); // PEFT's default alpha is 8
    CHECK(scale(R"(,"lora_alpha":16)") == 4);
    CHECK(scale(R"(,"lora_alpha":0.5)") == 0.125);
    CHECK(scale(R"(,"lora_alpha":16,"use_rslora":false)") == 4);
    CHECK(scale(R"(,"lora_alpha":16,"use_rslora":true)") == 8);
}

TEST_CASE("peft_lora: patterns give layers their own rank and alpha, the first that fits") {
    const std::string bytes = tensors_of(4, 2);
    const auto layers = [&](const std::string& fields) {
        const lora_checkpoint read = open(fields, bytes);
        const auto& both = read.layers();
        return std::vector<double>{static_cast<double>(both[0].rank), both[0].scale,
                                   static_cast<double>(both[1].rank), both[1].scale};
    };
    using numbers = std::vector<double>;
    CHECK(layers(R"(,"r":4,"lora_alpha":8,"rank_pattern":{"v_proj":2})") == numbers{4, 2, 2, 4});
    CHECK(layers(R"(,"r":1,"lora_alpha":8,"rank_pattern":{"layers.11.self_attn.v_proj":2,)"
                 R"("^model.layers.0.self_attn.q_proj":4})") == numbers{4, 2, 2, 4});
    CHECK(layers(R"(,"r":4,"lora_alpha":8,"rank_pattern":{"layers\\.1\\d\\..*":2},)"
                 R"("alpha_pattern":{"(q|k)_proj":2,"q_proj":4,"proj":64})"
                 // The last finds no layer: names are found as whole parts.
                 ) == numbers{4, 0.5, 2, 4});
    CHECK(layers(R"(,"r":4,"lora_alpha":8,"use_rslora":true,"rank_pattern":{"v_proj":2},)"
                 R"("alpha_pattern":{"q_proj":1.5})") == numbers{4, 0.75, 2, 8 / std::sqrt(2.0)});

    const auto refused = [&](const char* layer, const std::string& fields) {
        return refuses("safetensors: some.file",
                       std::string("'base_model.model.") + layer + ".lora_A.weight'",
                       [&] { (void)open(fields, bytes); });
    };
    CHECK(refused(layer_v, R"(,"r":4)"));
    CHECK(refused(layer_v, R"(,"r":4,"rank_pattern":{"k_proj":2})"));
    CHECK(refused(layer_q, R"(,"r":2,"rank_pattern":{"q_proj":3})"));
    CHECK(refuses("peft: some.file", "key 'rank_pattern'",
                  [&] { (void)open(R"(,"r":4,"rank_pattern":{"(?!q).*":2})", bytes); }));
}

TEST_CASE("peft_lora: configurations as PEFT writes them are read") {
    (void)open(R"(,"alora_invocation_tokens":null,"alpha_pattern":{},"arrow_config":null,)"
               R"("auto_mapping":null,"base_model_name_or_path":"m","bias":"none",)"
               R"("corda_config":null,"ensure_weight_tying":false,"eva_config":null,)"
               R"("exclude_modules":null,"fan_in_fan_out":false,"inference_mode":true,)"
               R"("init_lora_weights":true,"kasa_config":null,"layer_replication":null,)"
               R"("layers_pattern":null,"layers_to_transform":null,"loftq_config":{},)"
               R"("lora_alpha":16,"lora_bias":false,"lora_dropout":0.05,"lora_ga_config":null,)"
               R"("megatron_config":null,"megatron_core":"megatron.core","modules_to_save":null,)"
               R"("monteclora_config":null,"peft_version":"0.18.0","qalora_group_size":16,"r":4,)"
               R"("rank_pattern":{},"revision":null,"target_modules":["v_proj","q_proj"],)"
               R"("target_parameters":null,"task_type":"CAUSAL_LM","trainable_token_indices":null,)"
               R"("use_bdlora":null,"use_dora":false,"use_qalora":false,"use_rslora":false,)"
               R"("velora_config":null)",
               tensors_of(4, 4));
}

TEST_CASE("peft_lora: variants that compute something else are refused by their key") {
    const std::string bytes = tensors_of(4, 4);
    (void)open(R"(,"r":4,"init_lora_weights":"gaussian")", bytes);
    for (const auto& [key, value] : {std::pair<std::string, std::string>{"use_dora", "true"},
                                     {"alora_invocation_tokens", "[1]"},
                                     {"arrow_config", R"({"top_k":3})"},
                                     {"bias", "\"all\""},
                                     {"init_lora_weights", "\"pissa\""},
                                     {"init_lora_weights", "\"olora\""},
                                     {"init_lora_weights", "7"},
                                     {"kasa_config", R"({"beta":1})"},
                                     {"layer_replication", "[[0,1]]"},
                                     {"lora_alpha", "\"8\""},
                                     {"lora_bias", "true"},
                                     {"megatron_config", R"({"a":1})"},
                                     {"rank_pattern", R"({"q_proj":1.5})"},
                                     {"rank_pattern", R"({"q_proj":0})"},
                                     {"target_parameters", R"(["experts"])"},
                                     {"trainable_token_indices", "[1]"},
                                     {"use_qalora", "true"},
                                     {"use_rslora", "1"},
                                     {"n_tasks", "3"}}) {
        const std::string field = ",\"" + key + "\":" + value;
        CAPTURE(field);
        CHECK(refuses("peft: some.file", "key '" + key + "'",
                      [&] { (void)open(",\"r\":4" + field, bytes); }));
    }
    CHECK(refuses("peft: some.file", "key 'layers_to_transform'", [&] {
        (void)open(R"(,"r":4,"target_modules":".*","layers_to_transform":[0])", bytes);
    }));
    CHECK(refuses("peft: some.file", "key 'layers_pattern'", [&] {
        (void)open(R"(,"r":4,"target_modules":".*","layers_pattern":"layers")", bytes);
    }));
    // What they would leave in the file is unknown, too.
    safetensors_writer dora;
    const std::vector<float> numbers(4, 1);
    dora.add(detail::peft_key(layer_q, ".lora_magnitude_vector"),
             tensor_view<const float, 1>(numbers.data(), {4}));
    const std::string others = dora.bytes();
    CHECK(refuses("safetensors: some.file",
                  std::string("'base_model.model.") + layer_q + ".lora_magnitude_vector'",
                  [&] { (void)open("", others); }));
}

TEST_CASE("peft_lora: the writer's arguments") {
    const std::vector<float> numbers(100, 1);
    const lora<const float> good{{numbers.data(), {5, 2}}, {numbers.data(), {2, 7}}};
    const lora<const float> other{{numbers.data(), {5, 3}}, {numbers.data(), {3, 7}}};
    lora_checkpoint_writer writer(lora_config(2, 1, {"q"}));
    writer.add_layer("a.q", good);
    constexpr const char* function = "lora_checkpoint_writer::add_layer";
    CHECK(refuses(function, "adapter.a", [&] { writer.add_layer("b.q", other); }));
    CHECK(refuses(function, "adapter.b", [&] {
        writer.add_layer("b.q", lora<const float>{good.a, other.b});
    }));
    CHECK(refuses("peft: new configuration", "key 'target_modules'",
                  [&] { writer.add_layer("a.v", good); }));
    CHECK(refuses("safetensors_writer", "base_model.model.a.q.lora_A.weight",
                  [&] { writer.add_layer("a.q", good); }));

    lora_config config(2, 0.5, {"q"});
    CHECK(config.json().fields()["lora_alpha"] == 0.5);
    config.set("rank_pattern", {{"v", 3}});
    config.set("target_modules", {"q", "v"});
    lora_checkpoint_writer mixed(config);
    mixed.add_layer("a.q", good);
    mixed.add_layer("a.v", other);
    const std::string bytes = mixed.tensor_bytes();
    const lora_checkpoint read(config, safetensors_file("memory", bytes.data(), bytes.size()));
    CHECK(read.layers()[0].scale == 0.25);
    CHECK(read.layers()[1].scale == 0.5 / 3);
}

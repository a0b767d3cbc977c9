#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/lora_checkpoint.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/temporary_folder.hpp"

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
        writer.add(peft_details::peft_key(layer, ".lora_A.weight"),
                   const_tensor_ref<2>(numbers.data(), {rank, 5}));
        writer.add(peft_details::peft_key(layer, ".lora_B.weight"),
                   const_tensor_ref<2>(numbers.data(), {7, rank}));
    }
    return writer.bytes();
}

lora_checkpoint open(const std::string& fields, const std::string& bytes) {
    return {lora_config(peft_config("some.file", R"({"peft_type":"LORA")" + fields + "}")),
            safetensors_file("some.file", bytes.data(), bytes.size())};
}

} // namespace

TEST_CASE("lora_checkpoint: what is written is read, transposed as PEFT stores it") {
    constexpr index_t in = 5, out = 7, rank = 3;
    for (const element_type of_a : all_element_types)
        for (const element_type of_b : all_element_types)
            for (const layout order : all_layouts) {
                CAPTURE(name_of(of_a));
                CAPTURE(name_of(of_b));
                CAPTURE(name_of(order));
                guarded_tensor<2> a(of_a, {in, rank}, order), b(of_b, {rank, out}, order);
                random_source random(5);
                a.fill(random);
                b.fill(random);
                lora_checkpoint_writer writer(lora_config(rank, 6, {"q_proj"}));
                writer.add_layer(layer_q, {a.const_ref(), b.const_ref(), 2});
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
                CHECK(layer.a_type == of_a);
                CHECK(layer.b_type == of_b);
                CHECK(read.is_aligned(layer));
                const lora adapter = read.adapter(layer);
                CHECK(adapter.scale == 2);
                CHECK(compare_bitwise(adapter.a, a.const_ref()));
                CHECK(compare_bitwise(adapter.b, b.const_ref()));
                const auto stored = read.tensors().view<2>(std::string("base_model.model.") +
                                                           layer_q + ".lora_B.weight");
                CHECK(stored.extents() == std::array<index_t, 2>{out, rank});
                CHECK(element(stored, {6, 1}) == element(b.const_ref(), {1, 6}));
            }
}

TEST_CASE("lora_checkpoint: copies have any type and layout, rounded once") {
    constexpr index_t in = 5, out = 7, rank = 3;
    for (const element_type stored : all_element_types) {
        guarded_tensor<2> a(stored, {in, rank}), b(stored, {rank, out});
        random_source random(6);
        a.fill(random);
        b.fill(random);
        lora_checkpoint_writer writer(lora_config(rank, 6, {"q_proj"}));
        writer.add_layer(layer_q, {a.const_ref(), b.const_ref(), 2});
        const std::string bytes = writer.tensor_bytes();
        // Once where the data are aligned, and once where they are not.
        for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
            const std::string memory = std::string(shift, ' ') + bytes;
            const lora_checkpoint read(
                lora_config(rank, 6, {"q_proj"}),
                safetensors_file("some.file", memory.data() + shift, bytes.size()));
            const auto& layer = read.layers().front();
            CHECK(read.is_aligned(layer) == (shift == 0));
            if (shift == 1)
                CHECK(refuses("safetensors: some.file",
                              std::string("'base_model.model.") + layer_q + ".lora_A.weight'",
                              [&] { (void)read.adapter(layer); }));
            for (const element_type type : all_element_types)
                for (const layout order : all_layouts) {
                    CAPTURE(name_of(stored));
                    CAPTURE(name_of(type));
                    CAPTURE(name_of(order));
                    guarded_tensor<2> copy_a(type, {in, rank}, order);
                    guarded_tensor<2> copy_b(type, {rank, out}, order);
                    guarded_tensor<2> want_a(type, {in, rank}), want_b(type, {rank, out});
                    const auto round = [](const guarded_tensor<2>& from, guarded_tensor<2>& to) {
                        for_each_position(from.extents(), [&](const auto& at) {
                            set_element(to.ref(), at, element(from.const_ref(), at));
                        });
                    };
                    round(a, want_a);
                    round(b, want_b);
                    read.read_adapter(layer, {copy_a.ref(), copy_b.ref()});
                    CHECK(compare_bitwise(copy_a.ref(), want_a.ref()));
                    CHECK(compare_bitwise(copy_b.ref(), want_b.ref()));
                    CHECK(copy_a.intact());
                    CHECK(copy_b.intact());
                }
        }
    }
}

TEST_CASE("lora_checkpoint: a copy into a bad adapter is refused, both matrices untouched") {
    const std::string bytes = tensors_of(4, 4);
    const lora_checkpoint read = open(",\"r\":4", bytes);
    const auto& layer = read.layers().front();
    guarded_tensor<2> a(element_type::f64, {layer.in_features, 4});
    guarded_tensor<2> b(element_type::bf16, {4, layer.out_features});
    const auto refused = [&](const char* argument, const lora_matrices& to) {
        return refuses(
            "lora_checkpoint::read_adapter", argument, [&] { read.read_adapter(layer, to); }, a, b);
    };
    for (const auto& bad : bad_as_output(a.ref()))
        CHECK(refused("to.a", {bad.ref, b.ref()}));
    for (const auto& bad : bad_as_output(b.ref()))
        CHECK(refused("to.b", {a.ref(), bad.ref}));
}

TEST_CASE("lora_checkpoint: the scale is alpha / rank, or alpha / sqrt(rank)") {
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

TEST_CASE("lora_checkpoint: patterns give layers their own rank and alpha, the first that fits") {
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

TEST_CASE("lora_checkpoint: configurations as PEFT writes them are read") {
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

TEST_CASE("lora_checkpoint: variants that compute something else are refused by their key") {
    const std::string bytes = tensors_of(4, 4);
    (void)open(R"(,"r":4,"init_lora_weights":"gaussian")", bytes);
    for (const auto& [key, value] : {std::pair<std::string, std::string>{"use_dora", "1"},
                                     {"alora_invocation_tokens", "[1]"},
                                     {"arrow_config", R"({"top_k":3})"},
                                     {"bias", "\"some\""},
                                     {"init_lora_weights", "\"pissa\""},
                                     {"init_lora_weights", "\"olora\""},
                                     {"init_lora_weights", "7"},
                                     {"kasa_config", R"({"beta":1})"},
                                     {"layer_replication", "[[0,1]]"},
                                     {"lora_alpha", "\"8\""},
                                     {"lora_bias", "\"true\""},
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
    dora.add(peft_details::peft_key(layer_q, ".lora_magnitude_vector"),
             const_tensor_ref<1>(numbers.data(), {4}));
    const std::string others = dora.bytes();
    CHECK(refuses("safetensors: some.file",
                  std::string("'base_model.model.") + layer_q + ".lora_magnitude_vector'",
                  [&] { (void)open("", others); }));
}

TEST_CASE("lora_checkpoint: the writer's arguments") {
    const std::vector<float> numbers(100, 1);
    const lora good{{numbers.data(), {5, 2}}, {numbers.data(), {2, 7}}, 0.5};
    const lora other{{numbers.data(), {5, 3}}, {numbers.data(), {3, 7}}, 1.0 / 3};
    lora_checkpoint_writer writer(lora_config(2, 1, {"q"}));
    writer.add_layer("a.q", good);
    constexpr const char* function = "lora_checkpoint_writer::add_layer";
    CHECK(refuses(function, "adapter.a", [&] { writer.add_layer("b.q", other); }));
    CHECK(refuses(function, "adapter.b", [&] { writer.add_layer("b.q", {good.a, other.b, 0.5}); }));
    // The file has no place for another scale than that of its configuration.
    for (const double scale : {1.0, 0.4999, -0.5, 0.0, std::nan("")}) {
        const auto refused = refuses(function, "adapter.scale", [&] {
            writer.add_layer("b.q", {good.a, good.b, scale});
        });
        CHECK(refused);
        CHECK(refused.message.find("expected 0.5") != std::string::npos);
    }
    CHECK(refuses("peft: new configuration", "key 'target_modules'",
                  [&] { writer.add_layer("a.v", good); }));
    CHECK(refuses("safetensors_writer", "base_model.model.a.q.lora_A.weight",
                  [&] { writer.add_layer("a.q", good); }));

    lora_config config(2, 0.5, {"q"});
    CHECK(config.json().fields()["lora_alpha"] == 0.5);
    config.set("rank_pattern", {{"v", 3}});
    config.set("target_modules", {"q", "v"});
    lora_checkpoint_writer mixed(config);
    mixed.add_layer("a.q", {good.a, good.b, 0.25});
    mixed.add_layer("a.v", {other.a, other.b, static_cast<double>(0.5F / 3)}); // of f32
    const std::string bytes = mixed.tensor_bytes();
    const lora_checkpoint read(config, safetensors_file("memory", bytes.data(), bytes.size()));
    CHECK(read.layers()[0].scale == 0.25);
    CHECK(read.layers()[1].scale == 0.5 / 3);
}

TEST_CASE("lora_checkpoint: magnitudes, biases and embeddings are read as the configuration says") {
    const std::vector<float> numbers(100, 0.5F);
    const auto bytes_of = [&](bool embeds, index_t magnitude, index_t bias) {
        safetensors_writer writer;
        writer.set_metadata("format", "pt"); // as PEFT does
        const auto add = [&](const char* part, const auto& tensor) {
            writer.add(peft_details::peft_key(layer_q, part), tensor);
        };
        add(embeds ? ".lora_embedding_A" : ".lora_A.weight",
            const_tensor_ref<2>(numbers.data(), {3, 5}));
        add(embeds ? ".lora_embedding_B" : ".lora_B.weight",
            const_tensor_ref<2>(numbers.data(), {7, 3}));
        if (magnitude != 0)
            add(".lora_magnitude_vector", const_tensor_ref<1>(numbers.data(), {magnitude}));
        if (bias != 0) add(".lora_B.bias", const_tensor_ref<1>(numbers.data(), {bias}));
        return writer.bytes();
    };
    const std::string key = std::string("'base_model.model.") + layer_q;
    const std::string r = R"(,"r":3)", dora = r + R"(,"use_dora":true)",
                      biased = r + R"(,"lora_bias":true)";
    struct row {
        const std::string& fields;
        bool embeds;
        index_t magnitude, bias;
        const char* refused; ///< the end of the tensor's name; null where it is read
    };
    for (const row& one : {row{r, false, 0, 0, nullptr},
                           {r, true, 0, 0, nullptr},
                           {dora, false, 7, 0, nullptr},
                           {biased, false, 0, 7, nullptr},
                           {biased, true, 0, 0, nullptr}, // PEFT gives embeddings none
                           {r, false, 7, 0, ".lora_magnitude_vector'"},
                           {r, false, 0, 7, ".lora_B.bias'"},
                           {dora, false, 0, 0, ".lora_B.weight'"},
                           {biased, false, 0, 0, ".lora_B.weight'"},
                           {dora, false, 6, 0, ".lora_magnitude_vector'"},
                           {biased, false, 0, 8, ".lora_B.bias'"},
                           {dora, true, 0, 0, ".lora_embedding_B'"},
                           {dora, true, 7, 0, ".lora_embedding_B'"},
                           {biased, true, 0, 7, ".lora_B.bias'"}}) {
        const std::string bytes = bytes_of(one.embeds, one.magnitude, one.bias);
        CAPTURE(one.fields);
        CAPTURE(one.magnitude);
        CAPTURE(one.bias);
        if (one.refused != nullptr) {
            CHECK(refuses("safetensors: some.file", key + one.refused,
                          [&] { (void)open(one.fields, bytes); }));
            continue;
        }
        const lora_checkpoint read = open(one.fields, bytes);
        const lora_layer& layer = read.layers().at(0);
        CHECK((layer.form == lora_form::embedding) == one.embeds);
        CHECK(layer.in_features == 5);
        CHECK(layer.out_features == 7);
        CHECK(layer.is_plain() == (one.magnitude + one.bias == 0));
        const lora_vectors vectors = read.vectors(layer);
        CHECK(vectors.magnitude.extent(0) == one.magnitude);
        CHECK(vectors.bias.extent(0) == one.bias);
        // Another layer that lacks the vectors, or has one too many, is not written.
        constexpr const char* function = "lora_checkpoint_writer::add_layer";
        lora_checkpoint_writer writer(read.config());
        const lora adapter = read.adapter(layer);
        if (one.magnitude != 0)
            CHECK(refuses(function, "vectors.magnitude", [&] {
                writer.add_layer("q", adapter, {{}, vectors.bias});
            }));
        if (one.magnitude == 0)
            CHECK(refuses(function, "vectors.magnitude", [&] {
                writer.add_layer("q", adapter, {{numbers.data(), {7}}, vectors.bias}, layer.form);
            }));
        if (one.bias != 0)
            CHECK(refuses(function, "vectors.bias", [&] {
                writer.add_layer("q", adapter, {vectors.magnitude, {numbers.data(), {6}}});
            }));
        writer.add_layer(layer_q, adapter, vectors, layer.form);
        CHECK(writer.tensor_bytes() == bytes);
    }
    // Matrices of a linear layer and of an embedding do not make a pair.
    safetensors_writer mixed;
    mixed.add(peft_details::peft_key(layer_q, ".lora_A.weight"),
              const_tensor_ref<2>(numbers.data(), {3, 5}));
    mixed.add(peft_details::peft_key(layer_q, ".lora_embedding_B"),
              const_tensor_ref<2>(numbers.data(), {7, 3}));
    const std::string pair = mixed.bytes();
    CHECK(refuses("safetensors: some.file", key + ".lora_embedding_B'",
                  [&] { (void)open(r, pair); }));
}

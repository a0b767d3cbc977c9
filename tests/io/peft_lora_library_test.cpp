#include <filesystem>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/io/peft_lora_library.hpp>
#include <mhr/reference/lora.hpp>

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

const serial_executor serial;
constexpr index_t in = 6, out = 4;

/// One adapter on disk, of the layers q, or q and v.
template <class T>
struct adapter_files {
    index_t rank;
    tensor<T, 2> a, b;
    std::vector<std::string> layers;
    double alpha;

    adapter_files(index_t its_rank, double its_alpha, std::vector<std::string> its_layers)
        : rank(its_rank), a({in, rank}), b({rank, out}), layers(std::move(its_layers)),
          alpha(its_alpha) {
        random_source random(static_cast<std::uint64_t>(rank));
        random.fill(a.view());
        random.fill(b.view());
    }
    lora_checkpoint written(const temporary_folder& folder) const {
        lora_checkpoint_writer writer(lora_config(rank, alpha, {"q", "v"}));
        for (const auto& layer : layers)
            writer.add_layer(layer, lora<const T>{a.view(), b.view()});
        const auto path = folder.path() / std::to_string(rank);
        writer.write(path);
        return lora_checkpoint(path);
    }
};

} // namespace

TEST_CASE_TEMPLATE(
    "peft_lora_library: adapters of several ranks, types and layers in one inventory", M, double,
    float, Eigen::bfloat16, Eigen::half) {
    const temporary_folder folder;
    const adapter_files<float> first(2, 3, {"q", "v"});
    const adapter_files<Eigen::half> second(3, 1, {"q"});
    const adapter_files<double> third(1, 0.25, {"v"});
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(first.written(folder));
    adapters.push_back(second.written(folder));
    adapters.push_back(third.written(folder));
    const lora_checkpoint_library library(adapters);
    CHECK(library.modules() == 3);
    REQUIRE(library.layers().size() == 2);
    CHECK(library.layers()[0].name == "q");
    CHECK(library.layers()[0].rank == 3);
    CHECK(library.layers()[1].name == "v");
    CHECK(library.layers()[1].rank == 2);
    CHECK(library.layers()[1].in_features == in);
    CHECK(library.layers()[1].out_features == out);
    CHECK(library.layers()[0].adapters == 2);
    CHECK(library.layers()[1].adapters == 2);
    REQUIRE(library.notes().size() == 2); // of the second and the third
    CHECK(library.notes()[0] == adapters[1].tensors().name() +
                                    ": lacks 1 of the library's 2 layers, such as 'v': zeros stand "
                                    "for them");
    CHECK(library.notes()[1].find("'q'") != std::string::npos);

    for (const auto& layer : library.layers()) {
        const bool q = layer.name == "q";
        guarded_buffer<M, 3> a({3, in, 4}, layout::padded), b({3, 4, out}, layout::column_major);
        library.gather(serial, layer, lora_batch<M>{a.view(), b.view()});
        // What is expected: each element from f64, rounded to M once.
        const auto expect = [&](index_t module, const auto& files, bool has_it) {
            const double scale = files.alpha / static_cast<double>(files.rank);
            tensor<M, 2> want_a({in, 4}), want_b({4, out});
            for (index_t r = 0; has_it && r < files.rank; ++r) {
                for (index_t i = 0; i < in; ++i)
                    want_a(i, r) = store<M>(load<double>(files.a(i, r)));
                for (index_t o = 0; o < out; ++o)
                    want_b(r, o) = store<M>(scale * load<double>(files.b(r, o)));
            }
            CHECK(compare(as_const(a.view().slice(0, module)),
                          copy_as<double>(want_a.view()).const_view(), within<M>(0, 1)));
            CHECK(compare(as_const(b.view().slice(0, module)),
                          copy_as<double>(want_b.view()).const_view(), within<M>(0, 2)));
        };
        expect(0, first, true);
        expect(1, second, q);
        expect(2, third, !q);
    }
}

TEST_CASE("peft_lora_library: an inventory computes what its adapters do") {
    const temporary_folder folder;
    const adapter_files<float> first(2, 3, {"q"}), second(3, 1, {"q"});
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(first.written(folder));
    adapters.push_back(second.written(folder));
    const lora_checkpoint_library library(adapters);
    tensor<float, 3> a({2, in, 3}), b({2, 3, out});
    const lora_batch<float> pool{a.view(), b.view()};
    library.gather(serial, library.layers()[0], pool);
    const auto inventory = as_inventory(pool, 2);

    batch_plan plan;
    plan.assign_single_task(5);
    tensor<float, 2> x({5, in}), hidden({5, 2}), want({5, out}), got({5, out});
    random_source(1).fill(x.view());
    const auto& its = adapters[0];
    lora_forward(serial, plan, x.view(), as_batch(its.adapter<float>(its.layers()[0])),
                 its.layers()[0].scale, want.view(), hidden.view());
    // The first module alone, in both heads.
    tensor<float, 3> weights({1, 2, 2});
    weights(0, 0, 0) = weights(0, 1, 0) = 1;
    std::vector<std::byte> memory(routed_lora_state_size<float>(plan, shape_of(inventory)));
    workspace all(memory.data(), memory.size());
    routed_lora_forward(serial, plan, x.view(), inventory, weights.view(), 1, got.view(),
                        take_routed_lora_state<float>(all, plan, shape_of(inventory)));
    for (index_t row = 0; row < 5; ++row)
        for (index_t o = 0; o < out; ++o)
            CHECK(got(row, o) == doctest::Approx(want(row, o)).epsilon(1e-5));
}

TEST_CASE("peft_lora_library: adapters that do not go together, and pools that do not fit") {
    CHECK(refuses("lora_checkpoint_library", "adapters",
                  [] { lora_checkpoint_library{std::vector<lora_checkpoint>{}}; }));

    const temporary_folder folder;
    const adapter_files<float> first(2, 3, {"q"});
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(first.written(folder));
    {
        const lora_checkpoint_library library(adapters);
        const auto& layer = library.layers()[0];
        guarded_buffer<float, 3> a({1, in, 2}), b({1, 2, out}), small_a({1, in, 1}),
            small_b({1, 1, out}), two({2, in, 2});
        constexpr const char* function = "lora_checkpoint_library::gather";
        CHECK(refuses(
            function, "pool.a",
            [&] {
                library.gather(serial, layer, lora_batch<float>{small_a.view(), small_b.view()});
            },
            small_a, small_b));
        CHECK(refuses(
            function, "pool.a",
            [&] {
                library.gather(serial, layer, lora_batch<float>{two.view(), b.view()});
            },
            two, b));
        CHECK(refuses(
            function, "pool.b",
            [&] {
                library.gather(serial, layer, lora_batch<float>{a.view(), small_b.view()});
            },
            a, small_b));
    }
    lora_checkpoint_writer writer(lora_config(3, 1, {"q"}));
    const std::vector<float> numbers(100, 1);
    writer.add_layer("q",
                     lora<const float>{{numbers.data(), {in + 1, 3}}, {numbers.data(), {3, out}}});
    writer.write(folder.path() / "other");
    adapters.emplace_back(folder.path() / "other");
    CHECK(
        refuses("lora_checkpoint_library", "adapters", [&] { lora_checkpoint_library{adapters}; }));
}

namespace {

/// An adapter of one layer, under a given name, of a given base model ("": of none that it names).
lora_checkpoint adapter_of(const temporary_folder& folder, const std::string& name,
                           const std::string& key_of_layer, const std::string& base) {
    const std::vector<float> numbers(100, 1);
    safetensors_writer writer;
    writer.add(key_of_layer + ".lora_A.weight",
               tensor_view<const float, 2>(numbers.data(), {1, in}));
    writer.add(key_of_layer + ".lora_B.weight",
               tensor_view<const float, 2>(numbers.data(), {out, 1}));
    if (name == "head")
        writer.add("base_model.model.lm_head.weight",
                   tensor_view<const float, 2>(numbers.data(), {2, 2}));
    lora_config config(1, 1, {"q", "v"});
    if (!base.empty()) config.set("base_model_name_or_path", base);
    const auto path = folder.path() / name;
    std::filesystem::create_directory(path);
    writer.write(path / peft_tensors_file);
    config.json().write(path);
    return lora_checkpoint(path);
}

} // namespace

TEST_CASE("peft_lora_library: a trained head is not lost silently") {
    const temporary_folder folder;
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(adapter_of(folder, "plain", "base_model.model.q", ""));
    adapters.push_back(adapter_of(folder, "head", "base_model.model.q", ""));
    const auto refused =
        refuses("lora_checkpoint_library", "adapters", [&] { lora_checkpoint_library{adapters}; });
    CHECK(refused);
    CHECK(refused.message.find("saved_tensors::leave_out") != std::string::npos);
    CHECK(refused.message.find("'base_model.model.lm_head.weight' in ") != std::string::npos);
    const lora_checkpoint_library library(adapters, saved_tensors::leave_out);
    CHECK(library.layers().size() == 1);
    CHECK(library.notes().empty());
}

TEST_CASE("peft_lora_library: adapters whose names differ in wrappers alone are one layer's") {
    const temporary_folder folder;
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(adapter_of(folder, "1", "base_model.model.q", "org/a"));
    adapters.push_back(adapter_of(folder, "2", "base_model.model._orig_mod.q", ""));
    adapters.push_back(adapter_of(folder, "3", "base_model.model.base_model.model.q", "org/a"));
    adapters.push_back(adapter_of(folder, "4", "q", "org/b\x1b"));
    const lora_checkpoint_library library(adapters);
    REQUIRE(library.layers().size() == 1);
    CHECK(library.layers()[0].name == "q");
    CHECK(library.layers()[0].adapters == 4);
    tensor<float, 3> a({4, in, 1}), b({4, 1, out});
    library.gather(serial, library.layers()[0], lora_batch<float>{a.view(), b.view()});
    for (index_t module = 0; module < 4; ++module)
        CHECK(b(module, 0, out - 1) == 1);
    REQUIRE(library.notes().size() == 1);
    CHECK(library.notes()[0] ==
          adapters[3].tensors().name() + ": is of the base model 'org/b\\x1b', others of 'org/a'");
}

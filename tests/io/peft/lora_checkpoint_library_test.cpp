#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/lora_checkpoint_library.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>
#include <mhr/lora/lora.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/temporary_folder.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;
constexpr index_t in = 6, out = 4;

/// One adapter on disk, of some of the layers q and v.
struct adapter_files {
    index_t rank;
    guarded_tensor<2> a, b;
    std::vector<std::string> layers;
    double alpha;

    adapter_files(element_type of_a, element_type of_b, index_t its_rank, double its_alpha,
                  std::vector<std::string> its_layers)
        : rank(its_rank), a(of_a, {in, rank}), b(of_b, {rank, out}), layers(std::move(its_layers)),
          alpha(its_alpha) {
        random_source random(static_cast<std::uint64_t>(rank));
        a.fill(random);
        b.fill(random);
    }
    [[nodiscard]] double scale() const { return alpha / static_cast<double>(rank); }
    [[nodiscard]] lora_checkpoint_writer writer() const {
        lora_checkpoint_writer result(lora_config(rank, alpha, {"q", "v"}));
        for (const auto& layer : layers)
            result.add_layer(layer, {a.const_ref(), b.const_ref(), scale()});
        return result;
    }
    [[nodiscard]] lora_checkpoint written(const temporary_folder& folder) const {
        const auto path = folder.path() / std::to_string(rank);
        writer().write(path);
        return lora_checkpoint(path);
    }
};

/// A pool holds an adapter: each element of it scaled in f64 and rounded to the pool's type, 0
/// beside it.
void check_module(const stacked_lora_matrices& pool, index_t module, const adapter_files& files,
                  bool has_it) {
    const index_t rank = pool.a.extent(2);
    tensor<double, 2> want_a({in, rank}), want_b({rank, out});
    for (index_t r = 0; has_it && r < files.rank; ++r) {
        for (index_t i = 0; i < in; ++i)
            want_a(i, r) = element(files.a.const_ref(), {i, r});
        for (index_t o = 0; o < out; ++o)
            want_b(r, o) = files.scale() * element(files.b.const_ref(), {r, o});
    }
    const element_type sums = sums_of(pool.b.type(), files.b.type());
    CHECK(compare(pool.a.slice(0, module), want_a.const_view(), within(element_type::f64, 0, 1)));
    CHECK(compare(pool.b.slice(0, module), want_b.const_view(), within(sums, 2, 1)));
}

} // namespace

TEST_CASE("lora_checkpoint_library: adapters of several ranks, types and layers in one inventory") {
    const temporary_folder folder;
    const adapter_files first(element_type::f32, element_type::bf16, 2, 3, {"q", "v"});
    const adapter_files second(element_type::f16, element_type::f16, 3, 1, {"q"});
    const adapter_files third(element_type::f64, element_type::f32, 1, 0.25, {"v"});
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

    for (const element_type type : all_element_types)
        for (const auto& layer : library.layers()) {
            CAPTURE(name_of(type));
            const bool q = layer.name == "q";
            guarded_tensor<3> a(type, {3, in, 4}, layout::padded);
            guarded_tensor<3> b(type, {3, 4, out}, layout::column_major);
            const stacked_lora_matrices pool{a.ref(), b.ref()};
            library.gather(serial, layer, pool);
            check_module(pool, 0, first, true);
            check_module(pool, 1, second, q);
            check_module(pool, 2, third, !q);
            CHECK(a.intact());
            CHECK(b.intact());
        }
}

TEST_CASE("lora_checkpoint_library: adapters that are not aligned in their files are gathered") {
    const adapter_files files(element_type::f16, element_type::f32, 2, 3, {"q"});
    const std::string bytes = files.writer().tensor_bytes();
    const std::string memory = " " + bytes;
    std::vector<lora_checkpoint> adapters;
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}})
        adapters.emplace_back(lora_config(2, 3, {"q", "v"}),
                              safetensors_file("some.file",
                                               (shift == 0 ? bytes : memory).data() + shift,
                                               bytes.size()));
    const lora_checkpoint_library library(adapters);
    const auto& layer = library.layers().front();
    guarded_tensor<3> a(element_type::f32, {2, in, 2}), b(element_type::f64, {2, 2, out});
    const stacked_lora_matrices pool{a.ref(), b.ref()};
    library.gather(serial, layer, pool);
    check_module(pool, 0, files, true);
    check_module(pool, 1, files, true);
    CHECK(refuses("safetensors: some.file", "'base_model.model.q.lora_A.weight'",
                  [&] { (void)library.adapters(layer); }));
}

TEST_CASE("lora_checkpoint_library: adapters of several files serve one batch where they lie") {
    const temporary_folder folder;
    const adapter_files first(element_type::bf16, element_type::f16, 2, 3, {"q", "v"});
    const adapter_files second(element_type::f32, element_type::f32, 3, 1, {"q"});
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(first.written(folder));
    adapters.push_back(second.written(folder));
    const lora_checkpoint_library library(adapters);
    const std::vector<index_t> tasks{1, 0, 0, 1, 1};
    batch_plan plan;
    plan.assign_rows(tensor_view<const index_t, 1>(tasks.data(), {5}));
    guarded_tensor<2> x(element_type::f32, {5, in});
    x.fill(random_source(1));
    for (const auto& layer : library.layers()) {
        const bool q = layer.name == "q";
        const std::vector<lora> list = library.adapters(layer);
        REQUIRE(list.size() == 2);
        CHECK(list[0].a.type() == element_type::bf16);
        CHECK(list[0].b.type() == element_type::f16);
        CHECK(list[0].scale == 1.5);
        CHECK(list[1].a.extent(1) == (q ? 3 : 0)); // the second adapter has no v
        guarded_tensor<2> y(element_type::f32, {5, out});
        y.fill(2);
        const batch rows{plan};
        const lora_list serving(list.data(), 2, plan.tasks());
        std::vector<std::byte> memory(lora_state_size(rows, serving) + 64);
        workspace all(memory.data(), memory.size());
        lora_forward(rows, serving, x.ref(), y.ref(), take_lora_state(all, rows, serving));
        for (index_t row = 0; row < 5; ++row)
            for (index_t o = 0; o < out; ++o) {
                const bool is_first = tasks[static_cast<std::size_t>(row)] == 0;
                const adapter_files& files = is_first ? first : second;
                double want = 2;
                for (index_t r = 0; (is_first || q) && r < files.rank; ++r)
                    for (index_t i = 0; i < in; ++i)
                        want += files.scale() * element(x.ref(), {row, i}) *
                                element(files.a.const_ref(), {i, r}) *
                                element(files.b.const_ref(), {r, o});
                CHECK(element(y.ref(), {row, o}) == doctest::Approx(want).epsilon(1e-5));
            }
    }
}

TEST_CASE("lora_checkpoint_library: adapters that do not go together, and pools that do not fit") {
    CHECK(refuses("lora_checkpoint_library", "adapters",
                  [] { lora_checkpoint_library{std::vector<lora_checkpoint>{}}; }));

    const temporary_folder folder;
    const adapter_files first(element_type::f32, element_type::f32, 2, 3, {"q"});
    std::vector<lora_checkpoint> adapters;
    adapters.push_back(first.written(folder));
    {
        const lora_checkpoint_library library(adapters);
        const auto& layer = library.layers()[0];
        guarded_tensor<3> a(element_type::f32, {1, in, 2}), b(element_type::f32, {1, 2, out});
        guarded_tensor<3> low_a(element_type::f32, {1, in, 1}),
            low_b(element_type::f32, {1, 1, out});
        const auto refused = [&](const char* argument, const stacked_lora_matrices& pool) {
            return refuses(
                "lora_checkpoint_library::gather", argument,
                [&] { library.gather(serial, layer, pool); }, a, b, low_a, low_b);
        };
        CHECK(refused("pool.a", {low_a.ref(), low_b.ref()}));
        CHECK(refused("pool.b", {a.ref(), low_b.ref()}));
        for (const auto& bad : bad_as_output(a.ref(), {2}))
            CHECK(refused("pool.a", {bad.ref, b.ref()}));
        for (const auto& bad : bad_as_output(b.ref()))
            CHECK(refused("pool.b", {a.ref(), bad.ref}));
    }
    lora_checkpoint_writer writer(lora_config(3, 1, {"q"}));
    const std::vector<float> numbers(100, 1);
    writer.add_layer("q", {{numbers.data(), {in + 1, 3}}, {numbers.data(), {3, out}}, 1.0 / 3});
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
    writer.add(key_of_layer + ".lora_A.weight", const_tensor_ref<2>(numbers.data(), {1, in}));
    writer.add(key_of_layer + ".lora_B.weight", const_tensor_ref<2>(numbers.data(), {out, 1}));
    if (name == "head")
        writer.add("base_model.model.lm_head.weight", const_tensor_ref<2>(numbers.data(), {2, 2}));
    lora_config config(1, 1, {"q", "v"});
    if (!base.empty()) config.set("base_model_name_or_path", base);
    const auto path = folder.path() / name;
    std::filesystem::create_directory(path);
    writer.write(path / peft_tensors_file);
    config.json().write(path);
    return lora_checkpoint(path);
}

} // namespace

TEST_CASE("lora_checkpoint_library: a trained head is not lost silently") {
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

TEST_CASE(
    "lora_checkpoint_library: adapters whose names differ in wrappers alone are one layer's") {
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
    library.gather(serial, library.layers()[0], {a.view(), b.view()});
    for (index_t module = 0; module < 4; ++module)
        CHECK(b(module, 0, out - 1) == 1);
    REQUIRE(library.notes().size() == 1);
    CHECK(library.notes()[0] ==
          adapters[3].tensors().name() + ": is of the base model 'org/b\\x1b', others of 'org/a'");
}

TEST_CASE("lora_checkpoint_library: layers that do more than y += scale (x a) b are refused") {
    const auto folder =
        std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR).parent_path() / "io" / "peft_files";
    for (const auto& [key, text] :
         {std::pair<const char*, const char*>{"dora", "with DoRA's magnitude"},
          {"lora_bias", "with a bias"},
          {"lora_embedding_targeted", ", an embedding,"}}) {
        // Copies, which a lambda can capture.
        const char* const name = key;
        const char* const says = text;
        CAPTURE(name);
        std::vector<lora_checkpoint> adapters;
        adapters.emplace_back(folder / name);
        const auto refused = refuses("lora_checkpoint_library", "adapters", [&] {
            (void)lora_checkpoint_library(adapters, saved_tensors::leave_out);
        });
        CHECK(refused);
        CHECK(refused.message.find(says) != std::string::npos);
    }
}

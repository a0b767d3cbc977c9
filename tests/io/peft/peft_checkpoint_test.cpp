#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/peft/lora_checkpoint.hpp>
#include <mhr/io/peft/peft_checkpoint.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// A plain adapter of the layers a.q and a.v.
struct adapter_files {
    std::string config = R"({"peft_type":"LORA","r":2,"target_modules":["q","v"]})";
    std::string tensors = [] {
        const std::vector<float> numbers(10, 1);
        safetensors_writer writer;
        for (const char* layer : {"a.q", "a.v"}) {
            writer.add<2>(peft_details::peft_key(layer, ".lora_A.weight"),
                          {numbers.data(), {2, 3}});
            writer.add<2>(peft_details::peft_key(layer, ".lora_B.weight"),
                          {numbers.data(), {5, 2}});
        }
        return writer.bytes();
    }();

    [[nodiscard]] lora_checkpoint open() const {
        return {lora_config(peft_config("some.file", config)),
                safetensors_file("some.file", tensors.data(), tensors.size())};
    }
};

} // namespace

TEST_CASE("peft_checkpoint: layers are found by their names, and tensors by their layers") {
    const adapter_files files;
    const lora_checkpoint adapter = files.open();
    REQUIRE(adapter.layers().size() == 2);
    for (const auto& layer : adapter.layers())
        CHECK(adapter.find(layer.name) == &layer);
    for (const char* absent : {"", "a", "a.k", "a.r", "a.v.", "b"})
        CHECK(adapter.find(absent) == nullptr);
    const auto names = adapter.tensor_names(adapter.layers()[1]);
    CHECK(names[0] == "base_model.model.a.v.lora_A.weight");
    CHECK(names[1] == "base_model.model.a.v.lora_B.weight");
    lora_layer other = adapter.layers()[0];
    other.name = "a.other";
    CHECK(refuses("peft", "layer", [&] { (void)adapter.tensor_names(other); }));
}

TEST_CASE("peft_checkpoint: a layer can be shown where all of its tensors are aligned") {
    adapter_files files;
    for (std::size_t shift = 0; shift < 8; ++shift) {
        const std::string memory = std::string(shift, ' ') + files.tensors;
        const lora_checkpoint adapter(
            lora_config(peft_config("some.file", files.config)),
            safetensors_file("some.file", memory.data() + shift, files.tensors.size()));
        for (const auto& layer : adapter.layers()) {
            const bool aligned = adapter.is_aligned(layer);
            CHECK(aligned == (shift % 4 == 0));
            if (aligned)
                CHECK(adapter.adapter(layer).a.extents() == std::array<index_t, 2>{3, 2});
            else
                CHECK_THROWS_AS((void)adapter.adapter(layer), error);
        }
    }
}

TEST_CASE("peft_checkpoint: folders that are none, or hold other files") {
    const temporary_folder folder;
    const auto says = [&](const std::filesystem::path& path, const std::string& text) {
        const std::string message = error_of([&] { lora_checkpoint{path}; });
        CAPTURE(message);
        CHECK(message.find(": expected ") != std::string::npos);
        CHECK(message.find(text) != std::string::npos);
    };
    says(folder.path() / "absent", "got none");
    write_file(folder.path() / "file", "");
    says(folder.path() / "file", "got a file");
    const adapter_files good;
    const auto with_file = [&](const char* name, const std::string& bytes) {
        const auto path = folder.path() / "adapter";
        std::filesystem::remove_all(path);
        std::filesystem::create_directory(path);
        write_file(path / peft_config_file, good.config);
        write_file(path / name, bytes);
        return path;
    };
    says(with_file("nothing", ""), "adapter_model.safetensors: expected a file");
    says(with_file("adapter_model.bin", "PK"), "adapter_model.bin alone");
    says(with_file("adapter_model.safetensors.index.json", "{}"), "save them in one");
    says(with_file("adapters.safetensors", ""), "MLX");
    const std::string page = "<!DOCTYPE html><html><body>Sign in</body></html>";
    says(with_file(peft_tensors_file, page), "a web page");
    says(with_file(peft_tensors_file, "\xef\xbb\xbf \n <HTML>" + page), "a web page");
    says(with_file(peft_tensors_file, "PK\x03\x04 and so on"), "a file of PyTorch");
    says(with_file(peft_tensors_file, "GGUF and so on"), "a GGUF file");
    says(with_file(peft_tensors_file, "<!doc"), "adapter_model.safetensors: header");
    // The same in the place of the configuration.
    const auto path = with_file(peft_tensors_file, good.tensors);
    CHECK(lora_checkpoint(path).layers().size() == 2);
    write_file(path / peft_config_file, page);
    says(path, "a web page");
    write_file(path / peft_config_file,
               read_file(std::filesystem::path(MHR_GOLDEN_DEFAULT_DIR).parent_path() / "io" /
                         "adapters" / "lfs_pointer" / peft_tensors_file));
    says(path, "git lfs pull");
}

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/files/file_path.hpp>
#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/peft/lora_checkpoint.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// Paths are made of UTF-16, so that they are the same on every platform, and tests read them back
// through std::filesystem, not through what is tested.
const std::filesystem::path folder_name(u"\u65e5\u672c");
const std::filesystem::path file_name(u"f\u00e9\u4e2d \U0001f999.bin");
constexpr const char* both_names =
    "\xe6\x97\xa5\xe6\x9c\xac/f\xc3\xa9\xe4\xb8\xad \xf0\x9f\xa6\x99.bin";

} // namespace

TEST_CASE("file_path: files with names of every script are written and read") {
    const temporary_folder folder;
    const auto path = folder.path() / folder_name / file_name;
    std::filesystem::create_directory(folder.path() / folder_name);
    const std::vector<float> numbers{1, 2, 3};
    safetensors_writer writer;
    writer.add("t", const_tensor_ref<1>(numbers.data(), {3}));
    for (int time = 0; time < 2; ++time) { // the second in place of the first
        writer.write(path);
        REQUIRE(std::filesystem::exists(path));
        CHECK(std::filesystem::file_size(path) == writer.bytes().size());
    }
    for (const file_access access : {file_access::map, file_access::copy}) {
        const mapped_file file(path, access);
        CHECK(std::string(reinterpret_cast<const char*>(file.data()), file.size()) ==
              writer.bytes());
        const safetensors_file tensors(path, access);
        CHECK(element(tensors.view<1>("t"), {2}) == 3);
    }

    lora_checkpoint_writer adapter(lora_config(1, 1, {"q"}));
    adapter.add_layer("q", {{numbers.data(), {3, 1}}, {numbers.data(), {1, 2}}});
    adapter.write(folder.path() / folder_name / "adapter" / folder_name);
    for (const file_access access : {file_access::map, file_access::copy})
        CHECK(lora_checkpoint(folder.path() / folder_name / "adapter" / folder_name, access)
                  .layers()
                  .size() == 1);
}

TEST_CASE("file_path: messages show such names as they are") {
    const temporary_folder folder;
    std::string shown = path_text(folder_name / file_name);
    for (char& c : shown)
        if (c == '\\') c = '/';
    CHECK(shown == both_names);
    for (const file_access access : {file_access::map, file_access::copy})
        CHECK(error_of([&] {
                  mapped_file(folder.path() / folder_name / file_name, access);
              }).find("f\xc3\xa9\xe4\xb8\xad") != std::string::npos);
    const safetensors_writer nothing;
    CHECK(error_of([&] {
              nothing.write(folder.path() / folder_name / file_name);
          }).find("f\xc3\xa9\xe4\xb8\xad") != std::string::npos);
    CHECK(path_text("a\nb") == "a\\x0ab");
}

TEST_CASE("file_path: UTF-16 as UTF-8, halves of pairs as what is not UTF-8") {
    const auto text = [](std::u16string_view units) { return file_details::utf8_of(units); };
    CHECK(text(u"") == "");
    CHECK(text(u"a\u007f") == "a\x7f");
    CHECK(text(u"\u0080\u07ff") == "\xc2\x80\xdf\xbf");
    CHECK(text(u"\u0800\uffff") == "\xe0\xa0\x80\xef\xbf\xbf");
    CHECK(text(u"\U00010000\U0010ffff") == "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf");
    const char16_t halves[] = {u'a', 0xd800, u'b', 0xdc00, 0xd83e};
    CHECK(printable(text({halves, 5})) == "a\\xed\\xa0\\x80b\\xed\\xb0\\x80\\xed\\xa0\\xbe");
}

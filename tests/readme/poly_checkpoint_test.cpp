#include <mhr/io/peft/peft.hpp>

#include <filesystem>

#include <doctest/doctest.h>

#include "support/comparison.hpp"
#include "support/poly_files.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// Makes another folder the current one.
class current_folder {
  public:
    explicit current_folder(const std::filesystem::path& path) {
        std::filesystem::current_path(path);
    }
    ~current_folder() { std::filesystem::current_path(before_); }
    current_folder(const current_folder&) = delete;
    current_folder& operator=(const current_folder&) = delete;

  private:
    std::filesystem::path before_ = std::filesystem::current_path();
};

} // namespace

TEST_CASE("README: an adapter of PEFT") {
    const temporary_folder temporary;
    const poly_files files(element_type::bf16);
    files.writer().write(temporary.path() / "folder");
    const current_folder current(temporary.path());

#include "readme/poly_checkpoint.inc"

    CHECK(adapter.layers().size() == files.layers.size());
    CHECK(compare_bitwise(inventory.a, files.a.const_ref()));
    CHECK(compare_bitwise(inventory.b, files.b.const_ref()));
}

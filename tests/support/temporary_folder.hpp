#pragma once

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>

/// A new folder that is removed with all in it.
class temporary_folder {
  public:
    temporary_folder() {
        std::random_device random;
        do {
            const std::uint64_t number = (std::uint64_t{random()} << 32) | random();
            // A quote and a space, as real folders may have them.
            path_ =
                std::filesystem::temp_directory_path() / ("mhr's test " + std::to_string(number));
        } while (!std::filesystem::create_directory(path_));
    }
    ~temporary_folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    temporary_folder(const temporary_folder&) = delete;
    temporary_folder& operator=(const temporary_folder&) = delete;

    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

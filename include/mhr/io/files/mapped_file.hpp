#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include <mhr/config.hpp>
#include <mhr/core/error.hpp>
#include <mhr/io/files/file_path.hpp>

#if MHR_MAP_FILES
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

/// \file
/// The bytes of a whole file, in memory without a copy where the platform can do that.

namespace mhr {
inline namespace MHR_ISA {

namespace file_details {
/// A number of bytes as a size, which is narrower on some machines. (A template, since GCC calls a
/// cast useless where the types happen to be the same.)
template <class Number>
constexpr std::size_t as_size(Number number) noexcept {
    return static_cast<std::size_t>(number);
}
} // namespace file_details

/// How a file's bytes come into memory.
enum class file_access {
    map, ///< mapped: pages are read when they are touched, and shared with other processes
    copy ///< read at once: for files that others overwrite in place or cut off
};

/// A file's bytes for as long as this lives, read-only and aligned for every type. Moving it keeps
/// their address. Where files cannot be mapped (MHR_MAP_FILES is 0), they are read.
///
/// A mapped file must not be cut off by others meanwhile: touching what is gone ends the process
/// (SIGBUS). Replacing it by another one, as `rename` does, is no trouble.
class mapped_file {
  public:
    /// Maps nothing.
    mapped_file() noexcept = default;

    /// These are refused: no regular file, or one that cannot be opened, mapped or read whole.
    explicit mapped_file(const std::filesystem::path& path, file_access access = file_access::map) {
#if MHR_MAP_FILES
        if (access == file_access::map)
            map(path);
        else
#endif
            read(path);
        (void)access;
    }

    /// Takes the bytes, where they are.
    mapped_file(mapped_file&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)),
          copy_(std::move(other.copy_)) {}
    /// Exchanges both files.
    mapped_file& operator=(mapped_file&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(copy_, other.copy_);
        return *this;
    }
    mapped_file(const mapped_file&) = delete;
    mapped_file& operator=(const mapped_file&) = delete;
    ~mapped_file() {
#if MHR_MAP_FILES
        if (data_ != nullptr && copy_ == nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
#endif
    }

    /// The first byte.
    [[nodiscard]] const std::byte* data() const noexcept {
        return data_;
    }
    /// Number of bytes.
    [[nodiscard]] std::size_t size() const noexcept {
        return size_;
    }

  private:
    [[noreturn]] static void fail(const std::filesystem::path& path, const char* expected,
                                  const std::string& got) {
        raise("mapped_file: " + path_text(path) + ": expected " + expected + ", got " + got);
    }

#if MHR_MAP_FILES
    void map(const std::filesystem::path& path) {
        // Opening a pipe would otherwise wait for somebody to write to it.
        const int file = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        int reason = errno;
        if (file < 0)
            fail(path, "a file that can be opened", std::generic_category().message(reason));
        struct stat status {};
        const bool known = ::fstat(file, &status) == 0;
        if (!known || !S_ISREG(status.st_mode)) {
            ::close(file);
            fail(path, "a regular file", "another sort of file");
        }
        void* memory = nullptr;
        const auto bytes = static_cast<std::uintmax_t>(status.st_size);
        const bool fits = file_details::as_size(bytes) == bytes;
        if (fits && bytes != 0)
            memory =
                ::mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ, MAP_PRIVATE, file, 0);
        reason = errno;
        ::close(file); // the mapping stays
        if (!fits || memory == MAP_FAILED)
            fail(path, "a file that can be mapped into memory",
                 std::to_string(bytes) + " bytes: " + std::generic_category().message(reason));
        data_ = static_cast<const std::byte*>(memory);
        size_ = static_cast<std::size_t>(bytes);
    }
#endif

    void read(const std::filesystem::path& path) {
        std::error_code problem;
        const auto status = std::filesystem::status(path, problem);
        if (!std::filesystem::exists(status))
            fail(path, "a file that can be opened", problem ? problem.message() : "no such file");
        if (!std::filesystem::is_regular_file(status))
            fail(path, "a regular file", "another sort of file");
        const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(file_details::open_file(path),
                                                                   &std::fclose);
        if (file == nullptr) fail(path, "a file that can be opened", "none");
        const std::uintmax_t bytes = std::filesystem::file_size(path, problem);
        if (problem || file_details::as_size(bytes) != bytes)
            fail(path, "a file whose size is known and fits into memory", "another");
        size_ = static_cast<std::size_t>(bytes);
        copy_.reset(new (std::nothrow) std::byte[size_]);
        if (copy_ == nullptr)
            fail(path, "a file that fits into memory", std::to_string(bytes) + " bytes");
        const std::size_t got = std::fread(copy_.get(), 1, size_, file.get());
        if (got != size_)
            fail(path, "a file that can be read", std::to_string(got) + " of its bytes");
        data_ = copy_.get();
    }

    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
    std::unique_ptr<std::byte[]> copy_{}; ///< null if mapped, or of nothing
};

} // namespace MHR_ISA
} // namespace mhr

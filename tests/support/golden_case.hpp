#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/element_type.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/io/safetensors/dtype.hpp>
#include <mhr/io/safetensors/safetensors_file.hpp>

#include "support/comparison.hpp"
#include "support/positions.hpp"
#include "support/tensor.hpp"

/// \file
/// One case of the golden values (golden/README.md), and what comes of comparing with it.

namespace mhr::test {

/// A file of which is known what was read: what nobody reads is not tested.
class golden_file {
  public:
    explicit golden_file(const std::string& path) : file_(path) {}

    [[nodiscard]] const auto& metadata() const { return file_.metadata(); }
    [[nodiscard]] const auto& tensors() const { return file_.tensors(); }
    [[nodiscard]] bool contains(const std::string& name) const { return file_.contains(name); }

    /// A copy of one tensor, which must have this rank, and `T` for its type (or be F32, where `T`
    /// is double).
    template <class T, std::size_t Rank>
    [[nodiscard]] tensor<T, Rank> read(const std::string& name) const {
        read_.insert(name);
        const safetensors_tensor& stored = file_.tensor(name);
        if (stored.rank != Rank)
            throw std::runtime_error(name + ": not of rank " + std::to_string(Rank));
        std::array<index_t, Rank> extents;
        std::copy_n(stored.extents.begin(), Rank, extents.begin());
        tensor<T, Rank> result(extents);
        if constexpr (std::is_integral_v<T>) {
            file_.read_integers(name, result.view());
        } else {
            if (to_dtype(element_type_of_v<T>) != stored.type &&
                !(std::is_same_v<T, double> && stored.type == dtype::f32))
                throw std::runtime_error(name + ": not of the type that it is read as");
            file_.read<Rank>(name, result.view());
        }
        return result;
    }

    /// Reads as above, with the given extents: `read<T>("x", {rows, features})`.
    template <class T, std::size_t Rank>
    [[nodiscard]] tensor<T, Rank> read(const std::string& name,
                                       const index_t (&extents)[Rank]) const {
        auto result = read<T, Rank>(name);
        position<Rank> want;
        std::copy(extents, extents + Rank, want.begin());
        if (result.extents() != want)
            throw std::runtime_error(name + ": extents " + to_text(result.extents()) +
                                     ", expected " + to_text(want));
        return result;
    }

    [[nodiscard]] std::vector<std::string> unread() const {
        std::vector<std::string> result;
        for (const auto& [name, stored] : tensors())
            if (read_.count(name) == 0) result.push_back(name);
        return result;
    }

  private:
    safetensors_file file_;
    mutable std::set<std::string> read_;
};

struct golden_case {
    std::filesystem::path root; ///< the directory of the index
    nlohmann::json entry;       ///< of the index
    golden_file file;

    golden_case(std::filesystem::path directory, nlohmann::json index_entry)
        : root(std::move(directory)), entry(std::move(index_entry)), file(path("file")) {}

    /// A file that the index names.
    [[nodiscard]] std::string path(const char* key) const {
        return (root / entry.at(key).get<std::string>()).string();
    }

    // The metadata. Which of them were asked for is known too.

    [[nodiscard]] bool has(const std::string& key) const {
        used_.insert(key);
        return file.metadata().count(key) != 0;
    }
    [[nodiscard]] std::string text(const std::string& key) const {
        return has(key) ? file.metadata().at(key) : std::string();
    }
    [[nodiscard]] double number(const std::string& key) const {
        std::istringstream stream(text(key));
        double result = 0;
        if (!(stream >> result) || !(stream >> std::ws).eof())
            throw std::runtime_error("metadata: " + key + ": no number");
        return result;
    }
    [[nodiscard]] double number_or(const std::string& key, double missing) const {
        return has(key) ? number(key) : missing;
    }
    [[nodiscard]] index_t size(const std::string& key) const {
        const double result = number(key);
        if (!(result >= 0 && result < 1e9) || !is_exactly(result, std::floor(result)))
            throw std::runtime_error("metadata: " + key + ": no size");
        return static_cast<index_t>(result);
    }
    [[nodiscard]] bool flag(const std::string& key) const {
        const std::string value = text(key);
        if (value == "True" || value == "true") return true;
        if (value.empty() || value == "False" || value == "false") return false;
        throw std::runtime_error("metadata: " + key + ": no flag");
    }
    /// One that permits everything would test nothing.
    [[nodiscard]] double tolerance(const std::string& key = "tol") const {
        const double result = number(key);
        if (!(result > 0 && result <= (flag("ill_conditioned") ? 0.1 : 1e-3)))
            throw std::runtime_error("metadata: " + key + ": no tolerance");
        return result;
    }
    [[nodiscard]] bool was_used(const std::string& key) const { return used_.count(key) != 0; }

  private:
    mutable std::set<std::string> used_;
};

/// The larger of two numbers, or NaN if either is.
inline double larger(double a, double b) {
    return a < b || std::isnan(b) ? b : a;
}

/// The comparisons that were made, and those that failed.
struct outcome {
    std::size_t compared = 0;
    double worst = 0; ///< error relative to its tolerance
    std::vector<std::string> failures;

    void require(bool good, const std::string& message) {
        if (!good) failures.push_back(message);
    }

    void require_all_read(const golden_file& file) {
        for (const auto& name : file.unread())
            require(false, name + ": not read");
    }

    template <class T, std::size_t Rank>
    static double largest(const tensor_view<T, Rank>& values) {
        double result = 0;
        for_each_position(values.extents(), [&](const auto& at) {
            result = larger(result, std::abs(static_cast<double>(element(values, at))));
        });
        return result;
    }

    /// max |got - want| <= tolerance max(max |want|, floor)
    template <class T, std::size_t Rank>
    void compare(const std::string& name, const tensor_view<T, Rank>& got,
                 const tensor<std::remove_const_t<T>, Rank>& want, double tolerance,
                 double floor = 0) {
        if (got.extents() != want.extents())
            return require(false, name + ": extents " + to_text(got.extents()) + ", expected " +
                                      to_text(want.extents()));
        const double bound = tolerance * std::max(largest(want.view()), floor);
        double error = 0;
        for_each_position(want.extents(), [&](const auto& at) {
            ++compared;
            const auto w = static_cast<double>(element(want.view(), at));
            error = larger(error, std::abs(static_cast<double>(element(got, at)) - w));
        });
        std::ostringstream message;
        message << name << ": error " << error << ", tolerated " << bound;
        require(want.view().size() > 0, name + ": no values");
        require(error <= bound && std::isfinite(bound), message.str());
        worst = larger(worst, is_exactly(error, 0) ? 0 : error / bound);
    }

    /// Two ways to the same bits.
    template <class T, std::size_t Rank>
    void compare_bits(const std::string& name, const tensor<T, Rank>& got,
                      const tensor<T, Rank>& want) {
        const auto result = compare_bitwise(got.view(), want.view());
        require(result.ok, name + ": " + result.message);
    }
};

} // namespace mhr::test

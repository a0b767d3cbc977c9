#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/core/tensor_view.hpp>

#include "support/comparison.hpp"
#include "support/positions.hpp"
#include "support/safetensors.hpp"
#include "support/tensor.hpp"

/// \file
/// One case of the golden values (golden/README.md), and what comes of comparing with it.

namespace mhr::test {

struct golden_case {
    std::filesystem::path root; ///< the directory of the index
    nlohmann::json entry;       ///< of the index
    safetensors_file file;

    golden_case(const std::filesystem::path& directory, const nlohmann::json& index_entry)
        : root(directory), entry(index_entry), file(path("file")) {}

    /// A file that the index names.
    [[nodiscard]] std::string path(const char* key) const {
        return (root / entry.at(key).get<std::string>()).string();
    }

    // The metadata.

    bool has(const std::string& key) const { return file.metadata().count(key) != 0; }
    std::string text(const std::string& key) const {
        return has(key) ? file.metadata().at(key) : std::string();
    }
    double number(const std::string& key) const { return std::stod(file.metadata().at(key)); }
    double number_or(const std::string& key, double missing) const {
        return has(key) ? number(key) : missing;
    }
    index_t size(const std::string& key) const { return std::stol(file.metadata().at(key)); }
};

/// The larger of two numbers, or NaN if either is.
inline double larger(double a, double b) {
    return a < b || std::isnan(b) ? b : a;
}

/// What was compared, and what failed.
struct outcome {
    std::size_t compared = 0;
    double worst = 0; ///< error relative to its tolerance
    std::vector<std::string> failures;

    void require(bool good, const std::string& message) {
        if (!good) failures.push_back(message);
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
        worst = larger(worst, error == 0 ? 0 : error / bound);
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

#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "support/scalar.hpp"
#include <mhr/core/tensor_view.hpp>

#include "support/positions.hpp"

/// \file
/// Plain row-major memory for the oracle's side of a test. What a kernel gets comes from
/// support/guarded_buffer.hpp.

namespace mhr::test {

template <class T, std::size_t Rank>
class tensor {
  public:
    tensor() = default;
    explicit tensor(const std::array<index_t, Rank>& extents)
        : extents_(extents),
          values_(static_cast<std::size_t>(tensor_view<T, Rank>(nullptr, extents).size())) {}

    [[nodiscard]] tensor_view<T, Rank> view() { return {values_.data(), extents_}; }
    [[nodiscard]] tensor_view<const T, Rank> view() const { return {values_.data(), extents_}; }
    [[nodiscard]] tensor_view<const T, Rank> const_view() const { return view(); }

    [[nodiscard]] const std::array<index_t, Rank>& extents() const { return extents_; }
    [[nodiscard]] std::vector<T>& values() { return values_; }
    [[nodiscard]] const std::vector<T>& values() const { return values_; }

    template <class... Index>
    T& operator()(Index... index) {
        return view()(index...);
    }
    template <class... Index>
    const T& operator()(Index... index) const {
        return view()(index...);
    }

  private:
    std::array<index_t, Rank> extents_{};
    std::vector<T> values_;
};

/// Sets every element of one view from the element of the other at the same position.
template <class S, class T, std::size_t Rank, class F>
void transform(const tensor_view<S, Rank>& from, const tensor_view<T, Rank>& to, F&& f) {
    for_each_position(to.extents(),
                      [&](const position<Rank>& at) { element(to, at) = f(element(from, at)); });
}

/// The stored values in another type, such as the oracle's: exact when that is wider.
template <class S, class T, std::size_t Rank>
tensor<S, Rank> copy_as(const tensor_view<T, Rank>& view) {
    tensor<S, Rank> result(view.extents());
    transform(view, result.view(), [](const T& value) { return load<S>(value); });
    return result;
}

/// The absolute values: what an oracle is run on to get the summed magnitudes of its terms.
template <class S, class T, std::size_t Rank>
tensor<S, Rank> magnitudes_as(const tensor_view<T, Rank>& view) {
    tensor<S, Rank> result(view.extents());
    transform(view, result.view(), [](const T& value) {
        const S number = load<S>(value);
        return number < 0 ? -number : number;
    });
    return result;
}

} // namespace mhr::test

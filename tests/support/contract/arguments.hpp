#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string_view>
#include <vector>

#include <mhr/core/tensor_ref.hpp>

/// \file
/// The tensors of one call of an adapter by their names, whatever their ranks are.

namespace mhr::test {

/// Every tensor of a call with four axes, of which the first ones have extent 1 where it has fewer:
/// so that a list may hold them all.
using any_tensor = tensor_ref<4>;

/// The use that a call makes of a tensor.
enum class role {
    input,           ///< It is read forward and backward.
    forward_input,   ///< It is read forward alone.
    output_gradient, ///< It is read backward alone: d_y.
    state,           ///< It is written forward and read backward.
    output,          ///< It is written forward, or added to: y.
    gradient,        ///< It is added to backward, and may be absent.
};

/// The things that the first axis of a tensor counts.
enum class counted { parts_of_layer, rows, entries };

/// One tensor of a call, as the page of an adapter describes it.
struct tensor_spec {
    std::string_view name; ///< as messages have it
    role part;
    std::size_t rank;
    std::array<index_t, 4> extents{1, 1, 1, 1};
    counted first_axis = counted::parts_of_layer;
    std::vector<std::size_t> free_axes{}; ///< whose extents the tensor itself decides
    std::string_view variable{};          ///< of a gradient: the input or output it belongs to
    bool is_weights = false;              ///< numbers in [0, 1), a fifth of them 0

    tensor_spec(role part_, std::string_view name_, std::initializer_list<index_t> axes)
        : name(name_), part(part_), rank(axes.size()) {
        std::size_t axis = 4 - rank;
        for (index_t extent : axes)
            extents[axis++] = extent;
    }

    tensor_spec& per_row() {
        first_axis = counted::rows;
        return *this;
    }
    tensor_spec& per_entry() {
        first_axis = counted::entries;
        return *this;
    }
    tensor_spec& of(std::string_view name_) {
        variable = name_;
        return *this;
    }
    tensor_spec& as_weights() {
        is_weights = true;
        return *this;
    }
    tensor_spec& free(std::vector<std::size_t> axes) {
        free_axes = std::move(axes);
        return *this;
    }

    /// The place of its first axis among the four.
    [[nodiscard]] std::size_t first() const { return 4 - rank; }
    [[nodiscard]] bool is_gradient() const {
        return part == role::gradient || part == role::output_gradient;
    }
    [[nodiscard]] bool is_written() const {
        return part == role::state || part == role::output || part == role::gradient;
    }
};

/// The arguments of one call.
class arguments {
  public:
    double scale = 1; ///< of those adapters that have one

    void add(std::string_view name, const any_tensor& tensor) { all_.push_back({name, tensor}); }

    any_tensor& operator[](std::string_view name) {
        for (named& one : all_)
            if (one.name == name) return one.tensor;
        return all_.front().tensor; // no page asks for what it has not described
    }

    /// The tensor with the axes that it has. (It allocates nothing, as calls are asked to.)
    template <std::size_t Rank>
    [[nodiscard]] tensor_ref<Rank> get(std::string_view name) const {
        return without_first_axes<Rank>(const_cast<arguments&>(*this)[name]);
    }

    /// Puts another tensor in a place.
    template <std::size_t Rank>
    void set(std::string_view name, const tensor_ref<Rank>& tensor) {
        if constexpr (Rank == 4)
            (*this)[name] = tensor;
        else
            set(name, tensor.prepend_axis());
    }

    /// Says that a gradient is not wanted.
    void leave_out(std::string_view name) { (*this)[name] = {}; }

  private:
    struct named {
        std::string_view name;
        any_tensor tensor;
    };

    template <std::size_t Rank, std::size_t From>
    static tensor_ref<Rank> without_first_axes(const tensor_ref<From>& tensor) {
        if constexpr (Rank == From)
            return tensor;
        else
            return without_first_axes<Rank>(tensor.slice(0, 0));
    }

    std::vector<named> all_;
};

} // namespace mhr::test

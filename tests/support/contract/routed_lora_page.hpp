#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <mhr/lora/routed_lora.hpp>

#include "support/contract/adapter.hpp"
#include "support/routed_oracle.hpp"
#include "support/tensor.hpp"

/// \file
/// LoRA whose modules are mixed for each entry.

namespace mhr::test {

/// The tensors of a layer with an inventory, for all but its state.
inline std::vector<tensor_spec> tensors_of_inventory(const contract_sizes& s, index_t entries) {
    return {tensor_spec(role::input, "x", {s.rows, s.in_features()}).per_row(),
            tensor_spec(role::input, "inventory.a", {s.heads, s.modules, s.in, s.rank})
                .free({0, 1, 2, 3}),
            tensor_spec(role::input, "inventory.b", {s.heads, s.modules, s.rank, s.out}).free({3}),
            tensor_spec(role::input, "layer.weights", {entries, s.heads, s.modules})
                .per_entry()
                .as_weights(),
            tensor_spec(role::output, "y", {s.rows, s.out_features()}).per_row(),
            tensor_spec(role::output_gradient, "d_y", {s.rows, s.out_features()}).per_row().of("y"),
            tensor_spec(role::gradient, "gradients.x", {s.rows, s.in_features()}).per_row().of("x"),
            tensor_spec(role::gradient, "gradients.a", {s.heads, s.modules, s.in, s.rank})
                .of("inventory.a"),
            tensor_spec(role::gradient, "gradients.b", {s.heads, s.modules, s.rank, s.out})
                .of("inventory.b"),
            tensor_spec(role::gradient, "gradients.weights", {entries, s.heads, s.modules})
                .per_entry()
                .of("layer.weights")};
}

/// The layer and the gradients of a call.
/// @{
inline routed_lora layer_of(const arguments& given) {
    return {given.get<4>("inventory.a"), given.get<4>("inventory.b"), given.get<3>("layer.weights"),
            given.scale};
}
inline routed_lora_gradients gradients_of(const arguments& given) {
    return {given.get<2>("gradients.x"), given.get<4>("gradients.a"), given.get<4>("gradients.b"),
            given.get<3>("gradients.weights")};
}
/// @}

class routed_lora_page : public described_adapter<routed_lora_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "routed_lora_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "routed_lora_backward"; }
    [[nodiscard]] bool forward_is_one_phase() const override { return false; }
    [[nodiscard]] bool sums_along_memory(std::string_view result) const override {
        return result == "gradients.weights";
    }
    [[nodiscard]] bool is_added_to_twice(std::string_view result) const override {
        return result == "gradients.weights";
    }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        auto all = tensors_of_inventory(s, entries);
        all.push_back(tensor_spec(role::state, "state.mixed.a", {entries, s.in_features(), s.rank})
                          .per_entry());
        all.push_back(tensor_spec(role::state, "state.mixed.b", {entries, s.rank, s.out_features()})
                          .per_entry());
        all.push_back(tensor_spec(role::state, "state.hidden", {s.rows, s.rank}).per_row());
        return all;
    }

    static routed_lora_state state(const arguments& given) {
        return {{given.get<3>("state.mixed.a"), given.get<3>("state.mixed.b")},
                given.get<2>("state.hidden")};
    }

    void forward(const batch& rows, const arguments& given) const override {
        routed_lora_forward(rows, layer_of(given), given.get<2>("x"), given.get<2>("y"),
                            state(given));
    }
    void backward(const batch& rows, const arguments& given, workspace scratch) const override {
        routed_lora_backward(rows, layer_of(given), given.get<2>("x"), given.get<2>("d_y"),
                             state(given), gradients_of(given), scratch);
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(rows, layer_of(given), given.get<2>("x"), given.get<2>("y"),
                            state(given));
    }
    [[nodiscard]] std::size_t scratch_size(const batch& rows, const arguments& given,
                                           element_type sums) const override {
        return routed_lora_backward_workspace_size(rows, layer_of(given), sums);
    }
    [[nodiscard]] std::size_t state_size(const batch& rows, const arguments& given,
                                         element_type sums) const override {
        return routed_lora_state_size(rows, layer_of(given), sums);
    }
    void take_state(workspace& memory, const batch& rows, arguments& given,
                    element_type sums) const override {
        const auto taken = take_routed_lora_state(memory, rows, layer_of(given), sums);
        given.set("state.mixed.a", taken.mixed.a);
        given.set("state.mixed.b", taken.mixed.b);
        given.set("state.hidden", taken.hidden);
    }

    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        const index_t in = s.in_features(), out = s.out_features(), m = s.modules;
        const index_t terms = result == "state.mixed.a" || result == "state.mixed.b" ? m
                              : result == "state.hidden"                             ? in + m
                              : result == "y"           ? in + s.rank + 2 * m
                              : result == "gradients.x" ? out + s.rank + 2 * m
                              : result == "gradients.a" ? out + s.rows + m
                              : result == "gradients.b"
                                  ? in + s.rows + m
                                  : in + out + s.rows + m + s.rank * (s.in + s.out);
        return static_cast<double>(terms) / 2 + 4;
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto oracle = oracle_of(v);
        const auto mixed_a = oracle.mixed_a();
        const auto mixed_b = oracle.mixed_b();
        const auto same = [](const S& value) { return value; };
        transform(mixed_a.view(), v.template get<3>("state.mixed.a"), same);
        transform(mixed_b.view(), v.template get<3>("state.mixed.b"), same);
        const auto hidden = v.template get<2>("state.hidden");
        for (index_t row = 0; row < hidden.extent(0); ++row)
            for (index_t k = 0; v.entry_of_row(row) >= 0 && k < hidden.extent(1); ++k) {
                hidden(row, k) = S(0);
                for (index_t i = 0; i < oracle.x.extents()[1]; ++i)
                    hidden(row, k) += oracle.x(row, i) * mixed_a(v.entry_of_row(row), i, k);
            }
        auto y = copy_of(v.template get<2>("y"));
        oracle.forward(y);
        transform(y.view(), v.template get<2>("y"), same);
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto same = [](const S& value) { return value; };
        auto d_x = copy_of(v.template get<2>("gradients.x"));
        auto d_a = copy_of(v.template get<4>("gradients.a"));
        auto d_b = copy_of(v.template get<4>("gradients.b"));
        auto d_weights = copy_of(v.template get<3>("gradients.weights"));
        oracle_of(v).backward(copy_of(v.template get<2>("d_y")), d_x, d_a, d_b, d_weights);
        transform(d_x.view(), v.template get<2>("gradients.x"), same);
        transform(d_a.view(), v.template get<4>("gradients.a"), same);
        transform(d_b.view(), v.template get<4>("gradients.b"), same);
        transform(d_weights.view(), v.template get<3>("gradients.weights"), same);
    }

  private:
    template <class S, std::size_t Rank>
    static tensor<S, Rank> copy_of(const tensor_view<S, Rank>& view) {
        tensor<S, Rank> copy(view.extents());
        transform(view, copy.view(), [](const S& value) { return value; });
        return copy;
    }
    template <class S>
    static routed_oracle<S> oracle_of(oracle_values<S>& v) {
        return {v.entry_of_row,
                v.scale,
                copy_of(v.template get<2>("x")),
                copy_of(v.template get<4>("inventory.a")),
                copy_of(v.template get<4>("inventory.b")),
                copy_of(v.template get<3>("layer.weights"))};
    }
};

} // namespace mhr::test

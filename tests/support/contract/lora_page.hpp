#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <mhr/lora/lora.hpp>
#include <mhr/reference/lora.hpp>

#include "support/contract/adapter.hpp"

/// \file
/// LoRA with a ready adapter for each entry.

namespace mhr::test {

class lora_page : public described_adapter<lora_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "lora_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "lora_backward"; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        const index_t in = s.in_features(), out = s.out_features();
        return {
            tensor_spec(role::input, "x", {s.rows, in}).per_row().free({1}),
            tensor_spec(role::input, "adapters.a", {entries, in, s.rank}).per_entry().free({2}),
            tensor_spec(role::input, "adapters.b", {entries, s.rank, out}).per_entry().free({2}),
            tensor_spec(role::state, "state.hidden", {s.rows, s.rank}).per_row().free({1}),
            tensor_spec(role::output, "y", {s.rows, out}).per_row(),
            tensor_spec(role::output_gradient, "d_y", {s.rows, out}).per_row().of("y"),
            tensor_spec(role::gradient, "gradients.x", {s.rows, in}).per_row().of("x"),
            tensor_spec(role::gradient, "gradients.adapters.a", {entries, in, s.rank})
                .per_entry()
                .of("adapters.a"),
            tensor_spec(role::gradient, "gradients.adapters.b", {entries, s.rank, out})
                .per_entry()
                .of("adapters.b")};
    }

    /// The adapters of a call.
    static lora_list adapters(const arguments& given) {
        return {given.get<3>("adapters.a"), given.get<3>("adapters.b"), given.scale};
    }
    static lora_state state(const arguments& given) { return {given.get<2>("state.hidden")}; }

    void forward(const batch& rows, const arguments& given) const override {
        lora_forward(rows, adapters(given), given.get<2>("x"), given.get<2>("y"), state(given));
    }
    void backward(const batch& rows, const arguments& given, workspace scratch) const override {
        const stacked_lora_matrices gradients{given.get<3>("gradients.adapters.a"),
                                              given.get<3>("gradients.adapters.b")};
        lora_backward(rows, adapters(given), given.get<2>("x"), given.get<2>("d_y"), state(given),
                      {given.get<2>("gradients.x"), gradients}, scratch);
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(rows, adapters(given), given.get<2>("x"), given.get<2>("y"),
                            state(given));
    }
    [[nodiscard]] std::size_t scratch_size(const batch& rows, const arguments& given,
                                           element_type sums) const override {
        return lora_backward_workspace_size(rows, adapters(given), sums);
    }
    [[nodiscard]] std::size_t state_size(const batch& rows, const arguments& given,
                                         element_type sums) const override {
        return lora_state_size(rows, adapters(given), sums);
    }
    void take_state(workspace& memory, const batch& rows, arguments& given,
                    element_type sums) const override {
        given.set("state.hidden", take_lora_state(memory, rows, adapters(given), sums).hidden);
    }

    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        const index_t in = s.in_features(), out = s.out_features();
        const index_t terms = result == "state.hidden"           ? in
                              : result == "y"                    ? in + s.rank
                              : result == "gradients.x"          ? out + s.rank
                              : result == "gradients.adapters.a" ? out + s.rows
                                                                 : in + s.rows;
        return static_cast<double>(terms) / 2 + 3;
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto x = v.template input<2>("x");
        const auto a = v.template input<3>("adapters.a");
        const auto hidden = v.template get<2>("state.hidden");
        for (index_t row = 0; row < x.extent(0); ++row)
            for (index_t k = 0; v.entry_of_row(row) >= 0 && k < a.extent(2); ++k) {
                hidden(row, k) = S(0);
                for (index_t i = 0; i < x.extent(1); ++i)
                    hidden(row, k) += x(row, i) * a(v.entry_of_row(row), i, k);
            }
        reference::lora_forward(v.entries(), x, a, v.template input<3>("adapters.b"), v.scale,
                                v.template get<2>("y"));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        reference::lora_backward(
            v.entries(), v.template input<2>("x"), v.template input<3>("adapters.a"),
            v.template input<3>("adapters.b"), v.scale, v.template input<2>("d_y"),
            v.template get<2>("gradients.x"), v.template get<3>("gradients.adapters.a"),
            v.template get<3>("gradients.adapters.b"));
    }
};

} // namespace mhr::test

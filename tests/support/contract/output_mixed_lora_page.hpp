#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <mhr/core/sums.hpp>
#include <mhr/lora/output_mixed_lora.hpp>
#include <mhr/reference/output_mixed_lora.hpp>

#include "support/contract/adapter.hpp"
#include "support/contract/routed_lora_page.hpp"

/// \file
/// LoRA whose modules' outputs are mixed: a layer of one head, whatever the sizes say.

namespace mhr::test {

class output_mixed_lora_page : public described_adapter<output_mixed_lora_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "output_mixed_lora_forward"; }
    [[nodiscard]] std::string backward_name() const override {
        return "output_mixed_lora_backward";
    }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        contract_sizes one_head = s;
        one_head.heads = 1;
        one_head.in = s.in_features();
        one_head.out = s.out_features();
        auto all = tensors_of_inventory(one_head, entries);
        all.push_back(
            tensor_spec(role::state, "state.hidden", {s.rows, s.modules, s.rank}).per_row());
        return all;
    }

    static output_mixed_lora_state state(const arguments& given) {
        return {given.get<3>("state.hidden")};
    }

    void forward(const batch& rows, const arguments& given) const override {
        output_mixed_lora_forward(rows, layer_of(given), given.get<2>("x"), given.get<2>("y"),
                                  state(given));
    }
    void backward(const batch& rows, const arguments& given, workspace scratch) const override {
        output_mixed_lora_backward(rows, layer_of(given), given.get<2>("x"), given.get<2>("d_y"),
                                   state(given), gradients_of(given), scratch);
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(rows, layer_of(given), given.get<2>("x"), given.get<2>("y"),
                            state(given));
    }
    [[nodiscard]] std::size_t scratch_size(const batch& rows, const arguments& given,
                                           element_type sums) const override {
        return output_mixed_lora_backward_workspace_size(rows, layer_of(given), sums);
    }
    [[nodiscard]] std::size_t state_size(const batch& rows, const arguments& given,
                                         element_type sums) const override {
        return output_mixed_lora_state_size(rows, layer_of(given), sums);
    }
    void take_state(workspace& memory, const batch& rows, arguments& given,
                    element_type sums) const override {
        given.set("state.hidden",
                  take_output_mixed_lora_state(memory, rows, layer_of(given), sums).hidden);
    }

    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        const index_t in = s.in_features(), out = s.out_features(), hidden = s.modules * s.rank;
        const index_t terms = result == "state.hidden"  ? in
                              : result == "y"           ? in + hidden
                              : result == "gradients.x" ? out + hidden
                              : result == "gradients.a" ? out + s.rows
                              : result == "gradients.b" ? in + s.rows
                                                        : in + out + s.rows + s.rank;
        return static_cast<double>(terms) / 2 + 4;
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto x = v.template input<2>("x");
        const auto a = v.template input<4>("inventory.a").slice(0, 0);
        const auto weights = v.template input<3>("layer.weights").slice(1, 0);
        const auto hidden = v.template get<3>("state.hidden");
        // A module that a weight of 0 leaves out keeps its place in hidden.
        for_each_position(hidden.extents(), [&](const position<3>& at) {
            const index_t entry = v.entry_of_row(at[0]);
            if (entry < 0 || is_exactly(weights(entry, at[1]), S(0))) return;
            S sum = S(0);
            for (index_t i = 0; i < x.extent(1); ++i)
                sum += x(at[0], i) * a(at[1], i, at[2]);
            element(hidden, at) = sum;
        });
        reference::output_mixed_lora_forward(v.entries(), x, a,
                                             v.template input<4>("inventory.b").slice(0, 0),
                                             weights, v.scale, v.template get<2>("y"));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        reference::output_mixed_lora_backward(
            v.entries(), v.template input<2>("x"), v.template input<4>("inventory.a").slice(0, 0),
            v.template input<4>("inventory.b").slice(0, 0),
            v.template input<3>("layer.weights").slice(1, 0), v.scale, v.template input<2>("d_y"),
            v.template get<2>("gradients.x"), v.template get<4>("gradients.a").slice(0, 0),
            v.template get<4>("gradients.b").slice(0, 0),
            v.template get<3>("gradients.weights").slice(1, 0));
    }
};

} // namespace mhr::test

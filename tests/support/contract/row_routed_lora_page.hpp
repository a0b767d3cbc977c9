#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <mhr/core/sums.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/lora/row_routed_lora.hpp>
#include <mhr/reference/output_mixed_lora.hpp>
#include <mhr/reference/row_routed_lora.hpp>

#include "support/contract/adapter.hpp"
#include "support/contract/routed_lora_page.hpp"

/// \file
/// LoRA that goes through its modules one by one: with weights of each row, parameters or outputs
/// mixed, and routed LoRA of a batch that says so.

namespace mhr::test {

/// What the three have in common: the tensors of their state, and its oracle.
/// @{
inline void add_module_state(std::vector<tensor_spec>& all, const contract_sizes& s, bool hidden) {
    all.push_back(
        tensor_spec(role::state, "state.products.weights", {s.rows, s.heads, s.modules}).per_row());
    all.push_back(
        tensor_spec(role::state, "state.products.each", {s.rows, s.heads, s.modules, s.rank})
            .per_row());
    if (hidden) all.push_back(tensor_spec(role::state, "state.hidden", {s.rows, s.rank}).per_row());
}
inline module_products products_of(const arguments& given) {
    return {given.get<3>("state.products.weights"), given.get<4>("state.products.each")};
}
inline void set_products(arguments& given, const module_products& products) {
    given.set("state.products.weights", products.weights);
    given.set("state.products.each", products.each);
}

/// `weights` [rows, heads, modules]; what a weight of 0 leaves out keeps its place.
template <class S>
void expect_module_state(oracle_values<S>& v, const tensor_view<const S, 3>& weights, bool hidden) {
    const auto x = v.template input<2>("x");
    const auto a = v.template input<4>("inventory.a");
    const auto copies = v.template get<3>("state.products.weights");
    const auto each = v.template get<4>("state.products.each");
    const index_t n = a.extent(2);
    for (index_t row = 0; row < x.extent(0); ++row) {
        if (v.entry_of_row(row) < 0) continue;
        for (index_t k = 0; k < a.extent(3); ++k) {
            S total = S(0);
            for (index_t h = 0; h < a.extent(0); ++h)
                for (index_t m = 0; m < a.extent(1); ++m) {
                    copies(row, h, m) = weights(row, h, m);
                    if (is_exactly(weights(row, h, m), S(0))) continue;
                    S sum = S(0);
                    for (index_t i = 0; i < n; ++i)
                        sum += x(row, h * n + i) * a(h, m, i, k);
                    each(row, h, m, k) = sum;
                    total += weights(row, h, m) * sum;
                }
            if (hidden) v.template get<2>("state.hidden")(row, k) = total;
        }
        if (a.extent(3) > 0) continue;
        for (index_t h = 0; h < a.extent(0); ++h)
            for (index_t m = 0; m < a.extent(1); ++m)
                copies(row, h, m) = weights(row, h, m);
    }
}

inline double roundings_by_module(std::string_view result, const contract_sizes& s) {
    const index_t in = s.in_features(), out = s.out_features(), modules = s.heads * s.modules;
    const index_t hidden = modules * (s.rank + 1);
    const index_t terms = result == "state.products.weights" ? 0
                          : result == "state.products.each"  ? s.in
                          : result == "state.hidden"         ? in + modules
                          : result == "y"                    ? in + hidden
                          : result == "gradients.x"          ? out + hidden
                          : result == "gradients.a"          ? out + s.rows + hidden
                          : result == "gradients.b"          ? in + s.rows + hidden
                                                             : in + out + s.rows + hidden;
    return static_cast<double>(terms) / 2 + 4;
}
/// @}

class row_routed_lora_page : public described_adapter<row_routed_lora_page> {
  public:
    explicit row_routed_lora_page(mixture mixes) : mixes_(mixes) {}

    [[nodiscard]] std::string forward_name() const override { return "row_routed_lora_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "row_routed_lora_backward"; }
    [[nodiscard]] bool forward_is_one_phase() const override { return false; }
    [[nodiscard]] bool depends_on_entries() const override { return false; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& sizes,
                                                   index_t entries) const override {
        const contract_sizes s = sizes_of(sizes);
        auto all = tensors_of_inventory(s, entries);
        for (tensor_spec& spec : all)
            if (spec.name == "layer.weights" || spec.name == "gradients.weights") {
                spec.extents[1] = s.rows;
                spec.per_row();
            }
        add_module_state(all, s, mixes_ == mixture::of_parameters);
        return all;
    }

    [[nodiscard]] row_routed_lora layer(const arguments& given) const {
        return {given.get<4>("inventory.a"), given.get<4>("inventory.b"),
                given.get<3>("layer.weights"), given.scale, mixes_};
    }
    [[nodiscard]] row_routed_lora_state state(const arguments& given) const {
        row_routed_lora_state all{products_of(given)};
        if (mixes_ == mixture::of_parameters) all.hidden = given.get<2>("state.hidden");
        return all;
    }

    void forward(const batch& rows, const arguments& given) const override {
        row_routed_lora_forward(rows, layer(given), given.get<2>("x"), given.get<2>("y"),
                                state(given));
    }
    void backward(const batch& rows, const arguments& given, workspace scratch) const override {
        row_routed_lora_backward(rows, layer(given), given.get<2>("x"), given.get<2>("d_y"),
                                 state(given),
                                 {given.get<2>("gradients.x"), given.get<4>("gradients.a"),
                                  given.get<4>("gradients.b"), given.get<3>("gradients.weights")},
                                 scratch);
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(rows, layer(given), given.get<2>("x"), given.get<2>("y"), state(given));
    }
    [[nodiscard]] std::size_t scratch_size(const batch& rows, const arguments& given,
                                           element_type sums) const override {
        return row_routed_lora_backward_workspace_size(rows, layer(given), sums);
    }
    [[nodiscard]] std::size_t state_size(const batch& rows, const arguments& given,
                                         element_type sums) const override {
        return row_routed_lora_state_size(rows, layer(given), sums);
    }
    void take_state(workspace& memory, const batch& rows, arguments& given,
                    element_type sums) const override {
        const auto taken = take_row_routed_lora_state(memory, rows, layer(given), sums);
        set_products(given, taken.products);
        if (mixes_ == mixture::of_parameters) given.set("state.hidden", taken.hidden);
    }
    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        return roundings_by_module(result, sizes_of(s));
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto weights = v.template input<3>("layer.weights");
        const bool parameters = mixes_ == mixture::of_parameters;
        expect_module_state<S>(v, weights, parameters);
        const auto x = v.template input<2>("x");
        const auto a = v.template input<4>("inventory.a"), b = v.template input<4>("inventory.b");
        const auto y = v.template get<2>("y");
        if (parameters)
            reference::row_routed_lora_forward(v.entries(), x, a, b, weights, v.scale, y);
        else
            reference::output_mixed_lora_forward(own_entries(v).const_view(), x, a.slice(0, 0),
                                                 b.slice(0, 0), weights.slice(1, 0), v.scale, y);
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto weights = v.template input<3>("layer.weights");
        const auto x = v.template input<2>("x"), d_y = v.template input<2>("d_y");
        const auto a = v.template input<4>("inventory.a"), b = v.template input<4>("inventory.b");
        const auto d_x = v.template get<2>("gradients.x");
        const auto d_a = v.template get<4>("gradients.a"), d_b = v.template get<4>("gradients.b");
        const auto d_weights = v.template get<3>("gradients.weights");
        if (mixes_ == mixture::of_parameters)
            reference::row_routed_lora_backward(v.entries(), x, a, b, weights, v.scale, d_y, d_x,
                                                d_a, d_b, d_weights);
        else
            reference::output_mixed_lora_backward(
                own_entries(v).const_view(), x, a.slice(0, 0), b.slice(0, 0), weights.slice(1, 0),
                v.scale, d_y, d_x, d_a.slice(0, 0), d_b.slice(0, 0), d_weights.slice(1, 0));
    }

  private:
    /// Outputs are mixed by one head.
    [[nodiscard]] contract_sizes sizes_of(contract_sizes s) const {
        if (mixes_ == mixture::of_parameters) return s;
        s.in = s.in_features();
        s.out = s.out_features();
        s.heads = 1;
        return s;
    }
    /// Each row that has a task is an entry of its own.
    template <class S>
    static tensor<index_t, 1> own_entries(const oracle_values<S>& v) {
        tensor<index_t, 1> entries = v.entry_of_row;
        for (index_t row = 0; row < entries.extents()[0]; ++row)
            if (entries(row) >= 0) entries(row) = row;
        return entries;
    }

    mixture mixes_;
};

/// Routed LoRA of a batch that is evaluated by module.
class routed_lora_by_module_page : public described_adapter<routed_lora_by_module_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return by_entry_.forward_name(); }
    [[nodiscard]] std::string backward_name() const override { return by_entry_.backward_name(); }
    [[nodiscard]] bool forward_is_one_phase() const override { return false; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        auto all = tensors_of_inventory(s, entries);
        add_module_state(all, s, true);
        return all;
    }
    static routed_lora_state state(const arguments& given) {
        return {{}, given.get<2>("state.hidden"), products_of(given)};
    }

    void forward(const batch& rows, const arguments& given) const override {
        routed_lora_forward(by_module(rows), layer_of(given), given.get<2>("x"), given.get<2>("y"),
                            state(given));
    }
    void backward(const batch& rows, const arguments& given, workspace scratch) const override {
        routed_lora_backward(by_module(rows), layer_of(given), given.get<2>("x"),
                             given.get<2>("d_y"), state(given), gradients_of(given), scratch);
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(by_module(rows), layer_of(given), given.get<2>("x"), given.get<2>("y"),
                            state(given));
    }
    [[nodiscard]] std::size_t scratch_size(const batch& rows, const arguments& given,
                                           element_type sums) const override {
        return routed_lora_backward_workspace_size(by_module(rows), layer_of(given), sums);
    }
    [[nodiscard]] std::size_t state_size(const batch& rows, const arguments& given,
                                         element_type sums) const override {
        return routed_lora_state_size(by_module(rows), layer_of(given), sums);
    }
    void take_state(workspace& memory, const batch& rows, arguments& given,
                    element_type sums) const override {
        const auto taken = take_routed_lora_state(memory, by_module(rows), layer_of(given), sums);
        set_products(given, taken.products);
        given.set("state.hidden", taken.hidden);
    }
    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        return roundings_by_module(result, s);
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto weights = row_weights(v);
        expect_module_state<S>(v, weights.const_view(), true);
        reference::row_routed_lora_forward(v.entries(), v.template input<2>("x"),
                                           v.template input<4>("inventory.a"),
                                           v.template input<4>("inventory.b"), weights.const_view(),
                                           v.scale, v.template get<2>("y"));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto weights = row_weights(v);
        tensor<S, 3> d_weights(weights.extents());
        reference::row_routed_lora_backward(
            v.entries(), v.template input<2>("x"), v.template input<4>("inventory.a"),
            v.template input<4>("inventory.b"), weights.const_view(), v.scale,
            v.template input<2>("d_y"), v.template get<2>("gradients.x"),
            v.template get<4>("gradients.a"), v.template get<4>("gradients.b"), d_weights.view());
        const auto sums = v.template get<3>("gradients.weights");
        for_each_position(d_weights.extents(), [&](const position<3>& at) {
            const index_t entry = v.entry_of_row(at[0]);
            if (entry >= 0) sums(entry, at[1], at[2]) += element(d_weights.view(), at);
        });
    }

  private:
    static batch by_module(batch rows) {
        rows.mixtures = evaluation::by_module;
        return rows;
    }
    template <class S>
    static tensor<S, 3> row_weights(oracle_values<S>& v) {
        const auto given = v.template input<3>("layer.weights");
        tensor<S, 3> weights(
            {v.template input<2>("x").extent(0), given.extent(1), given.extent(2)});
        for_each_position(weights.extents(), [&](const position<3>& at) {
            const index_t entry = v.entry_of_row(at[0]);
            if (entry >= 0) element(weights.view(), at) = given(entry, at[1], at[2]);
        });
        return weights;
    }

    routed_lora_page by_entry_;
};

} // namespace mhr::test

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <mhr/ia3/ia3.hpp>
#include <mhr/ia3/routed_ia3.hpp>
#include <mhr/reference/ia3.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/contract/adapter.hpp"
#include "support/tensor.hpp"

/// \file
/// (IA)3 with ready scales, and with scales that are mixed for each entry. Of the sizes,
/// in_features are the features.

namespace mhr::test {

class ia3_page : public described_adapter<ia3_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "ia3_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "ia3_backward"; }
    [[nodiscard]] bool backward_is_one_phase() const override { return true; }
    [[nodiscard]] bool has_scale() const override { return false; }
    [[nodiscard]] bool writes_without_tasks() const override { return true; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        const index_t n = s.in_features();
        return {tensor_spec(role::input, "x", {s.rows, n}).per_row().free({1}),
                tensor_spec(role::input, "layer.scales", {entries, n}).per_entry(),
                tensor_spec(role::output, "y", {s.rows, n}).per_row(),
                tensor_spec(role::output_gradient, "d_y", {s.rows, n}).per_row().of("y"),
                tensor_spec(role::gradient, "gradients.x", {s.rows, n}).per_row().of("x"),
                tensor_spec(role::gradient, "gradients.scales", {entries, n})
                    .per_entry()
                    .of("layer.scales")};
    }

    static ia3 layer(const arguments& given) { return {given.get<2>("layer.scales")}; }

    void forward(const batch& rows, const arguments& given) const override {
        ia3_forward(rows, layer(given), given.get<2>("x"), given.get<2>("y"));
    }
    void backward(const batch& rows, const arguments& given, workspace /*none*/) const override {
        ia3_backward(rows, layer(given), given.get<2>("x"), given.get<2>("d_y"),
                     {given.get<2>("gradients.x"), given.get<2>("gradients.scales")});
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(rows, layer(given), given.get<2>("x"), given.get<2>("y"));
    }

    [[nodiscard]] element_type sums_of_result(std::string_view result,
                                              const arguments& given) const override {
        const auto type = [&](std::string_view name) { return given.get<2>(name).type(); };
        const auto factor = [&] {
            return result == "y"             ? sums_of(type("x"), type("layer.scales"))
                   : result == "gradients.x" ? sums_of(type("d_y"), type("layer.scales"))
                                             : sums_of(type("x"), type("d_y"));
        };
        return sums_of(factor(), type(result));
    }
    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        return result == "y"             ? 1
               : result == "gradients.x" ? 1.5
                                         : static_cast<double>(s.rows) / 2 + 1;
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        reference::ia3_forward(v.entries(), v.template input<2>("x"),
                               v.template input<2>("layer.scales"), v.template get<2>("y"));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        reference::ia3_backward(v.entries(), v.template input<2>("x"),
                                v.template input<2>("layer.scales"), v.template input<2>("d_y"),
                                v.template get<2>("gradients.x"),
                                v.template get<2>("gradients.scales"));
    }
};

class routed_ia3_page : public described_adapter<routed_ia3_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "routed_ia3_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "routed_ia3_backward"; }
    [[nodiscard]] bool forward_is_one_phase() const override { return false; }
    [[nodiscard]] bool has_scale() const override { return false; }
    [[nodiscard]] bool writes_without_tasks() const override { return true; }
    [[nodiscard]] bool sums_along_memory(std::string_view result) const override {
        return result == "gradients.weights";
    }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        const index_t n = s.in_features();
        return {
            tensor_spec(role::input, "x", {s.rows, n}).per_row(),
            tensor_spec(role::input, "layer.inventory", {s.heads, s.modules, s.in}).free({0, 1, 2}),
            tensor_spec(role::input, "layer.weights", {entries, s.heads, s.modules})
                .per_entry()
                .as_weights(),
            tensor_spec(role::state, "state.scales", {entries, n}).per_entry(),
            tensor_spec(role::output, "y", {s.rows, n}).per_row(),
            tensor_spec(role::output_gradient, "d_y", {s.rows, n}).per_row().of("y"),
            tensor_spec(role::gradient, "gradients.x", {s.rows, n}).per_row().of("x"),
            tensor_spec(role::gradient, "gradients.inventory", {s.heads, s.modules, s.in})
                .of("layer.inventory"),
            tensor_spec(role::gradient, "gradients.weights", {entries, s.heads, s.modules})
                .per_entry()
                .of("layer.weights")};
    }

    static routed_ia3 layer(const arguments& given) {
        return {given.get<3>("layer.inventory"), given.get<3>("layer.weights")};
    }
    static routed_ia3_state state(const arguments& given) { return {given.get<2>("state.scales")}; }

    void forward(const batch& rows, const arguments& given) const override {
        routed_ia3_forward(rows, layer(given), given.get<2>("x"), given.get<2>("y"), state(given));
    }
    void backward(const batch& rows, const arguments& given, workspace scratch) const override {
        routed_ia3_backward(rows, layer(given), given.get<2>("x"), given.get<2>("d_y"),
                            state(given),
                            {given.get<2>("gradients.x"), given.get<3>("gradients.inventory"),
                             given.get<3>("gradients.weights")},
                            scratch);
    }
    [[nodiscard]] std::string why_not(const batch& rows, const arguments& given) const override {
        return mhr::why_not(rows, layer(given), given.get<2>("x"), given.get<2>("y"), state(given));
    }
    [[nodiscard]] std::size_t scratch_size(const batch& rows, const arguments& given,
                                           element_type sums) const override {
        return routed_ia3_backward_workspace_size(rows, layer(given), sums);
    }
    [[nodiscard]] std::size_t state_size(const batch& rows, const arguments& given,
                                         element_type sums) const override {
        return routed_ia3_state_size(rows, layer(given), sums);
    }
    void take_state(workspace& memory, const batch& rows, arguments& given,
                    element_type sums) const override {
        given.set("state.scales", take_routed_ia3_state(memory, rows, layer(given), sums).scales);
    }

    [[nodiscard]] double roundings(std::string_view result,
                                   const contract_sizes& s) const override {
        const index_t terms = result == "gradients.inventory" ? s.rows
                              : result == "gradients.weights" ? s.rows + s.in
                                                              : s.modules;
        return static_cast<double>(terms) / 2 + 3;
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto scales = v.template get<2>("state.scales");
        const auto mixed = mix(v);
        transform(mixed.view(), scales, [](const S& value) { return value; });
        reference::ia3_forward(v.entries(), v.template input<2>("x"), mixed.view(),
                               v.template get<2>("y"));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto mixed = mix(v);
        const auto inventory = v.template input<3>("layer.inventory");
        tensor<S, 2> d_scales(mixed.extents());
        reference::ia3_backward(v.entries(), v.template input<2>("x"), mixed.view(),
                                v.template input<2>("d_y"), v.template get<2>("gradients.x"),
                                d_scales.view());
        reference::mix_backward(v.template input<3>("layer.weights"), inventory.split(2, 1),
                                d_scales.const_view().split(1, inventory.extent(0)).split(2, 1),
                                v.template get<3>("gradients.inventory").split(2, 1),
                                v.template get<3>("gradients.weights"));
    }

  private:
    /// The mixed scales [entries, features].
    template <class S>
    static tensor<S, 2> mix(oracle_values<S>& v) {
        const auto inventory = v.template input<3>("layer.inventory");
        tensor<S, 2> scales(v.template get<2>("state.scales").extents());
        reference::mix_forward(v.template input<3>("layer.weights"), inventory.split(2, 1),
                               scales.view().split(1, inventory.extent(0)).split(2, 1));
        return scales;
    }
};

} // namespace mhr::test

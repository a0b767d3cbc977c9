#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include <mhr/ia3/routed_ia3.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/contract/adapter.hpp"
#include "support/tensor.hpp"

/// \file
/// The mixing and the average of inventories by themselves: adapters without rows, and without a
/// state.

namespace mhr::test {

/// Matrices of a batch, head by head as the oracle of mixing sees them.
/// @{
template <class S>
tensor_view<S, 4> heads_below(const tensor_view<S, 3>& a, index_t heads) {
    return a.split(1, heads);
}
template <class S>
tensor_view<S, 4> heads_beside(const tensor_view<S, 3>& b, index_t heads) {
    return b.split(2, heads).transpose(1, 2);
}
/// @}

/// The weights of an average, [1, heads, modules].
template <class S>
tensor<S, 3> uniform_weights(index_t heads, index_t modules) {
    tensor<S, 3> weights({1, heads, modules});
    for (S& weight : weights.values())
        weight = S(1) / S(static_cast<double>(modules));
    return weights;
}

template <class Page>
class mixing_page : public described_adapter<Page> {
  public:
    [[nodiscard]] bool has_question() const override { return false; }
    [[nodiscard]] bool has_scale() const override { return false; }
    [[nodiscard]] bool backward_is_one_phase() const override { return true; }
    [[nodiscard]] bool sums_along_memory(std::string_view result) const override {
        return result == "gradients.weights";
    }
    [[nodiscard]] double roundings(std::string_view /*result*/,
                                   const contract_sizes& s) const override {
        return static_cast<double>(s.modules + s.tasks + s.rank * (s.in + s.out)) / 2 + 2;
    }

  protected:
    /// f64 if one of these tensors is.
    static element_type sums_of_all(const arguments& given,
                                    std::initializer_list<std::string_view> names) {
        element_type sums = element_type::f32;
        for (std::string_view name : names)
            sums = mhr::sums_of(sums, given.get<4>(name).type());
        return sums;
    }
};

class mix_lora_page : public mixing_page<mix_lora_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "mix_lora_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "mix_lora_backward"; }
    [[nodiscard]] bool is_added_to_twice(std::string_view result) const override {
        return result == "gradients.weights";
    }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        const index_t in = s.in_features(), out = s.out_features();
        return {
            tensor_spec(role::input, "inventory.a", {s.heads, s.modules, s.in, s.rank})
                .free({0, 1, 2, 3}),
            tensor_spec(role::input, "inventory.b", {s.heads, s.modules, s.rank, s.out}).free({3}),
            tensor_spec(role::input, "weights", {entries, s.heads, s.modules})
                .per_entry()
                .free({0})
                .as_weights(),
            tensor_spec(role::output, "mixed.a", {entries, in, s.rank}).per_entry(),
            tensor_spec(role::output, "mixed.b", {entries, s.rank, out}).per_entry(),
            tensor_spec(role::output_gradient, "d_a", {entries, in, s.rank})
                .per_entry()
                .of("mixed.a"),
            tensor_spec(role::output_gradient, "d_b", {entries, s.rank, out})
                .per_entry()
                .of("mixed.b"),
            tensor_spec(role::gradient, "gradients.a", {s.heads, s.modules, s.in, s.rank})
                .of("inventory.a"),
            tensor_spec(role::gradient, "gradients.b", {s.heads, s.modules, s.rank, s.out})
                .of("inventory.b"),
            tensor_spec(role::gradient, "gradients.weights", {entries, s.heads, s.modules})
                .per_entry()
                .of("weights")};
    }

    void forward(const batch& rows, const arguments& given) const override {
        mix_lora_forward(rows.executor, given.get<3>("weights"), inventory(given),
                         {given.get<3>("mixed.a"), given.get<3>("mixed.b")});
    }
    void backward(const batch& rows, const arguments& given, workspace /*none*/) const override {
        mix_lora_backward(rows.executor, given.get<3>("weights"), inventory(given),
                          given.get<3>("d_a"), given.get<3>("d_b"),
                          {given.get<4>("gradients.a"), given.get<4>("gradients.b"),
                           given.get<3>("gradients.weights")});
    }
    [[nodiscard]] element_type sums_of_result(std::string_view result,
                                              const arguments& given) const override {
        if (result == "mixed.a") return sums_of_all(given, {"weights", "inventory.a", "mixed.a"});
        if (result == "mixed.b") return sums_of_all(given, {"weights", "inventory.b", "mixed.b"});
        const element_type of_a = sums_of_all(
            given, {"weights", "inventory.a", "d_a", "gradients.a", "gradients.weights"});
        const element_type of_b = sums_of_all(
            given, {"weights", "inventory.b", "d_b", "gradients.b", "gradients.weights"});
        if (result == "gradients.a") return of_a;
        if (result == "gradients.b") return of_b;
        return of_a == element_type::f64 ? of_b : of_a; // the coarser of two sums
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto a = v.template input<4>("inventory.a");
        const auto b = v.template input<4>("inventory.b");
        const auto weights = v.template input<3>("weights");
        reference::mix_forward(weights, a, heads_below(v.template get<3>("mixed.a"), a.extent(0)));
        reference::mix_forward(weights, b, heads_beside(v.template get<3>("mixed.b"), b.extent(0)));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto a = v.template input<4>("inventory.a");
        const auto b = v.template input<4>("inventory.b");
        const auto weights = v.template input<3>("weights");
        const auto d_weights = v.template get<3>("gradients.weights");
        reference::mix_backward(weights, a, heads_below(v.template input<3>("d_a"), a.extent(0)),
                                v.template get<4>("gradients.a"), d_weights);
        reference::mix_backward(weights, b, heads_beside(v.template input<3>("d_b"), b.extent(0)),
                                v.template get<4>("gradients.b"), d_weights);
    }

  private:
    static lora_inventory inventory(const arguments& given) {
        return {given.get<4>("inventory.a"), given.get<4>("inventory.b")};
    }
};

class average_lora_page : public mixing_page<average_lora_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "average_lora_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "average_lora_backward"; }
    [[nodiscard]] bool writes_without_tasks() const override { return true; }
    [[nodiscard]] bool divides_by_modules() const override { return true; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t /*entries*/) const override {
        const index_t in = s.in_features(), out = s.out_features();
        return {tensor_spec(role::forward_input, "inventory.a", {s.heads, s.modules, s.in, s.rank})
                    .free({0, 1, 2, 3}),
                tensor_spec(role::forward_input, "inventory.b", {s.heads, s.modules, s.rank, s.out})
                    .free({3}),
                tensor_spec(role::output, "average.a", {in, s.rank}),
                tensor_spec(role::output, "average.b", {s.rank, out}),
                tensor_spec(role::output_gradient, "d_a", {in, s.rank}).of("average.a"),
                tensor_spec(role::output_gradient, "d_b", {s.rank, out}).of("average.b"),
                tensor_spec(role::gradient, "d_inventory.a", {s.heads, s.modules, s.in, s.rank})
                    .free({0, 1, 2, 3})
                    .of("inventory.a"),
                tensor_spec(role::gradient, "d_inventory.b", {s.heads, s.modules, s.rank, s.out})
                    .free({3})
                    .of("inventory.b")};
    }

    void forward(const batch& rows, const arguments& given) const override {
        average_lora_forward(rows.executor,
                             {given.get<4>("inventory.a"), given.get<4>("inventory.b")},
                             {given.get<2>("average.a"), given.get<2>("average.b")});
    }
    void backward(const batch& rows, const arguments& given, workspace /*none*/) const override {
        average_lora_backward(rows.executor, given.get<2>("d_a"), given.get<2>("d_b"),
                              {given.get<4>("d_inventory.a"), given.get<4>("d_inventory.b")});
    }
    [[nodiscard]] element_type sums_of_result(std::string_view result,
                                              const arguments& given) const override {
        if (result == "average.a") return sums_of_all(given, {"inventory.a", "average.a"});
        if (result == "average.b") return sums_of_all(given, {"inventory.b", "average.b"});
        return result == "d_inventory.a" ? sums_of_all(given, {"d_a", "d_inventory.a"})
                                         : sums_of_all(given, {"d_b", "d_inventory.b"});
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto a = v.template input<4>("inventory.a");
        const auto b = v.template input<4>("inventory.b");
        const auto weights = uniform_weights<S>(a.extent(0), a.extent(1));
        reference::mix_forward(
            weights.view(), a,
            heads_below(v.template get<2>("average.a").prepend_axis(), a.extent(0)));
        reference::mix_forward(
            weights.view(), b,
            heads_beside(v.template get<2>("average.b").prepend_axis(), b.extent(0)));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto a = v.template input<4>("inventory.a");
        const auto b = v.template input<4>("inventory.b");
        const auto weights = uniform_weights<S>(a.extent(0), a.extent(1));
        reference::mix_backward(weights.view(), a,
                                heads_below(v.template input<2>("d_a").prepend_axis(), a.extent(0)),
                                v.template get<4>("d_inventory.a"), tensor_view<S, 3>{});
        reference::mix_backward(
            weights.view(), b, heads_beside(v.template input<2>("d_b").prepend_axis(), b.extent(0)),
            v.template get<4>("d_inventory.b"), tensor_view<S, 3>{});
    }
};

class mix_ia3_page : public mixing_page<mix_ia3_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "mix_ia3_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "mix_ia3_backward"; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t entries) const override {
        return {tensor_spec(role::input, "inventory", {s.heads, s.modules, s.in}).free({0, 1, 2}),
                tensor_spec(role::input, "weights", {entries, s.heads, s.modules})
                    .per_entry()
                    .free({0})
                    .as_weights(),
                tensor_spec(role::output, "scales", {entries, s.in_features()}).per_entry(),
                tensor_spec(role::output_gradient, "d_scales", {entries, s.in_features()})
                    .per_entry()
                    .of("scales"),
                tensor_spec(role::gradient, "gradients.inventory", {s.heads, s.modules, s.in})
                    .of("inventory"),
                tensor_spec(role::gradient, "gradients.weights", {entries, s.heads, s.modules})
                    .per_entry()
                    .of("weights")};
    }

    void forward(const batch& rows, const arguments& given) const override {
        mix_ia3_forward(rows.executor, given.get<3>("weights"), given.get<3>("inventory"),
                        given.get<2>("scales"));
    }
    void backward(const batch& rows, const arguments& given, workspace /*none*/) const override {
        mix_ia3_backward(rows.executor, given.get<3>("weights"), given.get<3>("inventory"),
                         given.get<2>("d_scales"),
                         {given.get<3>("gradients.inventory"), given.get<3>("gradients.weights")});
    }
    [[nodiscard]] element_type sums_of_result(std::string_view result,
                                              const arguments& given) const override {
        return result == "scales"
                   ? sums_of_all(given, {"weights", "inventory", "scales"})
                   : sums_of_all(given, {"weights", "inventory", "d_scales", "gradients.inventory",
                                         "gradients.weights"});
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto inventory = v.template input<3>("inventory");
        reference::mix_forward(
            v.template input<3>("weights"), inventory.split(2, 1),
            v.template get<2>("scales").split(1, inventory.extent(0)).split(2, 1));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto inventory = v.template input<3>("inventory");
        reference::mix_backward(
            v.template input<3>("weights"), inventory.split(2, 1),
            v.template input<2>("d_scales").split(1, inventory.extent(0)).split(2, 1),
            v.template get<3>("gradients.inventory").split(2, 1),
            v.template get<3>("gradients.weights"));
    }
};

class average_ia3_page : public mixing_page<average_ia3_page> {
  public:
    [[nodiscard]] std::string forward_name() const override { return "average_ia3_forward"; }
    [[nodiscard]] std::string backward_name() const override { return "average_ia3_backward"; }
    [[nodiscard]] bool writes_without_tasks() const override { return true; }
    [[nodiscard]] bool divides_by_modules() const override { return true; }
    [[nodiscard]] bool needs_all_gradients() const override { return true; }

    [[nodiscard]] std::vector<tensor_spec> tensors(const contract_sizes& s,
                                                   index_t /*entries*/) const override {
        return {tensor_spec(role::forward_input, "inventory", {s.heads, s.modules, s.in})
                    .free({0, 1, 2}),
                tensor_spec(role::output, "average", {s.in_features()}),
                tensor_spec(role::output_gradient, "d_average", {s.in_features()}).of("average"),
                tensor_spec(role::gradient, "d_inventory", {s.heads, s.modules, s.in})
                    .free({0, 1, 2})
                    .of("inventory")};
    }

    void forward(const batch& rows, const arguments& given) const override {
        average_ia3_forward(rows.executor, given.get<3>("inventory"), given.get<1>("average"));
    }
    void backward(const batch& rows, const arguments& given, workspace /*none*/) const override {
        average_ia3_backward(rows.executor, given.get<1>("d_average"), given.get<3>("d_inventory"));
    }
    [[nodiscard]] element_type sums_of_result(std::string_view result,
                                              const arguments& given) const override {
        return result == "average" ? sums_of_all(given, {"inventory", "average"})
                                   : sums_of_all(given, {"d_average", "d_inventory"});
    }

    template <class S>
    void oracle_forward(oracle_values<S>& v) const {
        const auto inventory = v.template input<3>("inventory");
        const index_t heads = inventory.extent(0);
        reference::mix_forward(
            uniform_weights<S>(heads, inventory.extent(1)).const_view(), inventory.split(2, 1),
            v.template get<1>("average").prepend_axis().split(1, heads).split(2, 1));
    }
    template <class S>
    void oracle_backward(oracle_values<S>& v) const {
        const auto inventory = v.template input<3>("inventory");
        const index_t heads = inventory.extent(0);
        reference::mix_backward(
            uniform_weights<S>(heads, inventory.extent(1)).const_view(), inventory.split(2, 1),
            v.template input<1>("d_average").prepend_axis().split(1, heads).split(2, 1),
            v.template get<3>("d_inventory").split(2, 1), tensor_view<S, 3>{});
    }
};

} // namespace mhr::test

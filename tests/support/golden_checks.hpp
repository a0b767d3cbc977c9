#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/routing/router.hpp>

#include "support/golden_case.hpp"
#include "support/safetensors.hpp"
#include "support/tensor.hpp"

/// \file
/// How each kind of golden case is computed with the library: `check_*(case, outcome)`.

namespace mhr::test {

template <class T>
tensor_view<T, 2> rows_of(tensor<T, 3>& batch) {
    const auto& extents = batch.extents();
    return {batch.values().data(), {extents[0] * extents[1], extents[2]}};
}

template <class T>
tensor<T, 1> list(const std::vector<T>& values) {
    tensor<T, 1> result({static_cast<index_t>(values.size())});
    result.values() = values;
    return result;
}

/// Calls `f` with the gate of a case: with noise, where it was recorded.
template <class T, class F>
void with_gate(const golden_case& c, F&& f) {
    if (c.file.contains("uniform")) {
        const auto uniforms = c.file.read<T, 3>("uniform");
        f(gumbel_sigmoid_gate{uniforms.view(), c.number("temperature")});
    } else {
        f(sigmoid_gate{});
    }
}

// Routing.

template <class T>
void check_routing(const golden_case& c, outcome& result) {
    const index_t heads = c.size("n_splits");
    const double tolerance = c.number("tol");
    const auto logits = c.file.read<T, 2>("module_logits");
    const auto tasks = c.file.read<std::int64_t, 1>("task_ids");
    const auto weights = c.file.read<T, 3>("weights");
    const auto d_weights = c.file.read<T, 3>("d_weights");
    const auto d_logits = c.file.read<T, 2>("d_module_logits");

    tensor<T, 3> got(weights.extents());
    tensor<T, 2> d_got(logits.extents());
    with_gate<T>(c, [&](const auto& gate) {
        const auto table = logits.view().split(1, heads);
        router_forward(serial_executor{}, table, tasks.view(), gate, got.view());
        router_backward(serial_executor{}, table, tasks.view(), gate, d_weights.view(),
                        d_got.view().split(1, heads));
    });
    result.compare("weights", got.view(), weights, tolerance);
    result.compare("d_module_logits", d_got.view(), d_logits, tolerance,
                   outcome::largest(d_weights.view()));
}

// LoRA layers.

/// The host's linear layer, y = x W^T + bias, which is no part of the library.
template <class T>
struct base_layer {
    tensor<T, 2> weight; // [out_features, in_features]
    tensor<T, 1> bias;   // [out_features], or nothing

    tensor<T, 2> forward(const tensor_view<T, 2>& x) const {
        tensor<T, 2> y({x.extent(0), weight.extents()[0]});
        for (index_t row = 0; row < x.extent(0); ++row)
            for (index_t o = 0; o < weight.extents()[0]; ++o) {
                T sum = bias.extents()[0] == 0 ? T(0) : bias(o);
                for (index_t i = 0; i < x.extent(1); ++i)
                    sum += x(row, i) * weight(o, i);
                y(row, o) = sum;
            }
        return y;
    }

    tensor<T, 2> backward(const tensor_view<T, 2>& d_y) const {
        tensor<T, 2> d_x({d_y.extent(0), weight.extents()[1]});
        for (index_t row = 0; row < d_y.extent(0); ++row)
            for (index_t o = 0; o < d_y.extent(1); ++o)
                for (index_t i = 0; i < weight.extents()[1]; ++i)
                    d_x(row, i) += d_y(row, o) * weight(o, i);
        return d_x;
    }
};

/// How the modules of a layer lie in memory.
enum class memory_order { peft, mttl };

/// An inventory, or its gradient, in either order.
template <class T>
class inventory_memory {
  public:
    inventory_memory(const std::array<index_t, 4>& a, const std::array<index_t, 4>& b,
                     memory_order order)
        : a_(a), b_(b) {
        T* at_a = a_.values().data();
        T* at_b = b_.values().data();
        if (order == memory_order::peft)
            views_ = {{at_a, a}, {at_b, b}};
        else // a is [modules, heads, in, rank], b [modules, rank, heads, out]
            views_ = {
                tensor_view<T, 4>(at_a, {a[1], a[0], a[2], a[3]}).transpose(0, 1),
                tensor_view<T, 4>(at_b, {b[1], b[2], b[0], b[3]}).transpose(0, 2).transpose(1, 2)};
    }
    inventory_memory(const tensor<T, 4>& a, const tensor<T, 4>& b, memory_order order)
        : inventory_memory(a.extents(), b.extents(), order) {
        const auto same = [](T value) { return value; };
        transform(a.view(), views_.a, same);
        transform(b.view(), views_.b, same);
    }
    inventory_memory(const inventory_memory&) = delete;
    inventory_memory& operator=(const inventory_memory&) = delete;

    const lora_inventory<T>& view() const { return views_; }

  private:
    tensor<T, 4> a_; // of these sizes, whatever the order
    tensor<T, 4> b_;
    lora_inventory<T> views_;
};

/// A layer and its inputs.
template <class T>
struct routed_layer {
    base_layer<T> base;
    tensor<T, 4> a;
    tensor<T, 4> b;
    double scale = 1;
    tensor<T, 3> x;
    tensor<T, 3> d_y; // of extents 0: forward only
};

template <class T>
struct layer_result {
    tensor<T, 3> mixed_a, mixed_b;
    tensor<T, 2> y, d_x;
    tensor<T, 4> d_a, d_b;
    tensor<T, 3> d_weights;
};

/// The layer on sequences of the given labels, with the weights of each distinct label.
template <class T, class W>
layer_result<T> run(routed_layer<T>& layer, const batch_plan& plan,
                    const tensor_view<W, 3>& weights, memory_order order) {
    const inventory_memory<T> inventory(layer.a, layer.b, order);
    const auto shape = shape_of(inventory.view());
    const auto x = rows_of(layer.x);
    layer_result<T> result;

    owned_workspace memory(routed_lora_state_size<T>(plan, shape));
    workspace state_memory = memory;
    const auto state = take_routed_lora_state<T>(state_memory, plan, shape);
    result.y = layer.base.forward(x);
    routed_lora_forward(serial_executor{}, plan, x, inventory.view(), weights, layer.scale,
                        result.y.view(), state);
    result.mixed_a = copy_as<T>(state.mixed.a);
    result.mixed_b = copy_as<T>(state.mixed.b);
    if (layer.d_y.view().size() == 0) return result;

    const auto d_y = rows_of(layer.d_y);
    const inventory_memory<T> d_inventory(layer.a.extents(), layer.b.extents(), order);
    owned_workspace scratch(routed_lora_backward_workspace_size<T>(plan, shape));
    result.d_x = layer.base.backward(d_y);
    result.d_weights = tensor<T, 3>(weights.extents());
    routed_lora_backward(serial_executor{}, plan, x, inventory.view(), weights, layer.scale, state,
                         d_y, result.d_x.view(), d_inventory.view(), result.d_weights.view(),
                         scratch);
    result.d_a = copy_as<T>(d_inventory.view().a);
    result.d_b = copy_as<T>(d_inventory.view().b);
    return result;
}

/// Runs the layer in both memory orders, which must give the same bits.
template <class T, class W>
layer_result<T> run_in_both_orders(routed_layer<T>& layer, const batch_plan& plan,
                                   const tensor_view<W, 3>& weights, outcome& result) {
    const auto peft = run(layer, plan, weights, memory_order::peft);
    const auto mttl = run(layer, plan, weights, memory_order::mttl);
    result.compare_bits("mttl's order, a", mttl.mixed_a, peft.mixed_a);
    result.compare_bits("mttl's order, b", mttl.mixed_b, peft.mixed_b);
    result.compare_bits("mttl's order, y", mttl.y, peft.y);
    result.compare_bits("mttl's order, d_x", mttl.d_x, peft.d_x);
    result.compare_bits("mttl's order, d_a", mttl.d_a, peft.d_a);
    result.compare_bits("mttl's order, d_b", mttl.d_b, peft.d_b);
    result.compare_bits("mttl's order, d_weights", mttl.d_weights, peft.d_weights);
    return peft;
}

template <class T>
routed_layer<T> read_layer(const golden_case& c) {
    routed_layer<T> layer;
    layer.base.weight = c.file.read<T, 2>("base_weight");
    if (c.file.contains("base_bias")) layer.base.bias = c.file.read<T, 1>("base_bias");
    layer.a = c.file.read<T, 4>("lora_A");
    layer.b = c.file.read<T, 4>("lora_B");
    layer.scale = c.number("scaling") * c.number_or("warmup_factor", 1);
    layer.x = c.file.read<T, 3>("x");
    layer.d_y = c.file.read<T, 3>("d_y");
    return layer;
}

template <class T>
void compare_layer(const golden_case& c, layer_result<T>& got, outcome& result) {
    const double tolerance = c.number("tol");
    auto y = c.file.read<T, 3>("y");
    auto d_x = c.file.read<T, 3>("d_x");
    result.compare("y", got.y.view(), copy_as<T>(rows_of(y)), tolerance);
    result.compare("d_x", got.d_x.view(), copy_as<T>(rows_of(d_x)), tolerance);
    result.compare("d_lora_A", got.d_a.view(), c.file.read<T, 4>("d_lora_A"), tolerance);
    result.compare("d_lora_B", got.d_b.view(), c.file.read<T, 4>("d_lora_B"), tolerance);
}

/// The golden values of sequences as those of distinct tasks: weights are the same for all
/// sequences of a task, gradients add up.
template <class T>
tensor<T, 3> of_tasks(const tensor<T, 3>& of_sequences, const std::vector<std::int64_t>& tasks,
                      const batch_plan& plan, bool sum) {
    const auto& extents = of_sequences.extents();
    tensor<T, 3> result({plan.entries(), extents[1], extents[2]});
    for (index_t s = extents[0]; s-- > 0;)
        for (index_t g = 0; g < plan.entries(); ++g)
            if (plan.tasks()(g) == tasks[static_cast<std::size_t>(s)])
                for_each_position<2>({extents[1], extents[2]}, [&](const auto& at) {
                    T& to = result(g, at[0], at[1]);
                    to = of_sequences(s, at[0], at[1]) + (sum ? to : T(0));
                });
    return result;
}

template <class T>
void check_routed_lora(const golden_case& c, outcome& result) {
    const double tolerance = c.number("tol");
    auto layer = read_layer<T>(c);
    const auto logits = c.file.read<T, 2>("module_logits");
    const auto table = logits.view().split(1, c.size("n_splits"));
    const auto weights = c.file.read<T, 3>("mixing_weights");
    const auto d_weights = c.file.read<T, 3>("d_mixing_weights");
    const auto d_logits = c.file.read<T, 2>("d_module_logits");
    const double floor = outcome::largest(d_weights.view());

    const auto task_ids = c.file.read<std::int64_t, 1>("task_ids").values();
    const auto repeat = static_cast<std::size_t>(c.number_or("repeat", 1));
    std::vector<std::int64_t> tasks, numbers;
    for (std::size_t s = 0; s < task_ids.size() * repeat; ++s) {
        tasks.push_back(task_ids[s / repeat]);
        numbers.push_back(static_cast<std::int64_t>(s));
    }
    const auto lengths = list(std::vector<index_t>(tasks.size(), layer.x.extents()[1]));
    batch_plan plan;

    const auto check = [&](const tensor_view<const std::int64_t, 1>& tasks_of_entries,
                           const auto& gate, const tensor<T, 3>& want_weights,
                           const tensor<T, 3>& want_d_weights) {
        tensor<T, 3> w(want_weights.extents());
        router_forward(serial_executor{}, table, tasks_of_entries, gate, w.view());
        auto got = run_in_both_orders(layer, plan, w.view(), result);
        tensor<T, 2> d_got(logits.extents());
        router_backward(serial_executor{}, table, tasks_of_entries, gate, got.d_weights.view(),
                        d_got.view().split(1, table.extent(1)));
        result.compare("mixing_weights", w.view(), want_weights, tolerance);
        compare_layer(c, got, result);
        result.compare("d_mixing_weights", got.d_weights.view(), want_d_weights, tolerance);
        result.compare("d_module_logits", d_got.view(), d_logits, tolerance, floor);
        return got;
    };

    with_gate<T>(c, [&](const auto& gate) {
        // Every sequence by itself, as the peers compute it: with noise, the only way.
        plan.assign_sequences(list(numbers).const_view(), lengths.view());
        const auto task_list = list(tasks);
        const auto got = check(task_list.view(), gate, weights, d_weights);
        result.compare("A_mixed", got.mixed_a.view(), c.file.read<T, 3>("A_mixed"), tolerance);
        result.compare("B_mixed", got.mixed_b.view(), c.file.read<T, 3>("B_mixed"), tolerance);

        if (c.file.contains("uniform")) return;
        plan.assign_sequences(task_list.view(), lengths.view());
        check(plan.tasks(), gate, of_tasks(weights, tasks, plan, false),
              of_tasks(d_weights, tasks, plan, true));
    });
}

// Averaging.

template <class T>
void check_average_lora(const golden_case& c, outcome& result) {
    const double tolerance = c.number("tol");
    auto layer = read_layer<T>(c);
    const auto tasks = c.file.read<std::int64_t, 1>("task_ids");
    const auto lengths = list(std::vector<index_t>(tasks.values().size(), layer.x.extents()[1]));
    const index_t heads = layer.a.extents()[0];
    const index_t modules = layer.a.extents()[1];

    // Uniform routing.
    batch_plan plan;
    plan.assign_sequences(tasks.view(), lengths.view());
    const T weight = T(1) / static_cast<T>(modules);
    const tensor_view<const T, 3> uniform(&weight, {plan.entries(), heads, modules}, {0, 0, 0});
    auto routed = run_in_both_orders(layer, plan, uniform, result);
    compare_layer(c, routed, result);

    // The one adapter that it equals.
    const inventory_memory<T> inventory(layer.a, layer.b, memory_order::peft);
    const auto want_a = c.file.read<T, 2>("A_average");
    const auto want_b = c.file.read<T, 2>("B_average");
    tensor<T, 2> a(want_a.extents()), b(want_b.extents()), d_a(a.extents()), d_b(b.extents());
    average_lora_forward(serial_executor{}, inventory.view(), lora<T>{a.view(), b.view()});
    result.compare("A_average", a.view(), want_a, tolerance);
    result.compare("B_average", b.view(), want_b, tolerance);
    result.compare_bits("uniform routing, a", a, copy_as<T>(routed.mixed_a.view().slice(0, 0)));
    result.compare_bits("uniform routing, b", b, copy_as<T>(routed.mixed_b.view().slice(0, 0)));

    const auto x = rows_of(layer.x);
    const auto d_y = rows_of(layer.d_y);
    const auto adapter = as_batch(lora<T>{a.view(), b.view()});
    plan.assign_single_task(x.extent(0));
    auto y = layer.base.forward(x);
    auto d_x = layer.base.backward(d_y);
    tensor<T, 2> hidden({x.extent(0), a.extents()[1]});
    lora_forward(serial_executor{}, plan, x, adapter, layer.scale, y.view(), hidden.view());
    owned_workspace scratch(lora_backward_workspace_size<T>(plan, a.extents()[1]));
    lora_backward(serial_executor{}, plan, x, adapter, layer.scale, hidden.view(), d_y, d_x.view(),
                  as_batch(lora<T>{d_a.view(), d_b.view()}), scratch);
    auto want_y = c.file.read<T, 3>("y_single");
    auto want_d_x = c.file.read<T, 3>("d_x_single");
    result.compare("y_single", y.view(), copy_as<T>(rows_of(want_y)), tolerance);
    result.compare("d_x_single", d_x.view(), copy_as<T>(rows_of(want_d_x)), tolerance);
    result.compare("d_A_average", d_a.view(), c.file.read<T, 2>("d_A_average"), tolerance);
    result.compare("d_B_average", d_b.view(), c.file.read<T, 2>("d_B_average"), tolerance);

    tensor<T, 4> d_modules_a(layer.a.extents()), d_modules_b(layer.b.extents());
    average_lora_backward(serial_executor{}, lora<T>{d_a.view(), d_b.view()},
                          lora_inventory<T>{d_modules_a.view(), d_modules_b.view()});
    result.compare("d_lora_A of the average", d_modules_a.view(), c.file.read<T, 4>("d_lora_A"),
                   tolerance);
    result.compare("d_lora_B of the average", d_modules_b.view(), c.file.read<T, 4>("d_lora_B"),
                   tolerance);
}

// Checkpoints as PEFT writes them.

/// Every layer of the checkpoint, computed in `T`.
template <class T>
void check_checkpoint_in(const golden_case& c, const std::string& suffix, double tolerance,
                         outcome& result) {
    std::ifstream config_file(c.path("config"));
    const auto config = nlohmann::json::parse(config_file);
    const safetensors_file inputs(c.path("inputs"));
    const safetensors_file adapter(c.path("adapter"));
    result.require(config.at("peft_type") == "POLY" && config.at("poly_type") == "poly",
                   "not a checkpoint of PEFT's Poly");

    batch_plan plan;
    std::size_t modules = 0;
    std::istringstream names(c.text("modules"));
    for (std::string name; std::getline(names, name, ','); ++modules) {
        const std::string prefix = "base_model.model." + name + ".";
        const auto logits = adapter.read<T, 2>(prefix + "poly_router.module_logits");
        const auto table = logits.view().split(1, config.at("n_splits"));
        routed_layer<T> layer;
        layer.base.weight = inputs.read<T, 2>(name + ".base_weight");
        if (inputs.contains(name + ".base_bias"))
            layer.base.bias = inputs.read<T, 1>(name + ".base_bias");
        layer.a = adapter.read<T, 4>(prefix + "poly_lora_A");
        layer.b = adapter.read<T, 4>(prefix + "poly_lora_B");
        layer.scale = 1 / config.at("r").get<double>();
        layer.x = inputs.read<T, 3>(name + ".x");

        const auto tasks = inputs.read<std::int64_t, 1>("task_ids");
        plan.assign_sequences(
            tasks.view(),
            list(std::vector<index_t>(tasks.values().size(), layer.x.extents()[1])).const_view());
        tensor<T, 3> weights({plan.entries(), table.extent(1), table.extent(2)});
        router_forward(serial_executor{}, table, plan.tasks(), sigmoid_gate{}, weights.view());
        auto got = run(layer, plan, weights.view(), memory_order::peft);
        auto want = c.file.read<T, 3>(name + suffix);
        result.compare(name + suffix, got.y.view(), copy_as<T>(rows_of(want)), tolerance);
    }
    result.require(adapter.tensors().size() == 3 * modules, "tensors of the adapter left over");
}

inline void check_checkpoint(const golden_case& c, outcome& result) {
    check_checkpoint_in<float>(c, ".y", c.number("tol"), result);
    check_checkpoint_in<double>(c, ".y64", c.number("tol_y64"), result);
}

} // namespace mhr::test

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <mhr/mhr.hpp>

#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"

/// \file
/// Every kernel of the library with arguments of its own, to be called one by one: for what has to
/// hold of all of them. The test `structure` sees to it that a new one is added here: it looks for
/// calls of all functions that take an executor, and of all *_forward and *_backward.

namespace mhr::test {

/// A function of the library, with arguments.
struct kernel {
    std::string name;
    bool one_phase; ///< whether it accepts shares (share_executor)
    std::function<void(executor_ref)> call;
};

/// Layers of a model with rows of four tasks and of none, so large that their work comes in several
/// parts, and so odd that vectors, tiles and blocks do not come out even. Activations, modules and
/// logits are of the type `stored`, and what is trained has gradients in f32.
///
/// The kernels build upon each other: they are to be called in their order.
class every_kernel {
  public:
    explicit every_kernel(element_type stored, layout of_rows = layout::row_major,
                          layout of_modules = layout::row_major,
                          layout of_gradients = layout::row_major)
        : stored_(stored), of_rows_(of_rows), of_modules_(of_modules), of_gradients_(of_gradients) {
        // One task has most of the rows, one a single one.
        random_source random(1);
        std::vector<int> tasks;
        for (index_t row = 0; row < rows; ++row)
            tasks.push_back(row == 7 ? 5 : random.integer(3) == 0 ? 2 : 0);
        for (index_t row : {3, 11, 12, 40})
            tasks[static_cast<std::size_t>(row)] = no_task;
        for (index_t row : {1, 20})
            tasks[static_cast<std::size_t>(row)] = 3;
        plan_.assign_rows(tensor_view<const int, 1>(tasks.data(), {rows}));
        x_ = make<2>(stored_, {rows, in}, of_rows_);
        d_y_ = make<2>(stored_, {rows, out}, of_rows_);
        y_ = make<2>(stored_, {rows, out}, of_rows_);
        d_x_ = make_gradient<2>({rows, in});
        a_ = make<4>(stored_, {heads, modules, in_block, rank}, of_modules_);
        b_ = make<4>(stored_, {heads, modules, rank, out_block}, of_modules_);
        d_a_ = make_gradient<4>({heads, modules, in_block, rank});
        d_b_ = make_gradient<4>({heads, modules, rank, out_block});
        weights_ =
            make<3>(element_type::f32, {plan_.entries(), heads, modules}, of_gradients_, 0, 1);
        d_weights_ = make_gradient<3>({plan_.entries(), heads, modules});
        add_routers();
        add_routers_of_rows();
        add_mixing();
        add_lora();
        add_routed_lora();
        add_output_mixed_lora();
        add_row_routed_lora();
        add_bias_and_dora();
        add_ia3();
        add_merging();
        add_library();
        add_combining();
        add_training();
    }

    every_kernel(const every_kernel&) = delete; // kernels point into it
    every_kernel& operator=(const every_kernel&) = delete;

    [[nodiscard]] const std::vector<kernel>& kernels() const { return kernels_; }

    /// The elements of a tensor as they are now, in an order that no layout changes.
    [[nodiscard]] std::vector<std::byte> bits(std::size_t tensor) const {
        return tensors_[tensor]();
    }
    [[nodiscard]] std::size_t tensors() const { return tensors_.size(); }

  private:
    static constexpr index_t rows = 75, heads = 2, modules = 9, rank = 17, table_tasks = 6;
    static constexpr index_t in_block = 261, in = heads * in_block;
    static constexpr index_t out_block = 130, out = heads * out_block;
    static constexpr double scale = -0.75;

    /// A tensor of this object, full of random numbers.
    template <std::size_t Rank>
    tensor_ref<Rank> make(element_type type, const std::array<index_t, Rank>& extents, layout order,
                          double low = -1, double high = 1) {
        const auto memory = std::make_shared<guarded_tensor<Rank>>(type, extents, order);
        memory->fill(random_source(tensors_.size()), low, high);
        memory_.push_back(memory);
        watch(memory->ref());
        return memory->ref();
    }
    /// Makes a tensor one of those whose bits are told.
    template <std::size_t Rank>
    void watch(const tensor_ref<Rank>& tensor) {
        tensors_.push_back([tensor] {
            std::vector<std::byte> bits;
            const auto append = [&](const void* from, std::size_t count) {
                const auto* const bytes = static_cast<const std::byte*>(from);
                bits.insert(bits.end(), bytes, bytes + count);
            };
            const std::size_t size = size_of(tensor.type());
            if (tensor.is_contiguous())
                append(tensor.data(), static_cast<std::size_t>(tensor.size()) * size);
            else
                for_each_position(tensor.extents(), [&](const position<Rank>& at) {
                    append(address_of(tensor, at), size);
                });
            return bits;
        });
    }
    template <std::size_t Rank>
    tensor_ref<Rank> make_gradient(const std::array<index_t, Rank>& extents) {
        return make<Rank>(element_type::f32, extents, of_gradients_);
    }
    workspace make_memory(std::size_t bytes) {
        const auto memory = std::make_shared<owned_workspace>(bytes);
        memory_.push_back(memory);
        return *memory;
    }
    [[nodiscard]] batch on(executor_ref executor) const { return {plan_, executor}; }
    [[nodiscard]] routed_lora layer() const { return {a_, b_, weights_, scale}; }

    template <class Call>
    void add_one_phase(std::string name, Call&& call) {
        kernels_.push_back({std::move(name), true, std::forward<Call>(call)});
    }
    template <class Call>
    void add(std::string name, Call&& call) {
        kernels_.push_back({std::move(name), false, std::forward<Call>(call)});
    }

    void add_routers() {
        const auto logits = make<3>(stored_, {table_tasks, heads, modules}, of_modules_, -4, 4);
        const auto d_logits = make_gradient<3>({table_tasks, heads, modules});
        const auto extents = weights_.extents();
        const auto uniforms = make<3>(element_type::f32, extents, of_gradients_, 0.05, 0.95);
        const routing_rule training{
            shared_module_gate{
                dropout_gate{gumbel_sigmoid_gate{uniforms, 0.75}, uniforms.as<float>(), 0.25}},
            average_correction_normaliser{}, 0.5};
        const routing_rule experts{noisy_gate{identity_gate{}, uniforms}, softmax_normaliser{3}};
        const routing_rule lengths{identity_gate{}, l2_normaliser{}};
        const routing_rule discrete{straight_through_gate{}};
        const routing_rule evaluation{sigmoid_gate{}}; // last: its weights are those of the layers
        const auto add_rule = [&](const char* name, const auto& rule) {
            add_one_phase(
                std::string("router_forward, ") + name, [=, &all = *this](executor_ref executor) {
                    router_forward(executor, logits, all.plan_.tasks(), rule, all.weights_);
                });
            add_one_phase(std::string("router_backward, ") + name,
                          [=, &all = *this](executor_ref executor) {
                              router_backward(executor, logits, all.plan_.tasks(), rule,
                                              all.d_weights_, d_logits);
                          });
        };
        const auto others = make_gradient<3>(extents);
        add_one_phase("private_router_forward", [=, &all = *this](executor_ref executor) {
            private_router_forward(executor, all.plan_.tasks(), others);
        });
        add_one_phase("average_router_forward",
                      [=](executor_ref executor) { average_router_forward(executor, others); });
        add_one_phase("given_router_forward", [=, &all = *this](executor_ref executor) {
            given_router_forward(executor, logits, all.plan_.tasks(), others);
        });
        add_one_phase("given_router_backward", [=, &all = *this](executor_ref executor) {
            given_router_backward(executor, all.plan_.tasks(), all.d_weights_, d_logits);
        });
        const auto memory = make_memory(indian_buffet_prior_workspace_size(table_tasks));
        const auto prior = make_number();
        add("indian_buffet_prior_forward",
            [=](executor_ref) { prior(0) = indian_buffet_prior_forward(logits, 3, memory); });
        add("indian_buffet_prior_backward",
            [=](executor_ref) { indian_buffet_prior_backward(logits, 0.5, d_logits); });
        add_rule("training", training);
        add_rule("experts", experts);
        add_rule("lengths", lengths);
        add_rule("discrete", discrete);
        add_rule("evaluation", evaluation);
    }
    tensor_view<double, 1> make_number() {
        return make<1>(element_type::f64, {1}, layout::row_major).as<double>();
    }

    void add_routers_of_rows() {
        const row_gate gate{make<2>(stored_, {in, modules}, of_modules_),
                            make<1>(stored_, {modules}, of_modules_)};
        const row_gate_gradients gradients{make_gradient<2>({rows, in}),
                                           make_gradient<2>({in, modules}),
                                           make_gradient<1>({modules})};
        const auto logits = make_gradient<2>({rows, modules});
        const auto weights = make_gradient<2>({rows, modules});
        const auto d_logits = make_gradient<2>({rows, modules});
        const auto normalised = make<2>(stored_, {rows, in}, of_rows_);
        const auto pooled = make_gradient<2>({plan_.entries(), in});
        const workspace memory = make_memory(row_gate_backward_workspace_size(gate, gradients));
        const routing_rule rule{tempered_gate{magnitude_gate{}, 0.5}, softmax_normaliser{3}};
        for (row_norm norm : {row_norm::layer, row_norm::unit}) {
            add_one_phase("row_norm_forward", [=, &all = *this](executor_ref executor) {
                row_norm_forward(executor, norm, all.x_, normalised);
            });
            add_one_phase("row_norm_backward", [=, &all = *this](executor_ref executor) {
                row_norm_backward(executor, norm, all.x_, normalised, gradients.x);
            });
        }
        add_one_phase("row_gate_forward", [=, &all = *this](executor_ref executor) {
            row_gate_forward(executor, gate, all.x_, logits);
        });
        add_one_phase("row_weights_forward", [=](executor_ref executor) {
            row_weights_forward(executor, logits.split(1, 1), rule, weights.split(1, 1));
        });
        add_one_phase("row_weights_backward", [=](executor_ref executor) {
            row_weights_backward(executor, logits.split(1, 1), rule, weights.split(1, 1),
                                 d_logits.split(1, 1));
        });
        add_one_phase("row_gate_backward", [=, &all = *this](executor_ref executor) {
            row_gate_backward(executor, gate, all.x_, d_logits, gradients, memory);
        });
        add_one_phase("pool_rows_forward", [=, &all = *this](executor_ref executor) {
            pool_rows_forward(all.on(executor), all.x_, pooled);
        });
        add_one_phase("pool_rows_backward", [=, &all = *this](executor_ref executor) {
            pool_rows_backward(all.on(executor), pooled, gradients.x);
        });
        const auto loss = make_number();
        add("load_balancing_loss_forward",
            [=](executor_ref) { loss(0) = load_balancing_loss_forward(logits, weights); });
        add("load_balancing_loss_backward",
            [=](executor_ref) { load_balancing_loss_backward(weights, 0.25, d_logits); });
    }

    void add_mixing() {
        const auto mixed = make_gradient<4>({plan_.entries(), heads, in_block, rank});
        const auto average = make_gradient<3>({heads, in_block, rank});
        add_one_phase("mix_forward", [=, &all = *this](executor_ref executor) {
            mix_forward(executor, all.weights_, all.a_, mixed);
        });
        add_one_phase("mix_backward", [=, &all = *this](executor_ref executor) {
            mix_backward(executor, all.weights_, all.a_, mixed, {all.d_a_, all.d_weights_});
        });
        add_one_phase("average_forward", [=, &all = *this](executor_ref executor) {
            average_forward(executor, all.a_, average);
        });
        add_one_phase("average_backward", [=, &all = *this](executor_ref executor) {
            average_backward(executor, average, all.d_a_);
        });
    }

    void add_lora() {
        const index_t entries = plan_.entries();
        const stacked_lora_matrices adapters{make_gradient<3>({entries, in, rank}),
                                             make_gradient<3>({entries, rank, out})};
        const stacked_lora_matrices d_adapters{make_gradient<3>({entries, in, rank}),
                                               make_gradient<3>({entries, rank, out})};
        const lora_matrices average{make_gradient<2>({in, rank}), make_gradient<2>({rank, out})};
        const lora_list list(adapters.a, adapters.b, scale);
        const lora_state state{make_gradient<2>({rows, rank})};
        const workspace memory = make_memory(lora_backward_workspace_size(on({}), list));
        add_one_phase("mix_lora_forward", [=, &all = *this](executor_ref executor) {
            mix_lora_forward(executor, all.weights_, {all.a_, all.b_}, adapters);
        });
        add_one_phase("lora_forward", [=, &all = *this](executor_ref executor) {
            lora_forward(all.on(executor), list, all.x_, all.y_, state);
        });
        add("lora_backward", [=, &all = *this](executor_ref executor) {
            lora_backward(all.on(executor), list, all.x_, all.d_y_, state, {all.d_x_, d_adapters},
                          memory);
        });
        add_one_phase("mix_lora_backward", [=, &all = *this](executor_ref executor) {
            mix_lora_backward(executor, all.weights_, {all.a_, all.b_}, d_adapters.a, d_adapters.b,
                              {all.d_a_, all.d_b_, all.d_weights_});
        });
        add_one_phase("average_lora_forward", [=, &all = *this](executor_ref executor) {
            average_lora_forward(executor, {all.a_, all.b_}, average);
        });
        add_one_phase("average_lora_backward", [=, &all = *this](executor_ref executor) {
            average_lora_backward(executor, average.a, average.b, {all.d_a_, all.d_b_});
        });
        add_shared_adapters();
    }
    /// Adapters of two ranks, which four entries share, as ranks of a tensor-parallel host call
    /// them.
    void add_shared_adapters() {
        struct shared {
            std::array<lora, 2> adapters{};
            std::array<lora_matrices, 2> gradients{};
            std::array<index_t, 4> of_entry{1, 0, 1, 1};
        };
        const auto both = std::make_shared<shared>();
        for (std::size_t i = 0; i < 2; ++i) {
            const index_t own_rank = rank - 5 * static_cast<index_t>(i);
            both->adapters[i] = {make<2>(stored_, {in, own_rank}, of_modules_),
                                 make<2>(stored_, {own_rank, out}, of_modules_), scale};
            both->gradients[i] = {make_gradient<2>({in, own_rank}),
                                  make_gradient<2>({own_rank, out})};
        }
        const lora_list list(both->adapters.data(), 2, {both->of_entry.data(), {4}});
        const lora_state state{make<2>(element_type::f32, {rows, rank}, layout::row_major)};
        const workspace memory = make_memory(lora_backward_workspace_size(on({}), list));
        add("lora_forward, shared adapters and ranks", [=, &all = *this](executor_ref executor) {
            const auto sum = [](const tensor_ref<2>&) {};
            lora_forward({all.plan_, executor, sum}, list, all.x_, all.y_, state);
        });
        add("lora_backward, shared adapters and ranks", [=, &all = *this](executor_ref executor) {
            const auto sum = [](const tensor_ref<2>&) {};
            lora_backward({all.plan_, executor, sum}, list, all.x_, all.d_y_, state,
                          {all.d_x_, {both->gradients.data(), 2}}, memory);
        });
    }

    void add_routed_lora() {
        workspace taken = make_memory(routed_lora_state_size(on({}), layer()));
        const auto state = take_routed_lora_state(taken, on({}), layer());
        watch(state.mixed.a);
        watch(state.mixed.b);
        watch(state.hidden);
        const workspace memory = make_memory(routed_lora_backward_workspace_size(on({}), layer()));
        add("routed_lora_forward", [=, &all = *this](executor_ref executor) {
            routed_lora_forward(all.on(executor), all.layer(), all.x_, all.y_, state);
        });
        add("routed_lora_backward", [=, &all = *this](executor_ref executor) {
            routed_lora_backward(all.on(executor), all.layer(), all.x_, all.d_y_, state,
                                 {all.d_x_, all.d_a_, all.d_b_, all.d_weights_}, memory);
        });
        add("routed_lora_backward, routing alone", [=, &all = *this](executor_ref executor) {
            routed_lora_backward(all.on(executor), all.layer(), all.x_, all.d_y_, state,
                                 {{}, {}, {}, all.d_weights_}, memory);
        });
        const auto cache =
            std::make_shared<mixed_lora_cache>(shape_of(layer().inventory()), plan_.entries() + 1);
        const lora_state hidden{make_gradient<2>({rows, rank})};
        add("mixed_lora_cache::get", [=, &all = *this](executor_ref executor) {
            lora_forward(all.on(executor), cache->get(all.on(executor), all.layer(), 1), all.x_,
                         all.y_, hidden);
        });
    }

    void add_output_mixed_lora() {
        constexpr index_t of_library = 3; // one head of few modules
        const auto weights =
            make<3>(element_type::f32, {plan_.entries(), 1, of_library}, of_gradients_);
        set_element(weights, {1, 0, 1}, 0);
        const routed_lora library{make<4>(stored_, {1, of_library, in, rank}, of_modules_),
                                  make<4>(stored_, {1, of_library, rank, out}, of_modules_),
                                  weights, scale};
        const auto d_a = make_gradient<4>({1, of_library, in, rank});
        const auto d_b = make_gradient<4>({1, of_library, rank, out});
        const auto d_weights = make_gradient<3>({plan_.entries(), 1, of_library});
        const output_mixed_lora_state state{make_gradient<3>({rows, of_library, rank})};
        const workspace memory =
            make_memory(output_mixed_lora_backward_workspace_size(on({}), library));
        add_one_phase("output_mixed_lora_forward", [=, &all = *this](executor_ref executor) {
            output_mixed_lora_forward(all.on(executor), library, all.x_, all.y_, state);
        });
        add("output_mixed_lora_backward", [=, &all = *this](executor_ref executor) {
            output_mixed_lora_backward(all.on(executor), library, all.x_, all.d_y_, state,
                                       {all.d_x_, d_a, d_b, d_weights}, memory);
        });
    }

    void add_row_routed_lora() {
        const auto weights = make<3>(element_type::f32, {rows, heads, modules}, of_gradients_);
        set_element(weights, {5, 1, 1}, 0);
        const row_routed_lora layer{a_, b_, weights, scale};
        const auto d_weights = make_gradient<3>({rows, heads, modules});
        const row_routed_lora_state state{{make_gradient<3>({rows, heads, modules}),
                                           make_gradient<4>({rows, heads, modules, rank})},
                                          make_gradient<2>({rows, rank})};
        const workspace memory =
            make_memory(row_routed_lora_backward_workspace_size(on({}), layer));
        add("row_routed_lora_forward", [=, &all = *this](executor_ref executor) {
            row_routed_lora_forward(all.on(executor), layer, all.x_, all.y_, state);
        });
        add("row_routed_lora_backward", [=, &all = *this](executor_ref executor) {
            row_routed_lora_backward(all.on(executor), layer, all.x_, all.d_y_, state,
                                     {all.d_x_, all.d_a_, all.d_b_, d_weights}, memory);
        });
    }

    void add_bias_and_dora() {
        const auto base_weight = make<2>(stored_, {out, in}, of_modules_);
        const auto magnitude = make<1>(stored_, {out}, of_modules_);
        const auto quotient = make_gradient<1>({out}), inverse_norm = make_gradient<1>({out});
        const auto d_magnitude = make_gradient<1>({out});
        const auto y = make<2>(stored_, {rows, out}, of_rows_);
        const auto d_adapted = make_gradient<2>({rows, out});
        const lora adapter{make<2>(stored_, {in, rank}, of_modules_),
                           make<2>(stored_, {rank, out}, of_modules_), scale};
        // The last entry has plain LoRA, the others share an adapter.
        const auto entries = static_cast<std::size_t>(plan_.entries());
        const auto doras =
            std::make_shared<std::vector<dora>>(std::vector<dora>{{quotient, inverse_norm}, {}});
        const auto numbers = std::make_shared<std::vector<index_t>>(entries, 0);
        numbers->back() = 1;
        const auto magnitudes = std::make_shared<std::vector<tensor_ref<1>>>(
            std::vector<tensor_ref<1>>{d_magnitude, {}});
        memory_.insert(memory_.end(), {doras, numbers, magnitudes});
        const dora_list list{doras->data(), 2, {numbers->data(), {plan_.entries()}}};
        const auto biases = std::make_shared<std::vector<lora_bias>>(
            std::vector<lora_bias>{{magnitude, scale}, {}});
        memory_.push_back(biases);
        const lora_bias_list list_of_biases{biases->data(), 2, list.adapter_of_entry};
        add_one_phase("lora_bias_forward", [=, &all = *this](executor_ref executor) {
            lora_bias_forward(all.on(executor), list_of_biases, all.y_);
        });
        add_one_phase("lora_bias_backward", [=, &all = *this](executor_ref executor) {
            lora_bias_backward(all.on(executor), list_of_biases, all.d_y_, magnitudes->data());
        });
        add_one_phase("dora_quotient", [=](executor_ref executor) {
            dora_quotient(executor, base_weight, adapter, magnitude, quotient);
        });
        add_one_phase("dora_quotient, of 1", [=](executor_ref executor) {
            dora_quotient(executor, base_weight, adapter, {}, inverse_norm);
        });
        add_one_phase("dora_forward", [=, &all = *this](executor_ref executor) {
            dora_forward(all.on(executor), list, all.y_, y);
        });
        add_one_phase("dora_backward", [=, &all = *this](executor_ref executor) {
            dora_backward(all.on(executor), list, all.y_, all.d_y_,
                          {d_adapted, magnitudes->data()});
        });
    }

    void add_ia3() {
        const auto inventory = make<3>(stored_, {heads, modules, in_block}, of_modules_);
        const auto d_inventory = make_gradient<3>({heads, modules, in_block});
        const auto scales = make_gradient<2>({plan_.entries(), in});
        const auto d_scales = make_gradient<2>({plan_.entries(), in});
        const auto average = make_gradient<1>({in});
        const auto y = make<2>(stored_, {rows, in}, of_rows_);
        const auto routed_y = make<2>(stored_, {rows, in}, of_rows_);
        const routed_ia3_state state{make_gradient<2>({plan_.entries(), in})};
        const auto d_y = make<2>(stored_, {rows, in}, of_rows_);
        const routed_ia3 routed{inventory, weights_};
        const workspace memory = make_memory(routed_ia3_backward_workspace_size(on({}), routed));
        add_one_phase("mix_ia3_forward", [=, &all = *this](executor_ref executor) {
            mix_ia3_forward(executor, all.weights_, inventory, scales);
        });
        add_one_phase("mix_ia3_backward", [=, &all = *this](executor_ref executor) {
            mix_ia3_backward(executor, all.weights_, inventory, d_scales,
                             {d_inventory, all.d_weights_});
        });
        add_one_phase("ia3_forward", [=, &all = *this](executor_ref executor) {
            ia3_forward(all.on(executor), {scales}, all.x_, y);
        });
        add_one_phase("ia3_backward", [=, &all = *this](executor_ref executor) {
            ia3_backward(all.on(executor), {scales}, all.x_, d_y, {all.d_x_, d_scales});
        });
        add_one_phase("average_ia3_forward", [=](executor_ref executor) {
            average_ia3_forward(executor, inventory, average);
        });
        add_one_phase("average_ia3_backward", [=](executor_ref executor) {
            average_ia3_backward(executor, average, d_inventory);
        });
        add("routed_ia3_forward", [=, &all = *this](executor_ref executor) {
            routed_ia3_forward(all.on(executor), routed, all.x_, routed_y, state);
        });
        add("routed_ia3_backward", [=, &all = *this](executor_ref executor) {
            routed_ia3_backward(all.on(executor), routed, all.x_, d_y, state,
                                {all.d_x_, d_inventory, all.d_weights_}, memory);
        });
    }

    void add_merging() {
        const lora adapter{a_.slice(0, 0).slice(0, 1), b_.slice(0, 0).slice(0, 1), scale};
        const lora half{adapter.a, adapter.b, scale / 2};
        const auto weight = make<2>(stored_, {out_block, in_block}, of_modules_);
        const auto bias = make<1>(stored_, {out_block}, of_modules_);
        const auto scales = make<1>(element_type::f32, {out_block}, of_modules_, 0.5, 1.5);
        add_one_phase("merge_lora",
                      [=](executor_ref executor) { merge_lora(executor, adapter, weight); });
        add_one_phase("unmerge_lora",
                      [=](executor_ref executor) { unmerge_lora(executor, half, weight); });
        add_one_phase("merge_ia3",
                      [=](executor_ref executor) { merge_ia3(executor, scales, weight, bias); });
        add_one_phase("unmerge_ia3",
                      [=](executor_ref executor) { unmerge_ia3(executor, scales, weight, bias); });
    }

    void add_library() {
        // The adapters have two ranks, as gathered ones may have.
        const auto adapters = std::make_shared<std::array<lora, 2>>();
        for (index_t i : {0, 1})
            (*adapters)[static_cast<std::size_t>(i)] = {
                a_.slice(0, 0).slice(0, i).block(1, 0, rank - i),
                b_.slice(0, 0).slice(0, i).block(0, 0, rank - i), i == 0 ? 0.5 : 2};
        const stacked_lora_matrices pool{make<3>(stored_, {2, in_block, rank}, of_modules_),
                                         make<3>(stored_, {2, rank, out_block}, of_modules_)};
        add_one_phase("gather_lora_library", [=](executor_ref executor) {
            gather_lora_library(executor, {adapters->data(), {2}}, pool);
        });
    }

    void add_combining() {
        const auto matrices = std::make_shared<std::array<combined_matrix, 2>>();
        const auto adapters = std::make_shared<std::array<weighted_lora, 2>>();
        for (index_t i : {0, 1}) {
            const lora adapter{a_.slice(0, 0).slice(0, i), b_.slice(0, 0).slice(0, i), 0.5};
            (*adapters)[static_cast<std::size_t>(i)] = {adapter, i == 0 ? 2.0 : -1.0, {}, {}};
            (*matrices)[static_cast<std::size_t>(i)] = {adapter.a, 1.5, {}};
        }
        const combining_rule rule{pruning::magnitude, 0.3, sign_election::total};
        const lora_matrices one{make<2>(stored_, {in_block, rank}, of_modules_),
                                make<2>(stored_, {rank, out_block}, of_modules_)};
        const lora_matrices joined{make<2>(stored_, {in_block, 2 * rank}, of_modules_),
                                   make<2>(stored_, {2 * rank, out_block}, of_modules_)};
        const auto sum = make<2>(stored_, {in_block, rank}, of_modules_);
        const workspace memory = make_memory(combine_lora_workspace_size(2, rule));
        add("combine_matrices", [=](executor_ref executor) {
            combine_matrices(executor, {matrices->data(), {2}}, rule, sum, memory);
        });
        add("combine_lora", [=](executor_ref executor) {
            combine_lora(executor, {adapters->data(), {2}}, rule, one, memory);
        });
        add_one_phase("concatenate_lora", [=](executor_ref executor) {
            concatenate_lora(executor, {adapters->data(), {2}}, joined);
        });
    }

    void add_training() {
        // More tasks than a tile has.
        constexpr index_t tasks = 11;
        const auto gram =
            make<2>(element_type::f64, {tasks, tasks}, of_gradients_, 0, 0).as<double>();
        const auto similarity =
            make<2>(element_type::f64, {tasks, tasks}, of_gradients_).as<double>();
        const auto weights =
            make<3>(element_type::f32, {tasks, heads, modules}, of_gradients_, 0, 1);
        const auto gradients = make_gradient<2>({tasks, 300});
        const stacked_lora_matrices d_adapters{make_gradient<3>({tasks, 20, 3}),
                                               make_gradient<3>({tasks, 3, 10})};
        const auto entropy = make_gradient<2>({tasks, heads});
        const auto alignment = make_number();
        const auto active = make_number();
        add_one_phase("gradient_gram",
                      [=](executor_ref executor) { gradient_gram(executor, gradients, gram); });
        add_one_phase("lora_gradient_gram", [=](executor_ref executor) {
            lora_gradient_gram(executor, d_adapters, gram);
        });
        add_one_phase("routed_gradient_gram", [=](executor_ref executor) {
            routed_gradient_gram(executor, weights, d_adapters.a.split(1, heads), gram);
        });
        add_one_phase("routed_lora_gradient_gram", [=](executor_ref executor) {
            routed_lora_gradient_gram(executor, weights, d_adapters, gram);
        });
        add("gram_cosines and gradient_alignment", [=](executor_ref) {
            gram_cosines(gram, similarity);
            alignment(0) = gradient_alignment(gram).mean;
        });
        add("task_similarity", [=](executor_ref) { task_similarity(weights, similarity); });
        add("routing_entropy", [=](executor_ref) { routing_entropy(weights, entropy); });
        add("routing_statistics_of", [=](executor_ref) {
            const routing_statistics statistics = routing_statistics_of(weights);
            active(0) =
                statistics.active_share + 2 * statistics.discreteness + 3 * statistics.efficiency;
        });
    }

    element_type stored_;
    layout of_rows_, of_modules_, of_gradients_;
    std::vector<std::function<std::vector<std::byte>()>> tensors_{};
    std::vector<std::shared_ptr<void>> memory_{}; // of all tensors
    std::vector<kernel> kernels_{};
    // The members that most of them have in common.
    batch_plan plan_{};
    tensor_ref<2> x_{}, y_{}, d_y_{}, d_x_{};
    tensor_ref<3> weights_{}, d_weights_{};
    tensor_ref<4> a_{}, b_{}, d_a_{}, d_b_{};
};

} // namespace mhr::test

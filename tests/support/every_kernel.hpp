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

#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"

/// \file
/// Every kernel of the library with arguments of its own, to be called one by one: for what has to
/// hold of all of them. CMakeLists.txt sees to it that a new one is added here: it looks for calls
/// of all functions of routing/, mixing/, adapters/ and analysis/ that take an executor or are
/// called *_forward or *_backward.

namespace mhr::test {

/// A function of the library, with arguments.
struct kernel {
    std::string name;
    bool one_phase; ///< whether it accepts shares (share_executor)
    std::function<void(executor_ref)> call;
};

/// Layers of a model with rows of four tasks and of none, so large that their work comes in several
/// parts, and so odd that vectors, tiles and blocks do not come out even. Activations, modules and
/// logits are stored as `T`, and gradients of what is trained as its accumulator type.
///
/// The kernels build upon each other: they are to be called in their order.
template <class T>
class every_kernel {
    using A = accumulator_t<T>;

  public:
    explicit every_kernel(layout of_rows = layout::row_major, layout of_modules = layout::row_major,
                          layout of_gradients = layout::row_major)
        : of_rows_(of_rows), of_modules_(of_modules), of_gradients_(of_gradients) {
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
        x_ = make<T, 2>({rows, in}, of_rows_);
        d_y_ = make<T, 2>({rows, out}, of_rows_);
        y_ = make<T, 2>({rows, out}, of_rows_);
        d_x_ = make<A, 2>({rows, in}, of_gradients_);
        inventory_ = {make<T, 4>({heads, modules, in_block, rank}, of_modules_),
                      make<T, 4>({heads, modules, rank, out_block}, of_modules_)};
        d_inventory_ = {make<A, 4>({heads, modules, in_block, rank}, of_gradients_),
                        make<A, 4>({heads, modules, rank, out_block}, of_gradients_)};
        weights_ = make<A, 3>({plan_.entries(), heads, modules}, of_gradients_, 0, 1);
        d_weights_ = make<A, 3>({plan_.entries(), heads, modules}, of_gradients_);
        add_routers();
        add_mixing();
        add_lora();
        add_routed_lora();
        add_halves();
        add_output_mixed_lora();
        add_ia3();
        add_merging();
        add_library();
        add_analysis();
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
    static constexpr lora_shape shape{heads, modules, in, out, rank};
    // One head of few modules, for what mixes outputs.
    static constexpr lora_shape library_shape{1, 3, in, out, rank};

    /// A tensor of this object, full of random numbers.
    template <class U, std::size_t Rank>
    tensor_view<U, Rank> make(const std::array<index_t, Rank>& extents, layout order,
                              double low = -1, double high = 1) {
        const auto buffer = std::make_shared<guarded_buffer<U, Rank>>(extents, order);
        random_source(tensors_.size()).fill(buffer->view(), low, high);
        memory_.push_back(buffer);
        watch(buffer->view());
        return buffer->view();
    }
    /// Makes a tensor one of those whose bits are told.
    template <class U, std::size_t Rank>
    void watch(const tensor_view<U, Rank>& view) {
        tensors_.push_back([view] {
            std::vector<std::byte> bits;
            const auto append = [&](const U* from, index_t count) {
                const auto* const bytes = reinterpret_cast<const std::byte*>(from);
                bits.insert(bits.end(), bytes, bytes + static_cast<std::size_t>(count) * sizeof(U));
            };
            if (view.is_contiguous())
                append(view.data(), view.size());
            else
                for_each_position(view.extents(),
                                  [&](const position<Rank>& at) { append(&element(view, at), 1); });
            return bits;
        });
    }
    template <std::size_t Rank>
    tensor_view<A, Rank> make_gradient(const std::array<index_t, Rank>& extents) {
        return make<A, Rank>(extents, of_gradients_);
    }
    workspace make_memory(std::size_t bytes) {
        const auto memory = std::make_shared<owned_workspace>(bytes);
        memory_.push_back(memory);
        return *memory;
    }
    routed_lora_state<A> make_state() {
        workspace memory = make_memory(routed_lora_state_size<A>(plan_, shape));
        const auto state = take_routed_lora_state<A>(memory, plan_, shape);
        watch(state.mixed.a);
        watch(state.mixed.b);
        watch(state.hidden);
        return state;
    }

    template <class F>
    void add_one_phase(std::string name, F&& call) {
        kernels_.push_back({std::move(name), true, std::forward<F>(call)});
    }
    template <class F>
    void add(std::string name, F&& call) {
        kernels_.push_back({std::move(name), false, std::forward<F>(call)});
    }

    void add_routers() {
        const auto logits = make<T, 3>({table_tasks, heads, modules}, of_modules_, -4, 4);
        const auto d_logits = make_gradient<3>({table_tasks, heads, modules});
        const auto extents = weights_.extents();
        const auto uniforms = make<A, 3>(extents, of_gradients_, 0.05, 0.95);
        const routing_rule training{
            shared_module_gate{dropout_gate{gumbel_sigmoid_gate{uniforms, 0.75}, uniforms, 0.25}},
            average_correction_normaliser{}, 0.5};
        const routing_rule experts{noisy_gate{identity_gate{}, uniforms}, softmax_normaliser{3}};
        const routing_rule lengths{identity_gate{}, l2_normaliser{}};
        const routing_rule discrete{straight_through_gate{}};
        const routing_rule evaluation{sigmoid_gate{}}; // last: its weights are those of the layers
        const auto add_rule = [&](const char* name, const auto& rule) {
            add_one_phase(std::string("router_forward, ") + name, [=, &all = *this](auto executor) {
                router_forward(executor, logits, all.plan_.tasks(), rule, all.weights_);
            });
            add_one_phase(std::string("router_backward, ") + name,
                          [=, &all = *this](auto executor) {
                              router_backward(executor, logits, all.plan_.tasks(), rule,
                                              all.d_weights_, d_logits);
                          });
        };
        const auto others = make_gradient<3>(extents);
        add_one_phase("private_router_forward", [=, &all = *this](auto executor) {
            private_router_forward(executor, all.plan_.tasks(), others);
        });
        add_one_phase("average_router_forward",
                      [=](auto executor) { average_router_forward(executor, others); });
        add_one_phase("given_router_forward", [=, &all = *this](auto executor) {
            given_router_forward(executor, logits, all.plan_.tasks(), others);
        });
        add_one_phase("given_router_backward", [=, &all = *this](auto executor) {
            given_router_backward(executor, all.plan_.tasks(), all.d_weights_, d_logits);
        });
        const auto memory = make_memory(indian_buffet_prior_workspace_size(table_tasks));
        const auto prior = make<double, 1>({1}, layout::row_major);
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

    void add_mixing() {
        const auto mixed = make_gradient<4>({plan_.entries(), heads, in_block, rank});
        const auto average = make_gradient<3>({heads, in_block, rank});
        add_one_phase("mix_forward", [=, &all = *this](auto executor) {
            mix_forward(executor, all.weights_, all.inventory_.a, mixed);
        });
        add_one_phase("mix_backward", [=, &all = *this](auto executor) {
            mix_backward(executor, all.weights_, all.inventory_.a, mixed, all.d_inventory_.a,
                         all.d_weights_);
        });
        add_one_phase("average_forward", [=, &all = *this](auto executor) {
            average_forward(executor, all.inventory_.a, average);
        });
        add_one_phase("average_backward", [=, &all = *this](auto executor) {
            average_backward(executor, average, all.d_inventory_.a);
        });
    }

    void add_lora() {
        const index_t entries = plan_.entries();
        const lora_batch<A> adapters{make_gradient<3>({entries, in, rank}),
                                     make_gradient<3>({entries, rank, out})};
        const lora_batch<A> d_adapters{make_gradient<3>({entries, in, rank}),
                                       make_gradient<3>({entries, rank, out})};
        const lora<A> average{make_gradient<2>({in, rank}), make_gradient<2>({rank, out})};
        const auto hidden = make_gradient<2>({rows, rank});
        const auto d_hidden = make_gradient<2>({rows, rank});
        const workspace memory = make_memory(lora_backward_workspace_size<A>(plan_, in, out, rank));
        add_one_phase("mix_lora_forward", [=, &all = *this](auto executor) {
            mix_lora_forward(executor, all.weights_, all.inventory_, adapters);
        });
        add_one_phase("lora_forward", [=, &all = *this](auto executor) {
            lora_forward(executor, all.plan_, all.x_, adapters, scale, all.y_, hidden);
        });
        add("lora_backward", [=, &all = *this](auto executor) {
            lora_backward(executor, all.plan_, all.x_, adapters, scale, hidden, all.d_y_, all.d_x_,
                          d_adapters, memory);
        });
        add_one_phase("mix_lora_backward", [=, &all = *this](auto executor) {
            mix_lora_backward(executor, all.weights_, all.inventory_, d_adapters, all.d_inventory_,
                              all.d_weights_);
        });
        add_one_phase("lora_project_forward", [=, &all = *this](auto executor) {
            lora_project_forward(executor, all.plan_, all.x_, adapters, hidden);
        });
        add_one_phase("lora_expand_forward", [=, &all = *this](auto executor) {
            lora_expand_forward(executor, all.plan_, hidden, adapters, scale, all.y_);
        });
        add("lora_expand_backward", [=, &all = *this](auto executor) {
            lora_expand_backward(executor, all.plan_, hidden, adapters, scale, all.d_y_, d_hidden,
                                 d_adapters, memory);
        });
        add("lora_project_backward", [=, &all = *this](auto executor) {
            lora_project_backward(executor, all.plan_, all.x_, adapters, d_hidden, all.d_x_,
                                  d_adapters, memory);
        });
        add_one_phase("average_lora_forward", [=, &all = *this](auto executor) {
            average_lora_forward(executor, all.inventory_, average);
        });
        add_one_phase("average_lora_backward", [=, &all = *this](auto executor) {
            average_lora_backward(executor, average, all.d_inventory_);
        });
    }

    void add_routed_lora() {
        const auto state = make_state();
        const workspace memory = make_memory(routed_lora_backward_workspace_size<A>(plan_, shape));
        add("routed_lora_forward", [=, &all = *this](auto executor) {
            routed_lora_forward(executor, all.plan_, all.x_, all.inventory_, all.weights_, scale,
                                all.y_, state);
        });
        add("routed_lora_backward", [=, &all = *this](auto executor) {
            routed_lora_backward(executor, all.plan_, all.x_, all.inventory_, all.weights_, scale,
                                 state, all.d_y_, all.d_x_, all.d_inventory_, all.d_weights_,
                                 memory);
        });
        add("routed_lora_backward, routing alone", [=, &all = *this](auto executor) {
            routed_lora_backward(executor, all.plan_, all.x_, all.inventory_, all.weights_, scale,
                                 state, all.d_y_, {}, {}, all.d_weights_, memory);
        });
        const auto cache = std::make_shared<mixed_lora_cache<A>>(shape, plan_.entries() + 1);
        const auto hidden = make_gradient<2>({rows, rank});
        add("mixed_lora_cache::get", [=, &all = *this](auto executor) {
            lora_forward(executor, all.plan_, all.x_,
                         cache->get(executor, all.plan_, all.weights_, all.inventory_, 1), scale,
                         all.y_, hidden);
        });
    }

    void add_halves() {
        const auto state = make_state();
        const auto d_hidden = make_gradient<2>({rows, rank});
        const workspace memory = make_memory(routed_lora_halves_workspace_size<A>(plan_, shape));
        add("routed_lora_project_forward", [=, &all = *this](auto executor) {
            routed_lora_project_forward(executor, all.plan_, all.x_, all.inventory_, all.weights_,
                                        state);
        });
        add("routed_lora_expand_forward", [=, &all = *this](auto executor) {
            routed_lora_expand_forward(executor, all.plan_, all.inventory_, all.weights_, scale,
                                       all.y_, state);
        });
        add("routed_lora_expand_backward", [=, &all = *this](auto executor) {
            routed_lora_expand_backward(executor, all.plan_, all.inventory_, all.weights_, scale,
                                        state, all.d_y_, d_hidden, all.d_inventory_, all.d_weights_,
                                        memory);
        });
        add("routed_lora_project_backward", [=, &all = *this](auto executor) {
            routed_lora_project_backward(executor, all.plan_, all.x_, all.inventory_, all.weights_,
                                         state, d_hidden, all.d_x_, all.d_inventory_,
                                         all.d_weights_, memory);
        });
    }

    void add_output_mixed_lora() {
        const index_t of_library = library_shape.modules;
        const lora_inventory<T> library{make<T, 4>({1, of_library, in, rank}, of_modules_),
                                        make<T, 4>({1, of_library, rank, out}, of_modules_)};
        const lora_inventory<A> d_library{make_gradient<4>({1, of_library, in, rank}),
                                          make_gradient<4>({1, of_library, rank, out})};
        const auto weights = make<A, 3>({plan_.entries(), 1, of_library}, of_gradients_);
        const auto d_weights = make_gradient<3>({plan_.entries(), 1, of_library});
        weights(1, 0, 1) = 0;
        const auto hidden = make_gradient<3>({rows, of_library, rank});
        const workspace memory =
            make_memory(output_mixed_lora_backward_workspace_size<A>(plan_, library_shape));
        add_one_phase("output_mixed_lora_forward", [=, &all = *this](auto executor) {
            output_mixed_lora_forward(executor, all.plan_, all.x_, library, weights, scale, all.y_,
                                      hidden);
        });
        add("output_mixed_lora_backward", [=, &all = *this](auto executor) {
            output_mixed_lora_backward(executor, all.plan_, all.x_, library, weights, scale, hidden,
                                       all.d_y_, all.d_x_, d_library, d_weights, memory);
        });
    }

    void add_ia3() {
        const auto inventory = make<T, 3>({heads, modules, in_block}, of_modules_);
        const auto d_inventory = make_gradient<3>({heads, modules, in_block});
        const auto scales = make_gradient<2>({plan_.entries(), in});
        const auto d_scales = make_gradient<2>({plan_.entries(), in});
        const auto average = make_gradient<1>({in});
        const auto y = make<T, 2>({rows, in}, of_rows_);
        const auto routed_y = make<T, 2>({rows, in}, of_rows_);
        const auto state = make_gradient<2>({plan_.entries(), in});
        const auto d_y = make<T, 2>({rows, in}, of_rows_);
        const workspace memory = make_memory(routed_ia3_backward_workspace_size<A>(plan_, in));
        add_one_phase("mix_ia3_forward", [=, &all = *this](auto executor) {
            mix_ia3_forward(executor, all.weights_, inventory, scales);
        });
        add_one_phase("mix_ia3_backward", [=, &all = *this](auto executor) {
            mix_ia3_backward(executor, all.weights_, inventory, d_scales, d_inventory,
                             all.d_weights_);
        });
        add_one_phase("ia3_forward", [=, &all = *this](auto executor) {
            ia3_forward(executor, all.plan_, all.x_, scales, y);
        });
        add_one_phase("ia3_backward", [=, &all = *this](auto executor) {
            ia3_backward(executor, all.plan_, all.x_, scales, d_y, all.d_x_, d_scales);
        });
        add_one_phase("average_ia3_forward",
                      [=](auto executor) { average_ia3_forward(executor, inventory, average); });
        add_one_phase("average_ia3_backward",
                      [=](auto executor) { average_ia3_backward(executor, average, d_inventory); });
        add("routed_ia3_forward", [=, &all = *this](auto executor) {
            routed_ia3_forward(executor, all.plan_, all.x_, inventory, all.weights_, routed_y,
                               state);
        });
        add("routed_ia3_backward", [=, &all = *this](auto executor) {
            routed_ia3_backward(executor, all.plan_, all.x_, inventory, all.weights_, state, d_y,
                                all.d_x_, d_inventory, all.d_weights_, memory);
        });
    }

    void add_merging() {
        const lora<T> adapter{inventory_.a.slice(0, 0).slice(0, 1),
                              inventory_.b.slice(0, 0).slice(0, 1)};
        const auto weight = make<T, 2>({out_block, in_block}, of_modules_);
        const auto bias = make<T, 1>({out_block}, of_modules_);
        const auto scales = make<A, 1>({out_block}, of_modules_, 0.5, 1.5);
        add_one_phase("merge_lora",
                      [=](auto executor) { merge_lora(executor, adapter, scale, weight); });
        add_one_phase("unmerge_lora",
                      [=](auto executor) { unmerge_lora(executor, adapter, scale / 2, weight); });
        add_one_phase("merge_ia3",
                      [=](auto executor) { merge_ia3(executor, scales, weight, bias); });
        add_one_phase("unmerge_ia3",
                      [=](auto executor) { unmerge_ia3(executor, scales, weight, bias); });
    }

    void add_library() {
        // Of two ranks, as what is gathered may be.
        const auto adapters = std::make_shared<std::array<lora<T>, 2>>();
        for (index_t i : {0, 1})
            (*adapters)[static_cast<std::size_t>(i)] = {
                inventory_.a.slice(0, 0).slice(0, i).block(1, 0, rank - i),
                inventory_.b.slice(0, 0).slice(0, i).block(0, 0, rank - i)};
        const lora_batch<T> pool{make<T, 3>({2, in_block, rank}, of_modules_),
                                 make<T, 3>({2, rank, out_block}, of_modules_)};
        add_one_phase("gather_lora_library", [=](auto executor) {
            const std::array<double, 2> factors{0.5, 2};
            gather_lora_library(executor, tensor_view<const lora<T>, 1>(adapters->data(), {2}),
                                tensor_view<const double, 1>(factors.data(), {2}), pool);
        });
    }

    void add_analysis() {
        // More tasks than a tile has.
        constexpr index_t tasks = 11;
        const auto gram = make<double, 2>({tasks, tasks}, of_gradients_, 0, 0);
        const auto similarity = make<double, 2>({tasks, tasks}, of_gradients_);
        const auto weights = make<A, 3>({tasks, heads, modules}, of_gradients_, 0, 1);
        const auto gradients = make_gradient<2>({tasks, 300});
        const lora_batch<A> d_adapters{make_gradient<3>({tasks, 20, 3}),
                                       make_gradient<3>({tasks, 3, 10})};
        const auto entropy = make_gradient<2>({tasks, heads});
        const auto numbers = make<double, 1>({4}, layout::row_major);
        add_one_phase("gradient_gram",
                      [=](auto executor) { gradient_gram(executor, gradients, gram); });
        add_one_phase("lora_gradient_gram",
                      [=](auto executor) { lora_gradient_gram(executor, d_adapters, gram); });
        add_one_phase("routed_gradient_gram", [=](auto executor) {
            routed_gradient_gram(executor, weights, d_adapters.a.split(1, heads), gram);
        });
        add_one_phase("routed_lora_gradient_gram", [=](auto executor) {
            routed_lora_gradient_gram(executor, weights, d_adapters, gram);
        });
        add("gram_cosines and gradient_alignment", [=](executor_ref) {
            gram_cosines(gram, similarity);
            numbers(0) = gradient_alignment(gram).mean;
        });
        add("task_similarity", [=](executor_ref) { task_similarity(weights, similarity); });
        add("routing_entropy", [=](executor_ref) { routing_entropy(weights, entropy); });
        add("routing_statistics_of", [=](executor_ref) {
            const routing_statistics statistics = routing_statistics_of(weights);
            numbers(1) = statistics.active_share;
            numbers(2) = statistics.discreteness;
            numbers(3) = statistics.efficiency;
        });
    }

    layout of_rows_, of_modules_, of_gradients_;
    std::vector<std::function<std::vector<std::byte>()>> tensors_{};
    std::vector<std::shared_ptr<void>> memory_{}; // of all views
    std::vector<kernel> kernels_{};
    // What most of them have in common.
    batch_plan plan_{};
    tensor_view<T, 2> x_{}, y_{}, d_y_{};
    tensor_view<A, 2> d_x_{};
    tensor_view<A, 3> weights_{}, d_weights_{};
    lora_inventory<T> inventory_{};
    lora_inventory<A> d_inventory_{};
};

} // namespace mhr::test

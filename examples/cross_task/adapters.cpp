#include "adapters.hpp"

#include <algorithm>

#include <mhr/hosts/eigen.hpp>

namespace cross_task {

namespace {

using mhr::index_t;

index_t inputs(int l) {
    return layer_inputs[static_cast<std::size_t>(l)];
}
index_t outputs(int l) {
    return layer_outputs[static_cast<std::size_t>(l)];
}

/// The host says "not needed" with a gradient of no rows, mhr with an absent view.
mhr::tensor_ref<2> view_if_wanted(matrix_view<float>& gradient) {
    if (gradient.rows() == 0) return {};
    return mhr::eigen::view_of(gradient);
}

void make_plan(mhr::batch_plan& plan, const task_rows& rows) {
    // One length for all sequences: a stride of 0.
    plan.assign_sequences(rows.task_of_sequence,
                          mhr::tensor_view<const index_t, 1>(&rows.rows_of_sequence,
                                                             rows.task_of_sequence.extents(), {0}));
}

constexpr mhr::serial_executor executor; // the threads work on different trainings

/// Zeros for the gradient of one adapter for each entry of a plan.
mhr::stacked_lora_matrices take_gradients(mhr::owned_workspace& memory, index_t entries, int l,
                                          index_t rank) {
    const auto take = [&](mhr::workspace& from) {
        const auto a = from.take<float, 3>({entries, inputs(l), rank});
        const auto b = from.take<float, 3>({entries, rank, outputs(l)});
        return std::pair(a, b);
    };
    mhr::workspace meter;
    take(meter);
    memory.reserve(meter.used());
    mhr::workspace workspace = memory;
    const auto [a, b] = take(workspace);
    std::fill_n(a.data(), a.size(), 0.0F);
    std::fill_n(b.data(), b.size(), 0.0F);
    return {a, b};
}

} // namespace

plain_adapters::plain_adapters(index_t rank, std::uint64_t seed) : rank_(rank) {
    for (int l = 0; l < layer_count; ++l) {
        auto& [a, b] = places_[static_cast<std::size_t>(l)];
        a = layout_.place<2>({inputs(l), rank});
        b = layout_.place<2>({rank, outputs(l)});
    }
    memory_.resize(layout_.size());
    for (int l = 0; l < layer_count; ++l) {
        const auto [a, b] = adapter(l);
        mhr::initialise_inventory(
            seed + static_cast<std::uint64_t>(l),
            {a.prepend_axis().prepend_axis(), b.prepend_axis().prepend_axis()});
    }
}

mhr::lora_matrices plain_adapters::matrices(aligned_floats& values, int l) const {
    const auto& [a, b] = places_[static_cast<std::size_t>(l)];
    return {a.in(buffer(values)), b.in(buffer(values))};
}

index_t plain_adapters::trained_parameters() const {
    index_t count = 0;
    for (const auto& [a, b] : places_)
        count += a.size() + b.size();
    return count;
}

/// The one adapter for each entry of the plan: strides of 0. (Not a single one, for whose gradient
/// the entries would be summed.)
mhr::lora_list plain_adapters::adapters(int l) {
    const auto [a, b] = adapter(l);
    const index_t entries = plan_.entries();
    return {mhr::const_tensor_ref<3>(a.data(), a.type(), {entries, a.extent(0), rank_},
                                     {0, a.stride(0), a.stride(1)}),
            mhr::const_tensor_ref<3>(b.data(), b.type(), {entries, rank_, b.extent(1)},
                                     {0, b.stride(0), b.stride(1)}),
            scale()};
}

mhr::lora_state plain_adapters::state(int l) {
    return {{hidden_.data() + l * plan_.rows() * rank_, {plan_.rows(), rank_}}};
}

void plain_adapters::reserve() {
    hidden_.resize(static_cast<std::size_t>(layer_count * plan_.rows() * rank_));
    for (int l = 0; l < layer_count; ++l)
        scratch_.reserve(mhr::lora_backward_workspace_size(mhr::batch{plan_}, adapters(l)));
}

void plain_adapters::begin(const task_rows& rows, const routing_mode&) {
    plan_.assign_single_task(rows.task_of_sequence.extent(0) * rows.rows_of_sequence);
    reserve();
}

void plain_adapters::begin_alignment(const task_rows& rows) {
    make_plan(plan_, rows);
    reserve();
}

void plain_adapters::forward(int l, const const_matrix_view<float>& x, matrix_view<float>& y) {
    mhr::lora_forward({plan_}, adapters(l), mhr::eigen::view_of(x), mhr::eigen::view_of(y),
                      state(l));
}

void plain_adapters::backward(int l, const const_matrix_view<float>& x,
                              const const_matrix_view<float>& d_y, matrix_view<float>& d_x) {
    const auto gradient = matrices(memory_.gradients, l);
    mhr::lora_backward({plan_}, adapters(l), mhr::eigen::view_of(x), mhr::eigen::view_of(d_y),
                       state(l), {view_if_wanted(d_x), gradient}, scratch_);
}

void plain_adapters::add_gram(int l, const const_matrix_view<float>& x,
                              const const_matrix_view<float>& d_y, matrix_view<float>& d_x,
                              mhr::tensor_view<double, 2> gram) {
    const auto gradients = take_gradients(gradients_of_tasks_, plan_.entries(), l, rank_);
    mhr::lora_backward({plan_}, adapters(l), mhr::eigen::view_of(x), mhr::eigen::view_of(d_y),
                       state(l), {view_if_wanted(d_x), gradients}, scratch_);
    mhr::lora_gradient_gram({}, gradients, gram);
}

routed_adapters::routed_adapters(const routed_options& options, std::uint64_t seed)
    : options_(options), state_memory_(layer_count), states_(layer_count) {
    lay_out();
    for (int l = 0; l < layer_count; ++l)
        mhr::initialise_inventory(seed + static_cast<std::uint64_t>(l),
                                  inventory(memory_.values, l));
    draw_logits(seed + layer_count);
}

/// Modules that are there stay, logits become zero.
void routed_adapters::lay_out() {
    const auto& [tasks, heads, modules, rank, kind] = options_;
    mhr::parameter_layout layout;
    for (int l = 0; l < layer_count; ++l)
        modules_[static_cast<std::size_t>(l)] =
            layout.place_inventory({heads, modules, inputs(l), outputs(l), rank});
    memory_.resize(layout.size());
    logits_ = layout.place<4>({layer_count, tasks, heads, modules});
    memory_.resize(layout.size());
}

void routed_adapters::draw_logits(std::uint64_t seed) {
    const mhr::tensor_ref<3> all(memory_.values.data() + logits_.first,
                                 {layer_count * options_.tasks, options_.heads, options_.modules});
    if (options_.kind == routing::learned) {
        mhr::initialise_logits(seed, all);
        return;
    }
    // Random routing: each module is on or off by a fair coin, for good.
    constexpr float on = 5.0F;
    random_engine random(seed);
    for (float& logit : logits().values)
        logit = random.uniform() < 0.5 ? -on : on;
}

routed_adapters routed_adapters::for_new_task(std::uint64_t seed) const {
    routed_adapters result = *this;
    result.options_.tasks = 1;
    result.lay_out();
    result.draw_logits(seed);
    return result;
}

index_t routed_adapters::trained_parameters() const {
    index_t count = trains_logits() ? logits_.size() : 0;
    if (trains_modules_)
        for (const auto& place : modules_)
            count += place.size();
    return count;
}

mhr::lora_inventory_matrices routed_adapters::inventory(aligned_floats& values, int l) const {
    return modules_[static_cast<std::size_t>(l)].in(buffer(values));
}

mhr::routed_lora routed_adapters::layer(int l) {
    const auto [a, b] = inventory(memory_.values, l);
    return {a, b, table(weights_, l, plan_.entries()), scale()};
}

mhr::tensor_ref<3> routed_adapters::logits_of(aligned_floats& values, int l) const {
    return logits_.in(buffer(values)).slice(0, l);
}

mhr::tensor_ref<3> routed_adapters::table(aligned_floats& values, int l, index_t rows) const {
    const index_t row = options_.heads * options_.modules;
    return {values.data() + l * rows * row, {rows, options_.heads, options_.modules}};
}

plain_adapters routed_adapters::average() const {
    plain_adapters result(options_.rank, 0);
    for (int l = 0; l < layer_count; ++l)
        mhr::average_lora_forward(
            executor, modules_[static_cast<std::size_t>(l)].in_const(buffer(memory_.values)),
            result.adapter(l));
    return result;
}

std::vector<float> routed_adapters::weights() const {
    const index_t row = options_.heads * options_.modules;
    std::vector<float> result(static_cast<std::size_t>(logits_.size()));
    std::vector<std::int64_t> tasks(static_cast<std::size_t>(options_.tasks));
    for (std::size_t t = 0; t < tasks.size(); ++t)
        tasks[t] = static_cast<std::int64_t>(t);
    for (int l = 0; l < layer_count; ++l) {
        const mhr::tensor_ref<3> of_layer(result.data() + l * row,
                                          {options_.tasks, options_.heads, options_.modules},
                                          {layer_count * row, options_.modules, 1});
        mhr::router_forward(executor, logits_.in_const(buffer(memory_.values)).slice(0, l),
                            mhr::tensor_view<const std::int64_t, 1>(tasks.data(), {options_.tasks}),
                            mhr::routing_rule{mhr::sigmoid_gate{}}, of_layer);
    }
    return result;
}

template <class Route>
void routed_adapters::with_rule(int l, Route&& route) {
    constexpr mhr::sum_normaliser normaliser;
    if (noisy_)
        route(mhr::routing_rule{mhr::gumbel_sigmoid_gate{table(uniforms_, l, plan_.entries())},
                                normaliser, annealing_});
    else
        route(mhr::routing_rule{mhr::sigmoid_gate{}, normaliser, annealing_});
}

void routed_adapters::begin(const task_rows& rows, const routing_mode& mode) {
    make_plan(plan_, rows);
    const auto numbers =
        static_cast<std::size_t>(layer_count * plan_.entries() * options_.heads * options_.modules);
    weights_.resize(numbers);
    d_weights_.assign(numbers, 0.0F);
    annealing_ = mode.annealing;
    noisy_ = mode.noise != nullptr;
    if (noisy_) {
        uniforms_.resize(numbers);
        mhr::draw_uniforms(*mode.noise, buffer(uniforms_));
    }
    for (int l = 0; l < layer_count; ++l) {
        with_rule(l, [&](const auto& rule) {
            mhr::router_forward(executor, logits_of(memory_.values, l), plan_.tasks(), rule,
                                table(weights_, l, plan_.entries()));
        });
        auto& memory = state_memory_[static_cast<std::size_t>(l)];
        memory.reserve(mhr::routed_lora_state_size(batch(), layer(l)));
        mhr::workspace workspace = memory;
        states_[static_cast<std::size_t>(l)] =
            mhr::take_routed_lora_state(workspace, batch(), layer(l));
        scratch_.reserve(mhr::routed_lora_backward_workspace_size(batch(), layer(l)));
    }
}

void routed_adapters::forward(int l, const const_matrix_view<float>& x, matrix_view<float>& y) {
    mhr::routed_lora_forward(batch(), layer(l), mhr::eigen::view_of(x), mhr::eigen::view_of(y),
                             states_[static_cast<std::size_t>(l)]);
}

void routed_adapters::backward(int l, const const_matrix_view<float>& x,
                               const const_matrix_view<float>& d_y, matrix_view<float>& d_x) {
    mhr::routed_lora_gradients gradients{view_if_wanted(d_x)};
    if (trains_modules_) {
        const auto [a, b] = inventory(memory_.gradients, l);
        gradients.a = a;
        gradients.b = b;
    }
    if (trains_logits()) gradients.weights = table(d_weights_, l, plan_.entries());
    mhr::routed_lora_backward(batch(), layer(l), mhr::eigen::view_of(x), mhr::eigen::view_of(d_y),
                              states_[static_cast<std::size_t>(l)], gradients, scratch_);
}

void routed_adapters::add_gram(int l, const const_matrix_view<float>& x,
                               const const_matrix_view<float>& d_y, matrix_view<float>& d_x,
                               mhr::tensor_view<double, 2> gram) {
    // The gradients of the mixed adapters say all: those of the modules are their multiples.
    const auto& state = states_[static_cast<std::size_t>(l)];
    const auto gradients = take_gradients(gradients_of_tasks_, plan_.entries(), l, options_.rank);
    mhr::lora_backward(batch(), {state.mixed.a, state.mixed.b, scale()}, mhr::eigen::view_of(x),
                       mhr::eigen::view_of(d_y), {state.hidden}, {view_if_wanted(d_x), gradients},
                       scratch_);
    mhr::routed_lora_gradient_gram(executor, table(weights_, l, plan_.entries()), gradients, gram);
}

void routed_adapters::end() {
    if (!trains_logits()) return;
    for (int l = 0; l < layer_count; ++l)
        with_rule(l, [&](const auto& rule) {
            mhr::router_backward(executor, logits_of(memory_.values, l), plan_.tasks(), rule,
                                 table(d_weights_, l, plan_.entries()),
                                 logits_of(memory_.gradients, l));
        });
}

} // namespace cross_task

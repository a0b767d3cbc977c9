#pragma once

#include "host_model.hpp"
#include "random.hpp"

#include <Eigen/Core>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <mhr/mhr.hpp>

// The adapters beside the host's linear layers: this file and its .cpp are all that the host needs
// to know of mhr.

namespace cross_task {

/// Aligned for vector registers: Eigen treats elements before the first aligned address by other
/// instructions, with other roundings, and results would depend on where memory happens to lie.
using aligned_floats = std::vector<float, Eigen::aligned_allocator<float>>;

/// Parameters that are trained at one speed, and the gradient of the current step.
struct parameter_group {
    Eigen::Map<Eigen::ArrayXf> values, gradients;

    mhr::index_t size() const { return values.size(); }
};

/// All parameters of some adapters, of every layer, in one buffer, and their gradients in another.
struct parameter_memory {
    aligned_floats values, gradients;

    /// New elements are zero.
    void resize(mhr::index_t count) {
        values.resize(static_cast<std::size_t>(count));
        gradients.resize(values.size());
    }
    parameter_group group(mhr::index_t first, mhr::index_t count) {
        return {{values.data() + first, count}, {gradients.data() + first, count}};
    }
};

/// The parameters, or their gradients, as one vector.
inline mhr::tensor_ref<1> buffer(aligned_floats& values) {
    return {values.data(), {static_cast<mhr::index_t>(values.size())}};
}
inline mhr::const_tensor_ref<1> buffer(const aligned_floats& values) {
    return {values.data(), {static_cast<mhr::index_t>(values.size())}};
}

/// The sequences of a batch: one after the other, of equal length, each of one task.
struct task_rows {
    mhr::tensor_view<const std::int64_t, 1> task_of_sequence;
    mhr::index_t rows_of_sequence = 0;
};

/// How the tasks of a batch are routed; plain adapters have no use for it.
struct routing_mode {
    random_engine* noise = nullptr; ///< through the Gumbel-sigmoid, else the plain sigmoid
    double annealing = 1;           ///< 1: as learnt, 0: uniformly (mhr::routing_rule)
};

/// One plain LoRA adapter for each linear layer, used for all rows whatever their task. With rank r
/// the host's layers become y += x A B / r.
class plain_adapters {
  public:
    /// Drawn as PEFT draws them: A Kaiming-uniform, B zero, so that nothing changes at first.
    plain_adapters(mhr::index_t rank, std::uint64_t seed);

    mhr::lora_matrices adapter(int l) { return matrices(memory_.values, l); }

    /// Prepares for batches of the given rows.
    void begin(const task_rows& rows, const routing_mode& mode = {});
    void forward(int l, const const_matrix_view<float>& x, matrix_view<float>& y);
    void backward(int l, const const_matrix_view<float>& x, const const_matrix_view<float>& d_y,
                  matrix_view<float>& d_x);
    void end() {}

    /// Instead of `begin`, where `add_gram` follows rather than `backward`.
    void begin_alignment(const task_rows& rows);
    /// Adds the inner products of the tasks' gradients to layer l's adapter to `gram`
    /// [tasks, tasks]; what goes back to x goes on.
    void add_gram(int l, const const_matrix_view<float>& x, const const_matrix_view<float>& d_y,
                  matrix_view<float>& d_x, mhr::tensor_view<double, 2> gram);

    /// Returns what is trained.
    parameter_group modules() { return memory_.group(0, layout_.size()); }
    bool trains_modules() const { return true; }
    bool trains_logits() const { return false; }
    mhr::index_t trained_parameters() const;

  private:
    mhr::lora_matrices matrices(aligned_floats& values, int l) const;
    mhr::lora_list adapters(int l);
    mhr::lora_state state(int l);
    double scale() const { return 1.0 / static_cast<double>(rank_); }
    void reserve();

    struct adapter_place {
        mhr::parameter_place<2> a, b;
    };

    mhr::index_t rank_;
    mhr::parameter_layout layout_;
    std::array<adapter_place, layer_count> places_;
    parameter_memory memory_;
    mhr::batch_plan plan_;
    std::vector<float> hidden_; // [layers, rows, rank]: what forwards keep for their backwards
    mhr::owned_workspace gradients_of_tasks_;
    mhr::owned_workspace scratch_;
};

/// The source of a routed layer's weights.
enum class routing { learned, random };

struct routed_options {
    mhr::index_t tasks = 1;
    mhr::index_t heads = 1; ///< 1 is Poly
    mhr::index_t modules = 8;
    mhr::index_t rank = 16;
    routing kind = routing::learned;
};

/// An inventory of LoRA modules and a router for each linear layer.
class routed_adapters {
  public:
    routed_adapters(const routed_options& options, std::uint64_t seed);

    /// Returns the same modules with a new table of one row, for a task that was not in the
    /// training.
    routed_adapters for_new_task(std::uint64_t seed) const;

    /// The average of the modules as a plain adapter (MHR-mu).
    plain_adapters average() const;

    /// Weights of all tasks without noise, [tasks, layers, heads, modules].
    std::vector<float> weights() const;

    /// Makes the plan of a batch and routes its tasks.
    void begin(const task_rows& rows, const routing_mode& mode = {});
    void forward(int l, const const_matrix_view<float>& x, matrix_view<float>& y);
    void backward(int l, const const_matrix_view<float>& x, const const_matrix_view<float>& d_y,
                  matrix_view<float>& d_x);
    /// Completes the gradient: that of the weights goes back to the logits.
    void end();

    /// These do what those of plain_adapters do; the gradients are those to layer l's inventory.
    void begin_alignment(const task_rows& rows) { begin(rows); }
    void add_gram(int l, const const_matrix_view<float>& x, const const_matrix_view<float>& d_y,
                  matrix_view<float>& d_x, mhr::tensor_view<double, 2> gram);

    parameter_group modules() { return memory_.group(0, logits_.first); }
    parameter_group logits() { return memory_.group(logits_.first, logits_.size()); }
    bool trains_modules() const { return trains_modules_; }
    bool trains_logits() const { return options_.kind == routing::learned; }
    mhr::index_t trained_parameters() const;
    /// Trains the routing alone (MHR-z).
    void freeze_modules() { trains_modules_ = false; }

    const routed_options& options() const { return options_; }

    /// All modules and logits, and all their gradients: what ranks of a data-parallel training
    /// share and sum.
    mhr::tensor_ref<1> values() { return buffer(memory_.values); }
    mhr::tensor_ref<1> gradients() { return buffer(memory_.gradients); }

  private:
    mhr::lora_inventory_matrices inventory(aligned_floats& values, int l) const;
    mhr::routed_lora layer(int l);
    double scale() const { return 1.0 / static_cast<double>(options_.rank); }
    mhr::batch batch() const { return {plan_}; }
    mhr::tensor_ref<3> logits_of(aligned_floats& values, int l) const;
    mhr::tensor_ref<3> table(aligned_floats& values, int l, mhr::index_t rows) const;
    void lay_out();
    void draw_logits(std::uint64_t seed);
    template <class Route>
    void with_rule(int l, Route&& route);

    routed_options options_;
    bool trains_modules_ = true;
    bool noisy_ = false;
    double annealing_ = 1;
    std::array<mhr::inventory_place, layer_count> modules_;
    mhr::parameter_place<4> logits_; // [layers, tasks, heads, modules], after the modules
    parameter_memory memory_;

    // These belong to the current batch; the first index of each is the layer, the second the entry
    // of the plan.
    mhr::batch_plan plan_;
    aligned_floats uniforms_;
    aligned_floats weights_;
    aligned_floats d_weights_;
    std::vector<mhr::owned_workspace> state_memory_;
    std::vector<mhr::routed_lora_state> states_;
    mhr::owned_workspace scratch_;
    mhr::owned_workspace gradients_of_tasks_;
};

} // namespace cross_task

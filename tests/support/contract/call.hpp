#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mhr/batch/batch.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>

#include "support/batches.hpp"
#include "support/contract/adapter.hpp"
#include "support/contract/arguments.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"

/// \file
/// One call of an adapter with all its memory.

namespace mhr::test {

/// The choices of which a call is made. A test names what differs from these defaults.
struct call_options {
    contract_sizes sizes{};
    std::vector<std::int64_t> task_of_row{}; ///< random if there are none
    element_type sums = element_type::f32;   ///< the type of the state
    element_type stored = element_type::f32; ///< the type of all other tensors but these:
    std::map<std::string_view, element_type> types{};
    std::map<std::string_view, layout> layouts{}; ///< row-major but for these
    double scale = -0.75;

    call_options& with(const contract_sizes& value) {
        sizes = value;
        return *this;
    }
    call_options& with_tasks(std::vector<std::int64_t> tasks) {
        sizes.rows = static_cast<index_t>(tasks.size());
        task_of_row = std::move(tasks);
        return *this;
    }
    call_options& with_sums(element_type value) {
        sums = value;
        return *this;
    }
    call_options& of(element_type value) {
        stored = value;
        return *this;
    }
    call_options& of(std::string_view name, element_type value) {
        types[name] = value;
        return *this;
    }
    call_options& in(std::string_view name, layout value) {
        layouts[name] = value;
        return *this;
    }
    call_options& scaled(double value) {
        scale = value;
        return *this;
    }
};

/// One call of an adapter: its batch, its tensors (each filled from a seed of its own, so that the
/// values depend neither on the types nor on the layouts nor on the batch) and its scratch memory,
/// of exactly the size that the adapter asks for.
class adapter_call {
  public:
    explicit adapter_call(const adapter& page_, const call_options& options_ = {})
        : page(page_), options(options_),
          task_of_row(options.task_of_row.empty()
                          ? random_tasks(options.sizes.rows, options.sizes.tasks)
                          : options.task_of_row),
          plan(plan_of(task_of_row)), specs(page.tensors(options.sizes, plan.entries())) {
        std::uint64_t seed = 1;
        for (const tensor_spec& spec : specs) {
            memory_.push_back(
                std::make_unique<guarded_tensor<4>>(type_of(spec), spec.extents, layout_of(spec)));
            fill(spec, *memory_.back(), seed++);
        }
        scratch_.assign(page.scratch_size({plan}, given(), options.sums), std::byte{0xff});
    }

    const adapter& page;
    const call_options options;
    const std::vector<std::int64_t> task_of_row;
    const batch_plan plan;
    const std::vector<tensor_spec> specs;

    [[nodiscard]] guarded_tensor<4>& operator[](std::string_view name) {
        return *memory_[number_of(name)];
    }
    [[nodiscard]] const tensor_spec& spec(std::string_view name) const {
        return specs[number_of(name)];
    }

    /// The arguments of this call, of which a test may replace some.
    [[nodiscard]] arguments given() {
        arguments all;
        all.scale = options.scale;
        for (std::size_t n = 0; n < specs.size(); ++n)
            all.add(specs[n].name, memory_[n]->ref());
        return all;
    }
    [[nodiscard]] workspace scratch() { return {scratch_.data(), scratch_.size()}; }

    void forward(executor_ref executor = {}) { page.forward({plan, executor}, given()); }
    void backward(executor_ref executor = {}) {
        page.backward({plan, executor}, given(), scratch());
    }
    void run(executor_ref executor = {}) {
        forward(executor);
        backward(executor);
    }

    [[nodiscard]] bool has_state() const {
        for (const tensor_spec& spec : specs)
            if (spec.part == role::state) return true;
        return false;
    }

    [[nodiscard]] bool has_rows() const {
        for (const tensor_spec& spec : specs)
            if (spec.first_axis == counted::rows) return true;
        return false;
    }

    /// The type in which a result is summed.
    [[nodiscard]] element_type sums_of(std::string_view result) {
        return has_state() ? options.sums : page.sums_of_result(result, given());
    }

    /// All bytes of what a call may write.
    [[nodiscard]] std::vector<snapshot> take_snapshots() const {
        std::vector<snapshot> all;
        for (std::size_t n = 0; n < specs.size(); ++n)
            if (specs[n].is_written()) all.push_back(memory_[n]->take_snapshot());
        return all;
    }
    /// True if no byte beside the elements has been written, in any tensor.
    [[nodiscard]] bool intact() const {
        for (const auto& tensor : memory_)
            if (!tensor->intact()) return false;
        return true;
    }

  private:
    [[nodiscard]] std::size_t number_of(std::string_view name) const {
        std::size_t n = 0;
        while (n + 1 < specs.size() && specs[n].name != name)
            ++n;
        return n;
    }
    [[nodiscard]] element_type type_of(const tensor_spec& spec) const {
        if (spec.part == role::state) return options.sums;
        const auto own = options.types.find(spec.name);
        return own == options.types.end() ? options.stored : own->second;
    }
    [[nodiscard]] layout layout_of(const tensor_spec& spec) const {
        const auto own = options.layouts.find(spec.name);
        return own == options.layouts.end() ? layout::row_major : own->second;
    }
    static void fill(const tensor_spec& spec, guarded_tensor<4>& memory, std::uint64_t seed) {
        if (!spec.is_weights) return memory.fill(random_source(seed));
        memory.fill(random_source(seed), 0, 1);
        random_source random(seed + 100);
        transform_elements(memory.ref(),
                           [&](double value) { return random.integer(5) == 0 ? 0 : value; });
    }

    std::vector<std::unique_ptr<guarded_tensor<4>>> memory_;
    std::vector<std::byte> scratch_;
};

} // namespace mhr::test

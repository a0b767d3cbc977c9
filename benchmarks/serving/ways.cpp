#include "ways.hpp"

#include <memory>
#include <type_traits>

#include <mhr/hosts/openmp.hpp>

namespace mhr_bench {

namespace {

/// The adapters of some rows of the batch, that of row r being `batch.adapter_of(r)`.
class part_of_batch {
  public:
    part_of_batch(decoder& model, requests batch, index_t first_adapter, index_t adapters)
        : model_(model), first_adapter_(first_adapter), adapters_(adapters),
          first_(batch.first_row_of(first_adapter)),
          count_(batch.first_row_of(first_adapter + adapters) - first_) {
        std::vector<index_t> tasks;
        for (index_t row = first_; row < first_ + count_; ++row)
            tasks.push_back(batch.adapter_of(row) - first_adapter);
        plan_.assign_rows(mhr::tensor_view<const index_t, 1>(tasks.data(), {count_}));
        model.prepare(first_, count_);
    }

    void step(const plain_adapters& of) {
        each_layer([&](const mhr::batch& rows, index_t layer, const auto& x, const auto& y) {
            const mhr::lora_list list(of.of_layer(layer) + first_adapter_, adapters_);
            mhr::workspace rest = memory_for(mhr::lora_state_size(rows, list));
            mhr::lora_forward(rows, list, x, y, mhr::take_lora_state(rest, rows, list));
        });
    }
    void step(const routed_adapters& of) {
        each_layer([&](const mhr::batch& rows, index_t layer, const auto& x, const auto& y) {
            const mhr::routed_lora adapters = of.of_layer(layer, first_adapter_, adapters_);
            mhr::workspace rest = memory_for(mhr::routed_lora_state_size(rows, adapters));
            mhr::routed_lora_forward(rows, adapters, x, y,
                                     mhr::take_routed_lora_state(rest, rows, adapters));
        });
    }

  private:
    template <class Apply>
    void each_layer(Apply&& apply) {
        const mhr::openmp_executor several{model_.threads()};
        const mhr::serial_executor alone;
        const mhr::batch rows{plan_, model_.threads() > 1 ? mhr::executor_ref(several)
                                                          : mhr::executor_ref(alone)};
        model_.step(first_, count_, [&](index_t layer) {
            const auto [in, out] = model_.shape_of(layer);
            apply(rows, layer,
                  mhr::const_tensor_ref<2>(model_.input_of(layer) + first_ * in, {count_, in}),
                  mhr::tensor_ref<2>(model_.output_of(layer) + first_ * out, {count_, out}));
        });
    }
    /// Kept from step to step: it grows in the first.
    mhr::workspace memory_for(std::size_t bytes) {
        memory_.reserve(bytes);
        return memory_;
    }

    decoder& model_;
    index_t first_adapter_, adapters_, first_, count_;
    mhr::batch_plan plan_;
    mhr::owned_workspace memory_;
};

template <class Adapters>
std::vector<way> make_ways(decoder& model, const Adapters& adapters, requests batch) {
    const auto whole = std::make_shared<part_of_batch>(model, batch, 0, batch.distinct);
    std::vector<way> result{{"mhr", [whole, &adapters] { whole->step(adapters); }}};
    std::vector<std::shared_ptr<part_of_batch>> parts;
    for (index_t i = 0; i < batch.distinct; ++i)
        parts.push_back(std::make_shared<part_of_batch>(model, batch, i, 1));
    result.push_back({"switching", [parts, &adapters] {
                          for (const auto& part : parts)
                              part->step(adapters);
                      }});
    return result;
}

} // namespace

way base_only(decoder& model) {
    return {"base only", [&model] { model.step(0, model.rows(), [](index_t) {}); }};
}

std::vector<way> ways_of_mhr(decoder& model, const plain_adapters& adapters, requests batch) {
    return make_ways(model, adapters, batch);
}

std::vector<way> ways_of_mhr(decoder& model, const routed_adapters& adapters, requests batch) {
    return make_ways(model, adapters, batch);
}

#ifndef MHR_BENCHMARK_LIBTORCH
std::vector<way> ways_of_libtorch(decoder&, const plain_adapters&, requests) {
    return {};
}
std::vector<way> ways_of_libtorch(decoder&, const routed_adapters&, requests) {
    return {};
}
#endif

} // namespace mhr_bench

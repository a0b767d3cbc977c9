#pragma once

#include <vector>

#include <mhr/lora/routed_lora.hpp>

#include "../compare/roofline.hpp"
#include "decoder.hpp"

// What the requests of a batch may ask for, in memory of an engine's own.

namespace mhr_bench {

/// What the adapters' part of a step has to do at least.
struct least_work {
    double multiply_adds = 0;
    std::vector<stretch_of_memory> arrays; ///< each distinct byte once
};

/// Ready adapters for each layer, of ranks that take turns: a [in_features, rank] by columns and b
/// [rank, out_features] by rows, as an engine that loads files may keep them.
class plain_adapters {
  public:
    plain_adapters(const decoder& model, index_t count, std::vector<index_t> ranks,
                   mhr::element_type type);

    index_t count() const { return count_; }
    index_t largest_rank() const;
    /// The adapters of a layer, `count` of them.
    const mhr::lora* of_layer(index_t layer) const {
        return adapters_[static_cast<std::size_t>(layer)].data();
    }
    mhr::element_type type() const { return type_; }
    /// With `distinct` of them, by `rows` rows altogether.
    least_work work(index_t distinct, index_t rows) const;

  private:
    index_t count_;
    std::vector<index_t> ranks_;
    mhr::element_type type_;
    aligned_array<unsigned char> memory_;
    std::vector<std::vector<mhr::lora>> adapters_;
};

/// An inventory for each layer, and the weights of each task, of all layers alike.
class routed_adapters {
  public:
    routed_adapters(const decoder& model, index_t tasks, index_t rank, index_t heads,
                    index_t modules);

    index_t tasks() const { return tasks_; }
    /// Inventory of a layer with the weights of `count` tasks from `first`.
    mhr::routed_lora of_layer(index_t layer, index_t first, index_t count) const;
    least_work work(index_t distinct, index_t rows) const;

  private:
    const decoder& model_;
    index_t tasks_, rank_, heads_, modules_;
    std::vector<aligned_array<float>> a_, b_;
    aligned_array<float> weights_;
};

} // namespace mhr_bench

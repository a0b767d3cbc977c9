#include "adapters.hpp"

#include <algorithm>
#include <random>

#include <mhr/core/random.hpp>

namespace mhr_bench {

namespace {

float draw(std::mt19937_64& engine) {
    return 2 * mhr::draw_uniform<float, 23>(engine) - 1;
}

/// Numbers that change a layer's output by about a tenth of its size.
template <class T>
void fill(T* to, index_t count, float bound, std::mt19937_64& engine) {
    for (index_t i = 0; i < count; ++i)
        to[i] = T(bound * draw(engine));
}

float bound_of(index_t terms) {
    return 0.6F / std::sqrt(static_cast<float>(terms));
}

} // namespace

plain_adapters::plain_adapters(const decoder& model, index_t count, std::vector<index_t> ranks,
                               mhr::element_type type)
    : count_(count), ranks_(std::move(ranks)), type_(type) {
    const auto size = static_cast<index_t>(mhr::size_of(type));
    const auto rank_of = [&](index_t number) {
        return ranks_[static_cast<std::size_t>(number) % ranks_.size()];
    };
    index_t elements = 0;
    for (index_t layer = 0; layer < model.layers(); ++layer)
        for (index_t i = 0; i < count; ++i)
            elements += (model.shape_of(layer).in_features + model.shape_of(layer).out_features) *
                        rank_of(i);
    memory_ = aligned_array<unsigned char>(elements * size);
    std::mt19937_64 engine(2);
    unsigned char* next = memory_.data();
    const auto take = [&](index_t amount, index_t terms) {
        unsigned char* const taken = next;
        next += amount * size;
        if (type == mhr::element_type::bf16)
            fill(static_cast<bfloat16*>(static_cast<void*>(taken)), amount, bound_of(terms),
                 engine);
        else
            fill(static_cast<float*>(static_cast<void*>(taken)), amount, bound_of(terms), engine);
        return taken;
    };
    for (index_t layer = 0; layer < model.layers(); ++layer) {
        const auto [in, out] = model.shape_of(layer);
        std::vector<mhr::lora> of_layer;
        for (index_t i = 0; i < count; ++i) {
            const index_t rank = rank_of(i);
            const mhr::const_tensor_ref<2> a(take(in * rank, in), type, {rank, in});
            const mhr::const_tensor_ref<2> b(take(rank * out, rank), type, {rank, out});
            of_layer.push_back({a.transpose(0, 1), b, 1.0});
        }
        adapters_.push_back(std::move(of_layer));
    }
}

index_t plain_adapters::largest_rank() const {
    return *std::max_element(ranks_.begin(), ranks_.end());
}

least_work plain_adapters::work(index_t distinct, index_t rows) const {
    least_work result;
    const double rows_of_each = static_cast<double>(rows) / static_cast<double>(distinct);
    for (const auto& of_layer : adapters_) {
        double elements = 0;
        for (index_t i = 0; i < distinct; ++i) {
            const mhr::lora& adapter = of_layer[static_cast<std::size_t>(i)];
            elements += static_cast<double>(adapter.a.size() + adapter.b.size());
        }
        result.multiply_adds += rows_of_each * elements;
        // They lie one behind the other.
        result.arrays.push_back({const_cast<void*>(of_layer.front().a.data()),
                                 static_cast<std::size_t>(elements) * mhr::size_of(type_),
                                 access::read});
    }
    return result;
}

routed_adapters::routed_adapters(const decoder& model, index_t tasks, index_t rank, index_t heads,
                                 index_t modules)
    : model_(model), tasks_(tasks), rank_(rank), heads_(heads), modules_(modules),
      weights_(tasks * heads * modules) {
    std::mt19937_64 engine(3);
    for (index_t layer = 0; layer < model.layers(); ++layer) {
        const auto [in, out] = model.shape_of(layer);
        a_.emplace_back(in * rank * modules);
        fill(a_.back().data(), a_.back().size(), bound_of(in), engine);
        b_.emplace_back(out * rank * modules);
        fill(b_.back().data(), b_.back().size(), bound_of(rank), engine);
    }
    for (float& weight : weights_)
        weight = std::abs(draw(engine));
}

mhr::routed_lora routed_adapters::of_layer(index_t layer, index_t first, index_t count) const {
    const auto [in, out] = model_.shape_of(layer);
    const auto number = static_cast<std::size_t>(layer);
    return {{a_[number].data(), {heads_, modules_, in / heads_, rank_}},
            {b_[number].data(), {heads_, modules_, rank_, out / heads_}},
            {weights_.data() + first * heads_ * modules_, {count, heads_, modules_}},
            1.0};
}

least_work routed_adapters::work(index_t distinct, index_t rows) const {
    least_work result;
    for (std::size_t layer = 0; layer < a_.size(); ++layer)
        for (const auto* modules : {&a_[layer], &b_[layer]}) {
            const double of_one = static_cast<double>(modules->size() / modules_);
            result.multiply_adds += of_one * static_cast<double>(rows + distinct * modules_);
            result.arrays.push_back({const_cast<float*>(modules->data()),
                                     static_cast<std::size_t>(modules->size()) * sizeof(float),
                                     access::read});
        }
    return result;
}

} // namespace mhr_bench

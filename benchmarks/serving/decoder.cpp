#include "decoder.hpp"

#include <algorithm>
#include <random>
#include <stdexcept>

#include <mhr/core/random.hpp>

namespace mhr_bench {

namespace {

enum place : index_t { query, key, value, out, gate, up, down };

/// Numbers around 0 of which `terms` products sum up to about 1.
aligned_array<float> random_numbers(index_t count, index_t terms, std::mt19937_64& engine) {
    aligned_array<float> result(count);
    const float bound = std::sqrt(3.0F / static_cast<float>(terms));
    for (float& number : result)
        number = bound * (2 * mhr::draw_uniform<float, 23>(engine) - 1);
    return result;
}

/// Each row scaled to numbers of size 1, as between the blocks of a model.
void normalise(float* rows, index_t count, index_t width) {
    for (index_t r = 0; r < count; ++r) {
        float* const row = rows + r * width;
        float squares = 0;
        for (index_t i = 0; i < width; ++i)
            squares += row[i] * row[i];
        const float factor = 1 / std::sqrt(squares / static_cast<float>(width) + 1e-6F);
        for (index_t i = 0; i < width; ++i)
            row[i] *= factor;
    }
}

/// True for the products of a library that take weights as [out, in]: the last of them, behind one
/// for [in, out] where there is one.
bool is_transposed(std::size_t number, std::size_t count) {
    return number + 1 == count;
}

} // namespace

decoder::decoder(const decoder_sizes& sizes, index_t rows, int threads,
                 const std::vector<library>& libraries)
    : sizes_(sizes), rows_(rows), threads_(threads), libraries_(libraries),
      transposed_(layers_of_block, true), state_(rows * sizes.width), query_(rows * sizes.width),
      key_(rows * sizes.key_width), value_(rows * sizes.key_width), mixed_(rows * sizes.width),
      out_(rows * sizes.width), gate_(rows * sizes.inner_width), up_(rows * sizes.inner_width),
      inner_(rows * sizes.inner_width) {
    std::mt19937_64 engine(1);
    start_ = random_numbers(rows * sizes.width, 3, engine);
    for (index_t layer = 0; layer < layers(); ++layer) {
        const shape of = shape_of(layer);
        weights_.push_back(
            random_numbers(of.in_features * of.out_features, of.in_features, engine));
    }
    begin(0, rows);
    for (index_t p = 0; p < layers_of_block; ++p) {
        const candidate best = fastest(p, 0, rows, true);
        transposed_[static_cast<std::size_t>(p)] =
            is_transposed(best.number, products_by(*best.of, p, 0, rows).size());
        chosen_[{p, rows}] = best;
    }
    prepare(0, rows);
}

decoder::shape decoder::shape_of(index_t layer) const {
    const decoder_sizes& s = sizes_;
    switch (layer % layers_of_block) {
    case key:
    case value:
        return {s.width, s.key_width};
    case gate:
    case up:
        return {s.width, s.inner_width};
    case down:
        return {s.inner_width, s.width};
    default:
        return {s.width, s.width};
    }
}

double decoder::bytes() const {
    double elements = 0;
    for (const auto& weight : weights_)
        elements += static_cast<double>(weight.size());
    return sizeof(float) * elements;
}

std::pair<const float*, float*> decoder::buffers_of(index_t layer) {
    switch (layer % layers_of_block) {
    case query:
        return {state_.data(), query_.data()};
    case key:
        return {state_.data(), key_.data()};
    case value:
        return {state_.data(), value_.data()};
    case out:
        return {mixed_.data(), out_.data()};
    case gate:
        return {out_.data(), gate_.data()};
    case up:
        return {out_.data(), up_.data()};
    default:
        return {inner_.data(), state_.data()};
    }
}

base_products decoder::products_by(const library& of_library, index_t layer, index_t first,
                                   index_t count) {
    const shape of = shape_of(layer);
    const auto [x, y] = buffers_of(layer);
    // The same numbers in either order: which of them is meant is decided once for a shape.
    const float* const weight = weights_[static_cast<std::size_t>(layer)].data();
    return of_library.base({count, of.in_features, of.out_features, x + first * of.in_features,
                            weight, weight, y + first * of.out_features},
                           threads_);
}

/// By running the layer of each block once, so that weights come from memory as they will.
decoder::candidate decoder::fastest(index_t place, index_t first, index_t count, bool any_order) {
    candidate best{nullptr, 0, 1e9};
    for (const library& of : libraries_) {
        if (of.base == nullptr || of.core.held_back) continue;
        std::vector<base_products> of_blocks;
        for (index_t block = 0; block < sizes_.blocks; ++block)
            of_blocks.push_back(products_by(of, place + block * layers_of_block, first, count));
        const std::size_t ways = of_blocks.front().size();
        for (std::size_t number = 0; number < ways; ++number) {
            const bool suits = is_transposed(number, ways) ==
                               static_cast<bool>(transposed_[static_cast<std::size_t>(place)]);
            if (!any_order && !suits) continue;
            std::vector<double> seconds;
            for (std::size_t turn = 0; turn < std::max<std::size_t>(6, of_blocks.size()); ++turn)
                seconds.push_back(seconds_of(of_blocks[turn % of_blocks.size()][number]));
            const double median = quantile(seconds, .5);
            if (median < best.seconds) best = {&of, number, median};
        }
    }
    if (best.of == nullptr) throw std::runtime_error("no library has a layer's own product");
    return best;
}

void decoder::prepare(index_t first, index_t count) {
    auto& products = products_[{first, count}];
    if (!products.empty()) return;
    for (index_t p = 0; p < layers_of_block; ++p) {
        const auto found = chosen_.find({p, count});
        if (found == chosen_.end()) chosen_[{p, count}] = fastest(p, first, count, false);
        const std::string& name = chosen_[{p, count}].of->name;
        if (std::find(used_.begin(), used_.end(), name) == used_.end()) used_.push_back(name);
    }
    for (index_t layer = 0; layer < layers(); ++layer) {
        const candidate& by = chosen_[{layer % layers_of_block, count}];
        products.push_back(products_by(*by.of, layer, first, count)[by.number]);
    }
}

void decoder::begin(index_t first, index_t count) {
    const index_t width = sizes_.width;
    std::copy_n(start_.data() + first * width, count * width, state_.data() + first * width);
}

void decoder::after(index_t place, index_t first, index_t count) {
    const index_t width = sizes_.width, narrow = sizes_.key_width, inner = sizes_.inner_width;
    const index_t last = first + count;
    if (place == value)
        for (index_t r = first; r < last; ++r)
            for (index_t i = 0; i < width; ++i)
                mixed_.data()[r * width + i] = 0.8F * query_.data()[r * width + i] +
                                               0.4F * (key_.data()[r * narrow + i % narrow] +
                                                       value_.data()[r * narrow + i % narrow]);
    if (place == out) normalise(out_.data() + first * width, count, width);
    if (place == up)
        for (index_t i = first * inner; i < last * inner; ++i)
            inner_.data()[i] = gate_.data()[i] * up_.data()[i];
    if (place == down) normalise(state_.data() + first * width, count, width);
}

} // namespace mhr_bench

#pragma once

#include <memory>
#include <vector>

#include "../peer.hpp"
#include "parallel.hpp"

// What a library has to be able to do for the layer and for the product beside it. A `Library` has
// a type `storage`, and `Library::prepared<C>`, made once from a product<storage, C>, then run many
// times, by any thread.

namespace mhr_bench {

template <class T>
struct operand {
    const T* data;
    index_t stride;
    bool transposed = false;
};

/// c [rows, columns] = a [rows, inner] b [inner, columns], added to c if `accumulate`; row-major.
template <class T, class C>
struct product {
    index_t rows, columns, inner;
    operand<T> a, b;
    bool accumulate;
    C* c;
    index_t stride;
};

/// The base layer's product, in either order of its matrix, with rows or else features split over
/// the threads.
template <class Library>
base_products grouped_base_products(const base_layer& layer, int threads) {
    base_products result;
    for (const bool transposed : {false, true}) {
        // Shared, as a std::function is copied and some libraries' products are not.
        const auto parts =
            std::make_shared<std::vector<typename Library::template prepared<float>>>();
        const bool by_rows = layer.rows >= 4 * threads;
        const index_t whole = by_rows ? layer.rows : layer.out_features;
        for (int i = 0; i < threads; ++i) {
            const index_t first = whole * i / threads;
            const index_t count = whole * (i + 1) / threads - first;
            const index_t row = by_rows ? first : 0;
            const index_t column = by_rows ? 0 : first;
            const operand<float> w{transposed ? layer.w_transposed + column * layer.in_features
                                              : layer.w + column,
                                   transposed ? layer.in_features : layer.out_features, transposed};
            parts->emplace_back(
                product<float, float>{by_rows ? count : layer.rows,
                                      by_rows ? layer.out_features : count,
                                      layer.in_features,
                                      {layer.x + row * layer.in_features, layer.in_features},
                                      w,
                                      false,
                                      layer.y + row * layer.out_features + column,
                                      layer.out_features});
        }
        result.emplace_back([threads, parts] {
            for_each_item(threads, threads,
                          [&](index_t i) { (*parts)[static_cast<std::size_t>(i)].run(); });
        });
    }
    return result;
}

} // namespace mhr_bench

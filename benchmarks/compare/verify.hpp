#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <mhr/reference/lora.hpp>
#include <mhr/reference/mixing.hpp>

#include "peer.hpp"

// Results against each other, before anything is timed.

namespace mhr_bench {

/// What a pass computed, in f64. Passes leave the arrays empty that they do not write.
struct outcome {
    std::vector<double> y, d_x, d_a, d_b, d_weights;
};

template <class View>
std::vector<double> doubles_of(const View& view) {
    std::vector<double> values(static_cast<std::size_t>(view.size()));
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<double>(static_cast<float>(view.data()[i]));
    return values;
}

/// Resets the outputs, then runs f, which is a pass.
template <class T, class F>
outcome outcome_of(layer<T>& of, pass which, F&& f) {
    of.reset_outputs();
    f();
    outcome result;
    if (which == pass::forward || which == pass::train) result.y = doubles_of(of.y());
    if (which == pass::train) {
        result.d_x = doubles_of(of.d_x());
        result.d_a = doubles_of(of.d_a());
        result.d_b = doubles_of(of.d_b());
    }
    if (which != pass::forward) result.d_weights = doubles_of(of.d_weights());
    return result;
}

/// Throws, saying who erred where, if an array differs by more than `tolerance` of its largest
/// magnitude: the rounding of sums, and of what is stored on the way.
inline void require_same(const std::string& what, const outcome& expected, const outcome& found,
                         double tolerance) {
    const auto compare = [&](const char* name, const std::vector<double>& a,
                             const std::vector<double>& b) {
        double largest = 0, error = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            const double difference = std::abs(a[i] - b[i]);
            // A NaN ends up in `error`, and stays there.
            if (!(difference <= error) && !std::isnan(error)) error = difference;
            largest = std::max(largest, std::abs(a[i]));
        }
        if (!(error <= tolerance * largest))
            throw std::runtime_error(what + ": " + name + " differs by " + std::to_string(error) +
                                     " of " + std::to_string(largest));
    };
    compare("y", expected.y, found.y);
    compare("d_x", expected.d_x, found.d_x);
    compare("d_a", expected.d_a, found.d_a);
    compare("d_b", expected.d_b, found.d_b);
    compare("d_weights", expected.d_weights, found.d_weights);
}

/// Ours store in `T` what they return and nothing else; peers that compute in bf16 store each
/// intermediate result.
template <class T>
constexpr double tolerance_of_ours = sizeof(T) == 2 ? 1e-2 : 2e-5;
template <class T>
constexpr double tolerance_of_peers = sizeof(T) == 2 ? 4e-2 : 1e-4;

/// What forward and backward compute by the plain loops of mhr/reference, in f64.
template <class T>
outcome oracle_of(layer<T>& of) {
    const layer_case& c = of.sizes();
    const auto zeros = [](index_t count) {
        return std::vector<double>(static_cast<std::size_t>(count));
    };
    const auto x = doubles_of(of.x()), d_y = doubles_of(of.d_y()),
               weights = doubles_of(of.weights());
    const auto modules_a = doubles_of(of.a()), modules_b = doubles_of(of.b());
    const index_t entries = of.plan().entries();
    const index_t size_a = entries * c.in_features * c.rank;
    const index_t size_b = entries * c.out_features * c.rank;
    auto a = zeros(size_a), b = zeros(size_b), d_a = zeros(size_a), d_b = zeros(size_b);
    const auto start = [](index_t count) {
        return std::vector<double>(static_cast<std::size_t>(count),
                                   static_cast<double>(layer<T>::start_of_outputs));
    };
    outcome result{start(of.y().size()), start(of.x().size()), start(of.a().size()),
                   start(of.b().size()), start(of.weights().size())};

    using mhr::tensor_view;
    const auto view_a = [&](auto& values) {
        return tensor_view<std::remove_pointer_t<decltype(values.data())>, 3>(
            values.data(), {entries, c.in_features, c.rank});
    };
    const auto view_b = [&](auto& values) {
        return tensor_view<std::remove_pointer_t<decltype(values.data())>, 3>(
            values.data(), {entries, c.rank, c.out_features});
    };
    const tensor_view<const double, 3> w(weights.data(), of.weights().extents());
    const tensor_view<const double, 4> ma(modules_a.data(), of.a().extents());
    const tensor_view<const double, 4> mb(modules_b.data(), of.b().extents());
    const auto blocks_a = [&](auto& values) { return view_a(values).split(1, c.heads); };
    const auto blocks_b = [&](auto& values) {
        return view_b(values).split(2, c.heads).transpose(1, 2);
    };
    mhr::reference::mix_forward<double>(w, ma, blocks_a(a));
    mhr::reference::mix_forward<double>(w, mb, blocks_b(b));

    std::vector<index_t> entry_of_row(static_cast<std::size_t>(c.rows()), -1);
    for (index_t entry = 0; entry < entries; ++entry) {
        const auto rows = of.plan().rows_of(entry);
        for (index_t i = 0; i < rows.extent(0); ++i)
            entry_of_row[static_cast<std::size_t>(rows(i))] = entry;
    }
    const tensor_view<const index_t, 1> entry(entry_of_row.data(), {c.rows()});
    const tensor_view<const double, 2> vx(x.data(), of.x().extents());
    const tensor_view<const double, 2> vd_y(d_y.data(), of.d_y().extents());
    const tensor_view<double, 2> vy(result.y.data(), of.y().extents());
    const tensor_view<double, 2> vd_x(result.d_x.data(), of.x().extents());
    mhr::reference::lora_forward<double>(entry, vx, view_a(a), view_b(b), of.scale(), vy);
    mhr::reference::lora_backward<double>(entry, vx, view_a(a), view_b(b), of.scale(), vd_y, vd_x,
                                          view_a(d_a), view_b(d_b));
    const tensor_view<double, 3> d_w(result.d_weights.data(), of.weights().extents());
    mhr::reference::mix_backward<double>(
        w, ma, blocks_a(d_a), tensor_view<double, 4>(result.d_a.data(), ma.extents()), d_w);
    mhr::reference::mix_backward<double>(
        w, mb, blocks_b(d_b), tensor_view<double, 4>(result.d_b.data(), mb.extents()), d_w);
    return result;
}

} // namespace mhr_bench

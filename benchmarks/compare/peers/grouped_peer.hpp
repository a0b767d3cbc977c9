#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "../peer.hpp"
#include "eigen_mixing.hpp"
#include "parallel.hpp"
#include "product.hpp"

// The grouped layer with the products left to a library: mixed once for each task, then two
// products forward and four backward for the rows of a task.

namespace mhr_bench {

/// How the rows of a task reach a library.
enum class row_choice {
    as_they_are, // a product for each sequence
    gathered     // copied together, a product for each task
};

/// The order of the backward's products.
enum class work_order {
    by_product, // each for all rows, before the next one
    by_task     // all of a task for some rows, which are then in cache, before the next rows
};

/// How a is kept where it is mixed beforehand, in whatever order suits the library.
enum class order_of_a { as_mixed, transposed };

/// The layer by the products of a library (see product.hpp).
template <class Library>
class grouped_peer final : public peer {
  public:
    using T = typename Library::storage;

    grouped_peer(const layer_arrays<T>& arrays, int threads, row_choice rows, work_order work,
                 order_of_a order)
        : arrays_(arrays), threads_(threads), gathered_(rows == row_choice::gathered),
          by_task_(work == work_order::by_task), a_transposed_(order == order_of_a::transposed),
          mixing_(arrays, threads), hidden_(arrays.sizes.rows() * arrays.sizes.rank),
          d_hidden_(hidden_.size()) {
        const layer_case& c = arrays.sizes;
        if (a_transposed_) transposed_a_ = aligned_array<T>(c.tasks * mixing_.size_a());
        if (gathered_) {
            gathered_x_ = aligned_array<T>(c.rows() * c.in_features);
            gathered_d_y_ = aligned_array<T>(c.rows() * c.out_features);
            // The results before they are added to where they belong; the passes share them.
            results_ = aligned_array<T>(c.rows() * std::max(c.in_features, c.out_features));
        }
        list_rows();
        for (const stretch& s : stretches_)
            prepare_rows(s);
        const index_t pieces = by_task_ || c.tasks >= 2 * threads ? 1 : threads;
        for (index_t task = 0; task < c.tasks; ++task)
            for (index_t piece = 0; piece < pieces; ++piece)
                prepare_gradients(task, piece, pieces);
        mix();
    }

    void run(pass which) override {
        switch (which) {
        case pass::forward:
            return forward();
        case pass::train:
            forward();
            return backward(true);
        case pass::backward:
            return backward(true);
        case pass::backward_to_weights:
            return backward(false);
        }
    }

  private:
    template <class C>
    using prepared = typename Library::template prepared<C>;

    /// Consecutive places of one task. A place is a row of the batch, or, gathered, the number of a
    /// row in the order of tasks.
    struct stretch {
        index_t task, first, count;
    };
    struct rows_item {
        stretch rows;
        prepared<T> hidden, y, d_hidden, d_x;
    };
    /// Products for the rows of each stretch, added up.
    struct gradients_item {
        struct of_stretch {
            std::size_t number;
            prepared<float> d_a, d_b;
        };
        std::vector<of_stretch> products;
    };
    static constexpr index_t rows_in_cache = 64;

    void list_rows() {
        const layer_case& c = arrays_.sizes;
        if (gathered_) {
            for (index_t task = 0; task < c.tasks; ++task) {
                const auto first = static_cast<index_t>(row_of_place_.size());
                for (index_t s = task; s < c.sequences; s += c.tasks)
                    for (index_t r = 0; r < c.rows_of_sequence; ++r)
                        row_of_place_.push_back(s * c.rows_of_sequence + r);
                stretches_.push_back(
                    {task, first, static_cast<index_t>(row_of_place_.size()) - first});
            }
        } else {
            for (index_t s = 0; s < c.sequences; ++s)
                stretches_.push_back({s % c.tasks, s * c.rows_of_sequence, c.rows_of_sequence});
        }
        const auto count = static_cast<index_t>(stretches_.size());
        if (!by_task_ && count >= threads_) return;
        std::vector<stretch> cut;
        for (const stretch& s : stretches_) {
            const index_t most = by_task_ ? rows_in_cache : (s.count + threads_ - 1) / threads_;
            for (index_t done = 0; done < s.count; done += most)
                cut.push_back({s.task, s.first + done, std::min(most, s.count - done)});
        }
        stretches_ = std::move(cut);
    }

    const T* x() const { return gathered_ ? gathered_x_.data() : arrays_.x; }
    const T* d_y() const { return gathered_ ? gathered_d_y_.data() : arrays_.d_y; }
    T* y() { return gathered_ ? results_.data() : arrays_.y; }
    T* d_x() { return gathered_ ? results_.data() : arrays_.d_x; }
    operand<T> a_of(index_t task, bool transposed) {
        const layer_case& c = arrays_.sizes;
        if (a_transposed_)
            return {transposed_a_.data() + task * mixing_.size_a(), c.in_features, !transposed};
        return {mixing_.mixed_a(task), c.rank, transposed};
    }

    void prepare_rows(const stretch& s) {
        const layer_case& c = arrays_.sizes;
        const index_t in = c.in_features, out = c.out_features, rank = c.rank;
        T* const hidden = hidden_.data() + s.first * rank;
        T* const d_hidden = d_hidden_.data() + s.first * rank;
        const bool add = !gathered_;
        rows_items_.push_back({s,
                               prepared<T>({s.count,
                                            rank,
                                            in,
                                            {x() + s.first * in, in},
                                            a_of(s.task, false),
                                            false,
                                            hidden,
                                            rank}),
                               prepared<T>({s.count,
                                            out,
                                            rank,
                                            {hidden, rank},
                                            {mixing_.mixed_b(s.task), out},
                                            add,
                                            y() + s.first * out,
                                            out}),
                               prepared<T>({s.count,
                                            rank,
                                            out,
                                            {d_y() + s.first * out, out},
                                            {mixing_.mixed_b(s.task), out, true},
                                            false,
                                            d_hidden,
                                            rank}),
                               prepared<T>({s.count,
                                            in,
                                            rank,
                                            {d_hidden, rank},
                                            a_of(s.task, true),
                                            add,
                                            d_x() + s.first * in,
                                            in})});
    }

    /// The gradients of one task's a and b, for some of the features.
    void prepare_gradients(index_t task, index_t piece, index_t pieces) {
        const layer_case& c = arrays_.sizes;
        const index_t in = c.in_features, out = c.out_features, rank = c.rank;
        const index_t in0 = in * piece / pieces, in1 = in * (piece + 1) / pieces;
        const index_t out0 = out * piece / pieces, out1 = out * (piece + 1) / pieces;
        gradients_item item;
        for (std::size_t number = 0; number < stretches_.size(); ++number) {
            const stretch& s = stretches_[number];
            if (s.task != task) continue;
            const bool add = !item.products.empty();
            item.products.push_back({number,
                                     prepared<float>({in1 - in0,
                                                      rank,
                                                      s.count,
                                                      {x() + s.first * in + in0, in, true},
                                                      {d_hidden_.data() + s.first * rank, rank},
                                                      add,
                                                      mixing_.d_mixed_a(task) + in0 * rank,
                                                      rank}),
                                     prepared<float>({rank,
                                                      out1 - out0,
                                                      s.count,
                                                      {hidden_.data() + s.first * rank, rank, true},
                                                      {d_y() + s.first * out + out0, out},
                                                      add,
                                                      mixing_.d_mixed_b(task) + out0,
                                                      out})});
        }
        gradients_items_.push_back(std::move(item));
    }

    void mix() {
        mixing_.forward();
        if (!a_transposed_) return;
        const layer_case& c = arrays_.sizes;
        for (index_t task = 0; task < c.tasks; ++task)
            for (index_t i = 0; i < c.in_features; ++i)
                for (index_t k = 0; k < c.rank; ++k)
                    transposed_a_.data()[task * mixing_.size_a() + k * c.in_features + i] =
                        mixing_.mixed_a(task)[i * c.rank + k];
    }

    void gather(const stretch& s, index_t width, const T* from, T* to) const {
        for (index_t place = s.first; place < s.first + s.count; ++place)
            std::memcpy(to + place * width,
                        from + row_of_place_[static_cast<std::size_t>(place)] * width,
                        static_cast<std::size_t>(width) * sizeof(T));
    }
    void add_back(const stretch& s, index_t width, T* to) const {
        for (index_t place = s.first; place < s.first + s.count; ++place)
            Eigen::Map<Eigen::RowVectorX<T>>(
                to + row_of_place_[static_cast<std::size_t>(place)] * width, width) +=
                Eigen::Map<const Eigen::RowVectorX<T>>(results_.data() + place * width, width);
    }

    template <class F>
    void for_each_stretch(F&& f) {
        for_each_item(threads_, static_cast<index_t>(rows_items_.size()),
                      [&](index_t i) { f(rows_items_[static_cast<std::size_t>(i)]); });
    }

    void forward() {
        const layer_case& c = arrays_.sizes;
        if (!c.mixed_before()) mixing_.forward();
        for_each_stretch([&](const rows_item& item) {
            if (gathered_) gather(item.rows, c.in_features, arrays_.x, gathered_x_.data());
            item.hidden.run();
            item.y.run();
            if (gathered_) add_back(item.rows, c.out_features, arrays_.y);
        });
    }

    void backward_of_rows(const rows_item& item, bool everything) {
        const layer_case& c = arrays_.sizes;
        if (gathered_) gather(item.rows, c.out_features, arrays_.d_y, gathered_d_y_.data());
        item.d_hidden.run();
        if (!everything) return;
        item.d_x.run();
        if (gathered_) add_back(item.rows, c.in_features, arrays_.d_x);
    }

    void backward(bool everything) {
        if (!by_task_)
            for_each_stretch([&](const rows_item& item) { backward_of_rows(item, everything); });
        for_each_item(threads_, static_cast<index_t>(gradients_items_.size()), [&](index_t i) {
            for (const auto& of : gradients_items_[static_cast<std::size_t>(i)].products) {
                if (by_task_) backward_of_rows(rows_items_[of.number], everything);
                of.d_a.run();
                of.d_b.run();
            }
        });
        mixing_.backward(everything);
    }

    layer_arrays<T> arrays_;
    int threads_;
    bool gathered_, by_task_, a_transposed_;
    eigen_mixing<T> mixing_;
    aligned_array<T> transposed_a_, hidden_, d_hidden_, gathered_x_, gathered_d_y_, results_;
    std::vector<index_t> row_of_place_;
    std::vector<stretch> stretches_;
    std::vector<rows_item> rows_items_;
    std::vector<gradients_item> gradients_items_;
};

/// All ways of a library to compute a layer.
template <class Library>
peers grouped_peers(const layer_arrays<typename Library::storage>& arrays, int threads) {
    const layer_case& c = arrays.sizes;
    peers result;
    for (const auto order : {order_of_a::as_mixed, order_of_a::transposed}) {
        if (order == order_of_a::transposed && !c.mixed_before()) continue;
        for (const auto work : {work_order::by_product, work_order::by_task}) {
            if (work == work_order::by_task && c.tasks < threads) continue;
            for (const auto rows : {row_choice::as_they_are, row_choice::gathered})
                result.push_back(
                    std::make_unique<grouped_peer<Library>>(arrays, threads, rows, work, order));
        }
    }
    return result;
}

} // namespace mhr_bench

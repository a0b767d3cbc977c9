#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../compare/peer.hpp"
#include "../compare/timing.hpp"
#include "../support/aligned_array.hpp"

// The linear layers of a decoder, whose products a library computes: what adapters stand beside.

namespace mhr_bench {

/// By default those of a model of a billion parameters.
struct decoder_sizes {
    index_t width = 2048, key_width = 512, inner_width = 8192, blocks = 16;
};

/// A step of decoding: one token for each of the rows. Between the layers, attention and activation
/// are stood in for by sums and products of the same shapes, so that every layer changes the
/// result.
class decoder {
  public:
    static constexpr index_t layers_of_block = 7;

    struct shape {
        index_t in_features, out_features;
    };

    /// With products by the fastest of the libraries, for each shape.
    decoder(const decoder_sizes& sizes, index_t rows, int threads,
            const std::vector<library>& libraries);

    index_t rows() const { return rows_; }
    int threads() const { return threads_; }
    index_t layers() const { return sizes_.blocks * layers_of_block; }
    shape shape_of(index_t layer) const;
    const std::vector<std::string>& libraries_used() const { return used_; }
    /// Bytes of all base weights.
    double bytes() const;

    /// Where a layer reads and writes, [rows, features].
    const float* input_of(index_t layer) { return buffers_of(layer).first; }
    float* output_of(index_t layer) { return buffers_of(layer).second; }

    /// Makes the products of `count` rows from row `first`, which `step` needs.
    void prepare(index_t first, index_t count);

    /// The layers for these rows, one after the other, with `adapt(layer)` behind each product.
    template <class Adapt>
    void step(index_t first, index_t count, Adapt&& adapt) {
        const auto& products = products_.at({first, count});
        begin(first, count);
        for (index_t block = 0; block < sizes_.blocks; ++block)
            for (index_t place = 0; place < layers_of_block; ++place) {
                const index_t layer = block * layers_of_block + place;
                products[static_cast<std::size_t>(layer)]();
                seconds_of_adapters_ += seconds_of([&] { adapt(layer); });
                after(place, first, count);
            }
    }

    /// Seconds that all steps so far have spent in `adapt`.
    double seconds_of_adapters() const { return seconds_of_adapters_; }

    /// What the last step of all rows left, [rows, width].
    const aligned_array<float>& result() const { return state_; }

  private:
    struct candidate {
        const library* of;
        std::size_t number;
        double seconds;
    };

    std::pair<const float*, float*> buffers_of(index_t layer);
    base_products products_by(const library& of_library, index_t layer, index_t first,
                              index_t count);
    candidate fastest(index_t place, index_t first, index_t count, bool any_order);
    void begin(index_t first, index_t count);
    void after(index_t place, index_t first, index_t count);

    decoder_sizes sizes_;
    index_t rows_;
    int threads_;
    const std::vector<library>& libraries_;
    std::vector<aligned_array<float>> weights_;
    /// True for the places whose weights are [out, in], as it suited the fastest library.
    std::vector<bool> transposed_;
    aligned_array<float> start_, state_, query_, key_, value_, mixed_, out_, gate_, up_, inner_;
    std::map<std::pair<index_t, index_t>, std::vector<std::function<void()>>> products_;
    std::map<std::pair<index_t, index_t>, candidate> chosen_; // by place and count
    std::vector<std::string> used_;
    double seconds_of_adapters_ = 0;
};

} // namespace mhr_bench

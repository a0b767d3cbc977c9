#include "ways.hpp"

#include <torch/torch.h>

#include <memory>

namespace mhr_bench {

namespace {

using torch::Tensor;

Tensor tensor_of(const void* data, torch::IntArrayRef shape) {
    return torch::from_blob(const_cast<void*>(data), shape, torch::kFloat32);
}

Tensor adapters_of_rows(requests batch) {
    std::vector<std::int64_t> numbers;
    for (index_t row = 0; row < batch.rows; ++row)
        numbers.push_back(batch.adapter_of(row));
    return torch::tensor(numbers);
}

/// A way that adds `apply(layer, x)` to the output of each layer, or lets `apply(layer, x, y)` do
/// it.
template <class Apply>
way make_way(const char* name, decoder& model, Apply&& apply) {
    std::vector<Tensor> inputs, outputs;
    for (index_t layer = 0; layer < model.layers(); ++layer) {
        const auto [in, out] = model.shape_of(layer);
        inputs.push_back(tensor_of(model.input_of(layer), {model.rows(), in}));
        outputs.push_back(tensor_of(model.output_of(layer), {model.rows(), out}));
    }
    return {name, [&model, inputs, outputs, apply] {
                const torch::NoGradGuard guard;
                torch::set_num_threads(model.threads());
                model.step(0, model.rows(), [&](index_t layer) {
                    const auto number = static_cast<std::size_t>(layer);
                    apply(layer, inputs[number], outputs[number]);
                });
            }};
}

/// PEFT's `_mixed_batch_forward`: for each adapter, the rows that ask for it are gathered,
/// multiplied and put back.
way peft_mixed_batch(decoder& model, const plain_adapters& adapters, requests batch) {
    struct matrices {
        Tensor a, b; // [in, rank], [rank, out]
        double scale;
    };
    const auto rows = std::make_shared<std::vector<Tensor>>();
    for (index_t i = 0; i < batch.distinct; ++i)
        rows->push_back(torch::arange(batch.first_row_of(i), batch.first_row_of(i + 1)));
    const auto layers = std::make_shared<std::vector<std::vector<matrices>>>();
    for (index_t layer = 0; layer < model.layers(); ++layer) {
        std::vector<matrices> of_layer;
        for (index_t i = 0; i < batch.distinct; ++i) {
            const mhr::lora& adapter = adapters.of_layer(layer)[i];
            const index_t in = adapter.a.extent(0), rank = adapter.a.extent(1);
            of_layer.push_back({tensor_of(adapter.a.data(), {rank, in}).t(),
                                tensor_of(adapter.b.data(), {rank, adapter.b.extent(1)}),
                                adapter.scale});
        }
        layers->push_back(std::move(of_layer));
    }
    return make_way("PEFT mixed batch", model,
                    [rows, layers](index_t layer, const Tensor& x, const Tensor& y) {
                        const auto& of_layer = (*layers)[static_cast<std::size_t>(layer)];
                        for (std::size_t i = 0; i < of_layer.size(); ++i) {
                            const matrices& m = of_layer[i];
                            const Tensor& those = (*rows)[i];
                            const Tensor sub_batch = x.index({those});
                            const Tensor added = sub_batch.mm(m.a).mm(m.b) * m.scale;
                            Tensor(y).index_put_({those}, y.index({those}) + added);
                        }
                    });
}

/// vLLM's `bgmv_shrink` and `bgmv_expand` for CPUs: the matrices of each row are gathered from
/// stacks that are padded to the largest rank.
way vllm_formula(decoder& model, const plain_adapters& adapters, requests batch) {
    struct stacks {
        Tensor a, b; // [adapters, rank, in], [adapters, out, rank]
    };
    const auto layers = std::make_shared<std::vector<stacks>>();
    const index_t largest = adapters.largest_rank();
    for (index_t layer = 0; layer < model.layers(); ++layer) {
        const auto [in, out] = model.shape_of(layer);
        stacks of_layer{torch::zeros({batch.distinct, largest, in}),
                        torch::zeros({batch.distinct, out, largest})};
        for (index_t i = 0; i < batch.distinct; ++i) {
            const mhr::lora& adapter = adapters.of_layer(layer)[i];
            const index_t rank = adapter.a.extent(1);
            of_layer.a[i].narrow(0, 0, rank).copy_(tensor_of(adapter.a.data(), {rank, in}));
            of_layer.b[i]
                .narrow(1, 0, rank)
                .copy_(tensor_of(adapter.b.data(), {rank, out}).t() * adapter.scale);
        }
        layers->push_back(std::move(of_layer));
    }
    return make_way(
        "vLLM's formula", model,
        [layers, numbers = adapters_of_rows(batch)](index_t layer, const Tensor& x,
                                                    const Tensor& y) {
            const stacks& of = (*layers)[static_cast<std::size_t>(layer)];
            const Tensor hidden = torch::einsum("bi,boi->bo", {x, of.a.index({numbers})});
            Tensor(y).add_(torch::einsum("bi,boi->bo", {hidden, of.b.index({numbers})}));
        });
}

/// PEFT's Poly: an adapter mixed for each row.
way peft_poly(decoder& model, const routed_adapters& adapters, requests batch) {
    struct inventory {
        Tensor a, b, weights;
        double scale;
    };
    const auto layers = std::make_shared<std::vector<inventory>>();
    for (index_t layer = 0; layer < model.layers(); ++layer) {
        const mhr::routed_lora of = adapters.of_layer(layer, 0, batch.distinct);
        const auto shape = [](const auto& tensor) {
            return std::vector<std::int64_t>(tensor.extents().begin(), tensor.extents().end());
        };
        layers->push_back({tensor_of(of.a.data(), shape(of.a)), tensor_of(of.b.data(), shape(of.b)),
                           tensor_of(of.weights.data(), shape(of.weights)), of.scale});
    }
    return make_way("PEFT's formula", model,
                    [layers, numbers = adapters_of_rows(batch)](index_t layer, const Tensor& x,
                                                                const Tensor& y) {
                        const inventory& of = (*layers)[static_cast<std::size_t>(layer)];
                        const Tensor weights = of.weights.index({numbers});
                        const auto rows = x.size(0), rank = of.a.size(3);
                        const Tensor a = torch::einsum("bqs,qsdr->bqdr", {weights, of.a});
                        const Tensor b = torch::einsum("bqs,qsrd->bqrd", {weights, of.b});
                        const Tensor added = x.unsqueeze(1)
                                                 .bmm(a.reshape({rows, -1, rank}))
                                                 .bmm(b.transpose(1, 2).reshape({rows, rank, -1})) *
                                             of.scale;
                        Tensor(y).add_(added.squeeze(1));
                    });
}

} // namespace

std::vector<way> ways_of_libtorch(decoder& model, const plain_adapters& adapters, requests batch) {
    if (adapters.type() != mhr::element_type::f32) return {};
    return {peft_mixed_batch(model, adapters, batch), vllm_formula(model, adapters, batch)};
}

std::vector<way> ways_of_libtorch(decoder& model, const routed_adapters& adapters, requests batch) {
    return {peft_poly(model, adapters, batch)};
}

} // namespace mhr_bench

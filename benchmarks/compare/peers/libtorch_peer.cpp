#include "../peer.hpp"

#include <torch/torch.h>

#include <algorithm>
#include <dlfcn.h>
#include <filesystem>
#include <string>
#include <utility>

namespace mhr_bench {

namespace {

using torch::Tensor;

template <class T>
constexpr auto scalar_type = sizeof(T) == 2 ? torch::kBFloat16 : torch::kFloat32;

template <class T>
Tensor tensor_of(const T* data, torch::IntArrayRef shape) {
    return torch::from_blob(const_cast<T*>(data), shape, scalar_type<T>);
}

/// A leaf whose gradient accumulates in the given memory.
template <class T>
Tensor parameter(const T* data, T* gradient, torch::IntArrayRef shape) {
    Tensor leaf = tensor_of(data, shape).requires_grad_(true);
    leaf.mutable_grad() = tensor_of(gradient, shape);
    return leaf;
}

/// The arrays of a layer, as tensors, each sequence an element of the batch.
template <class T>
struct layer_tensors {
    explicit layer_tensors(const layer_arrays<T>& of)
        : sizes(of.sizes), scale(of.scale),
          y(tensor_of(of.y, {sizes.sequences, sizes.rows_of_sequence, sizes.out_features})),
          d_y(tensor_of(of.d_y, y.sizes())),
          x(parameter(of.x, of.d_x, {sizes.sequences, sizes.rows_of_sequence, sizes.in_features})),
          a(parameter(of.a, of.d_a,
                      {sizes.heads, sizes.modules, sizes.in_features / sizes.heads, sizes.rank})),
          b(parameter(of.b, of.d_b,
                      {sizes.heads, sizes.modules, sizes.rank, sizes.out_features / sizes.heads})),
          weights(parameter(of.weights, of.d_weights, {sizes.tasks, sizes.heads, sizes.modules})),
          task_of_sequence(torch::arange(sizes.sequences).remainder(sizes.tasks)) {}

    /// The same without gradients of anything but the weights.
    layer_tensors with_fixed_inventory() const {
        layer_tensors result = *this;
        for (Tensor* fixed : {&result.x, &result.a, &result.b})
            *fixed = fixed->detach();
        return result;
    }

    layer_case sizes;
    double scale;
    Tensor y, d_y, x, a, b, weights, task_of_sequence;
};

/// One way to compute a layer, differentiated by LibTorch. `Formula` has
/// `mixed(tensors)`, which returns the matrices a and b of what it multiplies with, and
/// `outputs(tensors, mixed)`, which returns pieces of what is added to the same pieces of y; and
/// `add(tensors, mixed)`, which adds that to y and keeps nothing.
template <class T, class Formula>
class libtorch_peer final : public peer {
  public:
    explicit libtorch_peer(const layer_arrays<T>& arrays)
        : tensors_(arrays), weights_only_(tensors_.with_fixed_inventory()),
          before_(sizes().mixed_before()) {
        if (!before_) return;
        mixed_ = Formula::mixed(tensors_);
        const torch::NoGradGuard guard;
        ready_ = {mixed_.first.detach().contiguous(), mixed_.second.detach().contiguous()};
    }

    void run(pass which) override {
        switch (which) {
        case pass::forward:
            return forward();
        case pass::train:
            return train();
        case pass::backward_to_weights:
            return backward_to_weights();
        case pass::backward:
            return;
        }
    }

  private:
    using matrices = std::pair<Tensor, Tensor>;

    const layer_case& sizes() const { return tensors_.sizes; }

    void forward() {
        const torch::NoGradGuard guard;
        Formula::add(tensors_, before_ ? ready_ : Formula::mixed(tensors_));
    }

    void train() {
        const auto outputs =
            Formula::outputs(tensors_, before_ ? mixed_ : Formula::mixed(tensors_));
        const auto y = Formula::pieces(tensors_, tensors_.y);
        for (std::size_t i = 0; i < y.size(); ++i)
            y[i].add_(outputs[i].detach());
        // The graph of what was mixed beforehand serves every run.
        torch::autograd::backward(outputs, Formula::pieces(tensors_, tensors_.d_y), before_);
    }

    /// The graph is made once, as this pass is the backward alone.
    void backward_to_weights() {
        if (graph_.empty()) graph_ = Formula::outputs(weights_only_, Formula::mixed(weights_only_));
        torch::autograd::backward(graph_, Formula::pieces(tensors_, tensors_.d_y), true);
    }

    layer_tensors<T> tensors_, weights_only_;
    bool before_;
    matrices mixed_, ready_;
    std::vector<Tensor> graph_;
};

template <class T>
std::pair<Tensor, Tensor> mix(const layer_tensors<T>& t, const Tensor& weights) {
    const auto& c = t.sizes;
    const Tensor a = torch::einsum("bqs,qsdr->bqdr", {weights, t.a});
    const Tensor b = torch::einsum("bqs,qsrd->bqrd", {weights, t.b});
    const auto count = weights.size(0);
    return {a.reshape({count, c.in_features, c.rank}),
            b.transpose(1, 2).reshape({count, c.rank, c.out_features})};
}

/// As PEFT's Poly computes it: adapters mixed for each sequence, then two batched products, then a
/// division by the rank.
struct peft_formula {
    template <class T>
    static std::pair<Tensor, Tensor> mixed(const layer_tensors<T>& t) {
        return mix(t, t.weights.index_select(0, t.task_of_sequence).to(t.a.dtype()));
    }
    template <class T>
    static std::vector<Tensor> outputs(const layer_tensors<T>& t,
                                       const std::pair<Tensor, Tensor>& mixed) {
        return {t.x.bmm(mixed.first).bmm(mixed.second) / (1 / t.scale)};
    }
    template <class T>
    static void add(const layer_tensors<T>& t, const std::pair<Tensor, Tensor>& mixed) {
        t.y.add_(outputs(t, mixed).front());
    }
    template <class T>
    static std::vector<Tensor> pieces(const layer_tensors<T>&, const Tensor& of) {
        return {of};
    }
};

/// Mixed once for each task; the sequences of a task side by side in one product of a batch.
struct grouped_batch {
    template <class T>
    static std::pair<Tensor, Tensor> mixed(const layer_tensors<T>& t) {
        return mix(t, t.weights.to(t.a.dtype()));
    }
    /// [sequences, rows, features] as [tasks, rows of a task, features], a copy unless there is but
    /// one task, or as many as sequences.
    template <class T>
    static Tensor by_task(const layer_tensors<T>& t, const Tensor& of) {
        const auto& c = t.sizes;
        return of.view({c.sequences / c.tasks, c.tasks, c.rows_of_sequence, -1})
            .transpose(0, 1)
            .reshape({c.tasks, c.sequences / c.tasks * c.rows_of_sequence, -1});
    }
    template <class T>
    static std::vector<Tensor> outputs(const layer_tensors<T>& t,
                                       const std::pair<Tensor, Tensor>& mixed) {
        const auto& c = t.sizes;
        const Tensor grouped = by_task(t, t.x).bmm(mixed.first).mul(t.scale).bmm(mixed.second);
        return {grouped.view({c.tasks, c.sequences / c.tasks, c.rows_of_sequence, -1})
                    .transpose(0, 1)
                    .reshape_as(t.y)};
    }
    template <class T>
    static void add(const layer_tensors<T>& t, const std::pair<Tensor, Tensor>& mixed) {
        const auto& c = t.sizes;
        const Tensor hidden = by_task(t, t.x).bmm(mixed.first);
        if (c.tasks == 1 || c.tasks == c.sequences) {
            t.y.view({c.tasks, -1, c.out_features}).baddbmm_(hidden, mixed.second, 1, t.scale);
            return;
        }
        const Tensor grouped = hidden.mul_(t.scale).bmm(mixed.second);
        t.y.view({c.sequences / c.tasks, c.tasks, c.rows_of_sequence, -1})
            .add_(grouped.view({c.tasks, c.sequences / c.tasks, c.rows_of_sequence, -1})
                      .transpose(0, 1));
    }
    template <class T>
    static std::vector<Tensor> pieces(const layer_tensors<T>&, const Tensor& of) {
        return {of};
    }
};

/// Mixed once for each task; two products for each sequence.
struct grouped_loop {
    template <class T>
    static std::pair<Tensor, Tensor> mixed(const layer_tensors<T>& t) {
        return mix(t, t.weights.to(t.a.dtype()));
    }
    template <class T>
    static std::vector<Tensor> outputs(const layer_tensors<T>& t,
                                       const std::pair<Tensor, Tensor>& mixed) {
        const auto x = t.x.unbind(0), a = mixed.first.unbind(0), b = mixed.second.unbind(0);
        std::vector<Tensor> result;
        for (std::size_t s = 0; s < x.size(); ++s)
            result.push_back(x[s].mm(a[s % a.size()]).mul(t.scale).mm(b[s % b.size()]));
        return result;
    }
    template <class T>
    static void add(const layer_tensors<T>& t, const std::pair<Tensor, Tensor>& mixed) {
        const auto x = t.x.unbind(0), a = mixed.first.unbind(0), b = mixed.second.unbind(0);
        const auto y = t.y.unbind(0);
        for (std::size_t s = 0; s < x.size(); ++s)
            Tensor(y[s]).addmm_(x[s].mm(a[s % a.size()]), b[s % b.size()], 1, t.scale);
    }
    template <class T>
    static std::vector<Tensor> pieces(const layer_tensors<T>&, const Tensor& of) {
        return of.unbind(0);
    }
};

template <class T, class Formula>
void add_peer(peers& to, const layer_arrays<T>& arrays) {
    to.push_back(std::make_unique<libtorch_peer<T, Formula>>(arrays));
}

/// False where products are summed in bf16, for want of instructions that the library knows: their
/// results are no longer those of the layer.
template <class T>
bool sums_in_f32() {
#if defined(__x86_64__)
    return sizeof(T) != 2 || __builtin_cpu_supports("avx512bw");
#else
    return sizeof(T) != 2;
#endif
}

template <class T>
peers make_grouped(const layer_arrays<T>& arrays, int threads) {
    if (!sums_in_f32<T>()) return {};
    torch::set_num_threads(threads);
    peers result;
    if (arrays.sizes.sequences % arrays.sizes.tasks == 0)
        add_peer<T, grouped_batch>(result, arrays);
    add_peer<T, grouped_loop>(result, arrays);
    return result;
}

template <class T>
peers make_peft(const layer_arrays<T>& arrays, int threads) {
    if (!sums_in_f32<T>()) return {};
    torch::set_num_threads(threads);
    peers result;
    add_peer<T, peft_formula>(result, arrays);
    return result;
}

base_products make_base(const base_layer& layer, int threads) {
    torch::set_num_threads(threads);
    const Tensor x = tensor_of(layer.x, {layer.rows, layer.in_features});
    Tensor y = tensor_of(layer.y, {layer.rows, layer.out_features});
    base_products result;
    for (const Tensor& w :
         {tensor_of(layer.w, {layer.in_features, layer.out_features}),
          tensor_of(layer.w_transposed, {layer.out_features, layer.in_features}).t()})
        result.emplace_back([x, y, w]() mutable {
            const torch::NoGradGuard guard;
            torch::mm_out(y, x, w);
        });
    return result;
}

/// The file that LibTorch's products in f32 come from, as the linker chose it: a packaged LibTorch
/// takes whatever BLAS there is, which may be one of plain loops.
std::string file_of_products() {
    Dl_info found{};
    void* const product = dlsym(RTLD_DEFAULT, "sgemm_");
    if (product == nullptr || dladdr(product, &found) == 0) return "itself";
    return std::filesystem::canonical(found.dli_fname).string();
}

running_on chosen_instructions(const std::string& products) {
    const std::string all = at::show_config();
    const std::string label = "CPU capability usage: ";
    const auto start = all.find(label);
    std::string own = "?";
    if (start != std::string::npos) {
        const auto end = all.find('\n', start);
        own = all.substr(start + label.size(), end - start - label.size());
    }
    const auto level = own == "AVX512" ? vector_level::avx512
                       : own == "AVX2" ? vector_level::avx2
                                       : vector_level::none;
    // Its loops of AVX2 are as many elements a second as memory has: it prefers them often.
    return {own + ", products by " + products,
            level < std::min(level_of_processor(), vector_level::avx2)};
}

} // namespace

std::vector<library> libtorch_libraries() {
    const std::string products = file_of_products();
    const bool tuned = products == "itself" || products.find("openblas") != std::string::npos ||
                       products.find("mkl") != std::string::npos ||
                       products.find("blis") != std::string::npos;
    const std::string suffix = tuned ? "" : " (generic BLAS)";
    const running_on core = chosen_instructions(products);
    return {{"LibTorch grouped" + suffix, TORCH_VERSION, library::role::framework, core,
             make_grouped<float>, make_grouped<bfloat16>, make_base},
            {"LibTorch PEFT" + suffix, "", library::role::peft_formula, core, make_peft<float>,
             make_peft<bfloat16>, nullptr}};
}

} // namespace mhr_bench

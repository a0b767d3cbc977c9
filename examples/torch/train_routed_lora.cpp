// Multi-task training with LibTorch: a frozen network whose linear layers get routed LoRA, and one
// router for all of them. The same training runs a second time with the formula as PEFT's Poly
// computes it (adapters mixed for each sequence by einsum, two batched products), from the same
// first values, noise and data: the losses have to agree at every step, and the times are compared.
//
// A trainer needs the first half of this: RoutedLoraLinear in the network, a batch made from the
// task ids, the router's weights given to every layer.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

#include <mhr/hosts/torch.hpp>

namespace {

using torch::Tensor;

struct sizes {
    std::int64_t width, layers, tasks, modules, heads, rank, sequences, tokens;
};

/// A frozen network of linear layers with an adapter each.
class routed_network : public torch::nn::Module {
  public:
    explicit routed_network(const sizes& s, torch::Dtype type)
        : router_(register_module(
              "poly_router",
              mhr::torch::Router(
                  mhr::torch::RouterOptions(s.tasks, s.modules).heads(s.heads).dtype(type)))) {
        for (std::int64_t i = 0; i < s.layers; ++i) {
            torch::nn::Linear base(s.width, s.width);
            base->to(type);
            const auto options = mhr::torch::RoutedLoraOptions(s.modules, s.rank).heads(s.heads);
            layers_.push_back(register_module("layer" + std::to_string(i),
                                              mhr::torch::RoutedLoraLinear(base, options)));
        }
    }

    /// x [sequences, tokens, width]; task_ids [sequences]. The noise is an argument here, so that
    /// both trainings get the same; without it, the router draws its own.
    Tensor forward(Tensor x, const Tensor& task_ids, const Tensor& noise = {}) {
        const auto batch = mhr::torch::make_routed_batch(task_ids, x.size(1));
        const Tensor weights = router_->forward(batch, noise);
        for (auto& layer : layers_)
            x = layer->forward(x, weights, batch).tanh();
        return x;
    }

  private:
    mhr::torch::Router router_;
    std::vector<mhr::torch::RoutedLoraLinear> layers_;
};

/// The same network with copied parameters, written in LibTorch's own functions.
class formula_network {
  public:
    formula_network(const routed_network& other, const sizes& s) : sizes_(s) {
        for (const auto& item : other.named_parameters())
            parameters_.insert(item.key(), item.value().detach().clone().set_requires_grad(
                                               item.value().requires_grad()));
    }

    Tensor forward(Tensor x, const Tensor& task_ids, const Tensor& noise) const {
        const Tensor weights = weights_of(task_ids, noise);
        for (std::int64_t i = 0; i < sizes_.layers; ++i)
            x = layer("layer" + std::to_string(i) + ".", x, weights).tanh();
        return x;
    }

    /// The base layers alone, and the backward from the last of them to the first.
    void run_base(const Tensor& x) const {
        Tensor h = x;
        for (std::int64_t i = 0; i < sizes_.layers; ++i) {
            h = base("layer" + std::to_string(i) + ".", h).tanh();
            if (i == 0) h.detach_().requires_grad_(true);
        }
        h.sum().backward();
    }

    std::vector<Tensor> trained() const {
        std::vector<Tensor> result;
        for (const auto& item : parameters_)
            if (item.value().requires_grad()) result.push_back(item.value());
        return result;
    }

  private:
    /// Returns the weights of each sequence, [sequences, heads, modules]; the noise is that of its
    /// task.
    Tensor weights_of(const Tensor& task_ids, const Tensor& noise) const {
        const Tensor logits = parameters_["poly_router.module_logits"].index_select(0, task_ids);
        const Tensor u = noise.index_select(0, task_ids);
        const Tensor gates =
            (logits.view({-1, sizes_.heads, sizes_.modules}) + u.log() - (-u).log1p()).sigmoid();
        return gates / (gates.sum(-1, true) + 1e-12);
    }

    Tensor base(const std::string& name, const Tensor& x) const {
        return torch::nn::functional::linear(x, parameters_[name + "base_layer.weight"],
                                             parameters_[name + "base_layer.bias"]);
    }

    Tensor layer(const std::string& name, const Tensor& x, const Tensor& weights) const {
        const std::int64_t n = x.size(0), rank = sizes_.rank;
        const Tensor a =
            torch::einsum("bqs,qsdr->bqdr", {weights, parameters_[name + "poly_lora_A"]})
                .reshape({n, -1, rank});
        const Tensor b =
            torch::einsum("bqs,qsrd->bqrd", {weights, parameters_[name + "poly_lora_B"]})
                .transpose(1, 2)
                .reshape({n, rank, -1});
        return base(name, x) + x.bmm(a).bmm(b) / static_cast<double>(rank);
    }

    sizes sizes_;
    torch::OrderedDict<std::string, Tensor> parameters_;
};

/// Tasks that share skills: the teacher of a task is the base network with a mixture of hidden
/// modules of its own.
class teacher {
  public:
    teacher(const routed_network& student, const sizes& s, torch::Dtype type) : network_(s, type) {
        const torch::NoGradGuard guard;
        network_.eval();
        const auto of_student = student.named_parameters();
        for (const auto& item : network_.named_parameters())
            if (item.key().find("base_layer") != std::string::npos)
                item.value().copy_(of_student[item.key()]);
            else if (item.key().find("poly_lora_B") != std::string::npos)
                item.value().normal_(0, 2);
            else if (item.key().find("module_logits") != std::string::npos)
                item.value().normal_(0, 4);
    }
    Tensor operator()(const Tensor& x, const Tensor& task_ids) {
        const torch::NoGradGuard guard;
        return network_.forward(x, task_ids);
    }

  private:
    routed_network network_;
};

template <class F>
double seconds_of(F&& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Returns the time of the fastest step, which other programs disturbed the least.
double least(const std::vector<double>& times) {
    return *std::min_element(times.begin(), times.end());
}

/// Trains both, a step of each in turn, and prints the losses. True if they agree at every step.
bool compare(const sizes& s, torch::Dtype type, int steps, double tolerance) {
    torch::manual_seed(1);
    routed_network ours(s, type);
    const formula_network formula(ours, s);
    teacher target_of(ours, s, type);
    std::vector<Tensor> trained;
    for (const Tensor& parameter : ours.parameters())
        if (parameter.requires_grad()) trained.push_back(parameter);
    const torch::optim::AdamOptions options(0.02);
    torch::optim::Adam our_optimiser(trained, options),
        formula_optimiser(formula.trained(), options);

    std::printf("\n%s: %d layers of %d, %d tasks, %d modules of rank %d, %d heads, %d sequences of "
                "%d tokens, %d threads\n%6s %20s %20s %10s\n",
                torch::toString(type), int(s.layers), int(s.width), int(s.tasks), int(s.modules),
                int(s.rank), int(s.heads), int(s.sequences), int(s.tokens),
                torch::get_num_threads(), "step", "loss with mhr", "loss with LibTorch",
                "difference");
    std::vector<double> our_times, formula_times, base_times;
    double largest = 0;
    bool agree = true;
    for (int step = 0; step < steps; ++step) {
        const Tensor x = torch::randn({s.sequences, s.tokens, s.width}, type);
        const Tensor task_ids = torch::arange(s.sequences).remainder(s.tasks);
        const Tensor noise = torch::rand({s.tasks, s.heads, s.modules}, type).clamp(1e-6, 1 - 1e-6);
        const Tensor target = target_of(x, task_ids);
        const auto train = [&](auto&& network, torch::optim::Adam& optimiser, double& loss) {
            optimiser.zero_grad();
            const Tensor error = torch::mse_loss(network.forward(x, task_ids, noise), target);
            error.backward();
            optimiser.step();
            loss = error.template item<double>();
        };
        double our_loss = 0, formula_loss = 0;
        our_times.push_back(seconds_of([&] { train(ours, our_optimiser, our_loss); }));
        formula_times.push_back(
            seconds_of([&] { train(formula, formula_optimiser, formula_loss); }));
        base_times.push_back(seconds_of([&] { formula.run_base(x); }));
        const double difference = std::abs(our_loss - formula_loss) / std::abs(formula_loss);
        std::printf("%6d %20.15f %20.15f %10.1e\n", step, our_loss, formula_loss, difference);
        largest = std::max(largest, difference);
        agree = agree && difference <= tolerance; // false for NaN
    }
    const double our_time = least(our_times), formula_time = least(formula_times),
                 base_time = least(base_times);
    std::printf(
        "largest relative difference %.1e (allowed: %.0e)\n"
        "time of a step: mhr %.1f ms, LibTorch %.1f ms: %.2f times as fast; of these, the base "
        "layers take %.1f ms,\nso that the adapters add %.1f ms and %.1f ms: %.1f times as fast\n",
        largest, tolerance, 1e3 * our_time, 1e3 * formula_time, formula_time / our_time,
        1e3 * base_time, 1e3 * (our_time - base_time), 1e3 * (formula_time - base_time),
        (formula_time - base_time) / (our_time - base_time));
    return agree;
}

} // namespace

int main(int count, char** arguments) {
    const int steps = count > 1 ? std::atoi(arguments[1]) : 12;
    if (steps < 1) {
        std::printf("usage: %s [steps]\n", arguments[0]);
        return 2;
    }
    // f64 shows that it is the same training; f32, what it costs at the size of a real layer.
    const bool exact = compare({64, 3, 8, 8, 4, 8, 32, 16}, torch::kFloat64, steps, 1e-10);
    const bool close = compare({512, 3, 8, 8, 4, 16, 32, 32}, torch::kFloat32, steps, 1e-4);
    return exact && close ? 0 : 1;
}

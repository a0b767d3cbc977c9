#include <array>
#include <complex>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/gram.hpp>
#include <mhr/reference/mixing.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

} // namespace

TEST_CASE("a Gram matrix of two tasks, by hand") {
    tensor<double, 3> weights({2, 2, 2});
    tensor<double, 4> d_mixed({2, 2, 1, 2});
    tensor<double, 2> gram({2, 2});
    weights.values() = {1, 2, 0, 3, 4, 1, 5, 0};
    d_mixed.values() = {1, 2, 3, 4, 5, 6, 7, 8};
    gram.values() = {1000, 2000, 3000, 4000};
    reference::routed_gradient_gram(weights.const_view(), d_mixed.const_view(), gram.view());
    // Head 0: <w, w> = 5, 6, 17, <d, d> = 5, 17, 61. Head 1: <w, w> = 9, 0, 25, <d, d> = 25, ..,
    // 113.
    CHECK(gram.values() ==
          std::vector<double>{1000 + 25 + 225, 2000 + 102, 3000 + 102, 4000 + 1037 + 2825});
}

TEST_CASE("the Gram matrix is that of the gradients by complex step") {
    const index_t tasks = 3, heads = 2, modules = 3, p = 2, q = 3;
    random_source random(31);
    tensor<double, 3> weights({tasks, heads, modules});
    tensor<double, 4> a({heads, modules, p, q}), d_mixed({tasks, heads, p, q});
    random.fill(weights.view());
    random.fill(a.view());
    random.fill(d_mixed.view());
    tensor<double, 2> gram({tasks, tasks}), want({tasks, tasks}), size({tasks, tasks});
    reference::routed_gradient_gram(weights.const_view(), d_mixed.const_view(), gram.view());
    reference::routed_gradient_gram(magnitudes_as<double>(weights.view()).const_view(),
                                    magnitudes_as<double>(d_mixed.view()).const_view(),
                                    size.view());

    // Task t's loss is <mixed[t], d_mixed[t]>: its gradient to all modules.
    std::vector<tensor<double, 4>> gradients;
    auto modules_c = copy_as<complex>(a.view());
    const auto weights_c = copy_as<complex>(weights.view());
    for (index_t t = 0; t < tasks; ++t)
        gradients.push_back(complex_step_gradient(
            [&] {
                tensor<complex, 4> mixed(d_mixed.extents());
                reference::mix_forward(weights_c.const_view(), modules_c.const_view(),
                                       mixed.view());
                return contract<complex>(mixed.view().slice(0, t), d_mixed.view().slice(0, t));
            },
            modules_c.view()));
    for (index_t s = 0; s < tasks; ++s)
        for (index_t t = 0; t < tasks; ++t)
            want(s, t) = contract<double>(gradients[static_cast<std::size_t>(s)].view(),
                                          gradients[static_cast<std::size_t>(t)].view());
    CHECK(compare(gram.view(), want.view(), size.view(), within<double>(40)));
}

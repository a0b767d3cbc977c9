#include "hosts/torch/formula.hpp"

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <utility>

#include "support/element_access.hpp"

using namespace mhr;
using namespace mhr::torch;
using namespace mhr::test;

namespace {

/// A tensor, a part of it as LibTorch sees it, and the same part as the library sees it.
struct turned_tensor {
    Tensor whole, part;

    explicit turned_tensor(at::ScalarType type)
        : whole(at::arange(24, at::kDouble).to(type).view({2, 3, 4})),
          part(whole.transpose(0, 2).slice(1, 1, 3)) {}
};

const std::array<index_t, 3> turned_extents{4, 2, 2}, turned_strides{1, 4, 12};

void check_elements(at::ScalarType type, element_type want) {
    CAPTURE(at::toString(type));
    const turned_tensor turned(type);
    const tensor_ref<3> ref = ref_of<3>(turned.part);
    const const_tensor_ref<3> const_ref = const_ref_of<3>(turned.part);
    CHECK((ref.type() == want));
    CHECK((const_ref.type() == want));
    CHECK(ref.extents() == turned_extents);
    CHECK(ref.strides() == turned_strides);
    CHECK(ref.data() == const_ref.data());
    CHECK(element(ref, {3, 1, 0}) == 11);
    set_element(ref, {3, 1, 0}, 5);
    CHECK(turned.whole[0][2][3].item<double>() == 5);

    // The memory becomes a tensor again.
    Tensor again = tensor_of(ref);
    CHECK(again.data_ptr() == turned.part.data_ptr());
    CHECK(same_bits(again, turned.part));
    again.fill_(7);
    CHECK(turned.whole.eq(7).sum().item<std::int64_t>() == 16);
    CHECK(same_bits(tensor_of(const_ref), turned.part));
}

template <class T>
void check_view(at::ScalarType type) {
    CAPTURE(at::toString(type));
    const turned_tensor turned(type);
    const auto view = view_of<T, 3>(turned.part);
    CHECK(view.extents() == turned_extents);
    CHECK(view.strides() == turned_strides);
    CHECK(static_cast<double>(view(3, 1, 0)) == 11);
    view(3, 1, 0) = T(5);
    CHECK(turned.whole[0][2][3].template item<double>() == 5);
    CHECK(same_bits(tensor_of(view), turned.part));
    CHECK(same_bits(tensor_of(as_const(view)), turned.part));
}

} // namespace

TEST_CASE("tensors with their types as data, and back") {
    check_elements(at::kDouble, element_type::f64);
    check_elements(at::kFloat, element_type::f32);
    check_elements(at::kBFloat16, element_type::bf16);
    check_elements(at::kHalf, element_type::f16);
    CHECK(ref_of<2>(Tensor()).absent());
    CHECK(const_ref_of<2>(Tensor()).absent());
    CHECK_FALSE(tensor_of(tensor_ref<2>()).defined());

    const Tensor one_number = at::ones({1}).expand({3, 4});
    CHECK(const_ref_of<2>(one_number).strides() == std::array<index_t, 2>{0, 0});
    CHECK(tensor_of(const_ref_of<2>(one_number)).strides() == at::IntArrayRef({0, 0}));
    const Tensor empty = at::ones({0, 4});
    CHECK(ref_of<2>(empty).extents() == std::array<index_t, 2>{0, 4});
}

TEST_CASE("tensors whose type the compiler knows, and back") {
    check_view<double>(at::kDouble);
    check_view<float>(at::kFloat);
    check_view<at::BFloat16>(at::kBFloat16);
    check_view<at::Half>(at::kHalf);
    check_view<std::int64_t>(at::kLong);
    CHECK(view_of<const float, 2>(Tensor()).absent());
    CHECK_FALSE(tensor_of(tensor_view<float, 2>()).defined());
    // LibTorch's classes are elements to every function.
    const Tensor half = at::ones({2, 3}, at::kHalf);
    const const_tensor_ref<2> ref = view_of<const at::Half, 2>(half);
    CHECK((ref.type() == element_type::f16));
}

TEST_CASE("tensors that cannot be shown") {
    const Tensor good = at::ones({2, 3});
    const std::array<std::function<std::string(const Tensor&)>, 3> all{
        [](const Tensor& tensor) {
            return refusal("torch::view_of: x: ",
                           [&] { (void)view_of<const float, 2>(tensor, "x"); });
        },
        [](const Tensor& tensor) {
            return refusal("torch::ref_of: x: ", [&] { (void)ref_of<2>(tensor, "x"); });
        },
        [](const Tensor& tensor) {
            return refusal("torch::const_ref_of: x: ", [&] { (void)const_ref_of<2>(tensor, "x"); });
        }};
    for (const auto& refused : all) {
        REQUIRE(refused(good) == "nothing was thrown");
        CHECK(refused(good.to(at::kInt)) == "");
        CHECK(refused(good.to(at::kComplexFloat)) == "");
        CHECK(refused(good[0]) == "");
        CHECK(refused(good.unsqueeze(0)) == "");
        CHECK(refused(good.to_sparse()) == "");
        CHECK(refused(at::ones({2, 3}, at::TensorOptions().device(at::kMeta))) == "");
        // The imaginary part of a conjugated tensor is a float tensor whose sign bit is a flag.
        const Tensor negated = at::imag(at::conj(at::ones({2, 3}, at::kComplexFloat)));
        REQUIRE(negated.is_neg());
        CHECK(refused(negated) == "");
        CHECK(refused(negated.resolve_neg()) == "nothing was thrown");
    }
    CHECK(all[0](good.to(at::kDouble)) == "");
    CHECK(all[0](good.to(at::kBFloat16)) == "");

    float numbers[4] = {};
    const tensor_view<float, 1> reversed(numbers + 3, {4}, {-1});
    CHECK(refusal("torch::tensor_of: tensor: ", [&] { (void)tensor_of(reversed); }) == "");
    CHECK(refusal("torch::tensor_of: tensor: ",
                  [&] { (void)tensor_of(const_tensor_ref<1>(reversed)); }) == "");
}

TEST_CASE("LibTorch's threads run every part once") {
    const int threads_before = at::get_num_threads();
    for (int threads : {1, 2, 3, 8}) {
        CAPTURE(threads);
        at::set_num_threads(threads);
        for (index_t parts : {0, 1, 2, 7, 100}) {
            CAPTURE(parts);
            std::mutex mutex;
            std::vector<int> runs(static_cast<std::size_t>(parts));
            std::set<int> seen;
            executor_ref(mhr::torch::executor{}).run(parts, [&](index_t part) noexcept {
                const std::lock_guard<std::mutex> lock(mutex);
                ++runs[static_cast<std::size_t>(part)];
                seen.insert(at::get_thread_num());
            });
            CHECK(runs == std::vector<int>(runs.size(), 1));
            // Blocks of equal size: fewer threads may do.
            const auto least = parts == 100 ? threads : std::min(static_cast<int>(parts), 2);
            CHECK(static_cast<int>(seen.size()) >= std::min(least, threads));
            CHECK(static_cast<int>(seen.size()) <= threads);
        }
        // Inside of a parallel region of the host's.
        std::atomic<index_t> sum{0};
        at::parallel_for(0, 4, 1, [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t i = first; i < last; ++i)
                executor_ref(mhr::torch::executor{}).run(5, [&](index_t part) noexcept {
                    sum += part;
                });
        });
        CHECK(sum == 40);
    }
    at::set_num_threads(threads_before);
}

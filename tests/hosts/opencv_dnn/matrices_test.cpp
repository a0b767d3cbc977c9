#include <array>
#include <atomic>
#include <cstddef>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/batch/batch.hpp>
#include <mhr/hosts/opencv_dnn/matrices.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/reference/lora.hpp>

#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/random_tensor.hpp"

using namespace mhr;
using namespace mhr::opencv;
using namespace mhr::test;

namespace {

template <class F>
void for_each_number_of_threads(F&& f) {
    for (int threads : {1, 2, 3, 8}) {
        CAPTURE(threads);
        cv::setNumThreads(threads);
        f();
    }
    cv::setNumThreads(-1);
}

} // namespace

TEST_CASE_TEMPLATE("a matrix is a view, continuous or not", T, float, double, int, cv::float16_t) {
    cv::Mat whole(5, 8, cv::DataType<T>::type);
    const auto view = view_of<T, 2>(whole);
    CHECK(view.extents() == std::array<index_t, 2>{5, 8});
    CHECK(view.is_contiguous());
    view(3, 4) = T(7);
    CHECK(static_cast<float>(whole.template at<T>(3, 4)) == 7);

    const cv::Mat part = whole(cv::Rect(2, 1, 4, 3)); // columns 2.., rows 1..
    const auto cut = view_of<const T, 2>(part);
    CHECK(cut.extents() == std::array<index_t, 2>{3, 4});
    CHECK(cut.strides() == std::array<index_t, 2>{8, 1});
    CHECK(cut.data() == &view(1, 2));
    CHECK(static_cast<float>(cut(2, 2)) == 7);
    const auto column = view_of<T, 1>(part.col(2));
    CHECK(column.extents() == std::array<index_t, 1>{3});
    CHECK(column.strides() == std::array<index_t, 1>{8});
    CHECK(static_cast<float>(column(2)) == 7);

    const int sizes[] = {2, 3, 4, 5};
    const cv::Mat blob(4, sizes, cv::DataType<T>::type);
    CHECK(view_of<T, 4>(blob).extents() == std::array<index_t, 4>{2, 3, 4, 5});
    CHECK(view_of<T, 2>(blob).extents() == std::array<index_t, 2>{24, 5});
    CHECK(view_of<T, 1>(blob).extents() == std::array<index_t, 1>{120});
    CHECK(view_of<T, 5>(blob).extents() == std::array<index_t, 5>{1, 2, 3, 4, 5});
    CHECK(view_of<T, 2>(cv::Mat()).absent());
}

TEST_CASE("a matrix is a tensor with its type as data") {
    const std::array<std::pair<int, element_type>, 3> types{
        {{CV_32F, element_type::f32}, {CV_64F, element_type::f64}, {CV_16F, element_type::f16}}};
    for (const auto& [type, want] : types) {
        CAPTURE(name_of(want));
        const cv::Mat whole(5, 8, type);
        const tensor_ref<2> ref = ref_of<2>(whole);
        CHECK((ref.type() == want));
        CHECK(ref.extents() == std::array<index_t, 2>{5, 8});
        CHECK(ref.is_contiguous());
        set_element(ref, {3, 4}, 7);
        cv::Mat wide;
        whole.convertTo(wide, CV_64F);
        CHECK(wide.at<double>(3, 4) == 7);

        const cv::Mat part = whole(cv::Rect(2, 1, 4, 3)); // columns 2.., rows 1..
        const const_tensor_ref<2> cut = const_ref_of<2>(part);
        CHECK((cut.type() == want));
        CHECK(cut.extents() == std::array<index_t, 2>{3, 4});
        CHECK(cut.strides() == std::array<index_t, 2>{8, 1});
        CHECK(cut.data() == ref.address_of(1, 2));
        CHECK(element(cut, {2, 2}) == 7);

        const int sizes[] = {2, 3, 4, 5};
        const cv::Mat blob(4, sizes, type);
        CHECK(ref_of<4>(blob).extents() == std::array<index_t, 4>{2, 3, 4, 5});
        CHECK(ref_of<2>(blob).extents() == std::array<index_t, 2>{24, 5});
        CHECK(ref_of<5>(blob).extents() == std::array<index_t, 5>{1, 2, 3, 4, 5});
    }
    CHECK(ref_of<2>(cv::Mat()).absent());
    // OpenCV's class is an element to every function.
    cv::Mat half(2, 3, CV_16F);
    const const_tensor_ref<2> ref = view_of<const cv::float16_t, 2>(half);
    CHECK((ref.type() == element_type::f16));
}

TEST_CASE("a matrix of other elements, or that is not evenly spaced, is refused") {
    const cv::Mat matrix(5, 8, CV_32F);
    const int sizes[] = {3, 4, 5};
    const cv::Range ranges[] = {cv::Range::all(), cv::Range(0, 3), cv::Range::all()};
    const cv::Mat part = cv::Mat(3, sizes, CV_32F)(ranges);
    const auto refused = [](auto&& f) { return refuses("opencv::view_of", "x", f); };
    CHECK(refused([&] { (void)view_of<double, 2>(matrix, "x"); }));
    CHECK(refused([&] { (void)view_of<cv::float16_t, 2>(matrix, "x"); }));
    CHECK(refused([&] { (void)view_of<float, 2>(cv::Mat(5, 8, CV_32FC3), "x"); }));
    CHECK(refused([&] { (void)view_of<float, 2>(cv::Mat(5, 8, CV_8U), "x"); }));
    CHECK(refused([&] { (void)view_of<float, 1>(matrix(cv::Rect(0, 0, 7, 5)), "x"); }));
    CHECK(refused([&] { (void)view_of<float, 2>(part, "x"); }));
    CHECK(view_of<float, 3>(part).strides() == std::array<index_t, 3>{20, 5, 1});

    for (int type : {CV_32FC3, CV_8U, CV_32S}) {
        const cv::Mat other(5, 8, type);
        CHECK(refuses("opencv::ref_of", "x", [&] { (void)ref_of<2>(other, "x"); }));
        CHECK(refuses("opencv::const_ref_of", "x", [&] { (void)const_ref_of<2>(other, "x"); }));
    }
    CHECK(refuses("opencv::ref_of", "x", [&] { (void)ref_of<2>(part, "x"); }));
    CHECK(refuses("opencv::const_ref_of", "x", [&] { (void)const_ref_of<2>(part, "x"); }));
    CHECK(ref_of<3>(part).strides() == std::array<index_t, 3>{20, 5, 1});
}

TEST_CASE("kernels compute on matrices of every type") {
    constexpr int rows = 20, in = 30, out = 25, rank = 4;
    const batch_plan plan = random_plan(rows, 3);
    const int a_sizes[] = {3, in, rank}, b_sizes[] = {3, rank, out};
    const mhr::opencv::executor threads;
    for (int type : {CV_32F, CV_64F, CV_16F}) {
        const cv::Mat x = cv::Mat(rows, in + 9, type).colRange(3, 3 + in);
        const cv::Mat y = cv::Mat(rows, out + 1, type).colRange(0, out);
        const cv::Mat a(3, a_sizes, type), b(3, b_sizes, type);
        random_source random(1);
        const auto fill = [&](const auto& ref) {
            transform_elements(ref, [&](double) { return random.uniform(-1, 1); });
        };
        fill(ref_of<2>(x));
        fill(ref_of<2>(y));
        fill(ref_of<3>(a));
        fill(ref_of<3>(b));
        const auto expect = [&](const auto& copy) {
            auto result = copy(const_ref_of<2>(y));
            const auto x_copy = copy(const_ref_of<2>(x));
            const auto a_copy = copy(const_ref_of<3>(a));
            const auto b_copy = copy(const_ref_of<3>(b));
            reference::lora_forward(entry_of_row(plan).const_view(), x_copy.const_view(),
                                    a_copy.const_view(), b_copy.const_view(), 0.5L, result.view());
            return result;
        };
        const auto want = expect([](const auto& ref) { return values_as<long double>(ref); });
        const auto size = expect([](const auto& ref) { return magnitudes_as<long double>(ref); });
        const lora_list adapters(const_ref_of<3>(a), const_ref_of<3>(b), 0.5);
        const element_type sums = type == CV_64F ? element_type::f64 : element_type::f32;
        const batch all{plan, threads};
        std::vector<std::byte> memory(lora_state_size(all, adapters, sums));
        workspace scratch(memory.data(), memory.size());
        lora_forward(all, adapters, const_ref_of<2>(x), ref_of<2>(y),
                     take_lora_state(scratch, all, adapters, sums));
        CHECK(compare(const_ref_of<2>(y), want.view(), size.view(),
                      within(sums, (in + rank) / 2 + 3)));
    }
}

TEST_CASE("OpenCV's threads run each part once") {
    for_each_number_of_threads([] {
        for (index_t parts : {0, 1, 2, 7, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<std::size_t>(parts));
            executor_ref(mhr::opencv::executor{}).run(parts, [&](index_t part) noexcept {
                ++runs[static_cast<std::size_t>(part)];
            });
            for (const auto& count : runs)
                CHECK(count == 1);
        }
    });
    // More parts than OpenCV can count stripes for.
    constexpr index_t many = (index_t(1) << 20) + 3;
    std::atomic<index_t> sum{0};
    executor_ref(mhr::opencv::executor{}).run(many, [&](index_t part) noexcept { sum += part; });
    CHECK(sum == many * (many - 1) / 2);
}

#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <Eigen/Core>

#include <opencv2/core/utils/logger.hpp>

#include <mhr/interop/opencv_dnn.hpp>

#include "interop/onnx_writer.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/positions.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_oracle.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// The constants of a routed layer.
struct routed_constants {
    tensor<float, 4> a, b;
    tensor<float, 3> weights;

    routed_constants(index_t tasks, index_t heads, index_t modules, index_t in, index_t out,
                     index_t rank, std::uint64_t seed)
        : a({heads, modules, in / heads, rank}), b({heads, modules, rank, out / heads}),
          weights({tasks, heads, modules}) {
        random_source random(seed);
        random.fill(a.view());
        random.fill(b.view());
        random.fill(weights.view(), 0, 1);
    }
};

template <std::size_t Rank>
onnx::shape shape_of_tensor(const tensor<float, Rank>& t) {
    return {t.extents().begin(), t.extents().end()};
}

/// x [images, rows, in] -> MatMul -> Relu -> Flatten -> Gemm -> y [images, out], with routed LoRA
/// beside both products: of several rows for each image, and of one.
struct network {
    static constexpr index_t images = 6, rows = 7, in = 12, middle = 10, out = 9;
    static constexpr index_t tasks = 5, flat = rows * middle;
    static constexpr double scale = 0.75;

    tensor<float, 3> x{{images, rows, in}};
    tensor<float, 2> w1{{in, middle}}, w2{{out, flat}}; // the second transposed, as Gemm has it
    tensor<float, 1> bias{{out}};
    routed_constants first{tasks, 2, 3, in, middle, 4, 1};
    routed_constants second{tasks, 1, 4, flat, out, 3, 2};

    network() {
        random_source random(3);
        random.fill(x.view());
        random.fill(w1.view());
        random.fill(w2.view());
        random.fill(bias.view());
    }

    /// Read by OpenCV from ONNX.
    [[nodiscard]] cv::dnn::Net read(bool routed, int capacity = 0) const {
        onnx::graph graph("x", {images, rows, in});
        const auto constant = [&](const std::string& name, const auto& values) {
            graph.constant(name, shape_of_tensor(values), values.values());
        };
        const auto lora = [&](const std::string& name, const std::string& input,
                              const std::string& base, const routed_constants& constants) {
            if (!routed) return base;
            constant(name + "_a", constants.a);
            constant(name + "_b", constants.b);
            constant(name + "_weights", constants.weights);
            onnx::graph::attributes with{{}, {{"scale", static_cast<float>(scale)}}};
            if (capacity != 0) with.integers.emplace_back("capacity", capacity);
            graph.node(name, "mhr", "RoutedLora",
                       {input, base, name + "_a", name + "_b", name + "_weights"}, with);
            return name;
        };
        constant("w1", w1);
        constant("w2", w2);
        constant("bias", bias);
        graph.node("product", "", "MatMul", {"x", "w1"});
        graph.node("relu", "", "Relu", {lora("lora1", "x", "product", first)});
        graph.node("flat", "", "Flatten", {"relu"}, {{{"axis", 1}}, {}});
        graph.node("gemm", "", "Gemm", {"flat", "w2", "bias"}, {{{"transB", 1}}, {}});
        const std::string model = graph.model(lora("lora2", "flat", "gemm", second), {images, out});
        cv::dnn::Net net = cv::dnn::readNetFromONNX(model.data(), model.size());
        net.setPreferableBackend(cv::dnn::DNN_BACKEND_OPENCV);
        return net;
    }

    [[nodiscard]] tensor<float, 2> run(cv::dnn::Net net) const {
        const int sizes[] = {images, rows, in};
        net.setInput(cv::Mat(3, sizes, CV_32F, const_cast<float*>(x.values().data())));
        const cv::Mat y = net.forward();
        return copy_as<float>(view_of<const float, 2>(y));
    }

    /// By the oracles, on numbers as they are or on their magnitudes.
    template <class Copy>
    [[nodiscard]] tensor<double, 2> expect(const std::vector<int>& task_of_image,
                                           Copy&& copy) const {
        const auto layer = [&](const tensor<double, 2>& inputs, const tensor<double, 2>& w,
                               const routed_constants& c) {
            // For the oracle, each row of the table is an entry.
            const index_t rows_of_image = inputs.extents()[0] / images;
            tensor<index_t, 1> entries({inputs.extents()[0]});
            for (index_t row = 0; row < entries.extents()[0]; ++row)
                entries(row) = task_of_image[static_cast<std::size_t>(row / rows_of_image)];
            tensor<double, 2> y({inputs.extents()[0], w.extents()[1]});
            for_each_position(y.extents(), [&](const position<2>& at) {
                for (index_t i = 0; i < w.extents()[0]; ++i)
                    y(at[0], at[1]) += inputs(at[0], i) * w(i, at[1]);
            });
            routed_oracle<double>{
                entries, scale, inputs, copy(c.a.view()), copy(c.b.view()), copy(c.weights.view())}
                .forward(y);
            return y;
        };
        const tensor_view<const float, 2> x_rows(x.values().data(), {images * rows, in});
        tensor<double, 2> hidden = layer(copy(x_rows), copy(w1.view()), first);
        tensor<double, 2> flattened({images, flat});
        for (std::size_t i = 0; i < hidden.values().size(); ++i)
            flattened.values()[i] = std::max(hidden.values()[i], 0.0);
        tensor<double, 2> y = layer(flattened, copy(w2.view().transpose(0, 1)), second);
        const auto added = copy(bias.view());
        for_each_position(y.extents(),
                          [&](const position<2>& at) { y(at[0], at[1]) += added(at[1]); });
        return y;
    }
    [[nodiscard]] comparison compare_with_oracle(const tensor<float, 2>& y,
                                                 const std::vector<int>& task_of_image) const {
        const auto want =
            expect(task_of_image, [](const auto& view) { return copy_as<double>(view); });
        const auto size =
            expect(task_of_image, [](const auto& view) { return magnitudes_as<double>(view); });
        return compare(y.view(), want.view(), size.view(), within<float>((in + flat) / 2 + 12));
    }
};

/// Registers the layer, and keeps OpenCV from writing about what tests provoke.
struct with_opencv {
    with_opencv() {
        cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
        register_opencv_routed_lora();
        register_opencv_routed_lora(); // does nothing
    }
    ~with_opencv() { cv::setNumThreads(-1); }
};

template <class F>
void for_each_number_of_threads(F&& f) {
    for (int threads : {1, 2, 3, 8}) {
        CAPTURE(threads);
        cv::setNumThreads(threads);
        f();
    }
    cv::setNumThreads(-1);
}

cv::Mat mat_of(const tensor<float, 4>& t) {
    const auto& e = t.extents();
    const int sizes[] = {static_cast<int>(e[0]), static_cast<int>(e[1]), static_cast<int>(e[2]),
                         static_cast<int>(e[3])};
    return cv::Mat(4, sizes, CV_32F, const_cast<float*>(t.values().data())).clone();
}
cv::Mat mat_of(const tensor<float, 3>& t) {
    const auto& e = t.extents();
    const int sizes[] = {static_cast<int>(e[0]), static_cast<int>(e[1]), static_cast<int>(e[2])};
    return cv::Mat(3, sizes, CV_32F, const_cast<float*>(t.values().data())).clone();
}

cv::dnn::LayerParams params_of(const routed_constants& c) {
    cv::dnn::LayerParams params;
    params.name = "mine";
    params.type = "mhr.RoutedLora";
    params.blobs = {mat_of(c.a), mat_of(c.b), mat_of(c.weights)};
    return params;
}

const std::vector<int> mixed_tasks{3, -1, 0, 3, 4, -1};

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

TEST_CASE("a matrix of other elements, or that is not evenly spaced, is refused") {
    const cv::Mat matrix(5, 8, CV_32F);
    const auto refused = [](auto&& f) { return refuses("view_of", "matrix", f); };
    CHECK(refused([&] { (void)view_of<double, 2>(matrix); }));
    CHECK(refused([&] { (void)view_of<cv::float16_t, 2>(matrix); }));
    CHECK(refused([&] { (void)view_of<float, 2>(cv::Mat(5, 8, CV_32FC3)); }));
    CHECK(refused([&] { (void)view_of<float, 2>(cv::Mat(5, 8, CV_8U)); }));
    CHECK(refused([&] { (void)view_of<float, 1>(matrix(cv::Rect(0, 0, 7, 5))); }));
    const int sizes[] = {3, 4, 5};
    const cv::Range ranges[] = {cv::Range::all(), cv::Range(0, 3), cv::Range::all()};
    const cv::Mat part = cv::Mat(3, sizes, CV_32F)(ranges);
    CHECK(refused([&] { (void)view_of<float, 2>(part); }));
    CHECK(view_of<float, 3>(part).strides() == std::array<index_t, 3>{20, 5, 1});
}

TEST_CASE_TEMPLATE("kernels compute on matrices of every type", T, float, double, cv::float16_t) {
    using S = oracle_t<T>;
    using known = std::conditional_t<std::is_same_v<T, cv::float16_t>, Eigen::half, T>;
    constexpr int rows = 20, in = 30, out = 25, rank = 4;
    const int type = cv::DataType<T>::type;
    const batch_plan plan = random_plan(rows, 3);
    const cv::Mat x = cv::Mat(rows, in + 9, type).colRange(3, 3 + in);
    const cv::Mat y = cv::Mat(rows, out + 1, type).colRange(0, out);
    const int a_sizes[] = {3, in, rank}, b_sizes[] = {3, rank, out};
    const cv::Mat a(3, a_sizes, type), b(3, b_sizes, type);
    random_source random(1);
    random.fill(view_of<T, 2>(x));
    random.fill(view_of<T, 2>(y));
    random.fill(view_of<T, 3>(a));
    random.fill(view_of<T, 3>(b));
    const auto expect = [&](const auto& copy) {
        auto result = copy(view_of<T, 2>(y));
        const auto x_copy = copy(view_of<T, 2>(x));
        const auto a_copy = copy(view_of<T, 3>(a));
        const auto b_copy = copy(view_of<T, 3>(b));
        reference::lora_forward(entry_of_row(plan).const_view(), x_copy.const_view(),
                                a_copy.const_view(), b_copy.const_view(), S(0.5), result.view());
        return result;
    };
    const auto want = expect([](const auto& view) { return copy_as<S>(view); });
    const auto size = expect([](const auto& view) { return magnitudes_as<S>(view); });
    tensor<accumulator_t<T>, 2> hidden({rows, rank});
    lora_forward(opencv_executor{}, plan, view_of<const T, 2>(x),
                 lora_batch<const T>{view_of<const T, 3>(a), view_of<const T, 3>(b)}, 0.5,
                 view_of<T, 2>(y), hidden.view());
    const auto got = view_of<T, 2>(y);
    const tensor_view<const known, 2> known_y(reinterpret_cast<const known*>(got.data()),
                                              got.extents(), got.strides());
    CHECK(
        compare(known_y, want.view(), size.view(), within<accumulator_t<T>>((in + rank) / 2 + 3)));
}

TEST_CASE("OpenCV's threads run each part once") {
    for_each_number_of_threads([] {
        for (index_t parts : {0, 1, 2, 7, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<std::size_t>(parts));
            executor_ref(opencv_executor{}).run(parts, [&](index_t part) noexcept {
                ++runs[static_cast<std::size_t>(part)];
            });
            for (const auto& count : runs)
                CHECK(count == 1);
        }
    });
    // More parts than OpenCV can count stripes for.
    constexpr index_t many = (index_t(1) << 20) + 3;
    std::atomic<index_t> sum{0};
    executor_ref(opencv_executor{}).run(many, [&](index_t part) noexcept { sum += part; });
    CHECK(sum == many * (many - 1) / 2);
}

TEST_CASE("routed LoRA beside the products of an imported network agrees with the oracle") {
    const with_opencv opencv;
    const network n;
    for_each_number_of_threads([&] {
        cv::dnn::Net net = n.read(true);
        const auto batch = share_opencv_batch(net);
        for (const std::vector<int>& task_of_image :
             {mixed_tasks, {0, 1, 2, 3, 4, 0}, {2, 2, 2, 2, 2, 2}, {-1, -1, -1, -1, 1, -1}}) {
            batch->assign_tasks(task_of_image);
            CHECK(n.compare_with_oracle(n.run(net), task_of_image));
        }
    });
}

TEST_CASE("the network's output has the same bits with any number of threads") {
    const with_opencv opencv;
    const network n;
    cv::dnn::Net net = n.read(true);
    share_opencv_batch(net)->assign_tasks(mixed_tasks);
    cv::setNumThreads(1);
    const auto want = n.run(net);
    for_each_number_of_threads([&] { CHECK(compare_bitwise(n.run(net).view(), want.view())); });
}

TEST_CASE("without tasks, of no task, and with b = 0 the network is what it was without adapters") {
    const with_opencv opencv;
    network n;
    const auto plain = n.run(n.read(false));
    cv::dnn::Net net = n.read(true);
    CHECK(compare_bitwise(n.run(net).view(), plain.view())); // without a batch
    const auto batch = share_opencv_batch(net);
    CHECK(compare_bitwise(n.run(net).view(), plain.view())); // without tasks
    batch->assign_tasks(std::vector<int>(network::images, -1));
    CHECK(compare_bitwise(n.run(net).view(), plain.view()));

    // Images of no task among others.
    batch->assign_tasks(mixed_tasks);
    const auto y = n.run(net);
    for (index_t image = 0; image < network::images; ++image) {
        const bool same = bool(compare_bitwise(y.view().slice(0, image), //
                                               plain.view().slice(0, image)));
        CHECK(same == (mixed_tasks[static_cast<std::size_t>(image)] < 0));
    }

    for (float& value : n.first.b.values())
        value = 0;
    for (float& value : n.second.b.values())
        value = 0;
    cv::dnn::Net fresh = n.read(true);
    share_opencv_batch(fresh)->assign_tasks(mixed_tasks);
    CHECK(compare_bitwise(n.run(fresh).view(), plain.view()));
}

TEST_CASE(
    "mixed adapters are kept for as many tasks as the capacity says, and mixed anew if told") {
    const with_opencv opencv;
    network n;
    cv::dnn::Net net = n.read(true, 2);
    const auto batch = share_opencv_batch(net);
    for (const std::vector<int>& task_of_image :
         {std::vector<int>{0, 1, 0, 1, -1, 0}, {2, 3, 2, 3, 2, 2}, {1, 3, 1, 1, 1, 1}}) {
        batch->assign_tasks(task_of_image);
        CHECK(n.compare_with_oracle(n.run(net), task_of_image));
    }
    const std::vector<int> tasks{1, 3, 1, 1, 1, 1};
    const cv::Ptr<cv::dnn::Layer> layer = net.getLayer(net.getLayerId("onnx_node!lora1"));
    REQUIRE(layer != nullptr);
    random_source random(99);
    random.fill(n.first.b.view());
    mat_of(n.first.b).copyTo(layer->blobs[1]);
    CHECK_FALSE(n.compare_with_oracle(n.run(net), tasks));
    batch->forget_mixed();
    CHECK(n.compare_with_oracle(n.run(net), tasks));
}

TEST_CASE("tasks that do not fit the network are refused by the layer's name") {
    const with_opencv opencv;
    const network n;
    cv::dnn::Net net = n.read(true, 3);
    const auto batch = share_opencv_batch(net);
    const std::string name = "mhr.RoutedLora onnx_node!lora1";
    const auto refused = [&](const std::string& argument, const std::vector<int>& task_of_image) {
        batch->assign_tasks(task_of_image);
        return refuses(name, argument, [&] { (void)n.run(net); });
    };
    CHECK(refused("tasks", {0, 1, 2, 3, 0, 0}));
    CHECK(refused("tasks", {0, 5, -1, 0, 0, 0}));
    CHECK(refused("x", {0, 1, 0, 1, 0}));
    CHECK(refuses("batch_plan::assign_rows", "task_of_row", [&] {
        batch->assign_tasks(std::vector<int>{0, -2, 0, 0, 0, 0});
    }));
    // A network that has refused tasks serves others.
    const std::vector<int> good{0, 1, 2, -1, 0, 0};
    batch->assign_tasks(good);
    CHECK(n.compare_with_oracle(n.run(net), good));
    cv::dnn::Net plain = n.read(false);
    CHECK(refuses("share_opencv_batch", "net", [&] { (void)share_opencv_batch(plain); }));
}

TEST_CASE("bad layers are refused by their name") {
    const with_opencv opencv;
    const routed_constants c(3, 2, 4, 10, 6, 2, 1);
    const auto refused = [&](const std::string& argument, auto&& spoil) {
        cv::dnn::LayerParams params = params_of(c);
        spoil(params);
        return refuses("mhr.RoutedLora mine", argument, [&] {
            (void)cv::dnn::LayerFactory::createLayerInstance(params.type, params);
        });
    };
    using params = cv::dnn::LayerParams;
    CHECK_FALSE(refused("", [](params&) {}));
    CHECK(refused("constants", [](params& p) { p.blobs.pop_back(); }));
    CHECK(refused("a", [](params& p) { p.blobs[0] = p.blobs[2]; }));
    CHECK(refused("a", [](params& p) { p.blobs[0].convertTo(p.blobs[0], CV_64F); }));
    CHECK(refused("b", [](params& p) { p.blobs[1] = cv::Mat(); }));
    CHECK(refused("weights", [](params& p) { p.blobs[2] = p.blobs[0]; }));
    CHECK(refused("capacity", [](params& p) { p.set("capacity", 0); }));
    const auto other = [](const routed_constants& o) { return params_of(o).blobs; };
    const auto heads = other({3, 1, 4, 10, 6, 2, 1});
    const auto modules = other({3, 2, 5, 10, 6, 2, 1});
    CHECK(refused("inventory.b", [&](params& p) { p.blobs[1] = heads[1]; }));
    CHECK(refused("inventory.b", [&](params& p) { p.blobs[1] = modules[1]; }));
    CHECK(refused("weights", [&](params& p) { p.blobs[2] = heads[2]; }));
    CHECK(refused("weights", [&](params& p) { p.blobs[2] = modules[2]; }));

    params good = params_of(c);
    const auto layer = cv::dnn::LayerFactory::createLayerInstance(good.type, good);
    const auto shapes_refused = [&](const std::string& argument,
                                    const std::vector<cv::dnn::MatShape>& inputs) {
        std::vector<cv::dnn::MatShape> outputs, internals;
        return refuses("mhr.RoutedLora mine", argument,
                       [&] { (void)layer->getMemoryShapes(inputs, 1, outputs, internals); });
    };
    CHECK_FALSE(shapes_refused("", {{5, 8, 10}, {5, 8, 6}}));
    CHECK_FALSE(shapes_refused("", {{40, 10}, {5, 8, 6}}));
    CHECK(shapes_refused("inputs", {{5, 8, 10}}));
    CHECK(shapes_refused("x", {{5, 8, 11}, {5, 8, 6}}));
    CHECK(shapes_refused("x", {{10}, {6}}));
    CHECK(shapes_refused("base", {{5, 8, 10}, {5, 8, 7}}));
    CHECK(shapes_refused("base", {{5, 8, 10}, {5, 7, 6}}));
}

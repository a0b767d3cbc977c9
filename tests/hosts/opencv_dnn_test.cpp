#include "hosts/opencv_dnn/routed_constants.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "hosts/opencv_dnn/onnx_writer.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/positions.hpp"
#include "support/routed_oracle.hpp"

using namespace mhr;
using namespace mhr::opencv;
using namespace mhr::test;

namespace {

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
        return compare(y.view(), want.view(), size.view(),
                       within(element_type::f32, (in + flat) / 2 + 12));
    }
};

const std::vector<int> mixed_tasks{3, -1, 0, 3, 4, -1};

} // namespace

TEST_CASE("routed LoRA beside the products of an imported network agrees with the oracle") {
    const with_opencv opencv;
    const network n;
    for_each_number_of_threads([&] {
        cv::dnn::Net net = n.read(true);
        const auto batch = share_batch(net);
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
    share_batch(net)->assign_tasks(mixed_tasks);
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
    const auto batch = share_batch(net);
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
    share_batch(fresh)->assign_tasks(mixed_tasks);
    CHECK(compare_bitwise(n.run(fresh).view(), plain.view()));
}

TEST_CASE(
    "mixed adapters are kept for as many tasks as the capacity says, and mixed anew if told") {
    const with_opencv opencv;
    network n;
    cv::dnn::Net net = n.read(true, 2);
    const auto batch = share_batch(net);
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
    const auto batch = share_batch(net);
    const std::string name = "mhr.RoutedLora onnx_node!lora1";
    const auto refused = [&](const std::string& argument, const std::vector<int>& task_of_image) {
        batch->assign_tasks(task_of_image);
        const auto outcome = refuses(name, argument, [&] { (void)n.run(net); });
        const cv::Ptr<cv::dnn::Layer> layer = net.getLayer(net.getLayerId("onnx_node!lora1"));
        const auto& routed = dynamic_cast<const routed_lora_layer&>(*layer);
        CHECK(routed.why_not(network::images * network::rows) == outcome.message);
        return outcome;
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
    CHECK(refuses("opencv::share_batch", "net", [&] { (void)share_batch(plain); }));
}

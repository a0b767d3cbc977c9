#include "hosts/opencv_dnn/routed_constants.hpp"

#include <memory>
#include <string>
#include <vector>

#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"

using namespace mhr;
using namespace mhr::opencv;
using namespace mhr::test;

namespace {

cv::dnn::LayerParams params_of(const routed_constants& c) {
    cv::dnn::LayerParams params;
    params.name = "mine";
    params.type = "mhr.RoutedLora";
    params.blobs = {mat_of(c.a), mat_of(c.b), mat_of(c.weights)};
    return params;
}

} // namespace

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
    CHECK(refused("b", [](params& p) { p.blobs[1].convertTo(p.blobs[1], CV_32S); }));
    CHECK(refused("weights", [](params& p) { p.blobs[2].convertTo(p.blobs[2], CV_64F); }));
    CHECK(refused("b", [](params& p) { p.blobs[1] = cv::Mat(); }));
    CHECK(refused("weights", [](params& p) { p.blobs[2] = p.blobs[0]; }));
    CHECK(refused("capacity", [](params& p) { p.set("capacity", 0); }));
    const auto other = [](const routed_constants& o) { return params_of(o).blobs; };
    const auto heads = other({3, 1, 4, 10, 6, 2, 1});
    const auto modules = other({3, 2, 5, 10, 6, 2, 1});
    CHECK(refused("b", [&](params& p) { p.blobs[1] = heads[1]; }));
    CHECK(refused("b", [&](params& p) { p.blobs[1] = modules[1]; }));
    CHECK(refused("weights", [&](params& p) { p.blobs[2] = heads[2]; }));
    CHECK(refused("weights", [&](params& p) { p.blobs[2] = modules[2]; }));
}

TEST_CASE("inputs that do not fit are told beforehand, and refused in the same words") {
    const with_opencv opencv;
    cv::dnn::LayerParams good = params_of(routed_constants(3, 2, 4, 10, 6, 2, 1));
    const auto layer = cv::dnn::LayerFactory::createLayerInstance(good.type, good);
    const auto& routed = dynamic_cast<const routed_lora_layer&>(*layer);
    using shapes = std::vector<cv::dnn::MatShape>;
    const auto refused = [&](const std::string& argument, const shapes& inputs) {
        std::vector<cv::dnn::MatShape> outputs, internals;
        const auto outcome = refuses("mhr.RoutedLora mine", argument, [&] {
            (void)layer->getMemoryShapes(inputs, 1, outputs, internals);
        });
        CHECK(routed.why_not(inputs) == (outcome ? outcome.message : ""));
        return bool(outcome);
    };
    CHECK_FALSE(refused("", {{5, 8, 10}, {5, 8, 6}}));
    CHECK_FALSE(refused("", {{40, 10}, {5, 8, 6}}));
    CHECK(refused("inputs", {{5, 8, 10}}));
    CHECK(refused("x", {{5, 8, 11}, {5, 8, 6}}));
    CHECK(refused("x", {{10}, {6}}));
    CHECK(refused("base", {{5, 8, 10}, {5, 8, 7}}));
    CHECK(refused("base", {{5, 8, 10}, {5, 7, 6}}));
}

TEST_CASE("inputs of other types are refused when the network has its memory") {
    const with_opencv opencv;
    cv::dnn::LayerParams good = params_of(routed_constants(3, 2, 4, 10, 6, 2, 1));
    const auto layer = cv::dnn::LayerFactory::createLayerInstance(good.type, good);
    const auto refused = [&](const std::string& argument, int x, int base, int y) {
        const std::vector<cv::Mat> inputs{cv::Mat(4, 10, x), cv::Mat(4, 6, base)};
        std::vector<cv::Mat> outputs{cv::Mat(4, 6, y)};
        return refuses("mhr.RoutedLora mine", argument, [&] {
            layer->finalize(cv::InputArrayOfArrays(inputs), cv::OutputArrayOfArrays(outputs));
        });
    };
    CHECK_FALSE(refused("", CV_32F, CV_32F, CV_32F));
    CHECK_FALSE(refused("", CV_16F, CV_16F, CV_16F));
    CHECK_FALSE(refused("", CV_16F, CV_32F, CV_32F));
    CHECK(refused("x", CV_8U, CV_32F, CV_32F));
    CHECK(refused("base", CV_32F, CV_32S, CV_32F));
    CHECK(refused("base", CV_32F, CV_16F, CV_32F));
    CHECK(refused("y", CV_32F, CV_32F, CV_8U));
    // The library's own words: its sums are f32.
    CHECK(refused("routed_lora_forward: x", CV_64F, CV_32F, CV_32F));
    CHECK(refused("routed_lora_forward: y", CV_32F, CV_64F, CV_64F));
}

TEST_CASE("constants and activations of f16 give what f32 gives of the same numbers") {
    const with_opencv opencv;
    const routed_constants c(3, 2, 4, 10, 6, 2, 1);
    const auto run = [&](int type_of_constants, int type_of_activations) {
        cv::dnn::LayerParams params = params_of(c);
        for (cv::Mat& blob : params.blobs) { // rounded to f16, whatever they are stored as
            blob.convertTo(blob, CV_16F);
            blob.convertTo(blob, type_of_constants);
        }
        const auto layer = cv::dnn::LayerFactory::createLayerInstance(params.type, params);
        auto batch = std::make_shared<image_batch>();
        batch->assign_tasks(std::vector<int>{2, -1, 0, 2});
        dynamic_cast<routed_lora_layer&>(*layer).set_batch(batch);
        std::vector<cv::Mat> inputs{cv::Mat(8, 10, CV_16F), cv::Mat(8, 6, CV_16F)};
        random_source random(2);
        for (cv::Mat& input : inputs) {
            transform_elements(ref_of<2>(input), [&](double) { return random.uniform(-1, 1); });
            input.convertTo(input, type_of_activations);
        }
        // The memory behind the output is not the layer's.
        cv::Mat memory(9, 6, type_of_activations, cv::Scalar(5));
        std::vector<cv::Mat> outputs{memory.rowRange(0, 8)};
        std::vector<cv::Mat> internals{cv::Mat(8, 2, CV_32F)};
        layer->finalize(cv::InputArrayOfArrays(inputs), cv::OutputArrayOfArrays(outputs));
        layer->forward(inputs, outputs, internals);
        for (index_t column = 0; column < 6; ++column)
            CHECK(element(const_ref_of<2>(memory), {8, column}) == 5);
        // Rows of no task are the base's.
        CHECK(compare_bitwise(const_ref_of<2>(outputs[0].rowRange(2, 4)),
                              const_ref_of<2>(inputs[1].rowRange(2, 4))));
        CHECK_FALSE(compare_bitwise(const_ref_of<2>(outputs[0].rowRange(0, 2)),
                                    const_ref_of<2>(inputs[1].rowRange(0, 2))));
        return values_as<double>(const_ref_of<2>(outputs[0]));
    };
    const auto want = run(CV_32F, CV_32F);
    CHECK(compare_bitwise(run(CV_16F, CV_32F).view(), want.view()));
    for (int type_of_constants : {CV_32F, CV_16F}) {
        const auto got = run(type_of_constants, CV_16F);
        tensor<float, 2> rounded(want.extents());
        for (std::size_t i = 0; i < rounded.values().size(); ++i)
            rounded.values()[i] = static_cast<float>(f16(static_cast<float>(want.values()[i])));
        CHECK(compare_bitwise(got.view(),
                              values_as<double>(const_tensor_ref<2>(rounded.const_view())).view()));
    }
}

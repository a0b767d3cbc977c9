#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/dnn.hpp>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/hosts/opencv_dnn/matrices.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/routing/fixed_routers.hpp>
#include <mhr/serving/mixed_lora_cache.hpp>

/// \file
/// A layer for OpenCV's DNN module that puts routed LoRA beside a product of an imported network:
///
///     mhr::opencv::register_routed_lora();
///     cv::dnn::Net net = cv::dnn::readNetFromONNX("adapted.onnx"); // has nodes mhr.RoutedLora
///     const auto batch = mhr::opencv::share_batch(net);
///     ...
///     batch->assign_tasks(task_of_image); // [images], before each forward with other tasks
///     net.setInput(images);
///     cv::Mat output = net.forward();

namespace mhr {
namespace opencv {
inline namespace MHR_ISA {

/// The batch that the routed layers of a network share: it says which task each image (or sequence)
/// belongs to. Plans are made once for a batch, however many layers use them.
class image_batch {
  public:
    /// The tasks of the next forwards: ids of the layers' tables of weights, or no_task, for each
    /// image of the batch, whose rows follow each other in every blob. Without any, which is how a
    /// batch starts, all rows are served by the base network alone. What batch_plan::assign_rows
    /// refuses is refused.
    /// @{
    template <class Id>
    void assign_tasks(tensor_view<Id, 1> task_of_image) {
        // A plan of the images checks the ids, and is what layers of one row for each image want.
        planned& images = place_for(1);
        images.plan.assign_rows(task_of_image);
        tasks_.resize(static_cast<std::size_t>(task_of_image.extent(0)));
        for (index_t i = 0; i < task_of_image.extent(0); ++i)
            tasks_[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(task_of_image(i));
        images.batch = ++batch_;
    }
    void assign_tasks(const std::vector<int>& task_of_image) {
        assign_tasks(tensor_view<const int, 1>(task_of_image.data(),
                                               {static_cast<index_t>(task_of_image.size())}));
    }
    /// @}

    /// To be called when the blobs of a layer have changed: adapters that were mixed from them are
    /// mixed anew.
    void forget_mixed() noexcept { ++version_; }

    /// Returns the number of images of the batch.
    [[nodiscard]] index_t images() const noexcept { return static_cast<index_t>(tasks_.size()); }

    /// The version of the layers' blobs: how often forget_mixed was called.
    [[nodiscard]] std::uint64_t version() const noexcept { return version_; }

    /// Returns the plan of a layer with so many rows for each image, which is valid until the next
    /// call.
    const batch_plan& plan(index_t rows_of_image) {
        planned& found = place_for(rows_of_image);
        if (found.batch != batch_) {
            rows_.assign(tasks_.size(), rows_of_image);
            found.plan.assign_sequences(
                tensor_view<const std::int64_t, 1>(tasks_.data(), {images()}),
                tensor_view<const index_t, 1>(rows_.data(), {images()}));
            found.batch = batch_;
        }
        return found.plan;
    }

  private:
    struct planned {
        index_t rows_of_image;
        std::uint64_t batch; ///< that it was made for
        batch_plan plan;
    };

    planned& place_for(index_t rows_of_image) {
        for (planned& p : plans_)
            if (p.rows_of_image == rows_of_image) return p;
        plans_.push_back({rows_of_image, batch_ - 1, {}});
        return plans_.back();
    }

    std::vector<std::int64_t> tasks_{};
    std::vector<index_t> rows_{};
    std::vector<planned> plans_{}; // one for each number of rows: few
    std::uint64_t batch_ = 1;
    std::uint64_t version_ = 0;
};

/// The layer of type "mhr.RoutedLora", which a node RoutedLora of the ONNX domain "mhr" becomes:
///
///     y[row] = base[row] + scale (x[row] A[t]) B[t], t the task of the row's image,
///
/// and y[row] = base[row] where that has none; A and B are mixed as in routed_lora_forward, each
/// task's once (see mixed_lora_cache).
///
/// Inputs: x [.., in_features] and base [.., out_features], images first: what the product takes
/// that the adapter stands beside, and what it gives. The output is y, as base. Constants, as
/// initialisers of the node or blobs of LayerParams, each f32 or f16: a [heads, modules,
/// in_features / heads, rank], b [heads, modules, rank, out_features / heads], and the mixing
/// weights [tasks, heads, modules] of all tasks that the network knows. Attributes: scale (if it
/// has none, 1 / rank); capacity, the most tasks that a batch may have and of which mixed adapters
/// are kept (if it has none, all).
///
/// It runs on the processor, by OpenCV's own backend, and sums in f32; its scratch is an internal
/// blob of the network.
///
/// These are refused, by errors that begin with the layer's name: constants that do not fit, when
/// the layer is made; shapes and types of inputs, when the network learns them; and the batch's
/// tasks, in forward, before anything is written. The `why_not` functions tell the same without an
/// error.
class routed_lora_layer final : public cv::dnn::Layer {
  public:
    /// Makes a layer of a node's constants and attributes. These are refused: another number of
    /// constants than three; those of other axes, types or shapes; a capacity below 1.
    explicit routed_lora_layer(const cv::dnn::LayerParams& params);

    /// Makes a layer for OpenCV's factory; see register_routed_lora.
    static cv::Ptr<cv::dnn::Layer> create(cv::dnn::LayerParams& params) {
        return cv::makePtr<routed_lora_layer>(params);
    }

    /// Whose tasks are served: see share_batch.
    void set_batch(std::shared_ptr<image_batch> batch) { batch_ = std::move(batch); }

    /// Why the layer would refuse inputs of these shapes, or nothing: for hosts that put it into
    /// networks, and leave it out where it does not fit.
    [[nodiscard]] std::string why_not(const std::vector<cv::dnn::MatShape>& inputs) const;

    /// Why it would refuse the tasks of the batch with so many rows of x, or nothing: for servers
    /// that give such a batch to another network.
    [[nodiscard]] std::string why_not(index_t rows) const;

    /// OpenCV asks this when it learns the shapes of the inputs.
    bool getMemoryShapes(const std::vector<cv::dnn::MatShape>& inputs, int required_outputs,
                         std::vector<cv::dnn::MatShape>& outputs,
                         std::vector<cv::dnn::MatShape>& internals) const override;

    /// OpenCV calls this when the inputs and outputs have memory.
    void finalize(cv::InputArrayOfArrays input_array,
                  cv::OutputArrayOfArrays output_array) override;

    /// OpenCV calls this for each batch.
    void forward(cv::InputArrayOfArrays input_array, cv::OutputArrayOfArrays output_array,
                 cv::OutputArrayOfArrays internal_array) override;

  private:
    /// Returns the layer for a batch whose entries have these weights.
    [[nodiscard]] routed_lora layer_with(const const_tensor_ref<3>& weights) const {
        return {const_ref_of<4>(blobs[0]), const_ref_of<4>(blobs[1]), weights, scale_};
    }
    [[nodiscard]] const_tensor_ref<3> table() const { return const_ref_of<3>(blobs[2]); }

    std::string title_; ///< what errors call the layer
    lora_shape shape_{};
    double scale_ = 1;
    std::shared_ptr<image_batch> batch_ = std::make_shared<image_batch>();
    std::optional<mixed_lora_cache> cache_{}; ///< made when the shape is known
    std::vector<float> weights_{};            ///< of a batch's tasks
};

/// Makes the type "mhr.RoutedLora" known to OpenCV: to be called before a network that has such
/// layers is read. Further calls do nothing.
inline void register_routed_lora() {
    static const bool once = [] {
        cv::dnn::LayerFactory::registerLayer("mhr.RoutedLora", routed_lora_layer::create);
        return true;
    }();
    (void)once;
}

/// Gives the routed layers of a network a batch in common, and returns it. A network that has no
/// such layer is refused.
inline std::shared_ptr<image_batch> share_batch(cv::dnn::Net& net);

namespace layer_details {

using matrix_details::checked_ref;

inline void check_axes(argument_checks& checks, const char* argument, const cv::Mat& blob,
                       int axes) {
    checks.expect(blob.dims == axes && !blob.empty(), argument, joined(axes, " axes"),
                  [&] { return blob.empty() ? "none" : std::to_string(blob.dims); });
}

inline std::string text_of(const cv::dnn::MatShape& shape) {
    const std::vector<index_t> extents(shape.begin(), shape.end());
    return check_details::text_of(extents.data(), extents.size());
}

inline void check_features(argument_checks& checks, const char* argument,
                           const cv::dnn::MatShape& shape, index_t features) {
    checks.expect(shape.size() >= 2 && shape.back() == features, argument,
                  joined("at least 2 axes, the last of ", features),
                  [&] { return text_of(shape); });
}

inline int rows_of(const cv::dnn::MatShape& shape) {
    int rows = 1;
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis)
        rows *= shape[axis];
    return rows;
}

/// Passes what a question answered on, as the error of the layer of this name.
inline void raise_as(const std::string& title, const std::string& why) {
    if (!why.empty()) raise(title + ": " + why);
}

inline std::vector<cv::Mat> matrices_of(cv::InputArrayOfArrays array) {
    std::vector<cv::Mat> matrices;
    array.getMatVector(matrices);
    return matrices;
}

} // namespace layer_details

inline routed_lora_layer::routed_lora_layer(const cv::dnn::LayerParams& params)
    : cv::dnn::Layer(params), title_("mhr.RoutedLora " + params.name) {
    using namespace layer_details;
    argument_checks checks(title_.c_str());
    checks.expect(blobs.size() == 3, "constants", "a, b and weights", blobs.size());
    checks.raise();
    check_axes(checks, "a", blobs[0], 4);
    check_axes(checks, "b", blobs[1], 4);
    check_axes(checks, "weights", blobs[2], 3);
    const lora_inventory inventory{checked_ref<4>(checks, "a", blobs[0]),
                                   checked_ref<4>(checks, "b", blobs[1])};
    const const_tensor_ref<3> weights = checked_ref<3>(checks, "weights", blobs[2]);
    shape_ = shape_of(inventory);
    checks.sums_are(element_type::f32);
    checks.input("a", inventory.a);
    checks.input("b", inventory.b, {shape_.heads, shape_.modules, shape_.rank, any_extent});
    checks.input("weights", weights, {any_extent, shape_.heads, shape_.modules});
    const index_t tasks = weights.extent(0);
    const index_t capacity = params.get<int>("capacity", static_cast<int>(tasks));
    checks.expect(capacity >= 1, "capacity", "at least 1", capacity);
    checks.raise();
    scale_ = params.get<double>("scale", 1.0 / static_cast<double>(shape_.rank));
    cache_.emplace(shape_, (std::min)(capacity, tasks));
    weights_.resize(static_cast<std::size_t>(cache_->capacity() * shape_.heads * shape_.modules));
}

inline std::string routed_lora_layer::why_not(const std::vector<cv::dnn::MatShape>& inputs) const {
    using namespace layer_details;
    argument_checks checks(title_.c_str());
    checks.expect(inputs.size() == 2, "inputs", "x and base", inputs.size());
    if (!checks.passed()) return std::move(checks).why();
    check_features(checks, "x", inputs[0], shape_.in_features);
    check_features(checks, "base", inputs[1], shape_.out_features);
    const int rows = rows_of(inputs[0]);
    checks.expect(rows_of(inputs[1]) == rows, "base", joined(rows, " rows, as x has"),
                  rows_of(inputs[1]));
    return std::move(checks).why();
}

inline std::string routed_lora_layer::why_not(index_t rows) const {
    const index_t images = batch_->images();
    if (images == 0) return {};
    argument_checks checks(title_.c_str());
    checks.expect(rows % images == 0, "x",
                  joined("rows of ", images, " images, whose tasks are given"),
                  joined(rows, " rows"));
    if (!checks.passed()) return std::move(checks).why();
    const batch_plan& plan = batch_->plan(rows / images);
    checks.expect(plan.entries() <= cache_->capacity(), "tasks",
                  joined("at most ", cache_->capacity(), " in a batch"), plan.entries());
    if (plan.entries() == 0) return std::move(checks).why();
    const std::int64_t largest = plan.tasks()(plan.entries() - 1);
    checks.expect(largest < table().extent(0), "tasks", joined("ids below ", table().extent(0)),
                  largest);
    return std::move(checks).why();
}

inline bool routed_lora_layer::getMemoryShapes(const std::vector<cv::dnn::MatShape>& inputs,
                                               int /*required_outputs*/,
                                               std::vector<cv::dnn::MatShape>& outputs,
                                               std::vector<cv::dnn::MatShape>& internals) const {
    const std::string why = why_not(inputs);
    if (!why.empty()) raise(why);
    outputs.assign(1, inputs[1]);
    internals.assign(1, {layer_details::rows_of(inputs[0]), static_cast<int>(shape_.rank)});
    return false; // not in place
}

inline void routed_lora_layer::finalize(cv::InputArrayOfArrays input_array,
                                        cv::OutputArrayOfArrays output_array) {
    const auto inputs = layer_details::matrices_of(input_array);
    const auto outputs = layer_details::matrices_of(output_array);
    argument_checks checks(title_.c_str());
    const const_tensor_ref<2> x = layer_details::checked_ref<2>(checks, "x", inputs[0]);
    const auto base = layer_details::checked_ref<2>(checks, "base", inputs[1]);
    const auto y = layer_details::checked_ref<2>(checks, "y", outputs[0]);
    checks.expect(y.type() == base.type(), "base", joined(y.type(), ", as the output"),
                  base.type());
    checks.raise();
    // One task stands for all: those of the batch come later.
    batch_plan plan;
    plan.assign_single_task(x.extent(0));
    const batch rows{plan};
    const routed_lora layer = layer_with(table().block(0, 0, 1));
    std::vector<std::byte> memory(routed_lora_state_size(rows, layer));
    workspace scratch(memory.data(), memory.size());
    layer_details::raise_as(
        title_, mhr::why_not(rows, layer, x, y, take_routed_lora_state(scratch, rows, layer)));
}

inline void routed_lora_layer::forward(cv::InputArrayOfArrays input_array,
                                       cv::OutputArrayOfArrays output_array,
                                       cv::OutputArrayOfArrays internal_array) {
    const auto inputs = layer_details::matrices_of(input_array);
    const auto outputs = layer_details::matrices_of(output_array);
    const auto internals = layer_details::matrices_of(internal_array);
    const auto x = const_ref_of<2>(inputs[0], "x");
    const auto y = ref_of<2>(outputs[0], "y");
    const std::string why = why_not(x.extent(0));
    if (!why.empty()) raise(why);

    const executor threads;
    const index_t row_bytes = y.extent(1) * static_cast<index_t>(size_of(y.type()));
    const auto base = const_ref_of<2>(inputs[1], "base");
    executor_ref(threads).run(y.extent(0), y.extent(1), [&](index_t row) noexcept {
        // A cv::Mat has dense rows.
        std::memcpy(y.address_of(row, 0), base.address_of(row, 0),
                    static_cast<std::size_t>(row_bytes));
    });
    if (batch_->images() == 0) return;
    const batch rows{batch_->plan(x.extent(0) / batch_->images()), threads};
    if (rows.plan.entries() == 0) return;
    const tensor_ref<3> weights(weights_.data(),
                                {rows.plan.entries(), shape_.heads, shape_.modules});
    given_router_forward(threads, table(), rows.plan.tasks(), weights);
    lora_forward(rows, cache_->get(rows, layer_with(weights), batch_->version()), x, y,
                 {ref_of<2>(internals[0], "internals")});
}

inline std::shared_ptr<image_batch> share_batch(cv::dnn::Net& net) {
    auto batch = std::make_shared<image_batch>();
    bool found = false;
    for (const std::string& name : net.getLayerNames()) {
        const cv::Ptr<cv::dnn::Layer> layer = net.getLayer(net.getLayerId(name));
        auto* const routed = dynamic_cast<routed_lora_layer*>(layer.get());
        if (routed == nullptr) continue;
        routed->set_batch(batch);
        found = true;
    }
    argument_checks checks("opencv::share_batch");
    checks.expect(found, "net", "layers of type mhr.RoutedLora", "none");
    checks.raise();
    return batch;
}

} // namespace MHR_ISA
} // namespace opencv
} // namespace mhr

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/core/utility.hpp>
#include <opencv2/dnn.hpp>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/mixed_lora_cache.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/merged_axes.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/fixed_routers.hpp>

/// \file
/// OpenCV's matrices as views, its threads as an executor, and a layer for its DNN module that puts
/// routed LoRA beside a product of an imported network:
///
///     mhr::register_opencv_routed_lora();
///     cv::dnn::Net net = cv::dnn::readNetFromONNX("adapted.onnx"); // has nodes mhr.RoutedLora
///     const auto batch = mhr::share_opencv_batch(net);
///     ...
///     batch->assign_tasks(task_of_image); // [images], before each forward with other tasks
///     net.setInput(images);
///     cv::Mat output = net.forward();

namespace mhr {
inline namespace MHR_ISA {

/// The view of a matrix of one channel. Axes beyond `Rank` are one with the first: a blob
/// [images, rows, features] is as rank 2 [images rows, features].
///
/// T is float (CV_32F), double (CV_64F), cv::float16_t (CV_16F), or for ids int (CV_32S); const or
/// not (a cv::Mat is a handle: its own const says nothing of its elements). Continuous or not. An
/// empty matrix is the absent view.
///
/// Errors: elements of another type, several channels; axes that cannot become one.
template <class T, std::size_t Rank>
tensor_view<T, Rank> view_of(const cv::Mat& matrix) {
    using element = std::remove_const_t<T>;
    constexpr const char* function = "view_of";
    if (matrix.empty()) return {};
    require_that(
        matrix.type() == cv::DataType<element>::type, function, "matrix",
        [] { return "elements of " + cv::typeToString(cv::DataType<element>::type); },
        [&] { return cv::typeToString(matrix.type()); });
    const auto axes = detail::merge_leading_axes<Rank>(
        static_cast<std::size_t>(matrix.dims),
        [&](std::size_t axis) { return static_cast<index_t>(matrix.size.p[axis]); },
        [&](std::size_t axis) {
            return static_cast<index_t>(matrix.step.p[axis] / sizeof(element));
        });
    require_that(
        axes.evenly_spaced, function, "matrix",
        [] { return "elements spaced evenly, to be seen as " + std::to_string(Rank) + " axes"; },
        [&] { return "a part of a larger matrix of " + std::to_string(matrix.dims) + " axes"; });
    return {static_cast<T*>(static_cast<void*>(matrix.data)), axes.extents, axes.strides};
}

/// Runs the parts on OpenCV's threads, as many as cv::setNumThreads says.
struct opencv_executor {
    /// Runs them.
    void operator()(index_t parts, parallel_body body) const {
        constexpr index_t most = 1 << 20; // OpenCV counts in int
        const auto stripes = static_cast<int>((std::min)(parts, most));
        if (stripes <= 1) return serial_executor{}(parts, body);
        cv::parallel_for_(
            cv::Range(0, stripes),
            [&](const cv::Range& range) {
                for (index_t first = range.start; first < range.end; ++first)
                    for (index_t part = first; part < parts; part += stripes)
                        body(part);
            },
            stripes);
    }
};

/// What the routed layers of a network share: which task each image (or sequence) of the batch
/// belongs to. Plans are made once for a batch, however many layers use them.
class opencv_lora_batch {
  public:
    /// The tasks of the next forwards: ids of the layers' tables of weights, or no_task, for each
    /// image of the batch, whose rows follow each other in every blob. Without any, which is how a
    /// batch starts, all rows are served by the base network alone.
    ///
    /// Errors: as batch_plan::assign_rows.
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

    /// Images of the batch.
    [[nodiscard]] index_t images() const noexcept { return static_cast<index_t>(tasks_.size()); }

    /// The version of the layers' blobs: how often forget_mixed was called.
    [[nodiscard]] std::uint64_t version() const noexcept { return version_; }

    /// The plan of a layer with so many rows for each image. Valid until the next call.
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
/// that the adapter stands beside, and what it gives. Output: y, as base.
/// Constants, as initialisers of the node or blobs of LayerParams, f32: a [heads, modules,
/// in_features / heads, rank], b [heads, modules, rank, out_features / heads], and the mixing
/// weights [tasks, heads, modules] of all tasks that the network knows.
/// Attributes: scale (if it has none, 1 / rank); capacity, the most tasks that a batch may have and
/// of which mixed adapters are kept (if it has none, all).
///
/// Runs on the processor, by OpenCV's own backend; its scratch is an internal blob of the network.
///
/// Errors, which name the layer: of its constants when it is made, of the inputs' shapes when the
/// network learns them, and of the batch's tasks in forward.
class opencv_routed_lora final : public cv::dnn::Layer {
  public:
    /// Of a node's constants and attributes.
    explicit opencv_routed_lora(const cv::dnn::LayerParams& params)
        : cv::dnn::Layer(params), title_("mhr.RoutedLora " + params.name) {
        const char* const function = title_.c_str();
        require_that(
            blobs.size() == 3, function, "constants", [] { return "a, b and weights"; },
            [&] { return std::to_string(blobs.size()); });
        require_blob(0, "a", 4);
        require_blob(1, "b", 4);
        require_blob(2, "weights", 3);
        detail::check_inventory(function, inventory());
        shape_ = shape_of(inventory());
        require_input(function, "weights", table(), {any_extent, shape_.heads, shape_.modules});
        const index_t tasks = table().extent(0);
        const index_t capacity = params.get<int>("capacity", static_cast<int>(tasks));
        require_that(
            capacity >= 1, function, "capacity", [] { return "at least 1"; },
            [&] { return std::to_string(capacity); });
        scale_ = params.get<double>("scale", 1.0 / static_cast<double>(shape_.rank));
        cache_.emplace(shape_, (std::min)(capacity, tasks));
        weights_.resize(
            static_cast<std::size_t>(cache_->capacity() * shape_.heads * shape_.modules));
    }

    /// What OpenCV's factory of layers asks for; see register_opencv_routed_lora.
    static cv::Ptr<cv::dnn::Layer> create(cv::dnn::LayerParams& params) {
        return cv::makePtr<opencv_routed_lora>(params);
    }

    /// Whose tasks are served: see share_opencv_batch.
    void set_batch(std::shared_ptr<opencv_lora_batch> batch) { batch_ = std::move(batch); }

    /// What OpenCV asks when it learns the shapes of the inputs.
    bool getMemoryShapes(const std::vector<cv::dnn::MatShape>& inputs, int /*required_outputs*/,
                         std::vector<cv::dnn::MatShape>& outputs,
                         std::vector<cv::dnn::MatShape>& internals) const override {
        const char* const function = title_.c_str();
        require_that(
            inputs.size() == 2, function, "inputs", [] { return "x and base"; },
            [&] { return std::to_string(inputs.size()); });
        require_features("x", inputs[0], shape_.in_features);
        require_features("base", inputs[1], shape_.out_features);
        const int rows = rows_of(inputs[0]);
        require_that(
            rows_of(inputs[1]) == rows, function, "base",
            [&] { return std::to_string(rows) + " rows, as x has"; },
            [&] { return std::to_string(rows_of(inputs[1])); });
        outputs.assign(1, inputs[1]);
        internals.assign(1, {rows, static_cast<int>(shape_.rank)});
        return false; // not in place
    }

    /// What OpenCV calls for each batch.
    void forward(cv::InputArrayOfArrays input_array, cv::OutputArrayOfArrays output_array,
                 cv::OutputArrayOfArrays internal_array) override {
        std::vector<cv::Mat> inputs, outputs, internals;
        input_array.getMatVector(inputs);
        output_array.getMatVector(outputs);
        internal_array.getMatVector(internals);
        const auto x = view_of<const float, 2>(inputs[0]);
        const auto base = view_of<const float, 2>(inputs[1]);
        const auto y = view_of<float, 2>(outputs[0]);
        const batch_plan* const plan = plan_of(x.extent(0));

        const opencv_executor executor;
        executor_ref(executor).run(y.extent(0), y.extent(1), [&](index_t row) noexcept {
            std::copy_n(&base(row, 0), y.extent(1), &y(row, 0)); // a cv::Mat has dense rows
        });
        if (plan == nullptr) return;
        const tensor_view<float, 3> weights(weights_.data(),
                                            {plan->entries(), shape_.heads, shape_.modules});
        given_router_forward(executor, table(), plan->tasks(), weights);
        lora_forward(executor, *plan, x,
                     cache_->get(executor, *plan, weights, inventory(), batch_->version()), scale_,
                     y, view_of<float, 2>(internals[0]));
    }

  private:
    [[nodiscard]] lora_inventory<const float> inventory() const {
        return {view_of<const float, 4>(blobs[0]), view_of<const float, 4>(blobs[1])};
    }
    [[nodiscard]] tensor_view<const float, 3> table() const {
        return view_of<const float, 3>(blobs[2]);
    }

    void require_blob(std::size_t number, const char* argument, int axes) const {
        const cv::Mat& blob = blobs[number];
        require_that(
            blob.type() == CV_32F && blob.dims == axes && !blob.empty(), title_.c_str(), argument,
            [&] { return std::to_string(axes) + " axes of CV_32FC1"; },
            [&] {
                return std::to_string(blob.dims) + " axes of " + cv::typeToString(blob.type());
            });
    }
    void require_features(const char* argument, const cv::dnn::MatShape& shape,
                          index_t features) const {
        require_that(
            shape.size() >= 2 && shape.back() == features, title_.c_str(), argument,
            [&] { return "at least 2 axes, the last of " + std::to_string(features); },
            [&] {
                std::string text = "[";
                for (std::size_t axis = 0; axis < shape.size(); ++axis)
                    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
                return text + "]";
            });
    }
    static int rows_of(const cv::dnn::MatShape& shape) {
        int rows = 1;
        for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis)
            rows *= shape[axis];
        return rows;
    }

    /// The plan of the batch for this layer, or null if it has no tasks at all.
    const batch_plan* plan_of(index_t rows) {
        const index_t images = batch_->images();
        if (images == 0) return nullptr;
        const char* const function = title_.c_str();
        require_that(
            rows % images == 0, function, "x",
            [&] { return "rows of " + std::to_string(images) + " images, whose tasks are given"; },
            [&] { return std::to_string(rows) + " rows"; });
        const batch_plan& plan = batch_->plan(rows / images);
        require_that(
            plan.entries() <= cache_->capacity(), function, "tasks",
            [&] { return "at most " + std::to_string(cache_->capacity()) + " in a batch"; },
            [&] { return std::to_string(plan.entries()); });
        if (plan.entries() == 0) return nullptr;
        const std::int64_t largest = plan.tasks()(plan.entries() - 1);
        require_that(
            largest < table().extent(0), function, "tasks",
            [&] { return "ids below " + std::to_string(table().extent(0)); },
            [&] { return std::to_string(largest); });
        return &plan;
    }

    std::string title_; ///< what errors call the layer
    lora_shape shape_{};
    double scale_ = 1;
    std::shared_ptr<opencv_lora_batch> batch_ = std::make_shared<opencv_lora_batch>();
    std::optional<mixed_lora_cache<float>> cache_{}; ///< made when the shape is known
    std::vector<float> weights_{};                   ///< of a batch's tasks
};

/// Makes the type "mhr.RoutedLora" known to OpenCV: to be called before a network that has such
/// layers is read. Further calls do nothing.
inline void register_opencv_routed_lora() {
    static const bool once = [] {
        cv::dnn::LayerFactory::registerLayer("mhr.RoutedLora", opencv_routed_lora::create);
        return true;
    }();
    (void)once;
}

/// Gives the routed layers of a network a batch in common, and returns it.
///
/// Errors: the network has no such layer.
inline std::shared_ptr<opencv_lora_batch> share_opencv_batch(cv::dnn::Net& net) {
    auto batch = std::make_shared<opencv_lora_batch>();
    bool found = false;
    for (const std::string& name : net.getLayerNames()) {
        const cv::Ptr<cv::dnn::Layer> layer = net.getLayer(net.getLayerId(name));
        auto* const routed = dynamic_cast<opencv_routed_lora*>(layer.get());
        if (routed == nullptr) continue;
        routed->set_batch(batch);
        found = true;
    }
    require_that(
        found, "share_opencv_batch", "net", [] { return "layers of type mhr.RoutedLora"; },
        [] { return "none"; });
    return batch;
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

/// \file
/// Small ONNX models in memory, written by hand as protobuf messages (onnx.proto3 has the numbers
/// of the fields), so that tests of importers need neither files nor Python.

namespace mhr::test::onnx {

/// The bytes of a protobuf message.
class message {
  public:
    message& integer(unsigned field, std::uint64_t value) {
        varint(field << 3);
        varint(value);
        return *this;
    }
    message& number(unsigned field, float value) {
        varint(field << 3 | 5);
        char bytes[sizeof value];
        std::memcpy(bytes, &value, sizeof value);
        bytes_.append(bytes, sizeof value);
        return *this;
    }
    message& text(unsigned field, const std::string& value) {
        varint(field << 3 | 2);
        varint(value.size());
        bytes_ += value;
        return *this;
    }
    message& nested(unsigned field, const message& value) { return text(field, value.bytes_); }

    [[nodiscard]] const std::string& bytes() const { return bytes_; }

  private:
    void varint(std::uint64_t value) {
        for (; value >= 0x80; value >>= 7)
            bytes_ += static_cast<char>(value | 0x80);
        bytes_ += static_cast<char>(value);
    }
    std::string bytes_;
};

using shape = std::vector<int>;

/// A graph with one input and one output.
class graph {
  public:
    graph(const std::string& input, const shape& extents) { input_ = value_info(input, extents); }

    void constant(const std::string& name, const shape& extents, const std::vector<float>& values) {
        message tensor;
        for (int extent : extents)
            tensor.integer(1, static_cast<std::uint64_t>(extent));
        tensor.integer(2, 1).text(8, name); // f32
        const auto* const bytes = reinterpret_cast<const char*>(values.data());
        graph_.nested(5, tensor.text(9, std::string(bytes, values.size() * sizeof(float))));
    }

    struct attributes {
        std::vector<std::pair<std::string, int>> integers;
        std::vector<std::pair<std::string, float>> numbers;
    };
    /// A node whose name and output are `name`.
    void node(const std::string& name, const std::string& domain, const std::string& type,
              const std::vector<std::string>& inputs, const attributes& with = {}) {
        message node;
        for (const std::string& input : inputs)
            node.text(1, input);
        node.text(2, name).text(3, name).text(4, type);
        for (const auto& [key, value] : with.integers)
            node.nested(5, message()
                               .text(1, key)
                               .integer(3, static_cast<std::uint64_t>(value))
                               .integer(20, 2));
        for (const auto& [key, value] : with.numbers)
            node.nested(5, message().text(1, key).number(2, value).integer(20, 1));
        if (!domain.empty()) node.text(7, domain);
        graph_.nested(1, node);
    }

    /// The model, with the given output.
    [[nodiscard]] std::string model(const std::string& output, const shape& extents) const {
        message whole = graph_;
        whole.text(2, "test").nested(11, input_).nested(12, value_info(output, extents));
        const auto operators = [](const std::string& domain, std::uint64_t version) {
            return message().text(1, domain).integer(2, version);
        };
        return message()
            .integer(1, 7)
            .nested(8, operators("", 11))
            .nested(8, operators("mhr", 1))
            .nested(7, whole)
            .bytes();
    }

  private:
    static message value_info(const std::string& name, const shape& extents) {
        message axes;
        for (int extent : extents)
            axes.nested(1, message().integer(1, static_cast<std::uint64_t>(extent)));
        const message tensor = message().integer(1, 1).nested(2, axes);
        return message().text(1, name).nested(2, message().nested(1, tensor));
    }

    message graph_, input_;
};

} // namespace mhr::test::onnx

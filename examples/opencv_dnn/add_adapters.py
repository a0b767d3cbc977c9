#!/usr/bin/env python3
"""Puts routed LoRA beside the linear layers of an ONNX model, for include/mhr/hosts/opencv_dnn.hpp.

    add_adapters.py MODEL.onnx FOLDER [--images N] [--width W]

Writes to FOLDER, each with its input fixed to N images of width W:

    plain.onnx      the model, in words that OpenCV 4.6 understands
    adapted.onnx    with a node mhr.RoutedLora after every linear layer
    task_T.onnx     without such nodes, the adapter of task T merged into the weights

The adapters are random here; `add_adapter` takes those of a checkpoint just as well. Needs Python's
onnx (Debian's python3-onnx), which brings numpy.
"""

import argparse
import copy
import pathlib
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper


class LinearLayer(NamedTuple):
    x: str
    weight: str
    transposed: bool  # the weight is [out, in]
    y: str


class Adapter(NamedTuple):
    """The inventory and the mixing weights of a layer, in the shapes of the library's views."""

    a: np.ndarray  # [heads, modules, in / heads, rank]
    b: np.ndarray  # [heads, modules, rank, out / heads]
    weights: np.ndarray  # [tasks, heads, modules]
    scale: float


def constants_of(graph):
    return {tensor.name: tensor for tensor in graph.initializer}


def linear_layers(graph):
    """The products of activations and a constant matrix: Gemm, and MatMul, with a bias or without."""
    constants = constants_of(graph)
    layers = []
    for node in graph.node:
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        y = node.output[0]
        readers = [n for n in graph.node if y in n.input]
        if len(readers) == 1 and readers[0].op_type == "Add":
            if any(name in constants for name in readers[0].input):
                y = readers[0].output[0]  # a bias belongs to the layer
        layers.append(LinearLayer(node.input[0], node.input[1], transposed, y))
    return layers


def add_adapter(graph, layer, adapter):
    """Whoever reads the layer's output gets y = base + scale (x A) B."""
    place = next(i for i, node in enumerate(graph.node) if layer.y in node.output)
    base = layer.y + "/base"
    graph.node[place].output[0] = base
    inputs = [layer.x, base]
    for name in ("a", "b", "weights"):
        values = np.ascontiguousarray(getattr(adapter, name), np.float32)
        inputs.append(f"{layer.y}/lora_{name}")
        graph.initializer.append(numpy_helper.from_array(values, inputs[-1]))
    node = helper.make_node("RoutedLora", inputs, [layer.y], layer.y + "/lora", domain="mhr",
                            scale=adapter.scale)
    graph.node.insert(place + 1, node)


def merge_adapter(graph, layer, adapter, task):
    """The weight with the adapter of one task in it: what routed LoRA has to agree with."""
    def mix(modules):
        return np.einsum("hm,hmpq->hpq", adapter.weights[task], modules)

    change = adapter.scale * (np.concatenate(mix(adapter.a), 0) @ np.concatenate(mix(adapter.b), 1))
    tensor = constants_of(graph)[layer.weight]
    weight = numpy_helper.to_array(tensor) + (change.T if layer.transposed else change)
    tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), tensor.name))


def random_adapter(random, n_in, n_out, heads=5, modules=3, rank=4, tasks=3):
    gates = 1 / (1 + np.exp(-random.normal(0, 2, (tasks, heads, modules))))
    return Adapter(random.normal(0, n_in**-0.5, (heads, modules, n_in // heads, rank)),
                   random.normal(0, 0.5, (heads, modules, rank, n_out // heads)),
                   gates / gates.sum(axis=2, keepdims=True), 1 / rank)


def turn_constants_into_initialisers(graph):
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)


def suit_opencv_4_6(model):
    """Says as products with a constant matrix what OpenCV 4.6 misunderstands in a layer norm: the
    mean over the last axis (it does not subtract it along that axis) and the factors along it (it
    takes them for those of channels)."""
    vectors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
               if len(tensor.dims) == 1 and tensor.dims[0] > 1}
    for node in reversed(model.graph.node):
        if node.op_type == "Mul" and node.input[1] in vectors:
            factors = vectors[node.input[1]]
            matrix = np.diag(factors)
        elif node.op_type == "ReduceMean" and list(node.attribute[0].ints) == [-1]:
            n = len(factors)  # of the norm's, which come after its mean and variance
            matrix = np.full((n, n), 1 / n)
        else:
            continue
        name = node.output[0] + "/matrix"
        model.graph.initializer.append(numpy_helper.from_array(matrix.astype(np.float32), name))
        node.CopyFrom(helper.make_node("MatMul", [node.input[0], name], node.output, node.name))


def fix_input(model, images, width):
    axes = model.graph.input[0].type.tensor_type.shape.dim
    axes[0].dim_value = images
    axes[3].dim_value = width


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--width", type=int, default=320)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    plain = onnx.load(options.model)
    fix_input(plain, options.images, options.width)
    turn_constants_into_initialisers(plain.graph)
    layers = linear_layers(plain.graph)
    suit_opencv_4_6(plain)
    onnx.save(plain, str(options.folder / "plain.onnx"))

    random = np.random.default_rng(1)
    adapters = []
    for layer in layers:
        shape = constants_of(plain.graph)[layer.weight].dims
        adapters.append(random_adapter(random, *(reversed(shape) if layer.transposed else shape)))

    adapted = copy.deepcopy(plain)
    adapted.opset_import.append(helper.make_opsetid("mhr", 1))
    for layer, adapter in zip(layers, adapters):
        add_adapter(adapted.graph, layer, adapter)
    onnx.save(adapted, str(options.folder / "adapted.onnx"))

    tasks = len(adapters[0].weights)
    for task in range(tasks):
        merged = copy.deepcopy(plain)
        for layer, adapter in zip(layers, adapters):
            merge_adapter(merged.graph, layer, adapter, task)
        onnx.save(merged, str(options.folder / f"task_{task}.onnx"))
    print(f"{len(layers)} linear layers with adapters of {tasks} tasks")


if __name__ == "__main__":
    main()

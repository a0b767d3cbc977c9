#pragma once

#include <cstddef>

/// \file
/// A layer in plain types, which files have in common that are compiled for different instruction
/// sets, whatever these make of the types of mhr: what the tests compile several times.

/// Contiguous arrays: x [rows, in], task_of_row [rows], a [heads, modules, in / heads, rank],
/// b [heads, modules, rank, out / heads], weights [entries, heads, modules], y [rows, out].
struct plain_layer {
    std::ptrdiff_t rows, heads, modules, in, out, rank, entries;
    double scale;
    const long* task_of_row;
    const float *x, *a, *b, *weights;
};

struct plain_gradients {
    float *d_x, *d_a, *d_b, *d_weights;
};

struct plain_kernels {
    std::size_t vector_bytes;

    /// Adds to y.
    void (*forward)(const plain_layer&, float* y);
    /// Adds to the gradients.
    void (*backward)(const plain_layer&, const float* d_y, const plain_gradients&);
    /// Throws an mhr::error, whose message it had to compose.
    void (*fail)();
};

const plain_kernels& test_kernels();

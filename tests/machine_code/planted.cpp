// Loops with the faults that check.py is there to notice, one in each of the functions that it
// looks for.

namespace mhr {
namespace kernels {

using vector = float __attribute__((vector_size(32)));
constexpr int most = 12;

/// A loop of 12 sums, which `Extra` does something else to.
template <class Extra>
__attribute__((always_inline)) inline void add_up(const vector* a, const vector* b, long count,
                                                  vector* sums, Extra extra) {
    vector sum[most];
    for (int i = 0; i < most; ++i)
        sum[i] = sums[i];
    for (long j = 0; j < count; ++j) {
        const vector factor = b[j];
#pragma GCC unroll 12
        for (int i = 0; i < most; ++i)
            sum[i] += factor * a[i + most * j];
        extra(sum, j);
    }
    for (int i = 0; i < most; ++i)
        sums[i] = sum[i];
}

/// A sum goes to the stack and comes back.
template <class T>
void shrink(const vector* a, const vector* b, long count, T* sums) {
    volatile vector spilled;
    add_up(a, b, count, sums, [&](vector* sum, long) {
        spilled = sum[0];
        sum[0] = spilled;
    });
}

/// The same is loaded thrice.
template <class T>
void expand(const vector* a, const vector* b, long count, T* sums) {
    const volatile vector* again = b;
    add_up(a, b, count, sums, [&](vector* sum, long j) {
        sum[0] += again[j];
        sum[1] += again[j];
    });
}

__attribute__((noinline)) void multiply_and_add(vector* to, const vector* a) {
    *to += *to * *a;
}

/// Another function multiplies and adds.
template <class T>
void add_outer_products(const vector* a, const vector* b, long count, T* sums) {
    for (long j = 0; j < count; ++j)
        multiply_and_add(sums, a + j);
    add_up(a, b, count, sums, [](vector*, long) {});
}

/// Six sums, where there could be more.
template <class T>
void mix_matrices(const vector* a, const vector* b, long count, T* sums) {
    vector s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], s4 = sums[4], s5 = sums[5];
    for (long j = 0; j < count; ++j) {
        const vector factor = b[j];
        s0 += factor * a[6 * j];
        s1 += factor * a[6 * j + 1];
        s2 += factor * a[6 * j + 2];
        s3 += factor * a[6 * j + 3];
        s4 += factor * a[6 * j + 4];
        s5 += factor * a[6 * j + 5];
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
    sums[4] = s4;
    sums[5] = s5;
}

/// Nothing is wrong here.
template <class T>
void mix_matrices_backward(const vector* a, const vector* b, long count, T* sums) {
    add_up(a, b, count, sums, [](vector*, long) {});
}

template void shrink(const vector*, const vector*, long, vector*);
template void expand(const vector*, const vector*, long, vector*);
template void add_outer_products(const vector*, const vector*, long, vector*);
template void mix_matrices(const vector*, const vector*, long, vector*);
template void mix_matrices_backward(const vector*, const vector*, long, vector*);

} // namespace kernels
} // namespace mhr

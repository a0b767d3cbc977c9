#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/simd/tiles.hpp>

#include "support/architectures.hpp"
#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// Random rows that do not follow each other, at addresses that are aligned to elements only.
template <class A>
class scattered_rows {
  public:
    scattered_rows(index_t rows, index_t columns, random_source& random)
        : memory_({rows, columns}, layout::padded), row_at_(random.permutation(rows)) {
        random.fill(memory_.view());
        for (index_t row : row_at_)
            pointers_.push_back(memory_.view().data() + row * memory_.view().stride(0));
        pointers_.push_back(nullptr); // an address even of no rows
    }

    [[nodiscard]] A* const* pointers() const { return pointers_.data(); }
    [[nodiscard]] const A* const* inputs() const { return pointers_.data(); }
    [[nodiscard]] const A& operator()(index_t row, index_t column) const {
        return pointers_[static_cast<std::size_t>(row)][column];
    }
    /// The rows in the order of the pointers.
    [[nodiscard]] tensor<A, 2> copy() const {
        const auto extents = memory_.const_view().extents();
        tensor<A, 2> result(extents);
        for_each_position(extents, [&](const position<2>& at) {
            element(result.view(), at) = (*this)(at[0], at[1]);
        });
        return result;
    }
    [[nodiscard]] guarded_buffer<A, 2>& memory() { return memory_; }

  private:
    guarded_buffer<A, 2> memory_;
    std::vector<index_t> row_at_;
    std::vector<A*> pointers_;
};

/// n products added one after the other are within n/2 epsilon of their magnitudes.
template <class A>
error_bound sum_of(index_t n) {
    return within<A>(static_cast<double>(n) / 2 + 1);
}

template <class Arch, class A>
struct inner_products {
    static constexpr index_t width = kernels::lanes<A, Arch>;
    static constexpr A start = A(0.75); // of every lane

    index_t p, q, count;
    random_source random{31};
    scattered_rows<A> u, v;
    guarded_buffer<A, 2> sums; // one vector for each pair of rows, in any order, and what is read
    guarded_buffer<A, 2> totals;

    inner_products(index_t u_rows, index_t v_rows, index_t vectors)
        : p(u_rows), q(v_rows), count(vectors * width), u(p, count, random), v(q, count, random),
          sums({p * q + kernels::piece_lanes<A, Arch>, width}), totals({p, q}, layout::misaligned) {
        fill_sums(start);
    }

    void fill_sums(A value) { std::fill_n(sums.view().data(), p * q * width, value); }
    void add(const A* const* of_u, const A* const* of_v, index_t elements) {
        kernels::add_inner_products<Arch>(of_u, p, of_v, q, elements, false, sums.view().data());
    }
    void finish() {
        kernels::finish_inner_products<Arch>(p, q, sums.view().data(), totals.view().data());
    }
    void run() {
        add(u.inputs(), v.inputs(), count);
        finish();
    }

    [[nodiscard]] comparison check() {
        using S = oracle_t<A>;
        tensor<S, 2> want({p, q}), magnitude({p, q});
        for_each_position(want.extents(), [&](const position<2>& at) {
            S sum = S(start) * width;
            S size = sum;
            for (index_t j = 0; j < count; ++j) {
                const S term = static_cast<S>(u(at[0], j)) * v(at[1], j);
                sum += term;
                size += std::abs(term);
            }
            element(want.view(), at) = sum;
            element(magnitude.view(), at) = size;
        });
        // The sum of a lane, and of the lanes.
        return compare(totals.view(), want.view(), magnitude.view(),
                       sum_of<A>(count / width + width));
    }

    // Each pair of rows by itself.
    [[nodiscard]] comparison same_alone() {
        tensor<A, 2> alone({p, q});
        for_each_position(alone.extents(), [&](const position<2>& at) {
            alignas(64) A sum[kernels::piece_lanes<A, Arch> * width];
            std::fill_n(sum, width, start);
            std::fill(sum + width, std::end(sum), A(0));
            kernels::add_inner_products<Arch>(u.inputs() + at[0], 1, v.inputs() + at[1], 1, count,
                                              false, sum);
            kernels::finish_inner_products<Arch>(1, 1, sum, &element(alone.view(), at));
        });
        return compare_bitwise(totals.view(), alone.view());
    }
};

template <class Arch, class A>
struct combinations {
    static constexpr index_t width = kernels::lanes<A, Arch>;
    static constexpr A factor = A(-0.375);

    index_t p, depth, count;
    random_source random{37};
    scattered_rows<A> coefficients, v, c;

    combinations(index_t rows, index_t terms, index_t vectors)
        : p(rows), depth(terms), count(vectors * width), coefficients(p, depth, random),
          v(depth, count, random), c(p, count, random) {}

    template <bool Accumulate>
    void run() {
        kernels::add_combinations<Arch>(coefficients.inputs(), v.inputs(), depth, count,
                                        kernels::combined<A>{c.pointers(), factor, Accumulate}, p);
    }

    // `before` is 0 where the results are overwritten.
    [[nodiscard]] comparison check(const tensor<A, 2>& before) {
        using S = oracle_t<A>;
        tensor<S, 2> want = copy_as<S>(before.view());
        tensor<S, 2> magnitude = magnitudes_as<S>(before.view());
        for_each_position(want.extents(), [&](const position<2>& at) {
            for (index_t k = 0; k < depth; ++k) {
                const S term = S(factor) * coefficients(at[0], k) * v(k, at[1]);
                element(want.view(), at) += term;
                element(magnitude.view(), at) += std::abs(term);
            }
        });
        return compare(c.copy().view(), want.view(), magnitude.view(), sum_of<A>(depth + 1));
    }

    // Each row by itself, and each vector of columns by itself.
    template <bool Accumulate>
    [[nodiscard]] bool same_alone(const tensor<A, 2>& before) {
        const tensor<A, 2> together = c.copy();
        tensor<A, 2> alone = before;
        for (index_t i = 0; i < p; ++i) {
            A* const row = &alone(i, 0);
            kernels::add_combinations<Arch>(coefficients.inputs() + i, v.inputs(), depth, count,
                                            kernels::combined<A>{&row, factor, Accumulate}, 1);
        }
        if (!compare_bitwise(alone.view(), together.view())) return false;
        alone = before;
        for (index_t first = 0; first < count; first += width) {
            std::vector<const A*> parts{nullptr};
            for (index_t k = 0; k < depth; ++k)
                parts.insert(parts.end() - 1, &v(k, first));
            std::vector<A*> rows;
            for (index_t i = 0; i < p; ++i)
                rows.push_back(&alone(i, first));
            kernels::add_combinations<Arch>(coefficients.inputs(), parts.data(), depth, width,
                                            kernels::combined<A>{rows.data(), factor, Accumulate},
                                            p);
        }
        return compare_bitwise(alone.view(), together.view()).ok;
    }
};

template <class Arch, class A>
void check_inner_products(index_t p, index_t q, index_t vectors, double& worst) {
    CAPTURE(p);
    CAPTURE(q);
    CAPTURE(vectors);
    inner_products<Arch, A> products(p, q, vectors);
    products.run();
    CHECK(products.sums.intact());
    CHECK(products.totals.intact());
    if (p == 0 || q == 0) return;
    const comparison result = products.check();
    CHECK(result);
    worst = std::max(worst, result.worst_ratio);
    CHECK(products.same_alone());
}

template <class Arch, class A, bool Accumulate>
void check_combinations(index_t p, index_t depth, index_t vectors, double& worst) {
    CAPTURE(p);
    CAPTURE(depth);
    CAPTURE(vectors);
    combinations<Arch, A> sums(p, depth, vectors);
    // Numbers that are overwritten are not read.
    if (!Accumulate) sums.c.memory().fill(std::numeric_limits<A>::quiet_NaN());
    tensor<A, 2> before = Accumulate ? sums.c.copy() : tensor<A, 2>({p, sums.count});
    sums.template run<Accumulate>();
    CHECK(sums.c.memory().intact());
    if (p == 0 || vectors == 0) return;
    const comparison result = sums.check(before);
    CHECK(result);
    worst = std::max(worst, result.worst_ratio);
    CHECK(sums.template same_alone<Accumulate>(before));
}

} // namespace

TEST_CASE("tiles cover everything once, the largest first") {
    for (index_t count = 0; count < 30; ++count) {
        CAPTURE(count);
        index_t next = 0;
        index_t last_size = 6;
        kernels::for_tiles<6, 4, 2, 1>(count, [&](index_t first, auto size) {
            constexpr index_t constant = size;
            CHECK(first == next);
            CHECK(constant <= last_size);
            // No larger one would have fit.
            for (index_t larger : {6, 4, 2})
                CHECK((larger <= constant || first + larger > count));
            last_size = constant;
            next += constant;
        });
        CHECK(next == count);
    }
}

TEST_CASE_TEMPLATE("inner products of every number of rows", A, MHR_TEST_ACCUMULATORS) {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        double worst = 0;
        for (index_t p = 0; p <= 14; ++p)
            for (index_t q = 0; q <= 10; ++q)
                check_inner_products<Arch, A>(p, q, (3 * p + q) % 6, worst);
        for (index_t vectors : {1, 2, 3, 17, 64})
            check_inner_products<Arch, A>(7, 7, vectors, worst);
        // A single row's tiles are wider.
        for (index_t q = 11; q <= 20; ++q)
            check_inner_products<Arch, A>(1, q, 3, worst);
        // A bound that is never come near would hide bugs. (Where long double is double, the oracle
        // of sums of one lane is the same sum.)
        constexpr bool same_sum =
            std::numeric_limits<oracle_t<A>>::digits == std::numeric_limits<A>::digits &&
            kernels::lanes<A, Arch> == 1;
        if (!same_sum) CHECK(worst > 0.05);
    });
}

TEST_CASE_TEMPLATE("inner products are added to, a chunk of columns at a time", A,
                   MHR_TEST_ACCUMULATORS) {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        inner_products<Arch, A> whole(5, 7, 9), cut(5, 7, 9);
        whole.run();
        for (index_t first : {0, 4, 5}) {
            const index_t vectors = first == 4 ? 1 : 4;
            const auto from = [&](const auto& rows, index_t count) {
                std::vector<const A*> parts;
                for (index_t i = 0; i < count; ++i)
                    parts.push_back(&rows(i, first * whole.width));
                return parts;
            };
            cut.add(from(cut.u, 5).data(), from(cut.v, 7).data(), vectors * whole.width);
        }
        cut.finish();
        CHECK(compare_bitwise(cut.totals.view(), whole.totals.view()));
    });
}

TEST_CASE_TEMPLATE("combinations of every number of rows", A, MHR_TEST_ACCUMULATORS) {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        double worst = 0;
        for (index_t p = 0; p <= 14; ++p)
            for (index_t depth = 0; depth <= 10; ++depth) {
                check_combinations<Arch, A, true>(p, depth, (p + 3 * depth) % 7, worst);
                check_combinations<Arch, A, false>(p, depth, (3 * p + depth) % 7, worst);
            }
        for (index_t vectors = 0; vectors <= 20; ++vectors)
            for (index_t p : {1, 13}) {
                check_combinations<Arch, A, true>(p, 3, vectors, worst);
                check_combinations<Arch, A, false>(p, 49, vectors, worst);
            }
        // A single row's sums are kept for so many columns at a time.
        const index_t whole = kernels::single_row_columns / kernels::lanes<A, Arch>;
        for (index_t vectors : {whole, 2 * whole + 3}) {
            check_combinations<Arch, A, true>(1, 17, vectors, worst);
            check_combinations<Arch, A, false>(1, 9, vectors, worst);
        }
        CHECK(worst > 0.05);
    });
}

TEST_CASE_TEMPLATE("lanes are added up, whatever lies beyond", A, MHR_TEST_ACCUMULATORS) {
    using S = oracle_t<A>;
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr index_t width = kernels::lanes<A, Arch>;
        random_source random(41);
        for (index_t count = 0; count <= 40; ++count) {
            CAPTURE(count);
            constexpr index_t piece = kernels::piece_lanes<A, Arch>;
            guarded_buffer<A, 2> sums({(count + piece - 1) / piece * piece, width});
            const auto used = sums.view().block(0, 0, count);
            random.fill(used); // the rest is NaN
            guarded_buffer<A, 1> totals({count}, layout::misaligned);
            kernels::add_up_lanes<Arch>(static_cast<const A*>(sums.view().data()), count,
                                        totals.view().data());
            CHECK(totals.intact());
            if (count == 0) continue;
            tensor<S, 1> want({count}), magnitude({count});
            tensor<A, 1> alone({count});
            for (index_t i = 0; i < count; ++i) {
                for (index_t lane = 0; lane < width; ++lane) {
                    want(i) += used(i, lane);
                    magnitude(i) += std::abs(static_cast<S>(used(i, lane)));
                }
                alignas(64) A one[kernels::as_size(piece * width)] = {};
                std::copy_n(&used(i, 0), width, one);
                kernels::add_up_lanes<Arch>(static_cast<const A*>(one), 1, &alone(i));
            }
            CHECK(compare(totals.view(), want.view(), magnitude.view(), sum_of<A>(width)));
            CHECK(compare_bitwise(totals.view(), alone.view()));
            // In place.
            A* const lanes = sums.view().data();
            kernels::add_up_lanes<Arch>(static_cast<const A*>(lanes), count, lanes);
            CHECK(compare_bitwise(tensor_view<A, 1>(lanes, {count}), totals.view()));
            CHECK(sums.intact());
        }
    });
}

TEST_CASE("the factor is applied to the sum, not to its terms") {
    // 3 * (1 + epsilon / 2) is 3 if the sum is rounded first: the order that every path shares.
    const float half_epsilon = std::numeric_limits<float>::epsilon() / 2;
    for_each_architecture_and_none([&](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr index_t width = kernels::lanes<float, Arch>;
        const std::vector<float> ones(width, 1), small(width, half_epsilon);
        const float* const v[] = {ones.data(), small.data()};
        const float coefficients[] = {1, 1};
        const float* const left[] = {coefficients, coefficients, coefficients};
        std::vector<float> results(3 * width, -1);
        float* const c[] = {&results[0], &results[width], &results[2 * width]};
        for (index_t rows : {1, 3}) {
            kernels::add_combinations<Arch>(left, v, 2, width,
                                            kernels::combined<float>{c, 3.F, false}, rows);
            for (index_t i = 0; i < rows * width; ++i)
                CHECK(results[static_cast<std::size_t>(i)] == 3);
        }
    });
}

TEST_CASE("fetching ahead changes nothing, whatever the addresses are") {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        for (index_t rows : {1, 2, 13}) {
            combinations<Arch, float> without(rows, 5, 19), with(rows, 5, 19);
            without.template run<true>();
            const std::uintptr_t addresses[] = {
                0, 1, 64, reinterpret_cast<std::uintptr_t>(with.v.inputs()[0]),
                std::numeric_limits<std::uintptr_t>::max()};
            kernels::add_combinations<Arch>(
                with.coefficients.inputs(), with.v.inputs(), with.depth, with.count,
                kernels::combined<float>{with.c.pointers(), with.factor, true}, rows,
                {addresses, 4});
            CHECK(compare_bitwise(with.c.copy().view(), without.c.copy().view()));
            CHECK(with.c.memory().intact());
        }
    });
}

TEST_CASE_TEMPLATE("rows of 16 bits give what they give converted before", T, bf16, f16) {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        for (index_t rows : {1, 3, 13})
            for (index_t vectors : {1, 9, 19}) {
                combinations<Arch, float> converted(rows, 5, vectors), direct(rows, 5, vectors);
                tensor<T, 2> narrow({5, converted.count});
                std::vector<const T*> rows_of_v;
                for (index_t k = 0; k < 5; ++k) {
                    for (index_t j = 0; j < converted.count; ++j) {
                        float& value = converted.v.pointers()[k][j];
                        narrow(k, j) = T(value);
                        value = static_cast<float>(narrow(k, j));
                    }
                    rows_of_v.push_back(&narrow(k, 0));
                }
                converted.template run<true>();
                kernels::add_combinations<Arch>(
                    direct.coefficients.inputs(), rows_of_v.data(), direct.depth, direct.count,
                    kernels::combined<float>{direct.c.pointers(), direct.factor, true}, rows);
                CHECK(compare_bitwise(direct.c.copy().view(), converted.c.copy().view()));
                CHECK(direct.c.memory().intact());
            }
    });
}

TEST_CASE("sums that start are those that were 0 before") {
    for_each_architecture_and_none([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        for (index_t rows : {1, 5, 13})
            for (index_t columns : {1, 3, 17}) {
                inner_products<Arch, float> from_zero(rows, columns, 3), starting(rows, columns, 3);
                from_zero.fill_sums(0);
                from_zero.run();
                starting.fill_sums(std::numeric_limits<float>::quiet_NaN());
                kernels::add_inner_products<Arch>(starting.u.inputs(), rows, starting.v.inputs(),
                                                  columns, starting.count, true,
                                                  starting.sums.view().data());
                starting.finish();
                CHECK(compare_bitwise(starting.totals.view(), from_zero.totals.view()));
            }
    });
}

TEST_CASE("the comparisons report planted bugs") {
    inner_products<default_arch, float> products(3, 5, 4);
    products.run();
    CHECK(products.check());
    CHECK(products.same_alone());
    float& total = products.totals(2, 4);
    const float right = total;
    total = std::nextafter(right, 10.F);
    CHECK_FALSE(products.same_alone());
    total = right + 0x1p-12F;
    CHECK_FALSE(products.check());
    total = std::numeric_limits<float>::quiet_NaN();
    CHECK_FALSE(products.check());
    CHECK_FALSE(products.same_alone());
    products.fill_sums(0); // the sums that it should have added to
    products.run();
    CHECK_FALSE(products.check());
    CHECK_FALSE(products.same_alone());

    combinations<default_arch, float> sums(3, 5, 4);
    const auto before = sums.c.copy();
    sums.run<true>();
    CHECK(sums.check(before));
    CHECK(sums.same_alone<true>(before));
    float& one = sums.c.pointers()[2][3];
    const float good = one;
    one = std::nextafter(good, 10.F);
    CHECK_FALSE(sums.same_alone<true>(before));
    one = good + 0x1p-18F;
    CHECK_FALSE(sums.check(before));
    one = good;
    sums.run<true>();
    CHECK_FALSE(sums.check(before));
    sums.run<false>();
    CHECK_FALSE(sums.check(before));
    CHECK(sums.check(tensor<float, 2>({3, sums.count})));
}

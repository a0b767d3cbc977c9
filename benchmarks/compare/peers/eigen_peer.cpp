#include "grouped_peer.hpp"

namespace mhr_bench {

namespace {

struct eigen {
    using storage = float;

    template <class C>
    class prepared {
      public:
        explicit prepared(const product<float, C>& of) : product_(of) {}

        void run() const {
            const auto& p = product_;
            const stride a_stride(p.a.stride), b_stride(p.b.stride);
            const input a(p.a.data, p.a.transposed ? p.inner : p.rows,
                          p.a.transposed ? p.rows : p.inner, a_stride);
            const input b(p.b.data, p.b.transposed ? p.columns : p.inner,
                          p.b.transposed ? p.inner : p.columns, b_stride);
            if (p.a.transposed)
                multiply(a.transpose(), b);
            else if (p.b.transposed)
                multiply(a, b.transpose());
            else
                multiply(a, b);
        }

      private:
        using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        using stride = Eigen::OuterStride<>;
        using input = Eigen::Map<const matrix, 0, stride>;

        template <class A, class B>
        void multiply(const A& a, const B& b) const {
            Eigen::Map<matrix, 0, stride> c(product_.c, product_.rows, product_.columns,
                                            stride(product_.stride));
            if (product_.accumulate)
                c.noalias() += a * b;
            else
                c.noalias() = a * b;
        }

        product<float, C> product_;
    };
};

} // namespace

library eigen_library() {
    const auto number = [](int part) { return std::to_string(part); };
    return {"Eigen",
            number(EIGEN_WORLD_VERSION) + "." + number(EIGEN_MAJOR_VERSION) + "." +
                number(EIGEN_MINOR_VERSION),
            library::role::grouped,
            {Eigen::SimdInstructionSetsInUse(), false},
            grouped_peers<eigen>,
            nullptr,
            grouped_base_products<eigen>};
}

} // namespace mhr_bench

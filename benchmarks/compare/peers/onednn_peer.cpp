#include "grouped_peer.hpp"

#include <omp.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <stdexcept>

namespace mhr_bench {

namespace {

const dnnl::engine& engine() {
    static const dnnl::engine only(dnnl::engine::kind::cpu, 0);
    return only;
}

/// Primitives are made for one thread, as each is run by one of ours.
class one_thread {
  public:
    one_thread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
    ~one_thread() { omp_set_num_threads(before_); }
    one_thread(const one_thread&) = delete;
    one_thread& operator=(const one_thread&) = delete;

  private:
    int before_;
};

template <class T>
struct onednn {
    using storage = T;

    /// A primitive with its arguments, on the caller's memory.
    template <class C>
    class prepared {
      public:
        explicit prepared(const product<T, C>& p) : stream_(engine()) {
            const one_thread guard;
            const auto a = describe<T>(p.rows, p.inner, p.a.stride, p.a.transposed);
            const auto b = describe<T>(p.inner, p.columns, p.b.stride, p.b.transposed);
            const auto c = describe<C>(p.rows, p.columns, p.stride, false);
            dnnl::primitive_attr attributes;
            // Scratch memory of the library's own may not be used by several threads at once.
            attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
            if (p.accumulate) {
                dnnl::post_ops then;
                then.append_sum(1.0F);
                attributes.set_post_ops(then);
            }
            const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes,
                                                           engine());
            primitive_ = dnnl::matmul(description);
            scratch_.reset(static_cast<index_t>(description.scratchpad_desc().get_size()));
            add(DNNL_ARG_SRC, a, p.a.data);
            add(DNNL_ARG_WEIGHTS, b, p.b.data);
            add(DNNL_ARG_DST, c, p.c);
            add(DNNL_ARG_SCRATCHPAD, description.scratchpad_desc(), scratch_.memory.data());
        }

        void run() const {
            // The function of C, as the one of C++ makes a list of the arguments for each call.
            if (dnnl_primitive_execute(primitive_.get(), stream_.get(),
                                       static_cast<int>(arguments_.size()),
                                       arguments_.data()) != dnnl_success)
                throw std::runtime_error("oneDNN cannot run a product");
        }

      private:
        struct scratch {
            aligned_array<unsigned char> memory;
            void reset(index_t bytes) {
                memory = aligned_array<unsigned char>(std::max<index_t>(bytes, 1));
            }
        };

        template <class V>
        static dnnl::memory::desc describe(index_t rows, index_t columns, index_t stride,
                                           bool transposed) {
            using type = dnnl::memory::data_type;
            const dnnl::memory::dims strides =
                transposed ? dnnl::memory::dims{1, stride} : dnnl::memory::dims{stride, 1};
            return {{rows, columns}, sizeof(V) == 2 ? type::bf16 : type::f32, strides};
        }
        void add(int name, const dnnl::memory::desc& description, const void* data) {
            memory_.emplace_back(description, engine(), const_cast<void*>(data));
            arguments_.push_back({name, memory_.back().get()});
        }

        dnnl::stream stream_;
        dnnl::matmul primitive_;
        scratch scratch_;
        std::vector<dnnl::memory> memory_;
        std::vector<dnnl_exec_arg_t> arguments_;
    };
};

/// No way, on processors for which the library has no products of bf16.
peers bf16_peers(const layer_arrays<bfloat16>& arrays, int threads) {
    try {
        return grouped_peers<onednn<bfloat16>>(arrays, threads);
    } catch (const dnnl::error& failure) {
        if (failure.status != dnnl_unimplemented) throw;
        return {};
    }
}

running_on chosen_isa() {
    // Each value has the bits of what it includes.
    const unsigned isa = dnnl_get_effective_cpu_isa();
    const auto has = [&](unsigned wanted) { return (isa & wanted) == wanted; };
    if (has(dnnl_cpu_isa_avx512_core_bf16)) return {"AVX-512 with bf16", false};
    if (has(dnnl_cpu_isa_avx512_core)) return {"AVX-512", false};
    if (has(dnnl_cpu_isa_avx2)) return {"AVX2", vector_level::avx2 < level_of_processor()};
    if (has(dnnl_cpu_isa_avx)) return {"AVX", vector_level::avx < level_of_processor()};
    return {"SSE4.1", vector_level::none < level_of_processor()};
}

} // namespace

library onednn_library() {
    const dnnl_version_t* version = dnnl_version();
    return {"oneDNN",
            std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
                std::to_string(version->patch),
            library::role::grouped,
            chosen_isa(),
            grouped_peers<onednn<float>>,
            bf16_peers,
            grouped_base_products<onednn<float>>};
}

} // namespace mhr_bench

#pragma once

/// \file
/// Every macro of the library, in one place.

/// 1 if errors are thrown as `mhr::error`, 0 if they go to the handler of core/error.hpp. Follows
/// the compiler's setting (`-fno-exceptions`); define it beforehand to force the handler.
/// All translation units of one program must agree on it.
#ifndef MHR_EXCEPTIONS
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define MHR_EXCEPTIONS 1
#else
#define MHR_EXCEPTIONS 0
#endif
#endif

/// 1 if io/files/mapped_file.hpp maps files into memory (POSIX), 0 if it reads them into memory.
#ifndef MHR_MAP_FILES
#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#define MHR_MAP_FILES 1
#else
#define MHR_MAP_FILES 0
#endif
#endif

/// The inline namespace of everything but errors, named after all that the compiler was told and on
/// which the code of this library or of xsimd depends: the instruction sets, the length of vectors,
/// and how freely numbers may be computed, as in `avx2_fma_f16c`. Files of one program that are
/// compiled differently in this share no function, of which the linker would keep one for all (and
/// an old processor meet the newest). Nor do they share types; define it beforehand, to one name
/// for all of them, where they have to and something else keeps their functions apart (as
/// `mhr_add_dispatched_library` does, which also is the way for unoptimised builds: they leave
/// functions of the standard library and of xsimd out of line, which know nothing of this name).
/// Define it also where files choose different vectors by XSIMD_DEFAULT_ARCH.
#ifndef MHR_ISA
#define MHR_ISA                                                                                    \
    MHR_ISA_JOIN(MHR_ISA_BASE, MHR_ISA_BITS, MHR_ISA_OF_AVX, MHR_ISA_OF_AVX512, MHR_ISA_OF_OTHERS, \
                 MHR_ISA_OF_NUMBERS)
/// \cond

// The newest of those sets of which each contains the ones before.
#if defined(__AVX512F__)
#define MHR_ISA_BASE avx512f
#elif defined(__AVX2__)
#define MHR_ISA_BASE avx2
#elif defined(__AVX__)
#define MHR_ISA_BASE avx
#elif defined(__SSE4_2__)
#define MHR_ISA_BASE sse4_2
#elif defined(__SSE4_1__)
#define MHR_ISA_BASE sse4_1
#elif defined(__SSSE3__)
#define MHR_ISA_BASE ssse3
#elif defined(__SSE3__)
#define MHR_ISA_BASE sse3
#elif defined(__SSE2__) || defined(_M_X64) || (defined(_M_IX86_FP) && _M_IX86_FP >= 2)
#define MHR_ISA_BASE sse2
#elif defined(__ARM_FEATURE_SVE)
#define MHR_ISA_BASE sve
#elif defined(__ARM_NEON)
#define MHR_ISA_BASE neon
#elif defined(__riscv_vector)
#define MHR_ISA_BASE rvv
#elif defined(__VSX__)
#define MHR_ISA_BASE vsx
#elif defined(__VEC__)
#define MHR_ISA_BASE vxe
#else
#define MHR_ISA_BASE any
#endif

// The length of vectors, where the compiler has to be told of it.
#if defined(__ARM_FEATURE_SVE_BITS)
#define MHR_ISA_BITS __ARM_FEATURE_SVE_BITS
#elif defined(__riscv_v_fixed_vlen)
#define MHR_ISA_BITS __riscv_v_fixed_vlen
#else
#define MHR_ISA_BITS
#endif

// MHR_ISA_PART(macro, name) is `_name` where the macro is 1, else nothing: in the list that
// MHR_ISA_CHOOSE makes, the name comes second if a comma takes the place of what stands before it.
#define MHR_ISA_PART(macro, name) MHR_ISA_PART_OF(macro, _##name)
#define MHR_ISA_PART_OF(value, name) MHR_ISA_CHOOSE(MHR_ISA_COMMA_IF_##value, name)
#define MHR_ISA_COMMA_IF_1 ,
#define MHR_ISA_CHOOSE(comma, name) MHR_ISA_SECOND(comma name, , )
#define MHR_ISA_SECOND(first, second, ...) second
#define MHR_ISA_JOIN(a, b, c, d, e, f) MHR_ISA_JOIN_OF(a, b, c, d, e, f)
#define MHR_ISA_JOIN_OF(a, b, c, d, e, f) a##b##c##d##e##f

#define MHR_ISA_OF_AVX                                                                             \
    MHR_ISA_JOIN(MHR_ISA_PART(__FMA__, fma), MHR_ISA_PART(__FMA4__, fma4),                         \
                 MHR_ISA_PART(__F16C__, f16c), MHR_ISA_PART(__AVXVNNI__, avxvnni), , )
#define MHR_ISA_OF_AVX512                                                                          \
    MHR_ISA_JOIN(MHR_ISA_JOIN(MHR_ISA_PART(__AVX512CD__, cd), MHR_ISA_PART(__AVX512DQ__, dq),      \
                              MHR_ISA_PART(__AVX512BW__, bw), MHR_ISA_PART(__AVX512VL__, vl),      \
                              MHR_ISA_PART(__AVX512ER__, er), MHR_ISA_PART(__AVX512PF__, pf)),     \
                 MHR_ISA_PART(__AVX512IFMA__, ifma), MHR_ISA_PART(__AVX512VBMI__, vbmi),           \
                 MHR_ISA_PART(__AVX512VBMI2__, vbmi2), MHR_ISA_PART(__AVX512VNNI__, vnni),         \
                 MHR_ISA_JOIN(MHR_ISA_PART(__AVX512BF16__, bf16),                                  \
                              MHR_ISA_PART(__AVX512FP16__, fp16), , , , ))
#define MHR_ISA_OF_OTHERS                                                                          \
    MHR_ISA_JOIN(MHR_ISA_PART(__ARM_FEATURE_FMA, vfma),                                            \
                 MHR_ISA_PART(__ARM_FEATURE_MATMUL_INT8, i8mm),                                    \
                 MHR_ISA_PART(XSIMD_WITH_EMULATED, emulated), , , )
#define MHR_ISA_OF_NUMBERS                                                                         \
    MHR_ISA_JOIN(MHR_ISA_PART(__FAST_MATH__, fast), MHR_ISA_PART(__FINITE_MATH_ONLY__, finite),    \
                 MHR_ISA_PART(__ASSOCIATIVE_MATH__, associative),                                  \
                 MHR_ISA_PART(_M_FP_FAST, fp_fast), , )
/// \endcond
#endif

/// In front of the functions of types that stand outside MHR_ISA, which all files of a program
/// share: they leave no symbol of their own that a linker could take from a file for a newer
/// processor.
#ifndef MHR_INLINE
#if defined(__GNUC__) || defined(__clang__)
#define MHR_INLINE [[gnu::always_inline]] inline
#elif defined(_MSC_VER)
#define MHR_INLINE __forceinline
#else
#define MHR_INLINE inline
#endif
#endif

/// In front of functions that are called where something is wrong: they are kept out of the code
/// that is run when all is well.
#ifndef MHR_COLD
#if defined(__GNUC__) || defined(__clang__)
#define MHR_COLD [[gnu::cold, gnu::noinline]]
#elif defined(_MSC_VER)
#define MHR_COLD __declspec(noinline)
#else
#define MHR_COLD
#endif
#endif

/// 1 if the kernels are those of the library mhr::compiled, which has them for several instruction
/// sets, and are only declared here; 0 if they are compiled with the file that includes them. The
/// target mhr::compiled sets it.
#ifndef MHR_COMPILED
#define MHR_COMPILED 0
#endif

/// 1 leaves the sums of f64 out of a header-only build, which then compiles in less time; calls
/// that ask for them are refused. It also leaves out the tiles that read 16-bit elements: these
/// are copied to f32 first, which gives the same bits and takes longer. All translation units of
/// one program must agree on it.
#ifndef MHR_ONLY_F32
#define MHR_ONLY_F32 0
#endif

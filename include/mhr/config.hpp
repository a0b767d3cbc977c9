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

/// 1 if io/mapped_file.hpp maps files into memory (POSIX), 0 if it reads them into memory.
#ifndef MHR_MAP_FILES
#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#define MHR_MAP_FILES 1
#else
#define MHR_MAP_FILES 0
#endif
#endif

/// The inline namespace of everything but errors, named after the instruction set that the compiler
/// is told of: files of one program that are compiled for different ones share no function, of
/// which the linker would keep one for all (and an old processor meet the newest). Nor do they
/// share types; define it beforehand, to one name for all of them, where they have to and something
/// else keeps their functions apart (as `mhr_add_dispatched_library` does, which also is the way
/// for unoptimised builds: they leave functions of the standard library and of xsimd out of line,
/// which know nothing of this name).
#ifndef MHR_ISA
#if defined(__AVX512BW__)
#define MHR_ISA avx512bw
#elif defined(__AVX512F__)
#define MHR_ISA avx512f
#elif defined(__AVX2__) && defined(__FMA__)
#define MHR_ISA avx2_fma
#elif defined(__AVX2__)
#define MHR_ISA avx2
#elif defined(__AVX__)
#define MHR_ISA avx
#elif defined(__SSE4_2__)
#define MHR_ISA sse4_2
#elif defined(__SSE2__) || defined(_M_X64)
#define MHR_ISA sse2
#elif defined(__ARM_FEATURE_SVE)
#define MHR_ISA sve
#elif defined(__ARM_NEON)
#define MHR_ISA neon
#else
#define MHR_ISA any
#endif
#endif

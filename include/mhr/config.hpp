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

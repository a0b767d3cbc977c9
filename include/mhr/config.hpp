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

#include "support/every_kernel.hpp"

// The kernels and the routers under all warnings that are set for the headers: templates show most
// of theirs where they are instantiated.

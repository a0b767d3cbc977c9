# After xsimd, the one dependency of the library, was found: for the sources and for the installed
# package.

# find_package(xsimd 8.1) would refuse every version but 8.
if(xsimd_VERSION VERSION_LESS 8.1)
    message(FATAL_ERROR "xsimd ${xsimd_VERSION} is too old: mhr needs 8.1 or newer.")
endif()
# Debian's xsimd 8.1 links a library `xtl` that does not exist: xtl, too, is headers only, and used
# for complex numbers only.
set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES "")

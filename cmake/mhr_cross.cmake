# The toolchain of the preset `cross`: compiles for another processor by Debian's compilers, and runs
# the tests by QEMU.
#
#   MHR_CROSS    aarch64, armv7 (32-bit Arm with NEON, which has no vectors of f64) or s390x (whose
#                numbers begin with their high byte, and for which there are tests of what needs no
#                vectors: give -DMHR_TEST_NO_KERNELS=ON -DMHR_TEST_FOLDERS=core)

set(MHR_CROSS aarch64 CACHE STRING "The processor to compile for: aarch64, armv7 or s390x")
# Checks of the compiler are projects of their own, which ask again.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES MHR_CROSS)

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${MHR_CROSS})
set(emulator qemu-${MHR_CROSS})
if(MHR_CROSS STREQUAL aarch64 OR MHR_CROSS STREQUAL s390x)
    set(machine ${MHR_CROSS}-linux-gnu)
elseif(MHR_CROSS STREQUAL armv7)
    set(CMAKE_SYSTEM_PROCESSOR armv7l)
    set(machine arm-linux-gnueabihf)
    set(emulator qemu-arm)
    set(CMAKE_CXX_FLAGS_INIT "-march=armv7-a -mfpu=neon-vfpv4 -mfloat-abi=hard -Wno-psabi")
else()
    message(FATAL_ERROR "MHR_CROSS is ${MHR_CROSS}, but has to be aarch64, armv7 or s390x.")
endif()
if(MHR_CROSS STREQUAL s390x)
    set(CMAKE_DISABLE_PRECOMPILE_HEADERS ON)
endif()

set(CMAKE_CXX_COMPILER ${machine}-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR ${emulator};-L;/usr/${machine})
# Headers suit every processor: those packages of the machine that compiles will do.
list(APPEND CMAKE_PREFIX_PATH /usr/lib/x86_64-linux-gnu/cmake)

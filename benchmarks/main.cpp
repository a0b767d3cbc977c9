#define CATCH_CONFIG_RUNNER // of Catch2 2; 3 has it in its library
#include "support/catch.hpp"

int main(int argc, char** argv) {
    return Catch::Session().run(argc, argv);
}

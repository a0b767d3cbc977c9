"""A recipe for Conan 2 of the sources that it lies in:

    conan create cmake/packaging/conan --build=missing [-o "mhr/*:with_io=True"]
"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load

required_conan_version = ">=2.0"


class MhrConan(ConanFile):
    name = "mhr"
    description = "CPU kernels for multi-head adapter routing of LoRA adapters"
    license = "MIT"
    topics = ("lora", "adapters", "simd", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_io": [True, False]}  # what mhr/io/ needs: the target mhr::io
    default_options = {"with_io": False}
    no_copy_source = True

    @property
    def _project(self):
        return os.path.join(self.recipe_folder, "..", "..", "..")

    def set_version(self):
        header = load(self, os.path.join(self._project, "include", "mhr", "version.hpp"))
        self.version = ".".join(re.findall(r"#define MHR_VERSION_\w+ (\d+)", header))

    def export_sources(self):
        copy(self, "LICENSE", self._project, self.export_sources_folder)
        copy(self, "include/mhr/*.hpp", self._project, self.export_sources_folder)

    def requirements(self):
        self.requires("xsimd/[>=8.1]")
        if self.options.with_io:
            self.requires("nlohmann_json/[>=3.9]")

    def validate(self):
        check_min_cppstd(self, 17)

    def package_id(self):
        # The same headers, whatever the settings.
        self.info.clear()

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "include/mhr/*.hpp", self.source_folder, self.package_folder)

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "mhr")
        self.cpp_info.set_property("pkg_config_name", "mhr")
        core = self.cpp_info.components["mhr"]
        core.set_property("cmake_target_name", "mhr::mhr")
        core.requires = ["xsimd::xsimd"]
        core.bindirs = []
        core.libdirs = []
        if self.options.with_io:
            io = self.cpp_info.components["io"]
            io.set_property("cmake_target_name", "mhr::io")
            io.requires = ["mhr", "nlohmann_json::nlohmann_json"]
            io.bindirs = []
            io.libdirs = []

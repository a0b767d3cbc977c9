#!/usr/bin/env python3
"""conan_recipe.py FOLDER: runs the recipe of Conan without Conan.

What the recipe imports is stood in for by the few lines below, which copy and record as Conan does.
Leaves the package in FOLDER/package.
"""

import collections
import importlib.util
import pathlib
import re
import shutil
import sys
import types

sys.dont_write_bytecode = True
project = pathlib.Path(__file__).resolve().parent.parent.parent
folder = pathlib.Path(sys.argv[1])


def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(content)


def copy(recipe, pattern, src, dst):
    """Copies the files that match, as they lie under src; * stands for folders, too."""
    parts = re.escape(pattern).replace(r"\*", ".*")
    copied = 0
    for path in sorted(pathlib.Path(src).rglob("*")):
        relative = path.relative_to(src)
        if path.is_file() and re.fullmatch(parts, relative.as_posix()):
            target = pathlib.Path(dst) / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            copied += 1
    assert copied, f"{pattern}: no such file under {src}"


class Info:
    """cpp_info, and a component of it."""

    def __init__(self):
        self.properties = {}
        self.components = collections.defaultdict(Info)

    def set_property(self, name, value):
        self.properties[name] = value


standards = []
module("conan", ConanFile=type("ConanFile", (), {}))
module("conan.tools")
module("conan.tools.files", copy=copy, load=lambda recipe, path: pathlib.Path(path).read_text())
module("conan.tools.build", check_min_cppstd=lambda recipe, least: standards.append(least))
spec = importlib.util.spec_from_file_location(
    "conanfile", project / "cmake/packaging/conan/conanfile.py")
conanfile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conanfile)

for with_io in (False, True):
    recipe = conanfile.MhrConan()
    assert set(recipe.default_options) == set(recipe.options) == {"with_io"}
    recipe.options = types.SimpleNamespace(with_io=with_io)
    recipe.recipe_folder = str(project / "cmake/packaging/conan")
    recipe.export_sources_folder = recipe.source_folder = str(folder / "source")
    recipe.package_folder = str(folder / "package")
    recipe.cpp_info = Info()
    recipe.info = types.SimpleNamespace(clear=lambda: None)
    required = []
    recipe.requires = required.append

    recipe.set_version()
    recipe.export_sources()
    recipe.requirements()
    recipe.validate()
    recipe.package_id()
    recipe.package()
    recipe.package_info()

    assert re.fullmatch(r"\d+\.\d+\.\d+", recipe.version), recipe.version
    assert recipe.version in (project / "cmake/packaging/vcpkg/vcpkg.json").read_text()
    components = recipe.cpp_info.components
    assert set(components) == ({"mhr", "io"} if with_io else {"mhr"})
    for name, component in components.items():
        assert component.properties["cmake_target_name"] == f"mhr::{name}"
    # Each package that is required is one that a component names, and the other way round.
    named = {other.split("::")[0] for component in components.values()
             for other in component.requires if "::" in other}
    assert named == {name.split("/")[0] for name in required}, (named, required)

assert standards == [17, 17]
packaged = {path.relative_to(folder / "package").as_posix()
            for path in (folder / "package").rglob("*") if path.is_file()}
expected = {path.relative_to(project).as_posix()
            for path in (project / "include").rglob("*.hpp")} | {"licenses/LICENSE"}
assert packaged == expected, packaged ^ expected
print(f"{recipe.name} {recipe.version}: {len(packaged)} files")

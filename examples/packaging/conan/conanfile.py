# conan create examples/packaging/conan -o 'sse/*:tls=True'       then require sse/<version>
# The targets are those of CMake's own package: sse::sse, sse::tls, sse::redis, sse::nats,
# sse::io_uring, sse::zlib.
import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout

FEATURES = {  # what turns each on, and brings it
    "tls": ("openssl", "[>=3 <4]", "openssl::openssl"),
    "redis": ("hiredis", "[>=1.0 <2]", "hiredis::hiredis"),
    "nats": ("cnats", "[>=3.4 <4]", "cnats::cnats"),
    "io_uring": ("liburing", "[>=2.2 <3]", "liburing::liburing"),
    "zlib": ("zlib", "[>=1.2.11 <2]", "zlib::zlib"),
}


class SseConan(ConanFile):
    name = "sse"
    description = "Server-Sent Events for C++20, one header over Asio"
    license = "MIT"
    topics = ("sse", "server-sent-events", "eventsource", "asio", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {name: [True, False] for name in FEATURES}
    default_options = {name: False for name in FEATURES}
    no_copy_source = True

    def _checkout(self):
        return os.path.join(self.recipe_folder, "..", "..", "..")

    def set_version(self):
        header = load(self, os.path.join(self._checkout(), "sse.hpp"))
        self.version = re.search(r'^#define SSE_VERSION_STRING "([\d.]+)"', header, re.M)[1]

    def export_sources(self):
        for name in ("sse.hpp", "LICENSE"):
            copy(self, name, self._checkout(), self.export_sources_folder)

    def config_options(self):
        if self.settings.os != "Linux":
            del self.options.io_uring
        if self.settings.os == "Windows":
            del self.options.redis

    def layout(self):
        basic_layout(self)

    def requirements(self):
        self.requires("asio/[>=1.22.1 <2]", transitive_headers=True)
        for name, (package, version, _) in FEATURES.items():
            if self.options.get_safe(name):
                self.requires(f"{package}/{version}", transitive_headers=True, transitive_libs=True)

    def package_id(self):
        self.info.clear()

    def validate(self):
        check_min_cppstd(self, 20)

    def package(self):
        copy(self, "sse.hpp", self.source_folder, os.path.join(self.package_folder, "include"))
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "sse")
        header = self.cpp_info.components["sse"]
        header.set_property("cmake_target_name", "sse::sse")
        header.set_property("pkg_config_name", "sse")
        header.bindirs = header.libdirs = []
        header.requires = ["asio::asio"]
        if self.settings.os in ("Linux", "FreeBSD"):
            header.system_libs = ["pthread"]
        if self.settings.os == "Windows":
            header.system_libs = ["ws2_32", "mswsock"]
        for name, (_, _, target) in FEATURES.items():
            if not self.options.get_safe(name):
                continue
            feature = self.cpp_info.components[name]
            feature.set_property("cmake_target_name", f"sse::{name}")
            feature.set_property("pkg_config_name", f"sse-{name}")
            feature.bindirs = feature.libdirs = []
            feature.defines = [f"SSE_ENABLE_{name.upper()}"]
            feature.requires = ["sse", target]

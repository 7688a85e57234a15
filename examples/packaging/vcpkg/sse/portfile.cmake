# vcpkg install 'sse[tls]' --overlay-ports=<checkout>/examples/packaging/vcpkg
# Packages the checkout that this file is in. vcpkg keeps what it packaged until a file of this folder
# changes: vcpkg remove sse first, to take a header that was edited.
set(VCPKG_BUILD_TYPE release) # there is nothing to build
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../../.." ABSOLUTE)

vcpkg_cmake_configure(SOURCE_PATH "${SOURCE_PATH}/examples/packaging/cmake")
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/sse)
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")

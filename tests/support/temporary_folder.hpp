// A folder of a test's own, which is removed at the end.
#pragma once

#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>

namespace support {

class temporary_folder {
public:
    /// Its name begins so, and is one that is free.
    explicit temporary_folder(const std::string& name) {
        std::random_device random;
        for (int tries = 0; tries < 100; ++tries) {
            path_ = std::filesystem::temp_directory_path() /
                    (name + "-" + std::to_string(random()) + "-" + std::to_string(random()));
            if (!std::filesystem::create_directory(path_)) continue;
            std::filesystem::permissions(path_, std::filesystem::perms::owner_all);
            return;
        }
        throw std::runtime_error("no temporary folder " + name);
    }
    ~temporary_folder() {
        std::error_code ignored;
        if (!kept_) std::filesystem::remove_all(path_, ignored);
    }
    temporary_folder(const temporary_folder&) = delete;
    temporary_folder& operator=(const temporary_folder&) = delete;

    void keep() { kept_ = true; }
    const std::filesystem::path& path() const { return path_; }
    std::string operator/(const std::string& name) const { return (path_ / name).string(); }

private:
    std::filesystem::path path_;
    bool kept_ = false;
};

} // namespace support

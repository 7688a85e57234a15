// certificates.hpp - certificates for tests of TLS, made on the spot by OpenSSL, in files of a
// folder that goes with the process.
//
//   support::authority ca("Test CA");
//   const support::identity server = ca.issue({.name = "localhost"});
//   options.tls = {.certificate = server.certificate, .key = server.key};
#pragma once

#include "temporary_folder.hpp"

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>

namespace support {

/// Paths of two PEM files.
struct identity {
    std::string certificate; ///< The certificate, and those of the authorities below the first.
    std::string key;

    friend bool operator==(const identity&, const identity&) = default;
};

struct certificate_wish {
    std::string name = "localhost"; ///< The subject's CN.
    std::string alternatives = "DNS:localhost,IP:127.0.0.1,IP:::1";
    std::chrono::seconds begins = -std::chrono::hours(1); ///< From now.
    std::chrono::seconds ends = std::chrono::hours(24);
    bool rsa = false; ///< Otherwise P-256.
};

/// A folder for files, removed with the process that made it.
inline const std::filesystem::path& certificate_folder() {
    static const temporary_folder made("sse-tls");
    return made.path();
}

/// Issues certificates. The first of a chain signs itself.
class authority {
public:
    explicit authority(const std::string& name, const authority* above = nullptr) {
        key_.reset(EVP_EC_gen("P-256"));
        certificate_ = make({.name = name, .alternatives = ""}, key_.get(), above ? *above : *this,
                            "critical,CA:TRUE");
        if (above) chain_ = above->chain_;
        if (above) chain_.insert(chain_.begin(), certificate_.get());
        file_ = path("ca");
        write(file_, [&](std::FILE* f) { return PEM_write_X509(f, certificate_.get()); });
    }

    /// PEM, of this authority alone.
    const std::string& file() const { return file_; }

    /// The revocation list of this authority, PEM: who of these files comes first in them.
    std::string list_revoked(const std::vector<std::string>& files,
                             std::chrono::seconds ends = std::chrono::hours(24)) const {
        const std::unique_ptr<X509_CRL, release> made(X509_CRL_new());
        X509_CRL* const list = made.get();
        X509_CRL_set_version(list, 1); // which is v2
        X509_CRL_set_issuer_name(list, X509_get_subject_name(certificate_.get()));
        const std::unique_ptr<ASN1_TIME, release> from(X509_gmtime_adj(nullptr, -2 * 24 * 3600));
        const std::unique_ptr<ASN1_TIME, release> until(
            X509_gmtime_adj(nullptr, static_cast<long>(ends.count())));
        X509_CRL_set1_lastUpdate(list, from.get());
        X509_CRL_set1_nextUpdate(list, until.get());
        for (const std::string& file : files) {
            X509_REVOKED* const one = X509_REVOKED_new(); // the list owns it then
            X509_REVOKED_set_serialNumber(one, X509_get_serialNumber(read(file).get()));
            X509_REVOKED_set_revocationDate(one, from.get());
            X509_CRL_add0_revoked(list, one);
        }
        if (X509_CRL_sign(list, key_.get(), EVP_sha256()) == 0)
            throw std::runtime_error("X509_CRL_sign");
        const std::string to = path("list");
        write(to, [&](std::FILE* f) { return PEM_write_X509_CRL(f, list); });
        return to;
    }

    identity issue(const certificate_wish& wish) const {
        const owned_key key(wish.rsa ? EVP_RSA_gen(2048) : EVP_EC_gen("P-256"));
        const owned_certificate made = make(wish, key.get(), *this, "CA:FALSE");
        const identity files{path("certificate"), path("key")};
        write(files.certificate, [&](std::FILE* f) {
            int good = PEM_write_X509(f, made.get());
            for (X509* one : chain_) good = good && PEM_write_X509(f, one);
            return good;
        });
        write(files.key, [&](std::FILE* f) {
            return PEM_write_PrivateKey(f, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
        });
        return files;
    }

private:
    struct release {
        void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
        void operator()(X509* p) const { X509_free(p); }
        void operator()(X509_EXTENSION* p) const { X509_EXTENSION_free(p); }
        void operator()(X509_CRL* p) const { X509_CRL_free(p); }
        void operator()(ASN1_TIME* p) const { ASN1_TIME_free(p); }
    };
    using owned_key = std::unique_ptr<EVP_PKEY, release>;
    using owned_certificate = std::unique_ptr<X509, release>;

    static std::string path(const std::string& what) {
        static int count = 0;
        return (certificate_folder() / (what + std::to_string(++count) + ".pem")).string();
    }

    template <class Write>
    static void write(const std::string& path, Write&& what) {
        std::FILE* const file = std::fopen(path.c_str(), "w");
        const bool good = file && what(file) == 1;
        if (file) std::fclose(file);
        if (!good) throw std::runtime_error("cannot write " + path);
    }

    static owned_certificate read(const std::string& path) {
        std::FILE* const file = std::fopen(path.c_str(), "r");
        owned_certificate made(file ? PEM_read_X509(file, nullptr, nullptr, nullptr) : nullptr);
        if (file) std::fclose(file);
        if (!made) throw std::runtime_error("cannot read " + path);
        return made;
    }

    static owned_certificate make(const certificate_wish& wish, EVP_PKEY* key, const authority& by,
                                  const char* constraints) {
        static long serial = 0;
        owned_certificate made(X509_new());
        X509* const c = made.get();
        X509_set_version(c, X509_VERSION_3);
        ASN1_INTEGER_set(X509_get_serialNumber(c), ++serial);
        X509_gmtime_adj(X509_getm_notBefore(c), static_cast<long>(wish.begins.count()));
        X509_gmtime_adj(X509_getm_notAfter(c), static_cast<long>(wish.ends.count()));
        X509_NAME_add_entry_by_txt(X509_get_subject_name(c), "CN", MBSTRING_UTF8,
                                   reinterpret_cast<const unsigned char*>(wish.name.c_str()), -1,
                                   -1, 0);
        X509* const issuer = by.certificate_ ? by.certificate_.get() : c;
        X509_set_issuer_name(c, X509_get_subject_name(issuer));
        X509_set_pubkey(c, key);
        add(c, issuer, NID_basic_constraints, constraints);
        if (!wish.alternatives.empty()) {
            add(c, issuer, NID_subject_alt_name, wish.alternatives.c_str());
        }
        if (X509_sign(c, by.key_.get(), EVP_sha256()) == 0) throw std::runtime_error("X509_sign");
        return made;
    }

    static void add(X509* to, X509* issuer, int what, const char* value) {
        X509V3_CTX context;
        X509V3_set_ctx(&context, issuer, to, nullptr, nullptr, 0);
        const std::unique_ptr<X509_EXTENSION, release> made(
            X509V3_EXT_conf_nid(nullptr, &context, what, value));
        if (!made || X509_add_ext(to, made.get(), -1) != 1) {
            throw std::runtime_error(std::string("extension ") + value);
        }
    }

    owned_key key_;
    owned_certificate certificate_;
    std::vector<X509*> chain_; ///< From here up, without the one that signs itself.
    std::string file_;
};

/// The authority that tests trust, and the server that they expect.
inline const authority& test_authority() {
    static const authority made("sse test CA");
    return made;
}
inline const identity& test_server() {
    static const identity made = test_authority().issue({});
    return made;
}

} // namespace support

// The thin door from Python to the C core.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "dither.h"

namespace nb = nanobind;

namespace {

std::vector<std::string> feature_names(uint32_t features) {
    static const std::pair<uint32_t, const char *> names[] = {
        {DITHER_FEATURE_AES, "aes"},   {DITHER_FEATURE_AVX2, "avx2"}, {DITHER_FEATURE_AVX512, "avx512"},
        {DITHER_FEATURE_NEON, "neon"}, {DITHER_FEATURE_VAES, "vaes"},
    };
    std::vector<std::string> found;
    for (const auto &[bit, name] : names)
        if (features & bit) found.emplace_back(name);
    return found;
}

} // namespace

NB_MODULE(_native, m) {
    m.doc() = "dither's C core";
    m.def("version", [] { return std::string(dither_version()); }, "Version of this build.");
    m.def(
        "cpu_features", [] { return feature_names(dither_cpu_features()); },
        "Names of the processor features that the core can dispatch on, sorted.");
    m.def(
        "simd", [] { return std::string(dither_simd_name(dither_cpu_features())); },
        "Widest vector path of this processor: avx512, avx2, neon or portable.");
}

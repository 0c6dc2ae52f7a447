// The thin door from Python to the C core: arguments are checked above, in dither.noise.
#include "module.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

using namespace nb::literals;

namespace {

const std::pair<uint32_t, const char *> kFeatures[] = {
    {DITHER_FEATURE_AES, "aes"},   {DITHER_FEATURE_AVX2, "avx2"}, {DITHER_FEATURE_AVX512, "avx512"},
    {DITHER_FEATURE_NEON, "neon"}, {DITHER_FEATURE_VAES, "vaes"},
};

std::vector<std::string> feature_names(uint32_t features) {
    std::vector<std::string> found;
    for (const auto &[bit, name] : kFeatures)
        if (features & bit) found.emplace_back(name);
    return found;
}

} // namespace

Kernels::Kernels(const std::vector<std::string> &features) {
    const uint32_t here = dither_cpu_features();
    uint32_t wanted = 0;
    for (const auto &name : features) {
        uint32_t bit = 0;
        for (const auto &[known, text] : kFeatures)
            if (name == text) bit = known;
        if (!(bit & here)) throw nb::value_error(("this processor has no " + name).c_str());
        wanted |= bit;
    }
    table = dither_select(wanted);
}

namespace {

uint32_t *words(Out &out) {
    if (!is(out, nb::dtype<uint32_t>())) throw nb::type_error("words must be uint32");
    return static_cast<uint32_t *>(out.data());
}

unsigned mask_width(const Out &values) {
    const nb::dlpack::dtype type = values.dtype();
    const bool integer = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int) ||
                         type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt);
    if (!integer || type.lanes != 1 || (type.bits != 16 && type.bits != 32 && type.bits != 64))
        throw nb::type_error("masks take integers of 16, 32 or 64 bits");
    return type.bits / 8u;
}

void bind_stream(nb::module_ &m) {
    m.def("chacha", [](const Kernels &k, const std::vector<uint32_t> &state, unsigned rounds, Out out) {
        if (state.size() != 16 || out.shape(0) % DITHER_SUPERBLOCK_WORDS)
            throw nb::value_error("16 words of state, whole superblocks out");
        dither_chacha(k.table, state.data(), rounds, words(out), out.shape(0) / DITHER_SUPERBLOCK_WORDS);
    }, any, any, any, as_is());
    m.def("aes256", [](const Kernels &k, nb::bytes key, nb::bytes counter, Out out) {
        if (key.size() != DITHER_KEY_BYTES || counter.size() != 16 || out.shape(0) % DITHER_SUPERBLOCK_WORDS)
            throw nb::value_error("a key of 32 bytes, a counter of 16, whole superblocks out");
        dither_aes256(k.table, static_cast<const uint8_t *>(key.data()),
                      static_cast<const uint8_t *>(counter.data()), reinterpret_cast<uint8_t *>(words(out)),
                      out.shape(0) / DITHER_SUPERBLOCK_WORDS);
    }, any, any, any, as_is());
    m.def("stream", [](const Kernels &k, Key &key, Out out) {
        uint32_t *to = words(out);
        unlocked([&] { return dither_stream(k.table, key.key, to, out.shape(0)); });
    }, any, any, as_is());
    m.def("stream_at", [](const Kernels &k, Key &key, uint32_t stream, uint64_t position, Out out) {
        uint32_t *to = words(out);
        unlocked([&] { return dither_stream_at(k.table, key.key, stream, position, to, out.shape(0)); });
    }, any, any, any, any, as_is());
    m.def("mask", [](const Kernels &k, Key &key, Out values, bool subtract) {
        const unsigned width = mask_width(values);
        unlocked([&] {
            return dither_mask(k.table, key.key, values.data(), values.shape(0), width, subtract);
        });
    }, any, any, as_is(), any);
}

void bind_gaussian(nb::module_ &m) {
    m.def("gaussian", [](const Kernels &k, Key &key, Out out) {
        const bool narrow = float_type(out) == DITHER_F32;
        unlocked([&] {
            return narrow ? dither_gaussian_f32(k.table, key.key, static_cast<float *>(out.data()), out.shape(0))
                          : dither_gaussian_f64(k.table, key.key, static_cast<double *>(out.data()), out.shape(0));
        });
    }, any, any, as_is());
    m.def("lattice", [](const Kernels &k, Key &key, double sigma, Out out) {
        uint64_t redone = 0;
        const bool narrow = is(out, nb::dtype<int32_t>());
        if (!narrow && !is(out, nb::dtype<int64_t>())) throw nb::type_error("draws must be int32 or int64");
        unlocked([&] {
            return narrow ? dither_lattice_i32(k.table, key.key, sigma, static_cast<int32_t *>(out.data()),
                                               out.shape(0), &redone)
                          : dither_lattice_i64(k.table, key.key, sigma, static_cast<int64_t *>(out.data()),
                                               out.shape(0), &redone);
        });
        return redone;
    }, any, any, any, as_is());
    m.def("exact_draw", [](uint64_t radius, uint64_t angle, const std::vector<uint64_t> &more, double sigma,
                           bool second) -> std::optional<int64_t> {
        int64_t draw;
        // Two spare words: the angles are read from the second on.
        std::vector<uint64_t> padded(more);
        padded.resize(padded.size() + 2);
        if (dither_exact_draw(radius, angle, padded.data(), static_cast<unsigned>(more.size() / 2), sigma,
                              second, &draw))
            return draw;
        return std::nullopt;
    });
}

void bind_codec(nb::module_ &m) {
    nb::class_<Grid>(m, "Grid").def(nb::init<int, int64_t, int, int64_t, int>(), "scale_exponent"_a, "clamp"_a,
                                    "wire_shift"_a, "wire_limit"_a, "wire_bits"_a);
    m.def("norm", [](const Kernels &k, In values) {
        double norm = 0;
        const dither_float type = float_type(values);
        unlocked([&] { return dither_norm(k.table, type, values.data(), values.shape(0), &norm); });
        return norm;
    }, any, as_is());
    m.def("clip_factor", [](double norm, size_t count, double bound) {
        const dither_arithmetic program = dither_arithmetic_enter();
        const double factor = dither_clip_factor(norm, count, bound);
        dither_arithmetic_leave(program);
        return factor;
    });
    m.def("encode", [](const Kernels &k, Key &key, double sigma, const Grid &grid, In values, Out message,
                       double factor) {
        uint64_t saturated = 0;
        const dither_float type = float_type(values);
        is_message(message, grid);
        same_size(message, values.shape(0));
        unlocked([&] {
            return dither_encode_factor(k.table, key.key, sigma, &grid, factor, type, values.data(), message.data(),
                                        values.shape(0), &saturated);
        });
        return saturated;
    }, any, any, any, any, as_is(), as_is(), nb::arg("factor") = 1.0);
    m.def("encode_ready", [](const Kernels &k, Out noise, const Grid &grid, In values, Out message) {
        uint64_t saturated = 0;
        const dither_float type = float_type(values);
        is_message(message, grid);
        same_size(message, values.shape(0));
        same_size(noise, values.shape(0));
        if (!is(noise, nb::dtype<int32_t>())) throw nb::type_error("ready noise must be int32");
        unlocked([&] {
            return dither_encode_ready(k.table, static_cast<int32_t *>(noise.data()), &grid, type, values.data(),
                                       message.data(), values.shape(0), &saturated);
        });
        return saturated;
    }, any, as_is(), any, as_is(), as_is());
    m.def("decode", [](const Kernels &k, const Grid &grid, In message, Out values, double factor) {
        const dither_float type = float_type(values);
        is_message(message, grid);
        same_size(message, values.shape(0));
        unlocked([&] {
            return dither_decode_scaled(k.table, &grid, factor, message.data(), type, values.data(),
                                        values.shape(0));
        });
    }, any, any, as_is(), as_is(), nb::arg("factor") = 1.0);
}

void bind_pool(nb::module_ &m) {
    nb::class_<Pool>(m, "Pool")
        .def("__init__", [](Pool *self, const Kernels &k, std::shared_ptr<Key> key, double sigma, size_t capacity) {
            new (self) Pool(k, std::move(key), sigma, capacity);
        })
        .def("close", &Pool::close)
        .def("encode", [](Pool &pool, const Grid &grid, In values, Out message, double factor) {
            uint64_t saturated = 0;
            const dither_float type = float_type(values);
            const std::shared_ptr<dither_pool> open = pool.open();
            is_message(message, grid);
            same_size(message, values.shape(0));
            unlocked([&] {
                return dither_pool_encode_factor(open.get(), &grid, factor, type, values.data(), message.data(),
                                                 values.shape(0), &saturated);
            });
            return saturated;
        }, any, as_is(), as_is(), nb::arg("factor") = 1.0)
        .def("take", [](Pool &pool, Out out) {
            const std::shared_ptr<dither_pool> open = pool.open();
            if (!is(out, nb::dtype<int32_t>())) throw nb::type_error("draws must be int32");
            unlocked([&] { return dither_pool_take(open.get(), static_cast<int32_t *>(out.data()), out.shape(0)); });
        }, as_is())
        .def("linger", [](Pool &pool, double seconds) { dither_pool_linger(pool.open().get(), seconds); })
        .def("hold", [](Pool &pool, bool on) { dither_pool_hold(pool.open().get(), on); })
        .def("stats", [](Pool &pool) {
            dither_pool_stats s;
            dither_pool_stats_get(pool.open().get(), &s);
            nb::dict d;
            d["capacity"] = s.capacity; d["ready"] = s.ready; d["filled"] = s.filled; d["used"] = s.used;
            d["dry"] = s.dry; d["discarded"] = s.discarded; d["wait_ns"] = s.wait_ns;
            d["running"] = s.running != 0;
            return d;
        });
}

} // namespace

NB_MODULE(_native, m) {
    m.doc() = "dither's C core";
    // dither.noise keeps the chosen kernels for the life of the process.
    nb::set_leak_warnings(false); // a process may end with keys and pools in use
    nb::exception<StatusError>(m, "StatusError", PyExc_RuntimeError);
    m.def("version", [] { return std::string(dither_version()); }, "Version of this build.");
    m.def(
        "cpu_features", [] { return feature_names(dither_cpu_features()); },
        "Names of the processor features that the core can dispatch on, sorted.");
    nb::class_<Kernels>(m, "Kernels")
        .def(nb::init<const std::vector<std::string> &>(), "features"_a)
        .def_prop_ro("name", [](const Kernels &k) { return std::string(dither_kernels_name(k.table)); })
        .def_prop_ro("aes", [](const Kernels &k) { return std::string(dither_aes_name(k.table)); })
        .def_prop_ro("preferred_cipher",
                     [](const Kernels &k) { return static_cast<int>(dither_preferred_cipher(k.table)); });
    nb::class_<Key>(m, "Key")
        .def(nb::init<int>(), "cipher"_a)
        .def(nb::init<nb::bytes, int>(), "secret"_a, "cipher"_a)
        .def_prop_ro("position", [](const Key &k) { return dither_key_position(k.key); });
    bind_stream(m);
    bind_gaussian(m);
    bind_codec(m);
    bind_pool(m);
    bind_shm(m);
}

// The thin door from Python to the C core: arguments are checked above, in dither.noise.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cxxabi.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dither.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Any contiguous CPU array: numpy, torch, whatever speaks DLPack or the buffer protocol. No copies.
using Out = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

struct StatusError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void check(dither_status status) {
    static const char *const kinds[] = {"ok",       "no_entropy", "no_memory",  "forked",
                                        "bad_sigma", "bad_grid",   "not_finite", "no_thread", "bad_argument"};
    if (status != DITHER_OK)
        throw StatusError(std::string(kinds[status]) + ": " + dither_status_text(status));
}

// A daemon thread that comes back while the interpreter ends is unwound by it. That may not pass
// through C++ frames that must not throw: such a thread sleeps until the process is gone.
void restore(PyThreadState *state) {
    try {
        PyEval_RestoreThread(state);
    } catch (abi::__forced_unwind &) {
        for (;;) pause();
    }
}

struct Kernels {
    const dither_kernels *table;

    explicit Kernels(const std::vector<std::string> &features) {
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
};

struct Key {
    dither_key *key = nullptr;

    explicit Key(int cipher) { check(dither_key_new(known(cipher), &key)); }
    Key(nb::bytes secret, int cipher) {
        if (secret.size() != DITHER_KEY_BYTES) throw nb::value_error("a key has 32 bytes");
        check(dither_key_agreed(static_cast<const uint8_t *>(secret.data()), known(cipher), &key));
    }
    static dither_cipher known(int cipher) {
        if (cipher != DITHER_CHACHA12 && cipher != DITHER_CHACHA20 && cipher != DITHER_AES256)
            throw nb::value_error("no such cipher");
        return static_cast<dither_cipher>(cipher);
    }
    Key(const Key &) = delete;
    ~Key() { dither_key_free(key); }
};

struct Pool {
    std::shared_ptr<Key> key; // outlives the pool's thread
    std::shared_ptr<dither_pool> pool; // shared with calls under way: close() waits for none

    Pool(const Kernels &kernels, std::shared_ptr<Key> source, double sigma, size_t capacity)
        : key(std::move(source)) {
        dither_pool *made = nullptr;
        check(dither_pool_new(kernels.table, key->key, sigma, capacity, &made));
        pool = std::shared_ptr<dither_pool>(made, dither_pool_free);
    }
    ~Pool() { close(); }
    void close() {
        std::shared_ptr<dither_pool> last;
        last.swap(pool);
        PyThreadState *state = PyEval_SaveThread();
        last.reset();
        restore(state);
    }
    std::shared_ptr<dither_pool> open() const {
        if (!pool) throw StatusError("closed: the pool is closed");
        return pool;
    }
};

struct Grid : dither_grid {
    Grid(int scale_exponent, int64_t clamp, int wire_shift, int64_t wire_limit, int wire_bits)
        : dither_grid{scale_exponent, clamp, wire_shift, wire_limit, wire_bits} {}
};

template <typename Array> bool is(const Array &array, nb::dlpack::dtype type) {
    return array.dtype() == type;
}

template <typename Array> dither_float float_type(const Array &array) {
    if (is(array, nb::dtype<float>())) return DITHER_F32;
    if (is(array, nb::dtype<double>())) return DITHER_F64;
    throw nb::type_error("values must be float32 or float64");
}

template <typename Array> void same_size(const Array &a, size_t size) {
    if (a.shape(0) != size) throw nb::value_error("arrays of different sizes");
}

template <typename Array> void is_message(const Array &message, const Grid &grid) {
    if (!is(message, grid.wire_bits == 16 ? nb::dtype<int16_t>() : nb::dtype<int32_t>()))
        throw nb::type_error("the message's integers are not of the wire's width");
}

uint32_t *words(Out &out) {
    if (!is(out, nb::dtype<uint32_t>())) throw nb::type_error("words must be uint32");
    return static_cast<uint32_t *>(out.data());
}

// Call the core without the interpreter's lock; a failure becomes an exception with it.
template <typename Call> void unlocked(Call call) {
    PyThreadState *state = PyEval_SaveThread();
    const dither_status status = call();
    restore(state);
    check(status);
}

// An array argument as it is: nanobind would else hand a strided array over as a copy, write to that
// and throw it away.
auto as_is() { return nb::arg().noconvert(); }
const nb::arg any;

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
    m.def("encode", [](const Kernels &k, Key &key, double sigma, const Grid &grid, In values, Out message) {
        uint64_t saturated = 0;
        const dither_float type = float_type(values);
        is_message(message, grid);
        same_size(message, values.shape(0));
        unlocked([&] {
            return dither_encode(k.table, key.key, sigma, &grid, type, values.data(), message.data(),
                                 values.shape(0), &saturated);
        });
        return saturated;
    }, any, any, any, any, as_is(), as_is());
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
        .def("encode", [](Pool &pool, const Grid &grid, In values, Out message) {
            uint64_t saturated = 0;
            const dither_float type = float_type(values);
            const std::shared_ptr<dither_pool> open = pool.open();
            is_message(message, grid);
            same_size(message, values.shape(0));
            unlocked([&] {
                return dither_pool_encode(open.get(), &grid, type, values.data(), message.data(), values.shape(0),
                                          &saturated);
            });
            return saturated;
        }, any, as_is(), as_is())
        .def("take", [](Pool &pool, Out out) {
            const std::shared_ptr<dither_pool> open = pool.open();
            if (!is(out, nb::dtype<int32_t>())) throw nb::type_error("draws must be int32");
            unlocked([&] { return dither_pool_take(open.get(), static_cast<int32_t *>(out.data()), out.shape(0)); });
        }, as_is())
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
    nb::set_leak_warnings(false);
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
}

// What the bindings share: arrays, keys, pools, grids, errors.
#ifndef DITHER_MODULE_H
#define DITHER_MODULE_H

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cxxabi.h>
#include <unistd.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dither.h"
#include "dither_arithmetic.h"

namespace nb = nanobind;

// Any contiguous CPU array: numpy, torch, whatever speaks DLPack or the buffer protocol. No copies.
using Out = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct StatusError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline const char *kind_of(dither_status status) {
    static const char *const kinds[] = {
        "ok",          "no_entropy", "no_memory", "forked",   "bad_sigma",   "bad_grid", "not_finite", "no_thread",
        "bad_argument", "peer_dead", "peer_left", "peer_late", "peer_failed", "mismatch", "broken",     "busy",
        "interrupted",  "unsupported"};
    return kinds[status];
}

inline void check(dither_status status) {
    if (status != DITHER_OK) throw StatusError(std::string(kind_of(status)) + ": " + dither_status_text(status));
}

// A daemon thread that comes back while the interpreter ends is unwound by it. That may not pass
// through C++ frames that must not throw: such a thread sleeps until the process is gone.
inline void restore(PyThreadState *state) {
    try {
        PyEval_RestoreThread(state);
    } catch (abi::__forced_unwind &) {
        for (;;) pause();
    }
}

struct Kernels {
    const dither_kernels *table;

    explicit Kernels(const std::vector<std::string> &features);
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

// Call the core without the interpreter's lock, in the arithmetic that it is proved for.
template <typename Call> dither_status without_lock(Call call) {
    PyThreadState *state = PyEval_SaveThread();
    const dither_arithmetic program = dither_arithmetic_enter();
    const dither_status status = call();
    dither_arithmetic_leave(program);
    restore(state);
    return status;
}

// The same; a failure becomes an exception.
template <typename Call> void unlocked(Call call) { check(without_lock(call)); }

// An array argument as it is: nanobind would else hand a strided array over as a copy, write to that
// and throw it away.
inline auto as_is() { return nb::arg().noconvert(); }
inline const nb::arg any;

void bind_shm(nb::module_ &m);

#endif

// Processes of one host: dither.reduce.transports.shared_memory checks the arguments.
#include "module.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>

namespace {

// Whether a signal's handler raised: Python runs handlers in the main thread alone.
int interrupted(void *) {
    if (getpid() != gettid()) return 0;
    const PyGILState_STATE state = PyGILState_Ensure();
    const int raised = PyErr_CheckSignals();
    PyGILState_Release(state);
    return raised != 0;
}

// "kind: rank: text"; the rank is -1 if the error is about none.
void check_shm(dither_status status, int culprit) {
    if (status == DITHER_OK) return;
    if (status == DITHER_INTERRUPTED && PyErr_Occurred()) throw nb::python_error();
    throw StatusError(std::string(kind_of(status)) + ": " + std::to_string(culprit) + ": " +
                      dither_status_text(status));
}

template <typename Call> void unlocked_shm(dither_shm *shm, Call call) {
    const dither_status status = without_lock(call);
    check_shm(status, shm ? dither_shm_culprit(shm) : -1);
}

dither_sum sum_type(const Out &buffer) {
    const nb::dlpack::dtype type = buffer.dtype();
    const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
    if (code == nb::dlpack::dtype_code::Int || code == nb::dlpack::dtype_code::UInt) switch (type.bits) {
        case 8: return DITHER_SUM_8;
        case 16: return DITHER_SUM_16;
        case 32: return DITHER_SUM_32;
        case 64: return DITHER_SUM_64;
        default: break;
        }
    if (code == nb::dlpack::dtype_code::Float && type.bits == 32) return DITHER_SUM_F32;
    if (code == nb::dlpack::dtype_code::Float && type.bits == 64) return DITHER_SUM_F64;
    throw nb::type_error("sums take integers, float32 or float64");
}

using Masks = std::vector<std::pair<std::shared_ptr<Key>, bool>>;

struct Release : dither_release {
    std::shared_ptr<Key> drawn; // keep what is used alive
    std::shared_ptr<dither_pool> open;
    std::vector<dither_key *> keys;
    std::vector<int> signs;

    Release(const Grid &numbers, double by, double times) : dither_release{} {
        grid = numbers;
        factor = by;
        scale = times;
    }
    void noise(const Pool *source, std::shared_ptr<Key> from, double deviation) {
        if (source) open = source->open();
        drawn = std::move(from);
        pool = open.get();
        key = drawn ? drawn->key : nullptr;
        sigma = deviation;
    }
    void mask(const Masks &pads) {
        for (const auto &[pad, subtract] : pads) {
            keys.push_back(pad->key);
            signs.push_back(subtract);
        }
        masks = keys.size();
        mask_keys = keys.data();
        mask_signs = signs.data();
    }
};

struct Shm {
    std::shared_ptr<dither_shm> shm; // shared with calls under way

    Shm(int file, unsigned rank, double timeout) {
        dither_shm *made = nullptr;
        unlocked_shm(nullptr, [&] { return dither_shm_attach(file, rank, timeout, interrupted, nullptr, &made); });
        shm = std::shared_ptr<dither_shm>(made, dither_shm_free);
    }
    std::shared_ptr<dither_shm> open() const {
        if (!shm) throw StatusError("closed: -1: the segment is closed");
        return shm;
    }
    template <typename Call> void call(Call action) {
        const std::shared_ptr<dither_shm> held = open();
        unlocked_shm(held.get(), [&] { return action(held.get()); });
    }
};

// Sums of contributions with everything but the values settled beforehand. The group and the pool may be closed
// between two calls, so they are opened for each.
struct Contribution {
    const Shm *group;
    const Pool *pool;
    std::shared_ptr<Key> key;
    const dither_kernels *kernels;
    double sigma, clip;
    Grid grid;
    Masks masks;

    std::pair<uint64_t, bool> operator()(const In &values, const Out &out) const {
        uint64_t saturated = 0;
        int finite = 1;
        const std::shared_ptr<dither_shm> shm = group->open();
        const dither_float type = float_type(values), out_type = float_type(out);
        Release how(grid, 1.0, 1.0);
        same_size(out, values.shape(0));
        how.noise(pool, key, sigma);
        how.mask(masks);
        unlocked_shm(shm.get(), [&] {
            return dither_shm_contribute(shm.get(), kernels, &how, clip, type, values.data(), out_type, out.data(),
                                         out.shape(0), &finite, &saturated);
        });
        return {saturated, finite != 0};
    }
};

void bind_messages(nb::class_<Shm> &c) {
    c.def("send", [](Shm &s, unsigned to, In message) {
        s.call([&](dither_shm *m) { return dither_shm_send(m, to, message.data(), message.nbytes()); });
    }, any, as_is());
    c.def("receive", [](Shm &s, unsigned from, Out out) {
        s.call([&](dither_shm *m) { return dither_shm_receive(m, from, out.data(), out.nbytes()); });
    }, any, as_is());
    c.def("exchange", [](Shm &s, unsigned to, In message, unsigned from, Out out) {
        s.call([&](dither_shm *m) {
            return dither_shm_exchange(m, to, message.data(), message.nbytes(), from, out.data(), out.nbytes());
        });
    }, any, as_is(), any, as_is());
    c.def("sum", [](Shm &s, const Kernels &k, Out buffer) {
        const dither_sum type = sum_type(buffer);
        s.call([&](dither_shm *m) { return dither_shm_sum(m, k.table, type, buffer.data(), buffer.shape(0)); });
    }, any, as_is());
}

void bind_release(nb::class_<Shm> &c) {
    c.def("release", [](Shm &s, const Kernels &k, const Pool *pool, std::shared_ptr<Key> key, double sigma,
                        const Grid &grid, double factor, double scale, In values, Out out, const Masks &masks) {
        uint64_t saturated = 0;
        Release how(grid, factor, scale);
        const dither_float type = float_type(values), out_type = float_type(out);
        same_size(out, values.shape(0));
        how.noise(pool, std::move(key), sigma);
        how.mask(masks);
        s.call([&](dither_shm *m) {
            return dither_shm_release(m, k.table, &how, type, values.data(), out_type, out.data(), out.shape(0),
                                      &saturated);
        });
        return saturated;
    }, any, nb::arg().none(), nb::arg().none(), any, any, any, any, as_is(), as_is(), any);
    c.def("encrypted", [](Shm &s, const Kernels &k, const Grid &grid, double factor, double scale, In pad, In total,
                          In values, Out out) {
        uint64_t saturated = 0;
        Release how(grid, factor, scale);
        const dither_float type = float_type(values), out_type = float_type(out);
        same_size(out, values.shape(0));
        same_size(pad, values.shape(0));
        same_size(total, values.shape(0));
        is_message(pad, grid);
        is_message(total, grid);
        s.call([&](dither_shm *m) {
            return dither_shm_encrypted(m, k.table, &how, pad.data(), total.data(), type, values.data(), out_type,
                                        out.data(), out.shape(0), &saturated);
        });
        return saturated;
    }, any, any, any, any, as_is(), as_is(), as_is(), as_is());
}

} // namespace

void bind_shm(nb::module_ &m) {
    m.def("shm_create", [](unsigned ranks) {
        int file = -1;
        check_shm(dither_shm_create(ranks, &file), -1);
        return file;
    });
    nb::class_<Shm> c(m, "Shm");
    c.def(nb::init<int, unsigned, double>());
    c.def("close", [](Shm &s) { s.shm.reset(); });
    c.def_prop_ro("ranks", [](const Shm &s) { return dither_shm_ranks(s.open().get()); });
    bind_messages(c);
    bind_release(c);
    nb::class_<Contribution>(m, "Contribution")
        .def("__init__", [](Contribution *self, const Shm &s, const Kernels &k, const Pool *pool,
                            std::shared_ptr<Key> key, double sigma, const Grid &grid, double clip, const Masks &masks) {
            new (self) Contribution{&s, pool, std::move(key), k.table, sigma, clip, grid, masks};
        }, any, any, nb::arg().none(), nb::arg().none(), any, any, any, any, nb::keep_alive<1, 2>(),
             nb::keep_alive<1, 4>())
        .def("__call__", &Contribution::operator(), as_is(), as_is());
}
